"""Protects: a model of ties is judged by what it says of all three outcomes, and careless ties are told from honest ones."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from rmkit import Annotator, ceilings, graded_pairs, load_graded_answers
from rmkit.batching import ranks_tensor
from rmkit.losses import Davidson, RaoKupper, TieModel
from rmkit.metrics import brier, nll
from rmkit.ties import careless_ties, three_way_brier, three_way_nll, tie_calibration_error, tie_reliability

OUTCOMES = torch.tensor([[0, 1], [1, 0], [0, 0]])  # first, second, tie
MODELS = [RaoKupper, Davidson]


def simulated(
    pairs: int, seed: int, rate: float = 0.2, careless: float = 0.0, model: type[TieModel] = RaoKupper
) -> tuple[torch.Tensor, torch.Tensor]:
    """True rewards [N, 2], their differences normal with 2 nats, and ranks drawn from such annotators."""
    rng = np.random.default_rng(seed)
    difference = torch.from_numpy(rng.normal(0, 2, pairs))
    p = outcomes(model(rate), difference) * (1 - careless)
    p[:, 2] += careless
    said = (rng.random((pairs, 1)) >= p[:, :2].cumsum(1).numpy()).sum(1)
    return torch.stack([difference, torch.zeros_like(difference)], 1), OUTCOMES[said]


@torch.no_grad()
def outcomes(model: TieModel, difference: torch.Tensor) -> torch.Tensor:
    return model.log_probabilities(difference).exp()


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [(RaoKupper(0.5), (1 / 4, 1 / 4, 1 / 2)), (Davidson(0.5), (1 / 4, 1 / 4, 1 / 2)), (Davidson(0.2), (0.4, 0.4, 0.2))],
    ids=repr,
)
def test_scores_of_equal_rewards_by_hand(model, said):
    """One judgement of each kind, and then a tie: Σ (p − o)² is 1 − 2 p(said) + Σ p²."""
    rewards, ranks = torch.ones(4, 2), OUTCOMES[[0, 1, 2, 2]]
    by_hand = [said[0], said[1], said[2], said[2]]
    found, score = three_way_nll(model, rewards, ranks), three_way_brier(model, rewards, ranks)
    assert found.value == pytest.approx(-sum(map(math.log, by_hand)) / 4) and found.count == score.count == 4
    assert score.value == pytest.approx(sum(1 - 2 * p for p in by_hand) / 4 + sum(p**2 for p in said))
    assert found.low <= found.value <= found.high


def test_scores_of_unequal_rewards_by_hand():
    """Davidson's, 2 ln 2 apart, ν = 1/2: weights 2, ½ and ½. Each pair of a ranking counts once, absent ones not at all."""
    model, high, low = Davidson(0.2), 2 * math.log(2), 0.0
    ranks = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, -1]])
    rewards = torch.tensor([[high, low, low], [high, low, low], [low, high, 99.0]])
    right, wrong, tie, level = 2 / 3, 1 / 6, 1 / 6, 0.2
    said = [right, right, level, wrong, wrong, level, tie]
    found = three_way_nll(model, rewards, ranks)
    assert found.count == 7 and found.value == pytest.approx(-sum(map(math.log, said)) / 7, rel=1e-6)
    apart, equal = right**2 + wrong**2 + tie**2, 0.4**2 + 0.4**2 + 0.2**2
    expected = sum(1 - 2 * p for p in said) / 7 + (5 * apart + 2 * equal) / 7
    assert three_way_brier(model, rewards, ranks).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_without_ties_they_are_nll_and_twice_brier(model):
    """With their intervals, by groups and over repetitions."""
    rewards = 2 * torch.randn(3, 40, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    ranks, never = OUTCOMES[torch.arange(40) % 2], model(1e-12)
    for groups in (None, [i // 4 for i in range(40)]):
        for r in (rewards, rewards[0]):
            one, two = nll(r, ranks, groups), brier(r, ranks, groups)
            found, score = three_way_nll(never, r, ranks, groups), three_way_brier(never, r, ranks, groups)
            assert [found.value, found.low, found.high] == pytest.approx([one.value, one.low, one.high])
            assert [score.value, score.low, score.high] == pytest.approx([2 * two.value, 2 * two.low, 2 * two.high])
            assert found.count == one.count == 40


@pytest.mark.parametrize("model", MODELS)
def test_the_truth_reaches_the_floor_and_nothing_else_does(model):
    """Of 20,000 judgements, within four standard errors; a wrong tie rate and wrong rewards are above it."""
    rewards, ranks = simulated(20_000, 0, 0.3, model=model)
    floor = ceilings(outcomes(model(0.3), rewards[:, 0]))
    for score, least in ((three_way_nll, floor.three_way_nll), (three_way_brier, floor.three_way_brier)):
        found = score(model(0.3), rewards, ranks)
        assert abs(found.value - least) < 2 * (found.high - found.low)
        for wrong in (score(model(0.1), rewards, ranks), score(model(0.6), rewards, ranks), score(model(0.3), 2 * rewards, ranks)):  # fmt: skip
            assert wrong.value > found.value + 0.005


def test_repetitions_are_averaged_and_copies_make_nothing_surer():
    rewards, ranks = simulated(60, 1)
    model, owners = RaoKupper(0.2), list(range(60)) * 10
    for score in (three_way_nll, three_way_brier):
        both = score(model, torch.stack([rewards, -rewards]), ranks)
        assert both.value == pytest.approx(
            (score(model, rewards, ranks).value + score(model, -rewards, ranks).value) / 2
        )
        once, grouped, copied = (
            score(model, rewards, ranks), score(model, rewards.repeat(10, 1), ranks.repeat(10, 1), owners),
            score(model, rewards.repeat(10, 1), ranks.repeat(10, 1)),
        )  # fmt: skip
        assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.1)
        assert grouped.high - grouped.low > 2 * (copied.high - copied.low)


# --- calibration of P(tie) ----------------------------------------------------------------------------------


def test_reliability_by_hand():
    """Four pairs of equal rewards, at which the model says 0.5, three of them ties; four far apart, none."""
    rewards = torch.tensor([[1.0, 1.0]] * 4 + [[9.0, 0.0], [0.0, 9.0]] * 2)
    ranks = OUTCOMES[[2, 2, 0, 2, 0, 1, 0, 1]]
    curve = tie_reliability(RaoKupper(0.5), rewards, ranks, bins=2)
    far = outcomes(RaoKupper(0.5), torch.tensor([9.0], dtype=torch.float64))[0, 2].item()
    assert curve.said.tolist() == pytest.approx([far, 0.5]) and curve.found.tolist() == [0, 0.75]
    assert curve["count"].tolist() == [4, 4]
    assert (curve.low <= curve.found).all() and (curve.found <= curve.high).all() and curve.high[0] > 0.1
    error = tie_calibration_error(RaoKupper(0.5), rewards, ranks, bins=2)
    assert error.value == pytest.approx((far + 0.25) / 2) and error.pairs == 8


def test_bins_are_of_equal_mass_and_the_order_of_a_pair_changes_nothing():
    rewards, ranks = simulated(500, 2)
    curve = tie_reliability(RaoKupper(0.2), rewards, ranks)
    assert curve["count"].tolist() == [50] * 10 and (curve.said.diff()[1:] > 0).all()
    assert tie_reliability(RaoKupper(0.2), rewards.flip(1), ranks.flip(1)).equals(curve)
    turned = torch.arange(500) % 2 == 0  # pairs with their mirror images in between
    mixed = [torch.where(turned[:, None], x.flip(1), x) for x in (rewards, ranks)]
    assert tie_reliability(RaoKupper(0.2), *mixed).equals(curve)
    assert len(tie_reliability(RaoKupper(0.2), torch.ones(500, 2), ranks)) == 1  # equal probabilities share a bin


@pytest.mark.parametrize("model", MODELS)
def test_calibrated_model_is_within_noise_and_a_wrong_tie_rate_is_not(model):
    found = [tie_calibration_error(model(0.2), *simulated(400, seed, model=model)) for seed in range(12)]
    assert sum(error.value <= error.by_chance for error in found) >= 10
    assert np.mean([error.low for error in found]) < 0.25 * np.mean([error.value for error in found])  # the bias is off
    for rate in (0.1, 0.35):
        wrong = [tie_calibration_error(model(rate), *simulated(1000, seed, model=model)) for seed in range(4)]
        assert all(error.value > error.by_chance and error.low > 0 for error in wrong)


# --- careless ties ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def estimates():
    """Of 60 sets of 400 pairs for each share of careless judgements."""
    return {c: [careless_ties(*simulated(400, seed, careless=c)) for seed in range(60)] for c in (0.0, 0.2)}


@pytest.mark.parametrize("careless", [0.0, 0.2])
def test_intervals_hold_the_truth(estimates, careless):
    found = estimates[careless]
    assert sum(e.low <= careless <= e.high for e in found) >= 0.85 * len(found)
    assert np.mean([e.value for e in found]) == pytest.approx(careless, abs=0.03)
    assert all(0 <= e.low <= e.value <= e.high < 1 and e.count == 400 for e in found)


def test_400_pairs_tell_none_from_a_fifth(estimates):
    assert sum(e.high < 0.2 for e in estimates[0.0]) >= 54
    assert sum(e.low > 0 for e in estimates[0.2]) >= 48


def test_estimate_is_the_most_likely_of_a_grid():
    """Over scale, tie rate and c, with the likelihood written out; and the interval is where it is 1.92 nats lower."""
    rewards, ranks = simulated(300, 3, careless=0.25)
    tied, size = ranks[:, 0] == ranks[:, 1], torch.where(ranks[:, 0] <= ranks[:, 1], 1, -1) * rewards[:, 0]
    scales, etas = torch.linspace(0.2, 3, 71).double()[:, None, None], torch.logspace(-4, 0.5, 91).double()[:, None]
    first, second = torch.sigmoid(scales * size - etas), torch.sigmoid(-scales * size - etas)

    def best(c: float) -> float:
        return torch.where(tied, c + (1 - c) * (1 - first - second), (1 - c) * first).log().sum(-1).max().item()

    found, most = careless_ties(rewards, ranks), max(map(best, np.linspace(0, 0.4, 81)))
    assert best(found.value) == pytest.approx(most, abs=0.03)
    assert found.low > 0
    for end in (found.low, found.high):
        assert most - best(end) == pytest.approx(1.92, abs=0.08)


def test_scale_and_order_change_nothing():
    rewards, ranks = simulated(400, 4, careless=0.2)
    found = careless_ties(rewards, ranks)
    for other in (careless_ties(1e4 * rewards, ranks), careless_ties(1e-4 * rewards + 3, ranks), careless_ties(rewards.flip(1), ranks.flip(1))):  # fmt: skip
        assert [other.value, other.low, other.high] == pytest.approx([found.value, found.low, found.high], abs=2e-3)


def test_noise_in_the_rewards_looks_careless():
    """No tie here is careless, and exact rewards say so; noise of twice their spread makes ties look it, and nobody sure."""
    sets = [simulated(1000, seed, 0.3) for seed in range(8)]
    exact = [careless_ties(*one) for one in sets]
    noisy = [
        careless_ties(rewards + 3 * torch.randn(1000, 2, generator=torch.manual_seed(seed)), ranks)
        for seed, (rewards, ranks) in enumerate(sets)
    ]
    assert np.mean([e.value for e in exact]) < 0.01 and np.mean([e.value for e in noisy]) > 0.04
    assert np.mean([e.high - e.low for e in noisy]) > 3 * np.mean([e.high - e.low for e in exact])


def test_careless_annotators_of_graded_answers_are_found_out():
    """Gold grades, and annotators as notebook 04 has them: the truth is in the interval, and far from the careful ones'."""
    pairs = graded_pairs(load_graded_answers())
    rewards = torch.tensor([[p.first.utility, p.second.utility] for p in pairs], dtype=torch.float64)
    found = {}
    for careless in (0.0, 0.2):
        annotator = Annotator(temperature=1.0, tie_model="rao_kupper", tie_rate=0.2, careless=careless)
        judged = annotator.judge(pairs, seed=0)
        swapped = torch.tensor([j.completions[0] != p.first.text for j, p in zip(judged, pairs, strict=True)])
        ranks = torch.where(swapped[:, None], ranks_tensor(judged).flip(1), ranks_tensor(judged))
        found[careless] = careless_ties(rewards, ranks)
        assert found[careless].low <= careless <= found[careless].high, careless
    assert found[0.0].high < found[0.2].low


def test_honest_ties_by_another_rule_look_careless():
    """What the docstring warns of: Davidson's ties reach further, and of 8,000 pairs the estimate is surely not zero."""
    difference = torch.linspace(-6, 6, 8000, dtype=torch.float64)
    for model, looks_careless in ((RaoKupper(0.4), False), (Davidson(0.4), True)):
        said = torch.multinomial(outcomes(model, difference), 1, generator=torch.manual_seed(0))[:, 0]
        ranks = torch.tensor([[0, 1], [1, 0], [0, 0]])[said]
        found = careless_ties(torch.stack([difference, torch.zeros_like(difference)], 1), ranks)
        assert (found.low > 0) == looks_careless, model


@pytest.mark.parametrize("left_out", ["none wrong", "one pair of each kind"])
def test_too_little_to_tell_is_a_wide_interval(left_out):
    if left_out == "none wrong":  # ties within a threshold, and every fifth judgement a tie
        difference = torch.linspace(-3, 3, 100, dtype=torch.float64)
        ranks = torch.where((difference > 0)[:, None], OUTCOMES[0], OUTCOMES[1])
        ranks[(difference.abs() < 1) | (torch.arange(100) % 5 == 0)] = 0
        found = careless_ties(torch.stack([difference, torch.zeros(100)], 1), ranks)
        assert found.value == pytest.approx(0.2, abs=0.03) and 0.05 < found.low < 0.2 < found.high < 0.4
    else:
        found = careless_ties(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), OUTCOMES[[0, 2]])
        assert (found.low, found.count) == (0, 2) and found.high > 0.8


# --- what is refused ----------------------------------------------------------------------------------------


def test_what_is_no_model_of_ties_is_refused():
    rewards, ranks = torch.eye(2), OUTCOMES[[0, 2]]
    for function in (three_way_nll, three_way_brier, tie_reliability, tie_calibration_error):
        for wrong in (0.3, RaoKupper, "davidson"):
            with pytest.raises(TypeError, match="ties is a model of ties, such as RaoKupper"):
                function(wrong, rewards, ranks)


def test_rewards_and_bins_that_do_not_fit_are_refused():
    rewards, ranks, model = torch.eye(2), OUTCOMES[[0, 2]], RaoKupper(0.3)
    for function in map(partial, (three_way_nll, three_way_brier, tie_reliability, tie_calibration_error), [model] * 4):
        with pytest.raises(ValueError, match=r"both \[N, K\].* got \[1, 2\] and \[2, 2\]"):
            function(rewards[:1], ranks)
        with pytest.raises(ValueError, match="not a finite number"):
            function(rewards / 0, ranks, **({"bins": 1} if "tie_" in function.func.__name__ else {}))
        with pytest.raises(ValueError, match="groups has one for each preference: got 1 for 2"):
            function(rewards, ranks, ["a"], **({"bins": 1} if "tie_" in function.func.__name__ else {}))
    for bins in (0, 3, 1.0, None):
        with pytest.raises(ValueError, match="bins is a whole number from 1 to the pairs, 2: got"):
            tie_reliability(model, rewards, ranks, bins=bins)
    for function in (tie_reliability, tie_calibration_error):
        with pytest.raises(ValueError, match="one repetition at a time"):
            function(model, rewards[None], ranks)


def test_careless_ties_wants_ties_decisions_and_rewards_that_rank():
    rewards, ranks = simulated(100, 0)
    tied = ranks[:, 0] == ranks[:, 1]
    with pytest.raises(ValueError, match="without ties nothing tells careless ties from honest ones: got"):
        careless_ties(rewards[~tied], ranks[~tied])
    with pytest.raises(ValueError, match="without pairs that were told apart nothing tells"):
        careless_ties(rewards[tied], ranks[tied])
    for wrong in (-rewards, torch.zeros(100, 2)):
        with pytest.raises(ValueError, match="these rewards rank no better than chance"):
            careless_ties(wrong, ranks)
    with pytest.raises(ValueError, match="one repetition at a time"):
        careless_ties(rewards[None], ranks)
