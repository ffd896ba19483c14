"""Whether σ(r₁ − r₂) is a probability: how often a model that says 80 % is right (notebook 05)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import optimize, special
from sklearn.model_selection import GroupShuffleSplit

from rmkit.metrics import Pairs, bootstrap_interval, brier, judged_pairs, nll, of_pairs, require_matrix, share_interval

BINS = 10
CHANCE_DRAWS = 200
COLUMNS = ["said", "found", "low", "high", "count"]


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error, its 95 % interval, and what chance alone would make of it.

    The error is a mean of absolute values: in a sample it is never 0, and chance makes it larger. low, high: a basic
    bootstrap, which takes that bias off, so the interval may lie below `value`. by_chance: the 95th percentile of the error
    of a perfectly calibrated model with these rewards, on so many pairs; a value below it is no sign of miscalibration.
    """

    value: float
    low: float
    high: float
    by_chance: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {self.by_chance:.3f} by chance, {self.pairs} pairs"


def reliability(
    rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None, bins: int = BINS
) -> pd.DataFrame:
    """Of the pairs to which the model gave about the same probability, the share in which the first was better.

    rewards, ranks [N, K]. Every pair that was told apart counts in both orientations, P(1 ≻ 2) and P(2 ≻ 1), so the
    curve is symmetric about one half and no order of the data can bend it: `bins`, an even number, of equal mass, the
    lower half the mirror image of the upper. groups: one for each preference, for the intervals (`share_interval`).
    Columns: said (mean probability), found (share), low, high, count (pairs of the bin).
    """
    pairs = _checked(rewards, ranks, bins)
    owners = of_pairs(groups, pairs, ranks)
    said, right, place = _placed(pairs.difference, bins)
    rows = curve(said, right, place, owners)
    below = [(1 - s, 1 - f, 1 - high, 1 - low, n) for s, f, low, high, n in reversed(rows)]
    return pd.DataFrame(below + rows, columns=COLUMNS)


def calibration_error(
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    groups: Sequence[Hashable] | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> CalibrationError:
    """The expected calibration error (Naeini et al. 2015): mean |said − found| over the bins of `reliability`.

    rewards, ranks [N, K]. groups: one for each preference; the interval is a bootstrap over them, over preferences where
    there are none.
    """
    pairs = _checked(rewards, ranks, bins)
    size = np.abs(pairs.difference)
    rng = np.random.default_rng(seed)
    right = rng.random((CHANCE_DRAWS, len(size))) < special.expit(size)
    by_chance = float(np.quantile([_error(np.where(row, size, -size), bins) for row in right], 0.95))
    interval = bootstrap_interval(
        lambda difference: _error(difference, bins), of_pairs(groups, pairs, ranks), pairs.difference, seed=seed,
        method="basic",
    )  # fmt: skip
    low, high = (max(0.0, end) for end in interval)
    return CalibrationError(_error(pairs.difference, bins), low, high, by_chance, len(size))


def fit_temperature(rewards: torch.Tensor, ranks: torch.Tensor) -> float:
    """The T > 0 at which σ((r₁ − r₂) / T) has the least NLL on these pairs (Guo et al., arXiv:1706.04599).

    More than 1 for a model that is too sure. Ranking accuracy does not change. Measure on other pairs than these.
    Raises ValueError where no pair is ranked wrong, or the rewards are wrong on the whole: the best T is then 0, or infinite.
    """
    require_matrix(rewards, ranks)
    difference = judged_pairs(rewards, ranks).difference
    if not (difference < 0).any():
        raise ValueError("no pair is ranked wrong: the surer the model, the better, and no temperature is best")
    if difference.mean() <= 0:
        raise ValueError(
            "these rewards are wrong on the whole: the best a temperature can do is to say one half to all"
        )

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


def _checked(rewards: torch.Tensor, ranks: torch.Tensor, bins: int) -> Pairs:
    require_matrix(rewards, ranks)
    pairs = judged_pairs(rewards, ranks)
    if not isinstance(bins, int) or bins % 2 or not 2 <= bins <= 2 * len(pairs.difference):
        raise ValueError(f"bins is an even number from 2 to twice the pairs, {2 * len(pairs.difference)}: got {bins!r}")
    return pairs


def _placed(difference: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pair, seen from the side that the model prefers: (its probability, whether that came true, its bin)."""
    size = np.abs(difference)
    return special.expit(size), (np.sign(difference) + 1) / 2, places(size, bins // 2)


def _error(difference: np.ndarray, bins: int) -> float:
    return mean_gap(*_placed(difference, bins))


def places(values: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each value, of `bins` of equal mass. Equal values share a bin: what came true of them cannot sort them."""
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]), values)


def mean_gap(said: np.ndarray, found: np.ndarray, place: np.ndarray) -> float:
    """|said − found| of each bin, the mean over the rows."""
    return float(np.abs(np.bincount(place, said - found)).sum() / len(said))


def curve(said: np.ndarray, found: np.ndarray, place: np.ndarray, owners: np.ndarray) -> list[tuple]:
    """For each bin: mean said, share found, its interval by the groups `owners`, and the number of rows."""
    rows = []
    for b in np.unique(place):
        here = place == b
        low, high = share_interval(owners[here], found[here])
        rows.append((said[here].mean(), found[here].mean(), low, high, int(here.sum())))
    return rows
