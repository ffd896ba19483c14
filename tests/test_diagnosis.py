"""Protects: `diagnose` finds what was planted, blames nothing that is sound, and leaves everything as it was."""

import random
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from rmkit import (
    Preference,
    PreferenceError,
    RewardModel,
    TrainConfig,
    fit,
    load_backbone,
    load_preferences,
    split_preferences,
    wilson_interval,
)
from rmkit.diagnosis import PROBES, SAMPLE, diagnose
from rmkit.model import POOLINGS

CHECKS = [
    "batch", "closing token", "identical", "truncated", "leak", "finite", "constant", "half precision", "saturated",
    "head", "accuracy",
]  # fmt: skip
LEARNS = TrainConfig(learning_rate=3e-3, batch_size=16, max_steps=10)


@pytest.fixture(scope="module")
def split():
    return split_preferences(load_preferences("json_vs_text"))


@pytest.fixture(scope="module")
def few(split):
    """Two of every length and topic that a sample of 24 has, and 40 to validate with."""
    return split[0][:96:4], split[1][:40]


@pytest.fixture(scope="module")
def trained(tiny_folder, split):
    """The weights of a model that ranks every validation pair right."""
    torch.manual_seed(0)
    model = RewardModel(load_backbone(str(tiny_folder)))
    assert fit(model, *split, LEARNS).validations[-1]["accuracy"] == 1
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.fixture
def model(tiny, trained):
    torch.manual_seed(1)
    model = RewardModel(tiny).eval()
    model.load_state_dict(trained)
    return model


def found(table):
    return set(table.index[table["found"]])


# --- what is sound ------------------------------------------------------------------------------------------


def test_sound_model_and_data_have_nothing(model, split, tmp_path):
    """Nor have they after saving and loading; and what the table promises of its form."""
    for healthy in (model, RewardModel.load(model.save(tmp_path / "model"))):
        table = diagnose(healthy, *split)
        assert found(table) == set(), table["seen"]
        assert list(table.index) == CHECKS and list(table.columns) == ["found", "seen", "remedy"]
        assert table["found"].dtype == bool
        assert (table["remedy"] == "").all() and table["seen"].str.contains(r"\d").all()


def test_untrained_model_lacks_its_training_alone(tiny, few):
    """With every pooling and head; it may be above chance, by chance."""
    for settings in ({}, {"pooling": "mean"}, {"head": "mlp"}):
        torch.manual_seed(0)
        table = diagnose(RewardModel(tiny, **settings), *few)
        assert "head" in found(table) <= {"head", "accuracy"}
        assert (table["remedy"] != "").tolist() == table["found"].tolist()


def test_untrained_head_is_still_known_after_loading(tiny, few, tmp_path):
    loaded = RewardModel.load(RewardModel(tiny).save(tmp_path / "model"))
    assert "head" in found(diagnose(loaded, few[0]))


def test_fault_is_named_by_the_callers_index_and_side(model, split):
    """Also where a sample is scored, and of rows that are not in it."""
    rows = list(split[0][:250])
    for i in range(0, 250, 10):
        rows[i] = replace(rows[i], completions=("b</s>", "c"))
    with pytest.raises(PreferenceError) as raised:
        diagnose(model, split[0][:5], rows)
    named = [int(problem.removeprefix("validation preference ").split(":")[0]) for problem in raised.value.problems]
    assert named == list(range(0, 250, 10))


def test_bf16_is_no_fault(model, few):
    """Where the body computes in bf16, a reward moves a little with its batch, and the probes do without."""
    model.autocast = torch.bfloat16
    assert found(diagnose(model, *few)) == set()


def test_rankings_and_ties_are_sound(model, few):
    rankings = [replace(p, completions=(*p.completions, "?"), ranks=(0, 1, 1 + i % 2)) for i, p in enumerate(few[0])]
    ties = [replace(p, ranks=(0, 0)) for p in few[0][:5]]
    table = diagnose(model, rankings + ties, few[1])
    assert found(table) <= {"saturated"}
    # a third of the pairs of (0, 1, 1) is a tie: 12 rankings have two judged pairs, 12 have three, and a tie has none
    assert " of 60 judged pairs" in table.seen["saturated"]
    assert "0 of 69 preferences have" in table.seen["finite"]


def test_smallest_sets(model, few):
    """One pair; only ties; a completion that is its closing token alone: nothing breaks, and nothing is made up."""
    pair = few[0][0]
    assert found(diagnose(model, [pair])) == {"accuracy"}  # right, and one pair says nothing
    table = diagnose(model, [replace(pair, ranks=(0, 0))])
    assert found(table) == set()
    assert table.seen[["saturated", "accuracy"]].str.startswith("not judged").all()
    table = diagnose(model, [Preference("Well?", ("", ""), (0, 0))])
    assert found(table) == set()
    assert table.seen[["closing token", "constant"]].str.startswith("not judged").all()


def test_nothing_to_look_at_is_said(model):
    with pytest.raises(ValueError, match="diagnose wants at least one preference"):
        diagnose(model, [])


# --- what is planted ----------------------------------------------------------------------------------------


def first_token(patch, model):
    patch.setitem(POOLINGS, "last", lambda hidden, batch: hidden[batch.row, 0])


def prompt_alone(patch, model):
    patch.setitem(POOLINGS, "last", lambda hidden, batch: hidden[batch.row, (batch.segment == 0).sum(1)[batch.row] - 1])


def token_before(patch, model):
    patch.setitem(POOLINGS, "last", lambda hidden, batch: hidden[batch.row, batch.last_positions() - 1])


def mean_over_padding(patch, model):
    patch.setitem(POOLINGS, "last", lambda hidden, batch: hidden.mean(1)[batch.row])


def broken_head(patch, model):
    torch.nn.init.constant_(model.head.weight, float("inf"))


def zero_head(patch, model):
    torch.nn.init.zeros_(model.head.weight)


def fresh_head(patch, model):
    with torch.no_grad():
        model.head.weight.copy_(model.fresh_head)


def reversed_head(patch, model):
    with torch.no_grad():
        model.head.weight.neg_()


def rounded(dtype, scale=1):
    def plant(patch, model):
        model.register_forward_hook(lambda _, __, rewards: (rewards * scale).to(dtype).float())

    return plant


PLANTED = {  # and the checks that have to say so
    "first token": (first_token, {"constant", "accuracy"}),
    "prompt alone": (prompt_alone, {"constant", "closing token", "accuracy"}),
    "token before the last": (token_before, {"closing token"}),
    "mean over padding": (mean_over_padding, {"batch"}),
    "broken head": (broken_head, {"finite", "head"}),
    "zero head": (zero_head, {"constant", "head", "accuracy"}),
    "fresh head": (fresh_head, {"head"}),
    "reversed head": (reversed_head, {"saturated", "accuracy"}),
    "rewards in bf16": (rounded(torch.bfloat16), {"half precision"}),
    "rewards in bf16 that fp16 has no numbers for": (rounded(torch.bfloat16, 1e5), {"half precision"}),
    "rewards in fp16": (rounded(torch.float16), {"half precision"}),
}


@pytest.mark.parametrize(("plant", "expected"), PLANTED.values(), ids=PLANTED)
def test_planted_fault_is_found(model, few, monkeypatch, plant, expected):
    """By the check whose fault it is; where another token is read, the rewards are bad ones too."""
    plant(monkeypatch, model)
    table = diagnose(model, *few)
    assert expected <= found(table) <= expected | {"accuracy", "saturated", "constant"}, table["seen"]
    assert table.remedy[list(expected)].str.len().min() > 20


def test_faulty_pairs_are_named(model, few):
    """A few at a time, by the index that the caller knows them by."""
    rows = list(few[0])
    for i in (3, 11):
        rows[i] = replace(rows[i], completions=(rows[i].chosen, rows[i].chosen))
    table = diagnose(model, rows)
    assert found(table) == {"identical"}
    assert table.seen["identical"].startswith("2 of 24 ") and table.seen["identical"].endswith(": 3, 11")
    rows[5] = replace(rows[5], prompt="word " * 600)
    table = diagnose(model, rows)
    assert found(table) == {"identical", "truncated"}
    assert re.fullmatch(r"1 of 24 preferences lost their oldest tokens, up to \d+: 5", table.seen["truncated"])


def test_reward_that_is_not_finite_is_left_out_of_the_rest(model, few, monkeypatch):
    """The others are judged as they would have been without it, on either side."""
    rows = [*few[0], Preference("Name it.", ("A bird.", "Quetzal!"))]
    *others, last = model.encode(rows)
    known = set(last.completions[0]).union(
        last.prompt, *(e.prompt for e in others), *(c for e in others for c in e.completions)
    )
    only = (set(last.completions[1]) - known).pop()
    model.lay_out = model.collate  # in a shared row, one that is not a number makes its neighbours so
    sound = diagnose(model, few[0])
    with torch.no_grad():
        model.body.embed_tokens.weight[only] = float("nan")
    table = diagnose(model, rows)
    assert found(table) == {"finite"}
    assert table.seen["finite"] == "1 of 25 preferences have a reward that is not finite"
    judged = ["batch", "closing token", "constant", "half precision", "saturated", "accuracy"]
    assert table.seen[judged].tolist() == sound.seen[judged].tolist()
    assert found(diagnose(model, few[0], rows[-1:])) == {"finite"}


def test_where_nothing_is_finite_nothing_else_is_claimed(model, few):
    broken_head(None, model)
    table = diagnose(model, *few)
    judged = ["batch", "closing token", "constant", "half precision", "saturated", "accuracy"]
    assert table.seen[judged].str.startswith("not judged").all() and not table.found[judged].any()


# --- what is measured ---------------------------------------------------------------------------------------


def measured_accuracy(table):
    return [float(x) for x in re.match(r"([\d.]+) \[([\d.]+), ([\d.]+)\] on", table.seen["accuracy"]).groups()]


def test_accuracy_knows_what_it_was_measured_on(model, few):
    """On validation where there is any, with Wilson's interval for pairs of one group each, beside the longer answer's."""
    apart = [replace(p, group=str(i)) for i, p in enumerate(few[1])]
    backwards = [replace(p, completions=p.completions[::-1]) for p in apart[:4]]
    table = diagnose(model, few[0], apart[4:] + backwards)
    assert measured_accuracy(table) == pytest.approx([36 / 40, *wilson_interval(36, 40)], abs=0.005)
    lengths = [[len(c) for c in e.completions] for e in model.encode(apart[4:] + backwards)]
    longer = sum(1 if a > b else 0.5 if a == b else 0 for a, b in lengths) / 40
    assert f"40 pairs of 40 groups (validation); the longer one wins {longer:.2f}" in table.seen["accuracy"]
    assert "24 pairs of" in diagnose(model, few[0]).seen["accuracy"]


def test_pairs_of_one_group_are_no_independent_ones(model, few):
    """Every pair written five times is as sure as it was once."""
    apart = [replace(p, group=str(i)) for i, p in enumerate(few[1][:12])]
    assert measured_accuracy(diagnose(model, few[0], apart * 5)) == measured_accuracy(diagnose(model, few[0], apart))


def test_saturated_pair_is_a_fault_where_it_is_wrong(model, few):
    """Certainty to 1 in 10,000 is not refuted by being right; one wrong among a few is enough."""
    with torch.no_grad():
        model.head.weight *= 10
    right = diagnose(model, few[0])
    assert re.match(r"24 of 24 judged pairs are more than 9\.2 apart, 0 of them", right.seen["saturated"])
    assert found(right) == set()
    wrong = diagnose(model, [*few[0][1:], replace(few[0][0], completions=few[0][0].completions[::-1])])
    assert found(wrong) == {"saturated"}
    assert "24 of 24 judged pairs are more than 9.2 apart, 1 of them" in wrong.seen["saturated"]


def test_ties_that_bf16_would_make_are_counted(model, few):
    """Rewards that lie about 5, 0.01 apart or so: bf16 steps by 0.03 there."""
    model.register_forward_hook(lambda _, __, rewards: 5 + rewards / 500)
    better, worse = model.rewards(few[0]).bfloat16().T
    tied = int((better == worse).sum())
    assert 0 < tied < 24
    assert f"; 0 judged pairs tie, and {tied} would in bf16" in diagnose(model, few[0]).seen["half precision"]


# --- what it costs, and leaves ------------------------------------------------------------------------------


def test_large_sets_are_sampled(model, split):
    """And the table says so. Identical, truncated and leaked ones are counted in all of them."""
    scored = []
    model.register_forward_hook(lambda _, inputs, __: scored.append(int((inputs[0].ranks >= 0).sum())))
    train, validation = split[0], split[1] * 3
    rows = [*train[:-1], replace(train[-1], completions=(train[-1].chosen, train[-1].chosen))]
    table = diagnose(model, rows, validation)
    assert sum(scored) <= 2 * 2 * SAMPLE + 5 * 2 * PROBES + 2
    assert table.seen["finite"].endswith(f"{2 * SAMPLE} of 700 were drawn and scored")
    assert "1 of 400 preferences" in table.seen["identical"]
    assert table.equals(diagnose(model, rows, validation))


def test_model_and_random_numbers_stay_as_they_were(tiny, few):
    """Weights, gradients, precision, the mode of every part; also where a preference cannot be encoded."""
    tiny.autocast = torch.bfloat16
    model = RewardModel(tiny, dropout=0.5).train()
    model.body.layers[0].eval()  # a part that its owner has put to rest
    model(model.collate(model.encode(few[0][:2]))).sum().backward()

    def state():
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state()]
        modes = [module.training for module in model.modules()]
        return [t.clone() for t in tensors], modes, model.autocast, random.getstate(), np.random.get_state()[1].tolist()

    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the table says what `encode` would warn of
        diagnose(model, [*few[0], replace(few[0][0], prompt="word " * 600)], few[1])
    with pytest.raises(PreferenceError, match="special token"):
        diagnose(model, [replace(few[0][0], prompt="</s>")])
    after = state()
    assert all(torch.equal(a, b) for a, b in zip(after[0], before[0], strict=True))
    assert after[1:] == before[1:]
