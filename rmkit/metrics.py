"""What to measure of a reward model, and how sure to be of it (notebook 05)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold

from rmkit.batching import ranks_tensor
from rmkit.preferences import Preference

RESAMPLES = 1000
SATURATED = 0.99  # from here a logistic loss has less than a hundredth of its gradient left


@dataclass(frozen=True)
class Estimate:
    """A number measured on `count` pairs or completions, with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Accuracy:
    """A share of pairs ranked right, with its 95 % interval (`pairwise_accuracy` says which)."""

    value: float
    low: float
    high: float
    pairs: int  # pairs that an annotator told apart
    tied_rewards: int  # of these, the pairs to which the model gave equal rewards: half right each
    tied_judgements: int  # pairs that an annotator called equal: not counted above

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.pairs} pairs"


@dataclass(frozen=True)
class Pairs:
    """All pairs of completions that were judged: M of them that were told apart, and `tied` that were not.

    difference [..., M]: the reward of the better one minus that of the other; preference [M]: which one judged it.
    """

    difference: np.ndarray
    preference: np.ndarray
    tied: int


def judged_pairs(rewards: torch.Tensor, ranks: torch.Tensor) -> Pairs:
    """The pairs of rewards [..., N, K] by ranks [N, K], as in `bradley_terry`; dimensions in front are repetitions.

    Raises ValueError where no pair was told apart, a reward is not a number, or the shapes differ.
    """
    if rewards.shape[-2:] != ranks.shape or ranks.ndim != 2:
        raise ValueError(f"rewards and ranks are both [N, K]: got {list(rewards.shape)} and {list(ranks.shape)}")
    present = ranks >= 0
    if not torch.isfinite(rewards[..., present]).all():
        raise ValueError("a reward is not a finite number: accuracy would count it as wrong")
    decisive = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None]
    tied = (ranks[:, :, None] == ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    if not decisive.any():
        raise ValueError("no pair was told apart by an annotator: there is no accuracy to measure")
    difference = (rewards[..., :, None] - rewards[..., None, :])[..., decisive]
    return Pairs(difference.double().numpy(), decisive.nonzero()[:, 0].numpy(), int(tied.triu(1).sum()))


def pairwise_accuracy(rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None) -> Accuracy:
    """The share of pairs, told apart by an annotator, in which the better completion got the higher reward.

    rewards, ranks [N, K], as in `bradley_terry`; or rewards [R, N, K] of R repetitions, such as seeds or the held-out
    rewards of repeated folds, over which a pair is averaged. Every pair weighs the same, equal rewards count half.
    groups: one for each preference. The interval is Wilson's (1927), for pairs that are independent; where preferences
        share a group, or have several pairs, that is too narrow: with groups it is a bootstrap over them. It says how
        other prompts would have come out, not another training set.
    Raises ValueError where no pair was told apart, a reward is not a number, or the shapes differ.
    """
    pairs = judged_pairs(rewards, ranks)
    right = ((np.sign(pairs.difference) + 1) / 2).reshape(-1, pairs.difference.shape[-1]).mean(0)
    share, equal = float(right.mean()), int((pairs.difference == 0).sum())
    if groups is None:
        low, high = wilson_interval(float(right.sum()), len(right))
    else:
        low, high = _mean_interval(of_pairs(groups, pairs, ranks), right)
    return Accuracy(share, low, high, len(right), equal, pairs.tied)


def wilson_interval(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share; `successes` may be fractional, since equal rewards count half."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(
            f"an interval wants one trial or more, and from 0 to all successes: got {successes} of {trials}"
        )
    share, shrink = successes / trials, 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding may cross the share


def bootstrap_interval(
    statistic: Callable[..., float], groups: Sequence[Hashable], *columns: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of `statistic(*columns)`, groups drawn with replacement (Field and Welsh 2007).

    groups: one for each row of the columns; rows of a group are drawn together, because they are not independent.
    Raises ValueError for fewer than two groups.
    """
    rows = np.argsort(numbers := _numbered(groups), kind="stable")  # rows of a group one after the other
    sizes = np.bincount(numbers)
    starts = np.cumsum(sizes) - sizes

    def resampled(drawn: np.ndarray) -> float:
        drawn = drawn.astype(int)
        size = sizes[drawn]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)  # 0, 1, … in every group drawn
        chosen = rows[np.repeat(starts[drawn], size) + within]
        return statistic(*(column[chosen] for column in columns))

    return _interval((np.arange(len(sizes)),), resampled, seed, vectorized=False)


def _mean_interval(groups: Sequence[Hashable], values: np.ndarray) -> tuple[float, float]:
    """`bootstrap_interval` of the mean, in one go: it is the sums of groups over their sizes."""
    numbers = _numbered(groups)
    sums, sizes = np.bincount(numbers, values), np.bincount(numbers)
    return _interval((sums, sizes), lambda s, n, axis: s.sum(axis) / n.sum(axis), 0, paired=True, vectorized=True)


def _interval(data: tuple, statistic: Callable, seed: int, **options) -> tuple[float, float]:
    if len(data[0]) < 2:
        raise ValueError("an interval by groups wants two groups or more: nothing tells how groups differ")
    options |= {"n_resamples": RESAMPLES, "method": "percentile", "rng": seed, "batch": 100}
    found = stats.bootstrap(data, statistic, **options).confidence_interval
    return float(found.low), float(found.high)


def _numbered(groups: Sequence[Hashable]) -> np.ndarray:
    """The groups as whole numbers from 0."""
    return pd.factorize(pd.Series(list(groups)))[0]


def nll(rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None) -> Estimate:
    """−log σ(r_better − r_worse), the mean over pairs told apart, in nats; ln 2 is that of a model that cannot tell."""
    return _mean(lambda difference: np.logaddexp(0, -difference), rewards, ranks, groups)


def brier(rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None) -> Estimate:
    """(1 − σ(r_better − r_worse))², the mean over pairs told apart (Brier 1950); 0.25 cannot tell."""
    return _mean(lambda difference: stats.logistic.sf(difference) ** 2, rewards, ranks, groups)


def rank_correlation(
    rewards: torch.Tensor, ratings: torch.Tensor, groups: Sequence[Hashable], method: str = "spearman"
) -> Estimate:
    """How alike two rankings of the same N completions are: rewards, ratings [N] → −1 to 1, and a bootstrap by group.

    method: `"spearman"` (1904), or `"kendall"`, whose τ-b (1945) allows for ties. A reward is only defined up to a
    constant for each prompt: across prompts this asks more than training taught. Raises ValueError where one is constant.
    """
    methods = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}
    if method not in methods:
        raise ValueError(f"method is one of {', '.join(methods)}: got {method!r}")
    a, b = rewards.double().numpy(), ratings.double().numpy()
    if a.shape != b.shape or a.ndim != 1 or len(groups) != len(a):
        raise ValueError(f"one reward, rating and group a completion: got {a.shape}, {b.shape} and {len(groups)}")
    if min(np.ptp(a), np.ptp(b)) == 0:
        raise ValueError("all rewards or all ratings are equal: there is no ranking to compare")

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return methods[method](a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0

    return Estimate(float(correlation(a, b)), *bootstrap_interval(correlation, groups, a, b), len(a))


def lengths(preferences: Sequence[Preference]) -> torch.Tensor:
    """The characters of every completion, [N, K], 0 where there is none: as a reward, "the longer answer wins"."""
    most = max(len(p.completions) for p in preferences)
    return torch.tensor([[*map(len, p.completions), *[0] * (most - len(p.completions))] for p in preferences]).double()


def accuracy_table(
    rewards: torch.Tensor, preferences: Sequence[Preference], by: Sequence[str] | None = None
) -> pd.DataFrame:
    """Accuracy for each value of `by` (the domain, unless given) and for all; beside it what length alone would reach.

    rewards [N, K] or [R, N, K]. Columns: pairs, accuracy, low, high (bootstrap by group, Wilson's where all pairs are of
    groups of their own), longer_wins, shorter_wins, ties (pairs that were judged equal). A part in which no pair was
    told apart has no row.
    """
    by = [p.domain for p in preferences] if by is None else list(by)
    table = {}
    for name in [*dict.fromkeys(by), "all"]:
        chosen = [i for i, value in enumerate(by) if name in (value, "all")]
        part = [preferences[i] for i in chosen]
        ranks, groups = ranks_tensor(part), [p.group for p in part]
        if all(p.is_tie for p in part):
            continue
        kept = rewards[..., chosen, : ranks.shape[1]]
        independent = ranks.shape[1] == 2 and len(set(groups)) == len(groups)
        accuracy = pairwise_accuracy(kept, ranks, None if independent or len(set(groups)) < 2 else groups)
        longer = pairwise_accuracy(lengths(part), ranks).value
        table[name] = [
            accuracy.pairs, accuracy.value, accuracy.low, accuracy.high, longer, 1 - longer, accuracy.tied_judgements
        ]  # fmt: skip
    columns = ["pairs", "accuracy", "low", "high", "longer_wins", "shorter_wins", "ties"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns).astype({"pairs": int, "ties": int})


def spillover_gap(
    inside: tuple[torch.Tensor, Sequence[Preference]], outside: tuple[torch.Tensor, Sequence[Preference]]
) -> Estimate:
    """Held-out accuracy in the domains that were trained on, minus that in one that was not: how much a shift costs.

    inside, outside: rewards [N, K] or [R, N, K], and the preferences that they are of. This is not overfitting, which
    is training against held-out accuracy in the same domains. The interval resamples the groups of both sides.
    """
    right, groups, is_outside = [], [], []
    for side, (rewards, preferences) in enumerate((inside, outside)):
        pairs = judged_pairs(rewards, ranks_tensor(preferences))
        right.append(((np.sign(pairs.difference) + 1) / 2).reshape(-1, pairs.difference.shape[-1]).mean(0))
        groups += [(side, preferences[i].group) for i in pairs.preference]
        is_outside += [side] * len(pairs.preference)

    def gap(right: np.ndarray, is_outside: np.ndarray) -> float:
        return float(right[is_outside == 0].mean() - right[is_outside == 1].mean())

    columns = np.concatenate(right), np.array(is_outside)
    return Estimate(gap(*columns), *bootstrap_interval(gap, groups, *columns), len(groups))


def reward_summary(rewards: torch.Tensor, preferences: Sequence[Preference]) -> pd.Series:
    """How rewards [N, K] are distributed, which accuracy does not show.

    mean, standard_deviation, lowest, highest over all completions; spread: the mean over prompts of the highest minus
    the lowest; saturated: the share of judged pairs to which the model gives more than 99 % or less than 1 %;
    length_correlation: Spearman's, of reward and characters, over all completions.
    """
    ranks = ranks_tensor(preferences)
    present = ranks >= 0
    values, sizes = rewards[present].double().numpy(), lengths(preferences)[present].numpy()
    absent = torch.where(present, 0.0, float("nan")).double()
    spread = np.nanmax(rewards.double() + absent, 1) - np.nanmin(rewards.double() + absent, 1)
    certain = stats.logistic.cdf(np.abs(judged_pairs(rewards, ranks).difference)) > SATURATED
    varied = np.ptp(values) and np.ptp(sizes)
    return pd.Series(
        {
            "mean": values.mean(), "standard_deviation": values.std(), "lowest": values.min(), "highest": values.max(),
            "spread": spread.mean(), "saturated": certain.mean(),
            "length_correlation": stats.spearmanr(values, sizes).statistic if varied else 0.0,
        }
    )  # fmt: skip


def grouped_folds(
    preferences: Sequence[Preference], folds: int = 5, repeats: int = 1, seed: int = 0
) -> Iterator[tuple[list[int], list[int]]]:
    """(indices to train on, indices held out), for each fold of each repeat; no group on both sides, domains in proportion."""
    groups, domains = [p.group for p in preferences], [p.domain for p in preferences]
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
        for train, held_out in splitter.split(domains, domains, groups):
            yield train.tolist(), held_out.tolist()


def _mean(score: Callable, rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None) -> Estimate:
    pairs = judged_pairs(rewards, ranks)
    scores = score(pairs.difference).reshape(-1, pairs.difference.shape[-1]).mean(0)
    return Estimate(float(scores.mean()), *_mean_interval(of_pairs(groups, pairs, ranks), scores), len(scores))


def of_pairs(groups: Sequence[Hashable] | None, pairs: Pairs, ranks: torch.Tensor) -> np.ndarray:
    """The group of every pair, as a number: its preference, where nobody says otherwise."""
    if groups is None:
        return pairs.preference
    if len(groups) != len(ranks):
        raise ValueError(f"groups has one for each preference: got {len(groups)} for {len(ranks)}")
    return _numbered(groups)[pairs.preference]
