"""Protects: what frozen layers gave is never computed twice, never mixed up, and never changes a number."""

import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rmkit import (
    Preference,
    RewardModel,
    TrainConfig,
    computed_once,
    features,
    fit,
    load_backbone,
    load_preferences,
)
from rmkit.store import main
from rmkit.trunk import OVERHEAD, Trunk, frozen_layers, size_cap, trunk_folder

# The same completions under two prompts, three completions, seventeen (more than a row takes), and plain pairs.
DATA = [
    *load_preferences("json_vs_text")[:40:3],
    Preference("Hi", ("Hello, you!", "No.", "{}"), (0, 1, 1)),
    Preference("Hello", ("Hello, you!", "No.", "{}"), (0, 1, 2)),
    Preference("Count. " * 30, tuple(f"From {n} to {n + 1}." for n in range(17)), tuple(range(17))),
]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store of its own for every test."""
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RMKIT_TRUNK_GB", raising=False)
    return tmp_path / "cache" / "trunk"


@pytest.fixture
def make_model(tiny_folder):
    """The same fresh model on every call, with its norms disturbed so that none is the identity."""

    def make(trainable="last:2", seed=0, **settings):
        torch.manual_seed(seed)
        backbone = load_backbone(str(tiny_folder))
        with torch.no_grad():
            for name, weight in backbone.model.named_parameters():
                if "norm" in name:
                    weight += 0.1 * torch.randn_like(weight)
        return RewardModel(backbone, trainable=trainable, **settings)

    return make


SETTINGS = [
    {"trainable": "head"},
    {"trainable": "head", "pooling": "mean", "head": "mlp"},
    {"trainable": "last:1"},
    {"trainable": "last:3", "pooling": "mean"},
]


def gradients(model, encoded):
    model.zero_grad()
    rewards = model(model.batch(encoded))
    (rewards * torch.arange(rewards.numel()).view(rewards.shape).cos()).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rewards_and_gradients_are_those_of_the_whole_model(make_model, settings):
    """Whichever preferences share a batch, whether the states were just computed or are read back."""
    model = make_model(**settings)
    encoded = model.encode(DATA)
    expected, slopes = model.rewards(encoded), gradients(model, encoded[:5])
    for _ in range(2):
        with computed_once(model, encoded) as trunk:
            for tokens in (1, 200, 10_000):
                torch.testing.assert_close(model.rewards(encoded, tokens), expected, rtol=1e-5, atol=1e-5)
            found = gradients(model, encoded[:5])
    assert trunk.computed == 0, "the second time all of it is read"
    assert found.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert (found[name] - slope).norm() <= 1e-4 * slope.norm(), name


@pytest.mark.parametrize(("trainable", "rate"), [("head", 1e-2), ("last:2", 1e-3)])
def test_fifty_steps_give_the_same_curve(make_model, monkeypatch, trainable, rate):
    """Loss of every step and every validation within 1e-4, computed once and computed every time."""
    train, validation = DATA[:10], DATA[10:]
    config = TrainConfig(
        learning_rate=rate, batch_size=4, max_steps=50, eval_every=10, patience=None, micro_batch_tokens=100
    )
    curves = []
    for gigabytes in ("0", "1", "1"):
        monkeypatch.setenv("RMKIT_TRUNK_GB", gigabytes)
        history = fit(make_model(trainable, dropout=0.1), train, validation, config)
        curves.append([record["loss"] for record in history.steps + history.validations])
        assert trunk_folder().exists() == (gigabytes == "1")
    assert curves[0][0] - curves[0][49] > 0.05, "nothing was learned, so a wrong gradient would not show"
    assert torch.tensor(curves).std(0).max() < 1e-4


def test_second_run_does_not_touch_the_frozen_layers(make_model, monkeypatch):
    """Nor does the second epoch, another seed of the head, or pairs drawn anew from the same answers."""
    fit(make_model(), DATA[:10], DATA[10:], TrainConfig(patience=None))
    calls = []
    monkeypatch.setattr(Trunk, "_compute", lambda *_: calls.append(1))
    other = [replace(p, completions=p.completions[::-1]) for p in DATA[:10]]
    for model, train in ((make_model(), DATA[:10]), (make_model(seed=0, head="mlp"), other)):
        fit(model, train, DATA[10:], TrainConfig(epochs=2, patience=None))
    assert not calls


def test_what_differs_is_kept_apart(make_model, tiny_folder):
    """Weights, number of layers, precision, pooling of a head's vectors, and the prompt before the same answer."""
    first = make_model()
    others = [make_model("last:1"), make_model("head"), make_model("head", pooling="mean"), make_model(seed=1)]
    others += [make_model(), make_model()]
    with torch.no_grad():
        others[-1].body.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    others[-2].autocast = torch.bfloat16
    keys = {Trunk(model).folder.name for model in (first, *others)}
    assert len(keys) == 7
    assert Trunk(make_model(head="mlp", dropout=0.5, max_length=40)).folder.name == Trunk(first).folder.name
    with torch.no_grad():
        first.body.layers[3].mlp.up_proj.weight += 1  # which trains, and is above
    assert Trunk(first).folder.name in keys
    hi, hello = first.encode(DATA[14:16])
    assert set(Trunk(first)._paths(hi)).isdisjoint(Trunk(first)._paths(hello))


def test_sliding_window_layers_keep_their_kind(tmp_path, tiny_folder):
    """Qwen's configuration says of every layer how it attends, in the order of the whole body."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=1500, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=16, max_window_layers=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "qwen")
    model = RewardModel(load_backbone(str(tmp_path / "qwen")), trainable="last:3")
    assert model.max_length == 16, "a row no longer than the window is seen whole by every layer"
    with pytest.warns(UserWarning, match="lost their oldest"):
        encoded = model.encode(DATA)
    expected = model.rewards(encoded)
    with computed_once(model, encoded) as trunk:
        assert trunk.top.config.layer_types == config.layer_types[1:]
        torch.testing.assert_close(model.rewards(encoded), expected, rtol=1e-5, atol=1e-5)


DAMAGES = {
    "truncated": lambda content: content[:-4],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "garbage": lambda content: b"x" * len(content),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_corrupt_entry_is_computed_anew(make_model, damage):
    model = make_model()
    encoded = model.encode(DATA[:4])
    expected = model.rewards(encoded)
    with computed_once(model, encoded) as trunk:
        model.rewards(encoded)
        paths = trunk._paths(encoded[1])
    sound = [path.read_bytes() for path in paths]
    for path, content in zip(paths, sound, strict=True):
        path.write_bytes(damage(content))
    with computed_once(model, encoded) as trunk:
        torch.testing.assert_close(model.rewards(encoded), expected, rtol=1e-5, atol=1e-5)
        assert trunk.computed == 1
        model.rewards(encoded)
        assert trunk.computed == 1, "it was not written again"


def bytes_kept(store):
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def test_store_stays_under_its_cap(make_model, monkeypatch, store, recwarn):
    """What is longest unused goes first; what is needed now stays; what does not fit is said and computed each time."""
    model = make_model()
    first, second = model.encode(DATA[:5]), model.encode(DATA[5:10])
    with computed_once(model, first) as trunk:
        model.rewards(first)
    of_first = bytes_kept(store)
    old = [trunk._paths(e) for e in first]
    for used, paths in zip((5, 3, 1, 2, 4), old, strict=True):
        for path in paths:
            os.utime(path, (used, used))
    monkeypatch.setenv("RMKIT_TRUNK_GB", str(1.5 * of_first / 1e9))
    with computed_once(model, first[:1] + second) as trunk:
        for _ in range(2):
            model.rewards(first[:1] + second)
            assert trunk.computed == 5, "all that is needed was kept"
    assert bytes_kept(store) <= size_cap()
    there = [all(path.is_file() for path in paths) for paths in old]
    assert there[0], "it was needed"
    assert not there[2] and not there[3], "the longest unused"
    assert there[4], "the last used of those that were not needed"
    monkeypatch.setenv("RMKIT_TRUNK_GB", str(of_first / 2e9))
    expected = model.rewards(first + second)
    with computed_once(model, first + second) as trunk:
        torch.testing.assert_close(model.rewards(first + second), expected, rtol=1e-5, atol=1e-5)
        assert trunk.computed > 0
    assert "computed anew" in str(recwarn.pop(UserWarning).message)
    assert 0 < bytes_kept(store) <= size_cap()


def test_what_judgements_share_is_kept_and_counted_once(make_model, monkeypatch, store, recwarn):
    """All pairs of four answers to a prompt: five texts, not eighteen."""
    model = make_model()
    answers = ("A drink made of leaves.", "A drink.", "No idea at all", "Leaves, perhaps.")
    pairs = [Preference("What is tea?", two) for two in itertools.combinations(answers, 2)]
    encoded = model.encode(pairs)
    with computed_once(model, encoded):
        model.rewards(encoded)
    need = bytes_kept(store)
    shutil.rmtree(store)
    monkeypatch.setenv("RMKIT_TRUNK_GB", str((need + 5 * OVERHEAD) / 1e9))
    for computed in (6, 0):
        with computed_once(model, encoded) as trunk:
            model.rewards(encoded)
            assert trunk.computed == computed
    assert bytes_kept(store) == need and not recwarn.list


def test_corrupt_entry_of_a_full_store_is_written_anew(make_model, monkeypatch, store):
    model = make_model()
    encoded = model.encode(DATA[:4])
    with computed_once(model, encoded) as trunk:
        model.rewards(encoded)
        path = trunk._paths(encoded[1])[0]
    path.write_bytes(b"x" * path.stat().st_size)
    monkeypatch.setenv("RMKIT_TRUNK_GB", str((bytes_kept(store) + 10) / 1e9))
    for computed in (1, 0):
        with computed_once(model, encoded) as trunk:
            model.rewards(encoded)
            assert trunk.computed == computed
    assert bytes_kept(store) <= size_cap()


def test_a_model_saved_and_loaded_reads_what_was_kept(make_model, tmp_path):
    model = make_model()
    encoded = model.encode(DATA)
    with computed_once(model, encoded):
        model.rewards(encoded)
    loaded = RewardModel.load(model.save(tmp_path / "model"))
    with computed_once(loaded, encoded) as trunk:
        loaded.rewards(encoded)
        assert trunk.computed == 0


def test_a_layer_that_the_user_trains_too_is_not_frozen(make_model):
    model = make_model("head")
    assert frozen_layers(model) == 4
    model.body.layers[2].requires_grad_(True)
    with computed_once(model, model.encode(DATA[:2])) as trunk:
        assert not trunk.whole and len(trunk.top.layers) == 2
        model(model.batch(model.encode(DATA[:2]))).sum().backward()
    assert all(p.grad is not None for p in model.body.layers[2].parameters())
    model.body.norm.requires_grad_(True)
    model.body.layers[2].requires_grad_(False)
    assert frozen_layers(model) == 3
    model.body.embed_tokens.requires_grad_(True)
    assert frozen_layers(model) == 0


def test_batch_outlives_what_it_was_made_for(make_model):
    model = make_model()
    encoded = model.encode(DATA[:2])
    with computed_once(model, encoded):
        batch = model.batch(encoded)
    with pytest.raises(ValueError, match="made within computed_once, which has ended"):
        model(batch)


def test_hidden_states_of_every_token_come_from_the_store(make_model):
    """As the body gives them; and where only the head's vectors are kept, there are none to give."""
    model = make_model("last:2")
    encoded = model.encode(DATA[:2])
    with torch.no_grad(), computed_once(model, encoded):
        batch = model.batch(encoded)
        states, expected = model.hidden_states(batch), model.run(model.body, model.lay_out(encoded))
    tokens = batch.segment >= 0
    assert torch.allclose(states[tokens], expected[tokens], atol=1e-5)
    model = make_model("head")
    with computed_once(model, encoded), pytest.raises(ValueError, match="what the head reads, and no other token"):
        model.hidden_states(model.batch(encoded))


def test_disk_that_takes_nothing_is_said_once_and_training_goes_on(make_model, store):
    store.parent.mkdir()
    store.write_text("a file where the folder should be")
    model = make_model()
    with pytest.warns(UserWarning, match="cannot be kept in .*Training goes on without") as told:
        history = fit(model, DATA[:10], DATA[10:], TrainConfig(max_steps=2))
    assert len(history.steps) == 2 and len([w for w in told if "cannot be kept" in str(w.message)]) == 1


@pytest.mark.parametrize("size", ["two", "-1", "nan", "inf"])
def test_cap_that_is_no_size_is_said(monkeypatch, size):
    monkeypatch.setenv("RMKIT_TRUNK_GB", size)
    with pytest.raises(ValueError, match=f"RMKIT_TRUNK_GB is '{size}': it wants gigabytes"):
        size_cap()


@pytest.mark.parametrize("trainable", ["all", "lora", "last:4"])
def test_nothing_is_kept_where_nothing_is_frozen(make_model, store, trainable):
    model = make_model(trainable)
    with computed_once(model, model.encode(DATA[:2])) as trunk:
        model.rewards(DATA[:2])
        assert trunk is None and model.trunk is None
    assert not store.exists()


def test_layers_that_drop_at_random_are_not_frozen_in_time(make_model, store):
    model = make_model()
    model.body.config.attention_dropout = 0.1
    with computed_once(model, model.encode(DATA[:2])) as trunk:
        model.rewards(DATA[:2])
        assert trunk is None
    assert not store.exists()


def test_model_is_itself_again_afterwards(make_model):
    """After an error too: a model that went on reading the store would score texts by weights that it no longer has."""
    model = make_model()
    encoded = model.encode(DATA[:2])
    with pytest.raises(KeyError), computed_once(model, encoded):
        raise KeyError
    assert model.trunk is None and model.batch(encoded).hidden is None


def test_one_within_another_is_the_same(make_model):
    """As a grid of runs over one set: what was opened around them stays open."""
    model = make_model()
    encoded = model.encode(DATA)
    with computed_once(model, encoded) as trunk:
        fit(model, DATA[:10], DATA[10:], TrainConfig(max_steps=1))
        assert model.trunk is trunk
    assert model.trunk is None


def test_entries_that_cannot_be_deleted_do_not_end_the_run(make_model, monkeypatch, store):
    """Of a cache that others share and this one only reads."""
    model = make_model()
    with computed_once(model, model.encode(DATA[:5])):
        model.rewards(DATA[:5])
    monkeypatch.setenv("RMKIT_TRUNK_GB", "1e-6")
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError("not yours")))
    with pytest.warns(UserWarning, match="computed anew"):
        fit(model, DATA[5:10], DATA[10:], TrainConfig(max_steps=1))


def test_command_says_and_clears(make_model, store, capsys):
    model = make_model("head")
    with computed_once(model, model.encode(DATA)):
        model.rewards(DATA)
    files = len([path for path in store.rglob("*") if path.is_file()])
    assert files == sum(len(p.completions) for p in DATA)
    assert main([]) == 0 and f"{files} entries, " in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "rmkit.store", "clear"], capture_output=True, text=True)
    assert f"{files} of {files} entries deleted" in done.stdout and not store.exists() and not done.stderr
    assert main([]) == 0 and ": 0 entries, " in capsys.readouterr().out
    assert main(["wipe"]) == 2 and "usage" in capsys.readouterr().err


def test_features_are_what_the_head_reads(make_model, monkeypatch):
    """features @ head = rewards, in the order of the preferences, zeros where one has fewer completions; computed once."""
    model = make_model(trainable="head")
    short = Preference("Tea?", ("Yes, with milk, please, and in a large cup.", "No."), (0, 0))
    long = Preference(
        "Milk or sugar or lemon or nothing at all, if I may ask?", ("Milk.", "Both!", "No, thank you."), (0, 1, 2)
    )
    read = features(model, [long, short, long], micro_batch_tokens=100)
    assert read.shape == (3, 3, model.body.config.hidden_size) and (read[1, 2] == 0).all()
    expected = model.rewards([long, short, long])
    assert torch.allclose(read @ model.head.weight[0], expected, atol=1e-5)
    monkeypatch.setattr(Trunk, "_compute", None)  # which would now fail
    assert torch.equal(features(model, [short]), read[1:2, :2])


def test_features_leave_the_model_in_its_mode(make_model):
    model = make_model(trainable="all", dropout=0.5).train()
    pair = Preference("Tea?", ("Yes.", "No."))
    assert torch.equal(features(model, [pair]), features(model, [pair])) and model.training and model.trunk is None
