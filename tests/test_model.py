"""Protects: a reward depends on its own text alone, equals transformers' own, and survives saving and loading."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rmkit import Preference, PreferenceError, RewardModel, load_backbone, load_preferences

PARTS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]


@pytest.fixture(scope="module")
def preferences():
    """Short and long, of two and of three completions."""
    two = load_preferences("json_vs_text")[:40:7]
    return [
        *two,
        Preference("Hi", ("Hello, you!", "No.", "{}"), (0, 1, 1)),
        Preference(" ".join("abcdefgh" * 9), ("Yes", "?")),
    ]


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return RewardModel(tiny).eval()


def assert_close(rewards, expected, tolerance=1e-5):
    """Within 1e-5 · max(1, |r|): what fp32 gives when sums are taken in another order."""
    assert rewards.shape == expected.shape
    assert ((rewards - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all()


def alone(model, preference):
    """Each completion in a forward pass of its own, without any padding."""
    return torch.stack([model.score(preference.prompt, [text])[0] for text in preference.completions])


# --- a reward is the text's alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_do_not_depend_on_the_company(tiny, preferences, pooling):
    """Nor on padding, batch size or order: the oldest reward-model bug is a score that moves with the batch."""
    model = RewardModel(tiny, pooling=pooling)
    expected = torch.zeros(len(preferences), 3)
    for i, preference in enumerate(preferences):
        expected[i, : len(preference.completions)] = alone(model, preference)
    assert expected[:, :2].unique().numel() == 2 * len(preferences), "the scores are all alike: nothing to tell apart"
    for tokens in (1, 150, 10_000):
        assert_close(model.rewards(preferences, tokens), expected)
    assert_close(model.rewards(preferences[::-1]), expected.flip(0))
    assert_close(model.rewards(model.encode(preferences)), expected)


def test_smollm2_rewards_do_not_depend_on_the_company(smollm2):
    pair, long = load_preferences("json_vs_text")[0], Preference("Count. " * 20, ("One, two.", "No."))
    torch.manual_seed(0)
    model = RewardModel(smollm2)
    assert_close(model.rewards([pair, long])[0], alone(model, pair))


def test_pad_id_is_never_read(model, preferences):
    """Padding with the end of turn itself moves no reward."""
    expected = model.rewards(preferences)
    model.tokenizer.pad_token = model.tokenizer.eos_token
    assert torch.equal(model.rewards(preferences), expected)


def test_mean_pooling_by_hand(tiny):
    """Over the completion's tokens, the end of turn among them, and none of the prompt's."""
    model = RewardModel(tiny, pooling="mean").eval()
    preference = Preference("Tell me.", ("A short one.", "Another, that is somewhat longer."))
    (encoded,) = model.encode([preference])
    for k, completion in enumerate(encoded.completions):
        hidden = model.body(torch.tensor([encoded.prompt + completion])).last_hidden_state[0]
        by_hand = hidden[len(encoded.prompt) :].sum(0) / len(completion) @ model.head.weight[0]
        assert_close(model.rewards([preference])[0, k], by_hand)


def test_score_takes_any_number_of_completions(model):
    texts = ["Yes.", "No.", "Perhaps, but who can say?", "Yes."]
    scores = model.score("Is it?", texts)
    assert_close(scores[3], scores[0])
    assert scores[:3].unique().numel() == 3
    assert_close(model.score("Is it?", texts * 5), scores.repeat(5))  # more than a row takes
    assert_close(model.score("Is it?", texts[::-1]), scores.flip(0))
    assert_close(model.score("Is it?", texts[1:2]), scores[1:2])
    assert_close(model.score("Is it?", tuple(texts[:2])), model.rewards([Preference("Is it?", tuple(texts[:2]))])[0])
    assert model.score("Is it?", []).shape == (0,)
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        model.score("Is it?", "Yes.")


def test_rows_beyond_max_length_are_cut_counted_and_reported(tiny, preferences):
    """None is dropped, none is cut in silence; what comes out the same is told too."""
    model = RewardModel(tiny, max_length=40)
    long = Preference("word " * 50, ("Yes, it is.", "No."))
    same = Preference("Why?", tuple(f"{first} {'and so on ' * 40}" for first in ("Rain,", "Snow,")))
    with pytest.warns(UserWarning, match="preferences have") as told:
        encoded = model.encode([Preference("Hi", ("Hello.", "No.")), long, same])
    assert len(encoded) == 3 and [e.length for e in encoded[1:]] == [40, 40]
    cut, blurred = (str(warning.message) for warning in told)
    assert cut.startswith("2 of 3 preferences have rows of more than 40 tokens") and cut.endswith(": 1, 2")
    assert f"up to {max(e.cut for e in encoded)}" in cut
    assert blurred.startswith("1 of 3 preferences have completions of the same tokens") and blurred.endswith(": 2")
    assert model.rewards(encoded)[2].unique().numel() == 1


@pytest.mark.parametrize("max_length", [0, 1, 513])
def test_max_length_is_what_the_backbone_reads_at_most(tiny, max_length):
    with pytest.raises(ValueError, match=f"from 2 to the backbone's 512: got {max_length}"):
        RewardModel(tiny, max_length=max_length)


def test_what_cannot_be_encoded_is_named_all_together(model, preferences):
    """Before anything is computed, with the index of each: not one at a time, in the middle of a run."""
    rows = [
        preferences[0],
        replace(preferences[0], completions=("</s>", "No.")),
        preferences[1],
        replace(preferences[1], prompt="</s>"),
    ]
    with pytest.raises(PreferenceError) as raised:
        model.encode(rows)
    assert [problem.partition(": ")[0] for problem in raised.value.problems] == ["preference 1", "preference 3"]
    assert "completion 0" in raised.value.problems[0] and "prompt" in raised.value.problems[1]


# --- head, dropout, precision -------------------------------------------------------------------------------


def test_mlp_head_by_hand(tiny, preferences):
    model = RewardModel(tiny, head="mlp").eval()
    batch = model.collate(model.encode(preferences[:2]))
    with torch.no_grad():
        first, _, last = model.head
        pooled = model.body(batch.input_ids, batch.attention_mask).last_hidden_state[
            range(4), batch.last_positions().flatten()
        ]
        by_hand = F.gelu(pooled @ first.weight.T + first.bias) @ last.weight.T
        assert_close(model(batch), by_hand.view(2, 2))


def test_dropout_only_while_training(tiny, preferences):
    """And scoring in the middle of a training run neither drops anything nor ends the training mode."""
    model = RewardModel(tiny, dropout=0.5)
    batch = model.collate(model.encode(preferences[:2]))
    assert not torch.equal(model(batch), model(batch))
    assert torch.equal(model.rewards(preferences), model.rewards(preferences))
    assert model.training
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_rewards_are_fp32_when_the_body_computes_in_bf16(tiny, preferences):
    """bf16 steps by 0.03 between 4 and 8, which invents ties: the head must not compute in it."""
    tiny.autocast = torch.bfloat16
    model = RewardModel(tiny).eval()
    seen = {}
    model.body.layers[0].self_attn.q_proj.register_forward_hook(lambda *call: seen.update(body=call[-1].dtype))
    model.head.register_forward_hook(lambda _, inputs, output: seen.update(head=inputs[0].dtype, pooled=inputs[0]))
    rewards = model(model.collate(model.encode(preferences[:6])))
    assert (seen["body"], seen["head"], rewards.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(rewards, F.linear(seen["pooled"], model.head.weight).squeeze(-1))
    assert (rewards != rewards.bfloat16().float()).all()


# --- what trains --------------------------------------------------------------------------------------------

HEAD = {"head.weight"}
LAYERS = [{f"body.layers.{i}.{part}.weight" for part in PARTS + NORMS} for i in range(4)]
ADAPTERS = {f"body.layers.{i}.{part}.lora_{ab}.default.weight" for i in range(4) for part in PARTS for ab in "AB"}
TRAINABLE = {
    "head": HEAD,
    "last:1": HEAD | {"body.norm.weight"} | LAYERS[3],
    "last:4": HEAD | {"body.norm.weight"}.union(*LAYERS),
    "lora": HEAD | ADAPTERS,
    "all": HEAD | {"body.norm.weight", "body.embed_tokens.weight"}.union(*LAYERS),
}


@pytest.mark.parametrize(("trainable", "names"), TRAINABLE.items())
def test_trainable_is_what_its_name_says(tiny, trainable, names):
    model = RewardModel(tiny, trainable=trainable)
    found = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert set(found) == names
    assert model.trainable_parameters() == sum(found.values())


def test_later_model_does_not_inherit_what_was_frozen(tiny):
    """A second RewardModel on one backbone trains what it names, whatever the first one froze."""
    for trainable in ("head", "all", "last:1"):
        model = RewardModel(tiny, trainable=trainable)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == TRAINABLE[trainable]


@pytest.mark.parametrize(
    "setting",
    [
        {"pooling": "first"}, {"head": "Linear"}, {"dropout": 1.0}, {"dropout": -0.1},
        *({"trainable": name} for name in ("last", "last:0", "last:5", "last:-1", "last:x", "head:1", "none", "")),
    ],
    ids=str,
)  # fmt: skip
def test_setting_that_does_not_exist_is_refused(tiny, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name} is .*got {value!r}"):
        RewardModel(tiny, **setting)


def test_lora_starts_as_the_identity(tiny, preferences):
    before = RewardModel(tiny, trainable="head")
    expected = before.rewards(preferences)
    with_adapters = RewardModel(tiny, trainable="lora")
    with_adapters.head.load_state_dict(before.head.state_dict())
    assert torch.equal(with_adapters.rewards(preferences), expected)


def test_adapters_of_an_earlier_model_are_not_inherited(tiny):
    """They would train, or not, without being named."""
    RewardModel(tiny, trainable="lora")
    with pytest.raises(ValueError, match="LoRA adapters of an earlier model: load it again"):
        RewardModel(tiny, trainable="head")


# --- save and load ------------------------------------------------------------------------------------------


def disturbed(backbone, **settings):
    """A model whose every trainable weight has moved, adapters too, as training would have done."""
    torch.manual_seed(1)
    model = RewardModel(backbone, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"trainable": "lora"}, {"trainable": "last:2", "dropout": 0.25}, {"head": "mlp"}, {"pooling": "mean"},
        {"head": "mlp", "pooling": "mean", "trainable": "lora"},
    ],
    ids=str,
)  # fmt: skip
def test_saved_and_loaded_is_the_same_model(tiny, tmp_path, preferences, settings):
    """Rewards, settings, tokenizer and template; a head that is lost in saving is chance after reloading."""
    model = disturbed(tiny, **settings)
    loaded = RewardModel.load(model.save(tmp_path / "deep" / "model"))
    assert_close(loaded.rewards(preferences), model.rewards(preferences))
    assert not loaded.training
    assert (loaded.settings, loaded.backbone_name) == (model.settings, "tiny")
    assert loaded.tokenizer.chat_template == model.tokenizer.chat_template
    assert loaded.tokenizer.pad_token_id == 0
    assert loaded.encode(preferences) == model.encode(preferences)
    assert {path.suffix for path in (tmp_path / "deep" / "model").iterdir()} == {".safetensors", ".json", ".jinja"}


@pytest.fixture(params=["all", "lora"])
def exported(request, tiny, tmp_path):
    """A saved model, and what transformers makes of the folder."""
    model = disturbed(tiny, trainable=request.param)
    folder = model.save(tmp_path / "model")
    return model, AutoModelForSequenceClassification.from_pretrained(folder).eval()


def rows_of(model, preferences):
    encoded = model.encode(preferences)
    rows = [torch.tensor(e.prompt + c) for e in encoded for c in e.completions]
    rewards = model.rewards(encoded)
    return rows, torch.cat([rewards[i, : len(e.completions)] for i, e in enumerate(encoded)])


@torch.no_grad()
def test_transformers_gives_the_same_scores(exported, preferences):
    """For a row alone, and for rows padded on the right or left, whether or not positions are given."""
    model, theirs = exported
    rows, rewards = rows_of(model, preferences)
    assert all(row[-1] == model.tokenizer.eos_token_id for row in rows)
    assert_close(torch.stack([theirs(row[None]).logits[0, 0] for row in rows]), rewards)
    for side in ("right", "left"):
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0, padding_side=side)
        ones = [torch.ones_like(row) for row in rows]
        mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        assert_close(theirs(ids, attention_mask=mask).logits[:, 0], rewards)
        assert_close(theirs(ids, attention_mask=mask, position_ids=positions).logits[:, 0], rewards)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["tiny", "smollm2"])
def test_folder_alone_gives_the_text_and_the_scores(request, backbone, tmp_path, preferences):
    """As a stranger would use it: the folder's own tokenizer, its chat template, its defaults, and nothing of rmkit."""
    torch.manual_seed(0)
    model = RewardModel(request.getfixturevalue(backbone), max_length=256)
    folder = model.save(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dialogue = Preference(
        "And hot?", ("Yes, mostly.", "No"), history=(("user", "What is tea?"), ("assistant", "A drink."))
    )
    pairs = [*preferences[:3], dialogue]
    encoded = model.encode(pairs)
    texts = [
        tokenizer.apply_chat_template([*p.messages, {"role": "assistant", "content": c}], tokenize=False)
        for p in pairs
        for c in p.completions
    ]
    rows = [e.prompt + c for e in encoded for c in e.completions]
    assert texts == [model.tokenizer.decode(row) for row in rows]
    assert [tuple(ids) for ids in tokenizer(texts)["input_ids"]] == rows  # by default, without a second BOS
    for side in ("right", "left"):
        inputs = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        assert_close(theirs(**inputs).logits[:, 0], model.rewards(encoded).flatten())
    assert (tokenizer.truncation_side, tokenizer.model_max_length) == ("left", 256)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "a file that others may not read"


@torch.no_grad()
def test_transformers_walks_past_the_end_where_pad_is_eos(exported, preferences):
    """The trap that the other pad token avoids: with pad = eos it reads the token before the end of turn."""
    model, theirs = exported
    rows, rewards = rows_of(model, preferences)
    theirs.config.pad_token_id = model.tokenizer.eos_token_id
    scores = torch.stack([theirs(row[None]).logits[0, 0] for row in rows])
    before_the_end = [theirs.score(theirs.model(row[None]).last_hidden_state[0, -2])[0] for row in rows]
    assert_close(scores, torch.stack(before_the_end))
    assert ((scores - rewards).abs() > 1e-3).all()


def test_export_says_what_servers_ask(tiny, tmp_path):
    """vLLM squashes a score unless it is a regression; a pad id that is the eos id misplaces the pooling."""
    folder = RewardModel(tiny).save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["problem_type"], config["pad_token_id"], config["eos_token_id"]) == ("regression", 0, 2)
    assert len(config["id2label"]) == 1  # without it, transformers takes two
    assert load_file(folder / "model.safetensors")["score.weight"].shape == (1, 64)


@pytest.mark.parametrize("settings", [{"pooling": "mean"}, {"head": "mlp"}], ids=str)
def test_what_transformers_would_read_otherwise_it_cannot_load(tiny, tmp_path, preferences, settings):
    """It has one way to pool and one head: another model's it would read wrong, or draw anew, and go on."""
    model = RewardModel(tiny, **settings)
    with pytest.warns(UserWarning, match="only rmkit loads this folder"):
        folder = model.save(tmp_path / "model")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert_close(RewardModel.load(folder).rewards(preferences), model.rewards(preferences))


def test_save_replaces_a_model_and_nothing_else(tiny, tmp_path, preferences):
    folder = disturbed(tiny).save(tmp_path / "model")
    second = disturbed(tiny, head="mlp")
    second.save(str(folder))
    assert_close(RewardModel.load(folder).rewards(preferences), second.rewards(preferences))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")
    (tmp_path / "notes").write_text("of a year")
    (tmp_path / "empty").mkdir()
    assert_close(RewardModel.load(second.save(tmp_path / "empty")).rewards(preferences), second.rewards(preferences))
    for name in ("thesis", "notes"):
        with pytest.raises(FileExistsError, match="is not a saved reward model: give another folder"):
            second.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model", "notes", "thesis"]
    assert (tmp_path / "notes").read_text() == "of a year"


def no_weights(patch):
    def half(weights, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    patch.setattr("rmkit.model.save_file", half)


def no_tokenizer(patch):
    patch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", interrupt)


def no_renaming(patch):
    rename = Path.rename
    patch.setattr(Path, "rename", lambda self, new: interrupt() if self.name == "new" else rename(self, new))


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [no_weights, no_tokenizer, no_renaming])
def test_interrupted_save_leaves_the_old_model(model, tmp_path, monkeypatch, preferences, stop):
    """At any moment, and where there was none it leaves none: no half folder, no rubbish beside it."""
    folder = model.save(tmp_path / "model")
    expected = model.rewards(preferences)
    torch.nn.init.zeros_(model.head.weight)
    with monkeypatch.context() as patch:
        stop(patch)
        for name in ("model", "fresh"):
            with pytest.raises(KeyboardInterrupt):
                model.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_close(RewardModel.load(folder).rewards(preferences), expected)


@pytest.mark.parametrize("renames", [1, 2])
def test_death_between_two_renames_loses_no_model(model, tmp_path, preferences, renames):
    """The one that was replaced, or the one that was to replace it, comes back when it is asked for."""
    folder, expected = model.save(tmp_path / "model"), model.rewards(preferences)
    work = tmp_path / ".model-ab_c4567"
    work.mkdir()
    folder.rename(work / "old")
    if renames == 2:
        model.save(work / "new")
    assert_close(RewardModel.load(folder).rewards(preferences), expected)


@pytest.mark.parametrize(("dead", "other"), [("run-2", "run"), ("run[1]", "run1")])
def test_model_that_comes_back_is_no_other(model, tmp_path, dead, other):
    """Where the name of one begins another's, or is a pattern that others match."""
    work = tmp_path / f".{dead}-abcd1234"
    work.mkdir()
    model.save(tmp_path / dead).rename(work / "old")
    with pytest.raises(FileNotFoundError, match="holds no saved reward model"):
        RewardModel.load(tmp_path / other)
    RewardModel.load(tmp_path / dead)


def test_diverged_model_is_not_saved_over_a_good_one(model, tmp_path, preferences):
    folder, expected = model.save(tmp_path / "model"), model.rewards(preferences)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="rewards .*nan.*: it is not worth keeping"):
        model.save(folder)
    assert_close(RewardModel.load(folder).rewards(preferences), expected)


def test_saved_under_autocast_is_found_again_without(model, tmp_path):
    """The probe is computed in fp32 on every machine, so that a damage stands out of no rounding."""
    model.autocast = torch.bfloat16
    folder = model.save(tmp_path / "model")
    assert model.autocast is torch.bfloat16
    assert RewardModel.load(folder).autocast is None


def test_longrope_ends_where_a_reward_would_depend_on_its_company(tmp_path, tiny_folder, preferences):
    """It turns all tokens of a batch otherwise as soon as one row is longer than the original context."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=1500, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, pad_token_id=0, rope_parameters=rope,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "long")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "long")
    model = RewardModel(load_backbone(str(tmp_path / "long")))
    assert model.max_length == 64
    with pytest.warns(UserWarning, match="lost their oldest"):
        encoded = model.encode([preferences[0], Preference("Tell me of tea. " * 20, ("Yes.", "No, never."))])
    assert_close(model.rewards(encoded)[:1], model.rewards(encoded[:1]))


def test_eager_attention_scores_alike(model, preferences):
    """It adds a mask where another implementation applies it: a shared row would be read as if nothing were hidden."""
    long = Preference("Tell me. " * 40, ("Yes.", "No."))
    expected = model.rewards([*preferences, long])
    model.body.set_attn_implementation("eager")
    assert_close(model.rewards([*preferences, long]), expected)


def test_score_does_not_depend_on_the_place_in_the_list(tiny):
    """Where rows are cut, they are cut alike for all completions."""
    model = RewardModel(tiny, max_length=60)
    with pytest.warns(UserWarning, match="lost their oldest"):
        scores = model.score("Tell me. " * 30, ["Short.", "A much longer answer. " * 3] * 9)
    assert_close(scores[::2], scores[:1].expand(9))
    assert_close(scores[1::2], scores[1:2].expand(9))


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def change(folder, name, how):
    weights = load_file(folder / "model.safetensors")
    how(weights[name])
    save_file(weights, folder / "model.safetensors")


DAMAGES = {
    "truncated weights": lambda folder: os.truncate(folder / "model.safetensors", 500_000),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a tensor missing": drop_a_tensor,
    "a head drawn anew": lambda folder: change(folder, "score.weight", torch.nn.init.normal_),
    "a layer of another model": lambda folder: change(folder, "model.layers.3.mlp.up_proj.weight", torch.zero_),
    "another chat template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}"),
    "half the settings": lambda folder: os.truncate(folder / "rmkit.json", 10),
    "settings of something else": lambda folder: (folder / "rmkit.json").write_text('{"pooling": "last"}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_folder_is_said(model, tmp_path, damage):
    damage(folder := model.save(tmp_path / "model"))
    with pytest.raises(ValueError, match=f"the reward model in {folder} is damaged: ."):
        RewardModel.load(folder)


def test_folder_without_a_reward_model_is_said(tiny_folder, tmp_path):
    for folder in (tmp_path / "absent", tiny_folder):
        with pytest.raises(FileNotFoundError, match="holds no saved reward model: rmkit.json is not there"):
            RewardModel.load(folder)


def test_rewards_of_nothing_and_of_a_faulty_preference(tiny):
    """A fault is reported under the index that the caller knows it by; no preferences give no rewards."""
    model = RewardModel(tiny, trainable="head")
    assert model.rewards([]).shape == (0, 0)
    good, bad = Preference("a", ("b", "c")), Preference("a", ("b</s>", "c"))
    with pytest.raises(PreferenceError, match=r"preference 2: .*'</s>'"):
        model.rewards([good, good, bad])
