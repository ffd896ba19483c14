"""Protects: what users of other reward-model systems fell into, rmkit cannot fall into, or `diagnose` says so.

One section a trap, in the order of the table in which they were collected; each names who reported it.
"""

import json
import logging
import math
import random
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, pipeline

from rmkit import (
    Preference,
    PreferenceError,
    RewardModel,
    TrainConfig,
    bradley_terry,
    fit,
    load_backbone,
    load_preferences,
    split_preferences,
)
from rmkit.batching import PADDING, ranks_tensor
from rmkit.diagnosis import diagnose
from rmkit.model import POOLINGS
from rmkit.training import validate

ONE_EPOCH = TrainConfig(learning_rate=1e-3, patience=None)


@pytest.fixture(scope="module")
def split():
    return split_preferences(load_preferences("json_vs_text"))


@pytest.fixture(scope="module")
def few(split):
    return split[0][:60:3], split[1][:20:2]


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return RewardModel(tiny).eval()


def finds(check, model, *sides):
    """Whether the check found something; if so it says what to do."""
    row = diagnose(model, *sides).loc[check]
    assert bool(row.remedy) == row.found
    return row.found


def assert_close(rewards, expected):
    assert ((rewards - expected).abs() <= 1e-5 * expected.abs().clamp(min=1)).all()


# --- pooling at position −1 with right padding; pad = eos ----------------------------------------------------


def position_minus_one(hidden, batch):
    return hidden[:, -1][batch.row]


def as_transformers(pad):
    """The last token that is not the pad token, whatever the mask says."""

    def pool(hidden, batch):
        ids = batch.input_ids.masked_fill(batch.segment == PADDING, pad)
        last = ((ids != pad) * torch.arange(ids.shape[1])).amax(1)  # (N,)
        return hidden[batch.row, last[batch.row]]

    return pool


def plant(monkeypatch, model, pooling):
    monkeypatch.setitem(POOLINGS, "last", pooling)
    monkeypatch.setattr(model, "lay_out", model.collate)  # where it was reported, a completion had its own row


def test_pooling_at_position_minus_one_is_found(model, few, monkeypatch):
    """transformers#35352, trl#2758, reward-bench#115: the reward moves with the batch."""
    assert not finds("batch", model, *few)
    short, long = sorted(few[0], key=lambda p: len(p.chosen))[:: len(few[0]) - 1]
    expected = model.rewards([short])
    assert_close(model.rewards([short, long])[:1], expected)
    plant(monkeypatch, model, position_minus_one)
    assert (model.rewards([short, long])[:1] - expected).abs().max() > 0.01
    assert finds("batch", model, *few)
    pair = Preference("How many?", ("4", "7"))
    assert len(set(map(len, model.encode([pair])[0].completions))) == 1, "padding of their own would tell"
    assert finds("batch", model, [pair])


def test_pad_that_is_eos_is_parted_and_found(smollm2, monkeypatch):
    """RLHF-Reward-Modeling#49, transformers#35352: SmolLM2 comes with pad = eos, and the end of turn is never read."""
    torch.manual_seed(0)
    model, pairs = RewardModel(smollm2, trainable="head"), [Preference("Tea?", ("Yes, please.", "No."))]
    end = model.encode(pairs)[0].completions[0][-1]
    assert end == model.tokenizer.eos_token_id != model.tokenizer.pad_token_id == model.body.config.pad_token_id
    assert not finds("closing token", model, pairs)
    expected = model.rewards(pairs)
    plant(monkeypatch, model, as_transformers(model.tokenizer.pad_token_id))
    assert_close(model.rewards(pairs), expected)  # once they are parted, even this way of pooling is right
    plant(monkeypatch, model, as_transformers(end))
    assert (model.rewards(pairs) - expected).abs().min() > 0.01
    assert finds("closing token", model, pairs)


def test_loss_that_cannot_leave_ln_2_is_found(model, few, monkeypatch):
    """Generalizable-Reward-Model#1: both completions are read at a token that they share, so all losses are ln 2."""
    losses = bradley_terry(model.rewards(few[0]), ranks_tensor(few[0]))
    assert ((losses - math.log(2)).abs() > 1e-3).all() and not finds("constant", model, *few)
    plant(monkeypatch, model, lambda hidden, batch: hidden[batch.row, 2])
    losses = bradley_terry(model.rewards(few[0]), ranks_tensor(few[0]))
    assert losses == pytest.approx(math.log(2), abs=1e-6) and finds("constant", model, *few)


# --- pair identical after truncation; over-long pairs dropped in silence -------------------------------------


@pytest.fixture
def long_pairs(few):
    """Ten pairs, of which 2 and 5 are too long for 64 tokens, and 5 differs in its first words alone."""
    tail = "and so on, for ever and ever, " * 20
    pairs = list(few[0][:10])
    pairs[2] = replace(pairs[2], completions=(tail + "in JSON.", tail + "in prose."))
    pairs[5] = replace(pairs[5], completions=(f"Yes, {tail}", f"No, {tail}"))
    return pairs


def said(caught):
    return [str(w.message) for w in caught if "preferences" in str(w.message)]


def test_pair_identical_after_truncation_is_said(tiny, long_pairs):
    """rlhf-book#503, OpenRLHF#1311: loss ln 2 and no gradient, for what the text tells apart."""
    model = RewardModel(tiny, max_length=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoded = model.encode(long_pairs)
    assert [i for i, e in enumerate(encoded) if e.completions[0] == e.completions[1]] == [5]
    cut, same = said(caught)
    assert "rows of more than 64 tokens" in cut and cut.endswith(": 2, 5")
    assert same.startswith("1 of 10 preferences have completions of the same tokens") and same.endswith(": 5")
    table = diagnose(model, long_pairs)
    assert table.found["identical"] and table.found["truncated"]
    assert table.seen["identical"].endswith(": 5") and table.seen["truncated"].endswith(": 2, 5")


def test_nothing_is_said_where_nothing_is_lost(tiny, long_pairs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = RewardModel(tiny).encode(long_pairs)
    assert max(e.length for e in encoded) > 64
    table = diagnose(RewardModel(tiny), long_pairs)
    assert not table.found["identical"] and not table.found["truncated"]


@pytest.mark.filterwarnings("ignore:.* preferences have ")
def test_overlong_pairs_are_trained_on(tiny, long_pairs, few):
    """TRL's RewardTrainer drops them: here as many go into a step as came, and the rest of each is its end."""
    model, trained_on = RewardModel(tiny, max_length=64), []

    def counted(rewards, ranks):
        if rewards.requires_grad and rewards.any():  # of a step, and not the trial before them
            trained_on.extend(ranks.tolist())
        return bradley_terry(rewards, ranks)

    with pytest.warns(
        UserWarning, match="2 of 10 training preferences have rows of more than 64 tokens, and lost their oldest"
    ):
        fit(model, long_pairs, few[1], ONE_EPOCH, counted)
    assert trained_on == [[0, 1]] * 10
    whole, cut = RewardModel(tiny).encode(long_pairs), model.encode(long_pairs)
    assert len(cut) == 10 and max(e.length for e in cut) == 64
    for before, after in zip(whole, cut, strict=True):
        assert after == before or after.cut == before.length - 64
        for long, short in zip(before.completions, after.completions, strict=True):
            assert short == long[-len(short) :], "the end, where the reward is read, is what stays"


# --- ties turned into chosen = rejected ----------------------------------------------------------------------


def test_tie_stays_a_tie(tmp_path, model, few):
    """NeMo-RL's loader for HelpSteer3 makes it a pair of one text twice, of constant loss ln 2."""
    file = tmp_path / "ties.jsonl"
    row = {"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}
    file.write_text("\n".join(json.dumps(r) for r in (row, row | {"tie": True})))
    clear, tie = load_preferences(file)
    assert tie == replace(clear, ranks=(0, 0)) and tie.completions == ("Yes, please.", "No.")
    with pytest.raises(ValueError, match=r"preferences \[1\] of the batch are ties"):
        bradley_terry(model.rewards([clear, tie]), ranks_tensor([clear, tie]))
    with pytest.raises(ValueError, match=r"preferences \[20\] of the batch are ties"):
        fit(model, [*few[0], tie], few[1])


def test_pair_of_one_text_is_refused_or_found(tmp_path, model, few):
    """The loader names its line. Made by hand, `encode` warns of it and `diagnose` finds it."""
    file = tmp_path / "twice.jsonl"
    file.write_text(json.dumps({"prompt": "Tea?", "chosen": "Yes.", "rejected": "Yes."}))
    with pytest.raises(PreferenceError, match=r"twice\.jsonl:1: .*the same"):
        load_preferences(file)
    twice = [*few[0], Preference("Tea?", ("Yes.", "Yes."))]
    with pytest.warns(UserWarning, match="1 of 21 preferences have completions of the same tokens"):
        model.encode(twice)
    assert finds("identical", model, twice)
    assert not finds("identical", model, [*few[0], replace(twice[-1], ranks=(0, 0))])  # a tie of one text is no fault


# --- head re-initialised or lost when saving LoRA ------------------------------------------------------------


@pytest.fixture
def lora(tiny_folder, tmp_path, few):
    """A LoRA model after two steps, and the folder that it was saved to."""
    torch.manual_seed(0)
    model = RewardModel(load_backbone(str(tiny_folder)), trainable="lora")
    before = model.rewards(few[1])
    fit(model, *few, replace(ONE_EPOCH, max_steps=2, eval_every=2))
    assert (model.rewards(few[1]) - before).abs().max() > 0.01, "two steps trained nothing"
    return model, model.save(tmp_path / "model")


def test_lora_and_its_head_survive(lora, few):
    """trl#1379: perfect in training, chance after reloading."""
    model, folder = lora
    torch.manual_seed(99)  # of the head that is drawn before it is loaded
    loaded = RewardModel.load(folder)
    assert_close(loaded.rewards(few[1]), model.rewards(few[1]))
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(theirs.score.weight, model.head.weight)
    assert not finds("head", model, *few) and not finds("head", loaded, *few)


def test_folder_without_its_head_is_refused(lora, caplog):
    """OpenRLHF#873, LLaMA-Factory#4379. transformers draws a new one; at least it says so."""
    _, folder = lora
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is damaged: .*score\.weight"):
        RewardModel.load(folder)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        _, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert report["missing_keys"] == {"score.weight"}
    # a set: where CI=true, transformers lets its records reach the root logger too, and caplog sees each twice
    assert {r.levelname for r in caplog.records if "score.weight" in r.getMessage()} == {"WARNING"}


def test_folder_with_another_head_is_refused(lora):
    """As a tool writes it that has drawn one anew: the folder knows what its model said."""
    model, folder = lora
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = model.fresh_head
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is damaged: .* when it was saved"):
        RewardModel.load(folder)


@pytest.mark.parametrize("settings", [{"head": "mlp"}, {"pooling": "mean"}], ids=str)
def test_head_that_transformers_cannot_read_is_not_replaced(tiny, tmp_path, settings):
    """It would draw a linear one, and score with that."""
    with pytest.warns(UserWarning, match="only rmkit loads this folder"):
        folder = RewardModel(tiny, **settings).save(tmp_path / "model")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:.*only rmkit loads this folder")
@pytest.mark.parametrize("settings", [{}, {"head": "mlp"}], ids=str)
def test_head_drawn_anew_is_found(tiny, few, tmp_path, settings):
    """As a loader that forgets it would leave it; the one that was saved is not."""
    model = RewardModel(tiny, trainable="lora", **settings)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1)
    loaded = RewardModel.load(model.save(tmp_path / "model"))
    assert not finds("head", loaded, *few)
    last = loaded.head[-1] if settings else loaded.head
    with torch.no_grad():
        last.weight.copy_(loaded.fresh_head)
    assert finds("head", loaded, *few)


# --- evaluation on training rows; the same prompt in train and validation ------------------------------------


@pytest.fixture
def repeated():
    """Prompts with three pairs each, one of them spelled otherwise, as in every data set of people's judgements."""
    prompts = [f"What is the capital of country {i}?" for i in range(30)]
    rows = [Preference(p, (f"City {p[-2]}, answer {i}.", f"No {i}.")) for i in range(2) for p in prompts]
    return rows + [Preference(f"  {p.upper()} ", ("It is a city.", "Why?")) for p in prompts]


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_a_prompt_on_one_side(repeated, seed):
    """OpenRLHF and RLHFlow evaluate on training rows by default; a random split has most prompts on both sides."""
    train, validation = split_preferences(repeated, seed=seed)
    assert len(train) + len(validation) == len(repeated) and len(validation) == 18
    words = [{" ".join(p.prompt.lower().split()) for p in side} for side in (train, validation)]
    assert not words[0] & words[1]


def test_leak_is_found_and_warned_of(model, repeated):
    sound = split_preferences(repeated)
    shuffled = random.Random(0).sample(repeated, len(repeated))
    for sides in ((shuffled[:72], shuffled[72:]), (sound[0], sound[0][:9])):
        with pytest.warns(UserWarning, match="on both sides"):
            fit(model, *sides, replace(ONE_EPOCH, max_steps=1))
        assert finds("leak", model, *sides)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*both sides")
        fit(model, *sound, replace(ONE_EPOCH, max_steps=1))
    assert not finds("leak", model, *sound)
    assert "no validation preferences given" in diagnose(model, sound[0]).seen["leak"]


def test_leak_through_either_name_is_found(model, few):
    """A group of other prompts, and a prompt that the data puts into another group; a last turn of two dialogues is none."""
    train, other = [replace(p, group=f"t{i}") for i, p in enumerate(few[0])], replace(few[1][0], group="v")
    assert not finds("leak", model, train, [other])
    assert finds("leak", model, train, [replace(other, group="t3")])
    assert finds("leak", model, train, [other, replace(train[3], group="v")])
    assert not finds(
        "leak", model, train, [replace(train[3], history=(("user", "Hi"), ("assistant", "Hm?")), group="v")]
    )


# --- mean of batch means, `>` on ties ------------------------------------------------------------------------


def test_accuracy_is_the_share_of_pairs(model, few):
    """TRL's metric is the mean of its batches' means, with `>`: off by every short batch and every tied reward."""
    model.register_forward_hook(lambda _, __, rewards: rewards.round(decimals=1))  # so that some are equal
    rows = [*few[0], *(replace(p, completions=(*p.completions, "?"), ranks=(0, 1, 2)) for p in few[0][:3])]
    rewards = model.rewards(rows)
    points, strict = [], []  # of every preference, its pairs
    for row, preference in zip(rewards.tolist(), rows, strict=True):
        pairs = [(row[i], row[j]) for j in range(len(preference.completions)) for i in range(j)]
        points.append([1 if better > worse else 0.5 if better == worse else 0 for better, worse in pairs])
        strict.append([float(better > worse) for better, worse in pairs])
    by_hand = sum(map(sum, points)) / sum(map(len, points))
    means = [sum(map(sum, strict[i : i + 8])) / sum(map(len, strict[i : i + 8])) for i in range(0, 23, 8)]
    assert 0.5 in sum(points, []) and abs(sum(means) / 3 - by_hand) > 0.01, "this data does not tell the two apart"
    for tokens in (1, 300, 10_000):
        record = validate(model, model.encode(rows), bradley_terry, tokens)
        assert record["accuracy"] == by_hand and record["pairs"] == 29
    history = fit(model, rows, few[1], replace(ONE_EPOCH, batch_size=23, micro_batch_tokens=400, max_steps=1))
    assert history.steps[0]["accuracy"] == pytest.approx(by_hand)


# --- fp16 and bf16 rewards -----------------------------------------------------------------------------------


def test_rewards_are_fp32_in_autocast(tiny, split, monkeypatch):
    """trl#2564: 16 bits write few enough numbers between 4 and 8 that good and bad answers tie."""
    tiny.autocast = torch.bfloat16
    torch.manual_seed(0)
    model, rows = RewardModel(tiny), split[0][:200]
    with torch.no_grad():
        model.head.weight *= 5  # as after training
    rewards = model.rewards(rows)
    assert rewards.dtype == torch.float32
    assert rewards.unique().numel() == 2 * len(rows) > 1.05 * rewards.bfloat16().unique().numel()
    assert (rewards[:, 0] != rewards[:, 1]).all()
    assert not finds("half precision", model, rows)
    monkeypatch.setattr(
        model.head, "forward", lambda pooled: (pooled.bfloat16() @ model.head.weight.T.bfloat16()).float()
    )
    assert (model.rewards(rows)[:, 0] == model.rewards(rows)[:, 1]).any()
    assert finds("half precision", model, rows)


def test_weights_in_fp16_are_read_as_fp32(tiny, tmp_path):
    """ColossalAI#3490: trained in fp16, the loss is NaN after a few steps."""
    tiny.model.half().save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.float16
    model = RewardModel(load_backbone(str(tmp_path)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_rewards_that_are_no_numbers_are_found(model, few):
    assert not finds("finite", model, *few)
    with torch.no_grad():
        model.body.norm.weight[3] = float("nan")
    assert finds("finite", model, *few)


# --- sigmoid applied to the reward by the server -------------------------------------------------------------


def test_servers_give_the_reward_itself(model, tmp_path, few):
    """vLLM#12791: scores in 0–1, where large rewards tie. transformers' pipeline has the same rule, and is at hand."""
    with torch.no_grad():
        model.head.weight *= 10
    folder = model.save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    texts = [
        model.tokenizer.apply_chat_template([*p.messages, {"role": "assistant", "content": text}], tokenize=False)
        for p in few[1]
        for text in p.completions
    ]
    rewards = model.rewards(few[1]).flatten()
    assert ((rewards < 0) | (rewards > 1)).any()
    served = pipeline("text-classification", model=str(folder), device="cpu")
    assert_close(torch.tensor([answer["score"] for answer in served(texts, add_special_tokens=False)]), rewards)
    served.model.config.problem_type = None  # what it would do, had the folder not said so
    assert_close(torch.tensor([a["score"] for a in served(texts, add_special_tokens=False)]), rewards.sigmoid())
