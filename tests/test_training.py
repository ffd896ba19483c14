"""Protects: fit() is the plain loop and nothing else, keeps the best weights, and stops with a sentence when it must."""

import math
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import get_linear_schedule_with_warmup

from rmkit import (
    History,
    NonFiniteLoss,
    Preference,
    PreferenceError,
    RewardModel,
    TrainConfig,
    bradley_terry,
    fit,
    load_backbone,
    load_preferences,
    pairwise_accuracy,
    split_preferences,
)
from rmkit.batching import ranks_tensor
from rmkit.losses import Davidson, RaoKupper
from rmkit.memory import PeakMemory
from rmkit.training import LOSS_LEARNING_RATE, draw_batches, learning_rate_factor, trained_parameters

LEARNS = TrainConfig(learning_rate=3e-3, batch_size=16, max_steps=10)
DESTROYS = TrainConfig(learning_rate=0.9, warmup_ratio=0, eval_every=1, patience=None, max_steps=4)


@pytest.fixture(scope="module")
def split():
    return split_preferences(load_preferences("json_vs_text"))


@pytest.fixture(scope="module")
def few(split):
    """20 to train on, so that the last of three batches of 8 is a short one, and 10 to validate with."""
    train, validation = split
    return train[::20], validation[::10]


@pytest.fixture
def make_model(tiny_folder):
    """The same fresh model on every call."""

    def make(**settings):
        torch.manual_seed(0)
        return RewardModel(load_backbone(str(tiny_folder)), **settings)

    return make


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def losses(history):
    return [step["loss"] for step in history.steps]


def accuracies(history):
    return [validation["accuracy"] for validation in history.validations]


# --- it learns, as the plain loop does ----------------------------------------------------------------------


def test_fit_learns(make_model, split):
    """From chance to 9 of 10 unseen topics in ten steps; and what it reports is what the model does."""
    model = make_model()
    history = fit(model, *split, LEARNS)
    assert history.validations[-1]["accuracy"] >= 0.9
    assert losses(history)[0] == pytest.approx(math.log(2), abs=0.4) and losses(history)[-1] < 0.4
    measured = pairwise_accuracy(model.rewards(split[1]), ranks_tensor(split[1]))
    assert history.validations[-1]["accuracy"] == measured.value
    assert history.stopped == "at the last step, 10" and history.best_step == 10
    assert not model.training


def plain_loop(model, train, config, total, warmup):
    """The curve of notebook 03 in its simplest form: one completion at a time, nothing of rmkit but the batches."""
    encoded, curve = model.encode(train), []
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    others = [p for name, p in model.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0}]
    )
    for step, indices in zip(range(total), draw_batches(len(train), config), strict=False):
        rewards = torch.stack(
            [
                model.head(model.body(torch.tensor([encoded[i].prompt + completion])).last_hidden_state[0, -1])
                for i in indices
                for completion in encoded[i].completions
            ]
        ).view(-1, 2)
        loss = F.softplus(rewards[:, 1] - rewards[:, 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min((step + 1) / (warmup + 1), (total - step) / (total - warmup))
        optimizer.step()
        curve.append((loss.item(), norm.item()))
    return curve


def test_curve_equals_the_plain_loop(make_model, few):
    """Padding, micro-batches, schedule, clipping, weight decay: none of it may change what is computed."""
    config = TrainConfig(
        learning_rate=1e-3, micro_batch_tokens=150, epochs=2, warmup_ratio=0.3, weight_decay=0.5, max_grad_norm=2.0
    )
    expected = plain_loop(make_model(), few[0], config, total=6, warmup=2)
    history = fit(make_model(), *few, config)
    assert losses(history) == pytest.approx([loss for loss, _ in expected], abs=1e-5)
    assert [step["grad_norm"] for step in history.steps] == pytest.approx([norm for _, norm in expected], rel=1e-3)
    assert min(norm for _, norm in expected) > config.max_grad_norm, "the clipping is not seen here"


def test_micro_batches_change_neither_loss_nor_gradient(make_model, few):
    """Every tensor of the gradient, to 1e-4 of its length."""
    seen = {}
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.update({size: gradients(optimizer)}))
    for size in (4000, 150, 1):
        config = TrainConfig(max_steps=1, micro_batch_tokens=size, max_grad_norm=float("inf"))
        seen[f"loss {size}"] = losses(fit(make_model(), *few, config))
    hook.remove()
    for size in (150, 1):
        assert seen[f"loss {size}"] == pytest.approx(seen["loss 4000"], abs=1e-6)
        assert len(seen[size]) == len(seen[4000]) > 30
        for gradient, expected in zip(seen[size], seen[4000], strict=True):
            assert (gradient - expected).norm() <= 1e-4 * expected.norm()


def gradients(optimizer):
    return [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]


def test_same_seed_same_curve(make_model, few):
    first, again, other = (fit(make_model(), *few, TrainConfig(seed=seed)) for seed in (0, 0, 1))
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)


def test_every_preference_once_an_epoch():
    config = TrainConfig(batch_size=8)
    batches = list(islice(draw_batches(20, config), 6))
    assert [len(batch) for batch in batches] == [8, 8, 4] * 2
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second, "every epoch goes through the data in the same order"


def test_rankings_train_beside_pairs(make_model, few):
    """Two and three completions in one step, in one micro-batch or apart: each counts as one preference."""
    rankings = [replace(p, completions=(*p.completions, "?"), ranks=(0, 1, 2)) for p in few[0][:10]]
    curves = [
        losses(fit(make_model(), rankings + few[0][10:], few[1], TrainConfig(micro_batch_tokens=size)))
        for size in (4000, 1)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


# --- what trains, and what is kept --------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["head", "last:2", "lora", "all"])
def test_frozen_weights_stay_bit_by_bit(make_model, split, trainable):
    """And everything that is named as trainable has moved."""
    model = make_model(trainable=trainable)
    before, trains = weights(model), {name for name, p in model.named_parameters() if p.requires_grad}
    history = fit(model, split[0][:64], split[1], LEARNS)
    assert history.best_step > 0
    assert {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])} == trains


@pytest.fixture(scope="module")
def learned(tiny_folder, split):
    """A model that ranks every validation pair right, as a state to start from."""
    torch.manual_seed(0)
    model = RewardModel(load_backbone(str(tiny_folder)))
    assert fit(model, *split, LEARNS).validations[-1]["accuracy"] == 1
    return weights(model)


def test_best_weights_are_restored_when_later_ones_are_worse(make_model, learned, split):
    model = make_model()
    model.load_state_dict(learned)
    history = fit(model, *split, DESTROYS)
    assert min(accuracies(history)) < 0.9, "nothing was destroyed"
    assert history.best_step == 0 and history.stopped == "at the last step, 4"
    for name, weight in weights(model).items():
        assert torch.equal(weight, learned[name])


def test_of_equal_accuracies_the_lowest_loss_is_kept(make_model, learned, split):
    model = make_model()
    model.load_state_dict(learned)
    history = fit(model, *split, replace(LEARNS, learning_rate=1e-4, eval_every=1, max_steps=3))
    assert accuracies(history) == [1, 1, 1, 1]
    assert all(a["loss"] > b["loss"] for a, b in pairwise(history.validations))
    assert history.best_step == 3


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_waits_for_patience_checks(make_model, learned, split, patience):
    """Counted from the best one; it is said, and the step it happened at."""
    model = make_model()
    model.load_state_dict(learned)
    history = fit(model, *split, replace(DESTROYS, patience=patience))
    assert [v["step"] for v in history.validations] == list(range(patience + 1))
    assert history.stopped == f"early, at step {patience} of 4"
    assert len(history.steps) == patience


# --- a loss that trains with the model ----------------------------------------------------------------------


def with_ties(preferences, every=3):
    """Every third one a tie, and every sixth one of two completions that are the same."""
    tied = {i: p.completions[:1] * 2 if i % (2 * every) else p.completions for i, p in enumerate(preferences)}
    return [replace(p, completions=tied[i], ranks=(0, 0)) if i % every == 0 else p for i, p in enumerate(preferences)]


@pytest.mark.parametrize("model_of_ties", [RaoKupper, Davidson])
@pytest.mark.parametrize("learns", [True, False], ids=["it learns", "it learns the opposite"])
def test_tie_rate_trains_and_its_best_comes_back_with_the_weights(make_model, few, model_of_ties, learns):
    """Measured anew, model and loss give the very loss of the best validation; where it learns the opposite, the last was worse."""
    sides, loss, model = [with_ties(side) for side in few], model_of_ties(0.5), make_model()
    if not learns:
        sides[0] = [replace(p, completions=p.completions[::-1]) for p in sides[0]]
    config = TrainConfig(learning_rate=1e-3, warmup_ratio=0, eval_every=1, patience=None, max_steps=8)
    history = fit(model, *sides, config, loss)
    best = next(v for v in history.validations if v["step"] == history.best_step)
    with torch.no_grad():
        again = loss(model.rewards(sides[1]), ranks_tensor(sides[1])).mean().item()
    assert again == pytest.approx(best["loss"], abs=1e-6)
    if learns:
        assert history.best_step > 0 and loss.tie_rate < 0.49  # towards one in three
    else:
        assert history.best_step < 8 and history.validations[-1]["loss"] > best["loss"] + 0.1


def test_tie_rate_has_a_learning_rate_of_its_own(make_model, few):
    """AdamW's first step is as long as the learning rate: 0.05 on the logit, and next to nothing on the weights."""
    loss, model = RaoKupper(0.5), make_model(trainable="head")
    before = weights(model)
    config = TrainConfig(learning_rate=1e-9, weight_decay=0.5, warmup_ratio=0, max_steps=1)
    history = fit(model, *few, config, loss)  # without a tie, which is fewer than it expects
    assert history.best_step == 1 and history.steps[0]["learning_rate"] == 1e-9
    assert loss.logit.item() == pytest.approx(-LOSS_LEARNING_RATE, rel=1e-3)
    assert all((weight - before[name]).abs().max() <= 2e-9 for name, weight in weights(model).items())
    assert list(trained_parameters(model, loss)) == ["head.weight", "loss.logit"]
    assert "loss.logit" not in trained_parameters(model, RaoKupper(0.5).requires_grad_(False))


def test_tie_rate_that_is_frozen_stays(make_model, few):
    loss = RaoKupper(0.25).requires_grad_(False)
    history = fit(make_model(), *map(with_ties, few), TrainConfig(learning_rate=1e-3, max_steps=3), loss)
    assert loss.tie_rate == pytest.approx(0.25, abs=1e-15) and len(history.steps) == 3


def test_ties_alone_train(make_model, few):
    """They pull rewards together and the tie rate up; the accuracy of such steps is that of no pair."""
    seen, loss, model = [], RaoKupper(0.2), make_model()
    loss.register_forward_hook(lambda *_: seen.append(loss.tie_rate))
    ties = [replace(p, ranks=(0, 0)) for p in few[0]]
    config = TrainConfig(learning_rate=1e-3, warmup_ratio=0, max_steps=6, eval_every=6, patience=None)
    history = fit(model, ties, few[1], config, loss)
    assert losses(history)[-1] < losses(history)[0] and all(math.isnan(step["accuracy"]) for step in history.steps)
    assert seen[-1] > 0.22  # of the validation after the last step, the best one or not
    with pytest.raises(ValueError, match="all validation preferences are ties, .* validate with some"):
        fit(model, few[0], [replace(p, ranks=(0, 0)) for p in few[1]], config, loss)


TIED = {
    "two texts": (("Yes.", "No, it is not."), (0, 0)),
    "one text twice": (("Yes.", "Yes."), (0, 0)),
    "one text twice, and a worse one": (("Yes.", "Yes.", "No idea."), (0, 0, 1)),
    "one text twice, and a better one": (("Yes.", "No.", "No."), (0, 1, 1)),
    "three texts": (("Yes.", "No.", "It may be."), (0, 0, 0)),
    "nothing at all, twice": (("", ""), (0, 0)),
}


def test_every_kind_of_tie_goes_through(make_model):
    """Encoded, laid out in a batch, rewarded: the same text has the same reward, alone, beside others, and in training."""
    model, loss = make_model(), RaoKupper(0.3)
    preferences = [Preference("Is it?", *kind) for kind in TIED.values()]
    encoded = model.encode(preferences)
    assert [e.ranks for e in encoded] == [p.ranks for p in preferences] and not any(e.is_blurred for e in encoded)
    rewards = model.rewards(preferences)
    with torch.no_grad():
        together = model(model.batch(encoded))
    for i, p in enumerate(preferences):
        alone = model.rewards([p])[0]
        assert torch.allclose(alone, rewards[i, : len(alone)], atol=1e-5)
        assert torch.allclose(alone, together[i, : len(alone)], atol=1e-5)
        same = [alone[k] for k, text in enumerate(p.completions) if p.completions.count(text) > 1]
        assert not same or torch.allclose(same[0], same[1], atol=1e-6)
    values = loss(rewards, ranks_tensor(preferences))
    assert values[1].item() == pytest.approx(-math.log(0.3), abs=1e-5)  # equal rewards, called equal
    history = fit(model, preferences, [Preference("Was it?", ("Yes.", "No."))], TrainConfig(batch_size=2), loss)
    assert len(history.steps) == 3


# --- when it cannot go on -----------------------------------------------------------------------------------


def assert_untouched(model, before):
    for name, weight in model.state_dict().items():
        assert torch.equal(weight.nan_to_num(), before[name].nan_to_num()), name
    assert all(p.grad is None for p in model.parameters()), "a gradient of the failed step is left for the next"


def test_loss_that_is_no_number_names_step_and_row(make_model, few):
    """A NaN in the embedding of a word that only one preference has."""
    model = make_model()
    encoded = [set(e.prompt).union(*e.completions) for e in model.encode(few[0] + few[1])]
    row, token = next((i, t) for i in range(20) for t in encoded[i] if sum(t in other for other in encoded) == 1)
    config = TrainConfig(micro_batch_tokens=150, learning_rate=1e-6)
    step = next(s for s, batch in enumerate(draw_batches(20, config), start=1) if row in batch)
    with torch.no_grad():
        model.body.embed_tokens.weight[token] = float("nan")
    with pytest.raises(
        NonFiniteLoss, match=rf"^step {step}: the loss of the training preferences \[{row}\] is not a fin"
    ):
        fit(model, *few, config)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_weights_are_those_before_the_step_that_failed(make_model, few, what):
    """At the third of five steps, in its last micro-batch, so that a part of its gradient was there already."""
    model, before, calls = make_model(), {}, 0
    config = TrainConfig(batch_size=8, micro_batch_tokens=200, max_steps=5, learning_rate=1e-3)
    steps = [model.encode([few[0][i] for i in drawn]) for drawn in islice(draw_batches(16, config), 3)]
    micro = [model.micro_batches(encoded, 200) for encoded in steps]
    assert len(micro[2]) > 1

    def loss(rewards, ranks):
        nonlocal calls
        values = bradley_terry(rewards, ranks)
        calls += rewards.requires_grad and bool(rewards.any())  # of a training step, and not the trial before them
        if calls != sum(map(len, micro)):
            return values
        before.update(weights(model))
        if what == "loss":
            return values + torch.tensor([*[0] * (len(values) - 1), float("inf")])
        return values + (0 * rewards[:, 0]).abs().sqrt()  # 0, with a gradient of 0 · ∞

    drawn = next(islice(draw_batches(16, config), 2, None))
    named = [drawn[micro[2][-1][-1]]] if what == "loss" else sorted(drawn)
    with pytest.raises(NonFiniteLoss) as raised:
        fit(model, few[0][:16], few[1], config, loss)
    said = str(raised.value)
    assert said.startswith(f"step 3: the {what} of the training preferences {named} is not a finite number")
    assert "after step 2" in said and "learning rate ten times lower" in said
    assert_untouched(model, before)


def test_ties_are_refused_before_anything_is_trained(make_model, few):
    """On either side, and by name; a loss that knows ties may have them."""
    model, (train, validation) = make_model(), few
    before = weights(model)
    tied = [replace(p, ranks=(0, 0)) if i in (1, 3) else p for i, p in enumerate(train)]
    for sides in ((tied, validation), (train, tied)):
        with pytest.raises(ValueError, match=r"preferences \[1, 3\] of the batch are ties"):
            fit(model, *sides)
    assert_untouched(model, before)


def test_loss_that_knows_ties_trains_on_them(make_model, few):
    """The accuracy of a step is that of its decisive pairs, and nan where there is none."""

    def soft_label(rewards, ranks):
        q = torch.where(ranks[:, 1] == 0, 0.5, 1.0)
        difference = rewards[:, 0] - rewards[:, 1]
        return -q * F.logsigmoid(difference) - (1 - q) * F.logsigmoid(-difference)

    train = [replace(p, ranks=(0, 0)) if i % 4 else p for i, p in enumerate(few[0])]
    history = fit(make_model(), train, few[1], TrainConfig(batch_size=2, micro_batch_tokens=1), soft_label)
    decisive = [sum(i % 4 == 0 for i in batch) for batch in islice(draw_batches(20, TrainConfig(batch_size=2)), 10)]
    assert {0, 1} <= set(decisive)
    assert [math.isnan(step["accuracy"]) for step in history.steps] == [n == 0 for n in decisive]


def test_held_out_reward_that_is_no_number_is_named(make_model, few):
    """In the validation before the first step: the model was broken when it came."""
    model = make_model()
    torch.nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(
        NonFiniteLoss, match=r"^after step 0, the rewards of the validation preferences \[0, 1, .* are not"
    ):
        fit(model, *few)


LOSSES = {
    "the mean": (lambda rewards, ranks: bradley_terry(rewards, ranks).mean(), r"wants .*\[20\].* got \[\]"),
    "one for each completion": (lambda rewards, ranks: rewards, r"got \[20, 2\]"),
    "a number": (lambda rewards, ranks: 0.5, "got float"),
    "detached": (lambda rewards, ranks: bradley_terry(rewards, ranks).detach(), "with a gradient to the rewards"),
}


@pytest.mark.parametrize(("loss", "said"), LOSSES.values(), ids=LOSSES)
def test_loss_of_another_shape_is_refused(make_model, few, loss, said):
    """Of a mean, fit would take the mean again: a gradient that is too small by the batch, and nothing to see."""
    with pytest.raises(ValueError, match=said):
        fit(make_model(), *few, loss=loss)


def test_both_sides_are_wanted(make_model, few):
    for sides in (([], few[1]), (few[0], [])):
        with pytest.raises(ValueError, match="fit wants preferences on both sides"):
            fit(make_model(), *sides)


# --- settings and history -----------------------------------------------------------------------------------

BAD = {
    "learning_rate": [0, -1e-5, 1, float("nan"), "1e-5", None],
    "batch_size": [0, 2.0, True, "8"],
    "micro_batch_tokens": [0, -1, 2.5],
    "epochs": [0, 0.5],
    "max_steps": [0, 1.5],
    "warmup_ratio": [-0.1, 1.1, None],
    "weight_decay": [-0.01, 1, "0"],
    "max_grad_norm": [0, -1, float("nan"), None],
    "eval_every": [0, "epoch"],
    "patience": [0, -1],
    "seed": [-1, 0.5, None],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_config_refuses_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^TrainConfig\.{field} is {value!r}; it wants a"):
        TrainConfig(**{field: value})


def test_numbers_of_a_sweep_are_numbers():
    config = TrainConfig(batch_size=np.int64(4), learning_rate=np.float32(0.5), seed=np.int32(3))
    assert config == TrainConfig(batch_size=4, learning_rate=0.5, seed=3)
    assert [type(value) for value in (config.batch_size, config.learning_rate, config.seed)] == [int, float, int]


@pytest.mark.parametrize("folder", ["", True, 3])
def test_checkpoint_that_is_no_folder_is_refused(make_model, few, folder):
    with pytest.raises(TypeError, match=f"checkpoint is a folder, or None to keep nothing: got {folder!r}"):
        fit(make_model(), *few, checkpoint=folder)


@pytest.mark.parametrize("side", ["training", "validation"])
def test_faulty_preference_is_named_by_its_side(make_model, few, side):
    bad = [*few[0][:2], Preference("a", ("b</s>", "c"))]
    with pytest.raises(PreferenceError, match=f"{side} preference 2: "):
        fit(make_model(), *((bad, few[1]) if side == "training" else (few[0], bad)))


def test_every_setting_has_a_value_that_is_refused():
    assert set(BAD) == set(TrainConfig.__dataclass_fields__)
    TrainConfig(max_steps=1, eval_every=1, patience=None, warmup_ratio=1, weight_decay=0, max_grad_norm=float("inf"))


@pytest.mark.parametrize(
    ("total", "ratio", "factors"),
    [
        (4, 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        (5, 0.4, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (3, 1, [1 / 4, 2 / 4, 3 / 4]),
        (1, 0.1, [1]),
    ],
)
def test_learning_rate_by_hand(total, ratio, factors):
    """No step is wasted on a rate of 0: it rises by 1/(warm-up + 1) from the first and falls to 0 after the last."""
    assert [learning_rate_factor(step, total, ratio) for step in range(total)] == pytest.approx(factors)


def test_learning_rate_falls_as_transformers_schedule():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=50).lr_lambdas[0]
    for step in range(5, 50):
        assert learning_rate_factor(step, 50, 0.1) == theirs(step)


@pytest.mark.parametrize(
    ("settings", "steps", "validations"),
    [
        ({"epochs": 2}, 6, [0, 3, 6]),
        ({"epochs": 2, "max_steps": 7}, 7, [0, 3, 6, 7]),
        ({"max_steps": 2}, 2, [0, 2]),
        ({"epochs": 2, "eval_every": 4}, 6, [0, 4, 6]),
        ({"eval_every": 50}, 3, [0, 3]),
    ],
    ids=str,
)
def test_when_it_trains_and_when_it_validates(make_model, few, settings, steps, validations):
    """Before the first step, every `eval_every` steps or once an epoch, and at the end: never twice at one step."""
    history = fit(make_model(trainable="head"), *few, TrainConfig(patience=None, **settings))
    assert [step["step"] for step in history.steps] == list(range(1, steps + 1))
    assert [step["epoch"] for step in history.steps] == [(step + 2) // 3 for step in range(1, steps + 1)]
    assert [validation["step"] for validation in history.validations] == validations


@pytest.fixture(scope="module")
def history(tiny_folder, few):
    return fit(
        RewardModel(load_backbone(str(tiny_folder)), trainable="head"), *few, TrainConfig(micro_batch_tokens=150)
    )


def test_history_as_a_table(history):
    """A row a step, from the validation before the first; what was not measured there is empty."""
    table = history.table()
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == [0, 1, 2, 3] and table.index.name == "step"
    assert list(table.columns) == [
        *("epoch", "learning_rate", "loss", "accuracy", "grad_norm", "tokens", "seconds"),
        *(f"validation_{name}" for name in ("loss", "accuracy", "low", "high", "pairs")),
    ]
    assert table["loss"].isna().tolist() == [True, False, False, False]
    assert table["validation_loss"].isna().tolist() == [False, True, True, False]


def test_history_of_a_run_that_never_began_is_an_empty_table():
    """As NonFiniteLoss carries it where the first validation fails."""
    assert len(History().table()) == 0


def test_history_counts_what_was_done(history, few, make_model):
    """Tokens are those that a step computes, so a prompt counts once where its completions share a row."""
    encoded = make_model().encode(few[0])
    once, each = sum(len(e.prompt) for e in encoded), sum(len(c) for e in encoded for c in e.completions)
    assert once + each <= sum(step["tokens"] for step in history.steps) < 2 * once + each
    assert history.seconds == pytest.approx(sum(step["seconds"] for step in history.steps))
    assert min(step["seconds"] for step in history.steps) > 0
    assert history.peak_memory > 100e6  # bytes; torch alone takes as much


def test_history_as_a_figure(history):
    """The losses that are drawn are those of the run."""
    figure = history.plot()
    assert isinstance(figure, Figure)
    left, right = figure.axes
    training, validation = (line for line in left.lines if line.get_label() in ("training", "validation"))
    assert list(training.get_ydata()) == losses(history)
    assert list(validation.get_ydata()) == [v["loss"] for v in history.validations]
    assert right.get_ylabel() == "share of pairs ranked right"


def test_peak_memory_of_the_shortest_run():
    with PeakMemory(torch.device("cpu")) as memory:
        pass
    assert memory.peak > 0
