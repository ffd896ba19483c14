"""Protects: a reward depends on its own text alone, equals transformers' own, and survives saving and loading."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rmkit import Preference, PreferenceError, RewardModel, load_preferences

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
    for batch_size in (1, 3, 100):
        assert_close(model.rewards(preferences, batch_size), expected)
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
    assert scores[0] == scores[3] and scores[:3].unique().numel() == 3
    assert_close(model.score("Is it?", texts[::-1]), scores.flip(0))
    assert_close(model.score("Is it?", texts[1:2]), scores[1:2])
    assert_close(model.score("Is it?", tuple(texts[:2])), model.rewards([Preference("Is it?", tuple(texts[:2]))])[0])
    assert model.score("Is it?", []).shape == (0,)
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        model.score("Is it?", "Yes.")


def test_rows_beyond_the_context_are_refused(model):
    with pytest.raises(ValueError, match="the backbone reads 512"):
        model.score("word " * 600, ["Yes."])


def test_what_cannot_be_encoded_is_named_all_together(model, preferences):
    """Before anything is computed, with the index of each: not one at a time, in the middle of a run."""
    rows = [
        preferences[0],
        replace(preferences[0], prompt="word " * 600),
        preferences[1],
        replace(preferences[1], prompt="</s>"),
    ]
    with pytest.raises(PreferenceError) as raised:
        model.encode(rows)
    assert [problem.partition(": ")[0] for problem in raised.value.problems] == ["preference 1", "preference 3"]
    assert "tokens" in raised.value.problems[0] and "special token '</s>'" in raised.value.problems[1]


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
    return model, AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()


def rows_of(model, preferences):
    encoded = model.encode(preferences)
    rows = [torch.tensor(e.prompt + c) for e in encoded for c in e.completions]
    rewards = model.rewards(encoded)
    return rows, torch.cat([rewards[i, : len(e.completions)] for i, e in enumerate(encoded)])


@torch.no_grad()
def test_transformers_gives_the_same_scores(exported, preferences):
    """For a row alone, rows padded on the right, and, where positions are given, rows padded on the left."""
    model, theirs = exported
    rows, rewards = rows_of(model, preferences)
    assert_close(torch.stack([theirs(row[None]).logits[0, 0] for row in rows]), rewards)
    for side in ("right", "left"):
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0, padding_side=side)
        ones = [torch.ones_like(row) for row in rows]
        mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        assert_close(theirs(ids, attention_mask=mask, position_ids=positions).logits[:, 0], rewards)


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
    assert len(config.get("id2label", "1")) == 1
    assert load_file(folder / "model.safetensors")["score.weight"].shape == (1, 64)


@pytest.mark.parametrize("settings", [{"pooling": "mean"}, {"head": "mlp"}], ids=str)
def test_what_transformers_would_read_otherwise_is_no_classifier(tiny, tmp_path, settings):
    """It has one way to pool: given the mean-pooled head as `score.weight`, it would score another token in silence."""
    folder = RewardModel(tiny, **settings).save(tmp_path / "model")
    assert not [name for name in load_file(folder / "model.safetensors") if name.startswith("score")]
    assert "SequenceClassification" not in json.loads((folder / "config.json").read_text())["architectures"][0]


def test_save_replaces_a_model_and_nothing_else(tiny, tmp_path, preferences):
    folder = disturbed(tiny).save(tmp_path / "model")
    second = disturbed(tiny, head="mlp")
    second.save(str(folder))
    assert_close(RewardModel.load(folder).rewards(preferences), second.rewards(preferences))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "notes").write_text("of a year")
    for name in ("thesis", "notes"):
        with pytest.raises(FileExistsError, match="is not a saved reward model: give another folder"):
            second.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes", "thesis"]
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


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")


DAMAGES = {
    "truncated weights": lambda folder: os.truncate(folder / "model.safetensors", 500_000),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a tensor missing": drop_a_tensor,
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
