"""Protects: what is called calibrated is, and the error says by how much when it is not; both tell chance from fault."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.model_selection import GroupShuffleSplit

from rmkit.calibration import calibration_error, fit_temperature, reliability, temperature_scaled

SPREAD = 1.5  # the standard deviation of true logits, in nats


def simulated(pairs: int, seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards [N, 2] of a model that gives `scale` times the true logit, and ranks drawn from the truth."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, SPREAD, pairs)
    first = rng.random(pairs) < stats.logistic.cdf(logit)
    rewards = torch.from_numpy(np.stack([scale * logit, np.zeros(pairs)], 1))
    return rewards, torch.from_numpy(np.where(first[:, None], [[0, 1]], [[1, 0]]))


def test_calibrated_model_is_within_noise_of_zero():
    """Its error is below what chance makes of it in about 19 of 20 sets, and falls with the root of their size."""
    found = [calibration_error(*simulated(400, seed)) for seed in range(12)]
    assert sum(error.value <= error.by_chance for error in found) >= 10
    assert calibration_error(*simulated(20_000, 0)).value < 0.015 < found[0].value


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_scaled_logits_err_by_what_theory_says(scale):
    """E |σ(s·Δ) − σ(Δ)| over the logits: with enough pairs and bins that is the error, and far beyond chance."""
    theory, _ = integrate.quad(
        lambda d: abs(stats.logistic.cdf(scale * d) - stats.logistic.cdf(d)) * stats.norm.pdf(d, scale=SPREAD), -12, 12
    )
    error = calibration_error(*simulated(20_000, 1, scale), bins=20)
    assert error.value == pytest.approx(theory, abs=0.01) and theory > 0.05
    assert error.low < error.value < error.high and error.by_chance < theory / 2


def test_curve_is_symmetric_and_bins_are_equal():
    """Every pair is in it twice, as P(1 ≻ 2) and P(2 ≻ 1): the order of a pair bends nothing."""
    rewards, ranks = simulated(500, 2)
    curve = reliability(rewards, ranks)
    assert curve["count"].tolist() == [100] * 10
    for one, other in (("said", "said"), ("found", "found"), ("low", "high")):
        assert np.allclose(curve[one] + curve[other][::-1].to_numpy(), 1)
    assert (curve.low <= curve.found).all() and (curve.found <= curve.high).all()
    assert np.allclose(reliability(rewards.flip(1), ranks.flip(1)), curve)


def test_curve_of_whole_rewards_is_symmetric_too():
    """Rewards of 0 to 3, as of a coarse dtype: equal differences share a bin, and its mirror image has them all."""
    rng = np.random.default_rng(0)
    rewards = torch.from_numpy(rng.integers(0, 4, (200, 2)).astype(float))
    curve = reliability(rewards, torch.tensor([[0, 1]] * 200))
    assert np.allclose(curve.said + curve.said[::-1].to_numpy(), 1)
    assert curve["count"].sum() == 400 and np.allclose(curve["count"], curve["count"][::-1])


def test_interval_takes_off_the_bias_of_the_error():
    """Of calibrated models most intervals reach down to 0, though the error never does; of scaled ones they hold the truth."""
    theory, _ = integrate.quad(
        lambda d: abs(stats.logistic.cdf(2 * d) - stats.logistic.cdf(d)) * stats.norm.pdf(d, scale=SPREAD), -12, 12
    )
    calibrated = [calibration_error(*simulated(200, seed)) for seed in range(20)]
    doubled = [calibration_error(*simulated(200, seed, 2.0)) for seed in range(20)]
    assert min(error.value for error in calibrated) > 0
    assert sum(error.low < 0.01 for error in calibrated) >= 16
    assert sum(error.low <= theory <= error.high for error in doubled) >= 16


def test_intervals_know_that_rows_of_a_group_are_not_independent():
    """Every pair ten times, as ten annotators who agree: by groups the intervals stay as wide as without the copies."""
    rewards, ranks = simulated(150, 5, 2.0)
    copies, owners = (rewards.repeat(10, 1), ranks.repeat(10, 1)), list(range(150)) * 10

    def width(found) -> float:
        return found.high - found.low

    once, grouped = calibration_error(rewards, ranks), calibration_error(*copies, owners)
    assert width(grouped) == pytest.approx(width(once), rel=0.2) and width(grouped) > 2 * width(
        calibration_error(*copies)
    )
    curve, copied = reliability(rewards, ranks), reliability(*copies, owners)
    assert np.allclose(copied.high - copied.low, curve.high - curve.low, atol=0.08)
    assert (
        (copied.high - copied.low)[curve.found < 1]
        > 1.5 * (reliability(*copies).high - reliability(*copies).low)[curve.found < 1]
    ).all()


def test_chance_is_exceeded_as_often_as_it_says():
    """By one calibrated set in twenty: of 60 a few, not none and not a fifth."""
    found = [calibration_error(*simulated(100, seed)) for seed in range(60)]
    assert 1 <= sum(error.value > error.by_chance for error in found) <= 8


def test_equal_rewards_share_a_bin():
    """A model that says one half to all is right half of the time: no order of the rows may make that look wrong."""
    rewards, ranks = torch.zeros(100, 2), torch.tensor([[0, 1]] * 100)
    assert calibration_error(rewards, ranks).value == 0


@pytest.mark.parametrize("scale", [2.0, 0.5, 30.0])
def test_temperature_undoes_a_scale(scale):
    assert fit_temperature(*simulated(60_000, 3, scale)) == pytest.approx(scale, rel=0.03)


def test_temperature_is_reported_on_other_groups():
    """Doubled logits: NLL and error fall on the half that the temperature was not fitted on."""
    rewards, ranks = simulated(4000, 4, 2.0)
    groups = list(range(2000)) * 2
    report = temperature_scaled(rewards, ranks, groups)
    assert report.temperature["before"] == 1 and report.temperature["after"] == pytest.approx(2, rel=0.15)
    for measure in ("nll", "brier", "calibration_error"):
        assert report[measure]["after"] < report[measure]["before"]
    # the report's own groups do not move the temperature
    noise = torch.Generator().manual_seed(0)
    _, reported = next(GroupShuffleSplit(1, test_size=0.5, random_state=0).split(rewards, groups=groups))
    spoiled = rewards.clone()
    spoiled[reported] = torch.randn(len(reported), 2, generator=noise, dtype=torch.float64)
    again = temperature_scaled(spoiled, ranks, groups)
    assert again.temperature["after"] == report.temperature["after"]


def test_what_cannot_be_calibrated_is_refused():
    right = torch.tensor([[1.0, 0.0]] * 5)
    with pytest.raises(ValueError, match="no pair is ranked wrong"):
        fit_temperature(right, torch.tensor([[0, 1]] * 5))
    with pytest.raises(ValueError, match="wrong on the whole"):
        fit_temperature(right, torch.tensor([[0, 1]] + [[1, 0]] * 4))
    for bins in (12, 7):
        with pytest.raises(ValueError, match="bins is an even number from 2 to twice the pairs, 10"):
            reliability(right, torch.tensor([[0, 1]] * 5), bins=bins)
    with pytest.raises(ValueError, match="one repetition at a time"):
        calibration_error(right[None], torch.tensor([[0, 1]] * 5))


def test_resamples_of_few_groups_do_not_break():
    rewards, ranks = simulated(7, 0)
    assert calibration_error(rewards, ranks, ["a"] * 6 + ["b"]).pairs == 7
