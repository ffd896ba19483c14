"""Whether σ(r₁ − r₂) is a probability: how often a model that says 80 % is right (notebook 05)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import optimize, stats
from sklearn.model_selection import GroupShuffleSplit

from rmkit.metrics import bootstrap_interval, brier, judged_pairs, nll, of_pairs, wilson_interval

BINS = 10
CHANCE_DRAWS = 200


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error, its 95 % interval, and what chance alone would make of it.

    by_chance: the 95th percentile of the error of a perfectly calibrated model with these rewards, on so many pairs. The
    error is a mean of absolute values, so it is never 0 in a sample: below this it is no sign of miscalibration.
    """

    value: float
    low: float
    high: float
    by_chance: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {self.by_chance:.3f} by chance, {self.pairs} pairs"


def reliability(rewards: torch.Tensor, ranks: torch.Tensor, bins: int = BINS) -> pd.DataFrame:
    """Of the pairs to which the model gave about the same probability, the share in which the first was better.

    rewards, ranks [N, K]. Every pair that was told apart counts in both orientations, P(1 ≻ 2) and P(2 ≻ 1), so the
    curve is symmetric about one half and no order of the data can bend it; the bins hold equally many. Columns: said
    (mean probability), found (share), low, high (Wilson's for the pairs of the bin), count. Below one half a bin is
    the mirror image of one above.
    """
    difference = judged_pairs(rewards, ranks).difference
    said, found, counts = _binned(difference, bins)
    intervals = [wilson_interval(f * n, n) for f, n in zip(found, counts, strict=True)]
    low, high = zip(*intervals, strict=True)
    return pd.DataFrame({"said": said, "found": found, "low": low, "high": high, "count": counts})


def calibration_error(
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    groups: Sequence[Hashable] | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> CalibrationError:
    """The expected calibration error (Naeini et al. 2015): mean |said − found| over the bins of `reliability`.

    groups: one for each preference; the interval is a bootstrap over them, over preferences where there are none.
    """
    pairs = judged_pairs(rewards, ranks)
    rng = np.random.default_rng(seed)
    probability = stats.logistic.cdf(np.abs(pairs.difference))
    drawn = [
        np.where(rng.random(len(probability)) < probability, 1, -1) * np.abs(pairs.difference)
        for _ in range(CHANCE_DRAWS)
    ]
    by_chance = float(np.quantile([_error(difference, bins) for difference in drawn], 0.95))
    owners = of_pairs(groups, pairs, ranks)
    low, high = bootstrap_interval(lambda difference: _error(difference, bins), owners, pairs.difference, seed=seed)
    return CalibrationError(_error(pairs.difference, bins), low, high, by_chance, len(pairs.difference))


def fit_temperature(rewards: torch.Tensor, ranks: torch.Tensor) -> float:
    """The T > 0 at which σ((r₁ − r₂) / T) has the least NLL on these pairs (Guo et al., arXiv:1706.04599).

    More than 1 for a model that is too sure. Ranking accuracy does not change. Measure on other pairs than these.
    Raises ValueError where every pair is ranked right, or none: the best T is then 0, or infinite.
    """
    difference = judged_pairs(rewards, ranks).difference
    if (difference > 0).all() or not (difference > 0).any():
        raise ValueError("a temperature wants pairs that are ranked right and pairs that are ranked wrong")

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -difference * np.exp(-log_temperature)).mean())

    spread = np.log(np.abs(difference).mean())  # a model's rewards may have any scale
    return float(np.exp(optimize.minimize_scalar(loss, bounds=(spread - 7, spread + 7), method="bounded").x))


def temperature_scaled(
    rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable], seed: int = 0
) -> pd.DataFrame:
    """NLL, Brier score and calibration error before and after temperature scaling, on groups that it was not fitted on.

    Half of the groups fit the temperature, the others are reported. Rows: before, after; columns: temperature, nll,
    brier, calibration_error, and for each `_low`, `_high`.
    """
    halves = GroupShuffleSplit(1, test_size=0.5, random_state=seed).split(list(groups), groups=list(groups))
    fitted, reported = next(halves)
    temperature = fit_temperature(rewards[fitted], ranks[fitted])
    held_out, owners = ranks[reported], [list(groups)[i] for i in reported]
    rows = []
    for t in (1.0, temperature):
        row = {"temperature": t}
        for name, metric in (("nll", nll), ("brier", brier), ("calibration_error", calibration_error)):
            found = metric(rewards[reported] / t, held_out, owners)
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows, index=["before", "after"])


def _binned(difference: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean probability, share that came true, number) for each bin of equal mass, both orientations of a pair counted."""
    if not isinstance(bins, int) or not 2 <= bins <= 2 * len(difference):
        raise ValueError(f"bins is a number from 2 to twice the pairs, {2 * len(difference)}: got {bins!r}")
    logit = np.concatenate([difference, -difference])
    true = np.repeat([1.0, 0.0], len(difference))
    edges = np.quantile(logit, np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(edges, logit)  # equal logits share a bin: which of them came true cannot sort them
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    said = np.bincount(place, stats.logistic.cdf(logit), bins)[filled] / counts[filled]
    found = np.bincount(place, true, bins)[filled] / counts[filled]
    return said, found, counts[filled]


def _error(difference: np.ndarray, bins: int) -> float:
    said, found, counts = _binned(difference, bins)
    return float((np.abs(said - found) * counts).sum() / counts.sum())
