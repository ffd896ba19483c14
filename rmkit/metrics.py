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
FEW_GROUPS = 20  # below which a bootstrap over groups covers less than it says
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
    is_tie [M]: whether it was called a tie; only with `ties`, where these pairs are among the M, the first minus the second.
    """

    difference: np.ndarray
    preference: np.ndarray
    tied: int
    is_tie: np.ndarray


def judged_pairs(rewards: torch.Tensor, ranks: torch.Tensor, ties: bool = False) -> Pairs:
    """The pairs of rewards [..., N, K] by ranks [N, K], as in `bradley_terry`; dimensions in front are repetitions.

    ties: with those that were called equal. Raises ValueError where there is no pair, or none was told apart and ties
    are not asked for, a reward is not a number, or the shapes differ.
    """
    if rewards.shape[-2:] != ranks.shape or ranks.ndim != 2:
        raise ValueError(f"rewards and ranks are both [N, K]: got {list(rewards.shape)} and {list(ranks.shape)}")
    rewards, ranks = rewards.detach().double().cpu(), ranks.cpu()
    present = ranks >= 0
    if not torch.isfinite(rewards[..., present]).all():
        raise ValueError("a reward is not a finite number: accuracy would count it as wrong")
    decisive = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None]
    tied = ((ranks[:, :, None] == ranks[:, None, :]) & present[:, :, None] & present[:, None, :]).triu(1)
    judged = decisive | tied if ties else decisive
    if not judged.any():
        raise ValueError("no pair was told apart by an annotator: there is no accuracy to measure")
    difference = (rewards[..., :, None] - rewards[..., None, :])[..., judged]
    return Pairs(difference.numpy(), judged.nonzero()[:, 0].numpy(), int(tied.sum()), tied[judged].numpy())


def pairwise_accuracy(rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None) -> Accuracy:
    """The share of pairs, told apart by an annotator, in which the better completion got the higher reward.

    rewards, ranks [N, K], as in `bradley_terry`; or rewards [R, N, K] of R repetitions, such as seeds or the held-out
    rewards of repeated folds, over which a pair is averaged. Every pair weighs the same, equal rewards count half.
    groups: one for each preference. Without them the interval is Wilson's, for pairs that are independent (over
        preferences, by bootstrap, for repetitions); where preferences share a prompt, or have several pairs, that is too
        narrow: with groups it is `share_interval` over them. It says how other prompts would have come out, not another
        training set.
    Raises ValueError where no pair was told apart, a reward is not a number, or the shapes differ.
    """
    pairs = judged_pairs(rewards, ranks)
    right = _right(pairs)
    if groups is None and rewards.ndim == 2:
        low, high = wilson_interval(float(right.sum()), len(right))
    else:
        low, high = share_interval(of_pairs(groups, pairs, ranks), right)
    equal = (pairs.difference == 0).reshape(-1, len(right)).all(0)  # in every repetition
    return Accuracy(float(right.mean()), low, high, len(right), int(equal.sum()), pairs.tied)


def accuracy_difference(
    one: torch.Tensor, other: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None
) -> Estimate:
    """The accuracy of one model minus that of another on the same pairs, which is surer than two intervals side by side.

    one, other [N, K] or [R, N, K]; ranks, groups: as in `pairwise_accuracy`. The interval is a bootstrap over the groups.
    """
    first, second = judged_pairs(one, ranks), judged_pairs(other, ranks)
    gain = _right(first) - _right(second)
    return Estimate(float(gain.mean()), *_mean_interval(of_pairs(groups, first, ranks), gain), len(gain))


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


def share_interval(groups: Sequence[Hashable], values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values from 0 to 1, one a row, of rows that come in groups.

    A bootstrap over the groups. Where these are fewer than 20, or all alike, it is too narrow, down to nothing: it is then
    widened to Wilson's interval of as many trials as there are groups. A single group has Wilson's alone.
    """
    count, share = len(np.unique(_numbered(groups))), float(values.mean())
    low, high = _mean_interval(groups, values) if count > 1 else (share, share)
    if count < FEW_GROUPS or low == high:
        widest = wilson_interval(share * count, count)
        low, high = min(low, widest[0]), max(high, widest[1])
    return low, high


def bootstrap_interval(
    statistic: Callable[..., float],
    groups: Sequence[Hashable],
    *columns: np.ndarray,
    seed: int = 0,
    method: str = "percentile",
) -> tuple[float, float]:
    """The 95 % interval of `statistic(*columns)`, groups drawn with replacement (Field and Welsh 2007).

    groups: one for each row of the columns; rows of a group are drawn together, because they are not independent.
    method: `"percentile"`, or `"basic"`, which takes off the bias of a statistic that chance makes larger.
    Raises ValueError for fewer than two groups.
    """
    rows = _Groups(groups)
    return _interval(
        (np.arange(len(rows)),), lambda drawn: statistic(*(column[rows.of(drawn)] for column in columns)), seed,
        vectorized=False, method=method,
    )  # fmt: skip


class _Groups:
    """The rows of each group."""

    def __init__(self, groups: Sequence[Hashable]):
        numbers = _numbered(groups)
        self.rows = np.argsort(numbers, kind="stable")  # rows of a group one after the other
        self.sizes = np.bincount(numbers)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, drawn: np.ndarray) -> np.ndarray:
        """The rows of the groups that were drawn, each as often as it was."""
        drawn = drawn.astype(int)
        size = self.sizes[drawn]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)  # 0, 1, … in every group drawn
        return self.rows[np.repeat(self.starts[drawn], size) + within]


def _mean_interval(groups: Sequence[Hashable], values: np.ndarray) -> tuple[float, float]:
    """`bootstrap_interval` of the mean, in one go: it is the sums of groups over their sizes."""
    numbers = _numbered(groups)
    sums, sizes = np.bincount(numbers, values), np.bincount(numbers)
    return _interval((sums, sizes), lambda s, n, axis: s.sum(axis) / n.sum(axis), 0, paired=True, vectorized=True)


def _interval(data: tuple, statistic: Callable, seed: int, **options) -> tuple[float, float]:
    if min(map(len, data)) < 2:
        raise ValueError("an interval by groups wants two groups or more: nothing tells how groups differ")
    options = {"n_resamples": RESAMPLES, "method": "percentile", "rng": seed, "batch": 100} | options
    found = stats.bootstrap(data, statistic, **options).confidence_interval
    return float(found.low), float(found.high)


def _numbered(groups: Sequence[Hashable]) -> np.ndarray:
    """The groups as whole numbers from 0."""
    return pd.factorize(pd.Series(list(groups)))[0]


def nll(rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None) -> Estimate:
    """−log σ(r_better − r_worse), the mean over pairs told apart, in nats; ln 2 is that of a model that cannot tell."""
    pairs = judged_pairs(rewards, ranks)
    return mean_of_pairs(np.logaddexp(0, -pairs.difference), pairs, ranks, groups)


def brier(rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None) -> Estimate:
    """(1 − σ(r_better − r_worse))², the mean over pairs told apart (Brier 1950); 0.25 cannot tell."""
    pairs = judged_pairs(rewards, ranks)
    return mean_of_pairs(stats.logistic.sf(pairs.difference) ** 2, pairs, ranks, groups)


def rank_correlation(
    rewards: torch.Tensor, ratings: torch.Tensor, groups: Sequence[Hashable], method: str = "spearman"
) -> Estimate:
    """How alike two rankings of the same N completions are: rewards, ratings [N] → −1 to 1, and a bootstrap by group.

    rewards may be [R, N] of R repetitions, over which the correlation is averaged. method: `"spearman"` (1904), or
    `"kendall"`, whose τ-b (1945) allows for ties. A reward is only defined up to a constant for each prompt: across
    prompts this asks more than training taught; take each prompt's mean from both to ask within. Raises ValueError where
    one is constant or no number.
    """
    methods = {"spearman": _spearman, "kendall": _kendall}
    if method not in methods:
        raise ValueError(f"method is one of {', '.join(methods)}: got {method!r}")
    a, b = (x.detach().double().cpu().numpy() for x in (rewards, ratings))
    if a.shape[-1:] != b.shape or a.ndim not in (1, 2) or len(groups) != len(b):
        raise ValueError(f"one reward, rating and group a completion: got {a.shape}, {b.shape} and {len(groups)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a reward or a rating is not a finite number")
    values = np.column_stack([np.atleast_2d(a).T, b])  # (N, R + 1): the last column holds the ratings
    if np.ptp(values, 0).min() == 0:
        raise ValueError("all rewards or all ratings are equal: there is no ranking to compare")
    orders, correlation = order_numbers(values), methods[method]
    return Estimate(float(correlation(orders)), *bootstrap_interval(correlation, groups, orders), len(b))


def order_numbers(values: np.ndarray) -> np.ndarray:
    """Every column's values as whole numbers in the same order, 0 for the least: [N, R] → [N, R]."""
    return np.column_stack([np.unique(column, return_inverse=True)[1] for column in values.T])


def average_ranks(orders: np.ndarray) -> np.ndarray:
    """scipy's rankdata of every column of `order_numbers`, or of rows drawn from them: by counting, with nothing to sort."""
    size, columns = orders.max() + 1, orders.shape[1]
    places = orders + size * np.arange(columns)
    counts = np.bincount(places.ravel(), minlength=size * columns).reshape(columns, size)
    return (counts.cumsum(1) - (counts - 1) / 2).ravel()[places]


def _spearman(orders: np.ndarray) -> float:
    """Of each column with the last, the mean; 0 where all are equal."""
    ranks = average_ranks(orders)
    ranks -= ranks.mean(0)
    products, sizes = ranks.T @ ranks[:, -1], np.linalg.norm(ranks, axis=0)
    return float(np.mean(products[:-1] / np.maximum(sizes[:-1] * sizes[-1], 1e-12)))


def _kendall(orders: np.ndarray) -> float:
    b = orders[:, -1]
    return np.mean(
        [stats.kendalltau(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a in orders[:, :-1].T]
    )  # fmt: skip


def lengths(preferences: Sequence[Preference]) -> torch.Tensor:
    """The characters of every completion, [N, K], 0 where there is none: as a reward, "the longer answer wins"."""
    most = max(len(p.completions) for p in preferences)
    return torch.tensor([[*map(len, p.completions), *[0] * (most - len(p.completions))] for p in preferences]).double()


def accuracy_table(
    rewards: torch.Tensor, preferences: Sequence[Preference], by: Sequence[str] | None = None
) -> pd.DataFrame:
    """Accuracy for each value of `by` (the domain, unless given) and for all; beside it what length alone would reach.

    rewards [N, K] or [R, N, K]. Columns: pairs, accuracy, low, high (Wilson's where every pair is of a group of its own
    and there are no repetitions, else `share_interval` by group), longer_wins, shorter_wins, ties (pairs that were judged
    equal). A part in which no pair was told apart has no row. Raises ValueError for other numbers of rewards or of `by`.
    """
    by = [p.domain for p in preferences] if by is None else list(by)
    if not len(by) == len(preferences) == rewards.shape[-2] or "all" in by:
        raise ValueError(
            f"one reward row and one value of `by`, other than 'all', a preference: got {len(preferences)} preferences, "
            f"rewards {list(rewards.shape)} and {len(by)} values"
        )
    parts = {name: [i for i, value in enumerate(by) if value == name] for name in dict.fromkeys(by)}
    table = {}
    for name, chosen in (parts | {"all": list(range(len(by)))}).items():
        part = [preferences[i] for i in chosen]
        if all(p.is_tie for p in part):
            continue
        ranks, groups = ranks_tensor(part), [p.group for p in part]
        independent = ranks.shape[1] == 2 and len(set(groups)) == len(groups)
        kept = rewards[..., chosen, : ranks.shape[1]]
        accuracy = pairwise_accuracy(kept, ranks, None if independent else groups)
        longer = pairwise_accuracy(lengths(part), ranks).value
        table[name] = [
            accuracy.pairs, accuracy.value, accuracy.low, accuracy.high, longer, 1 - longer, accuracy.tied_judgements
        ]  # fmt: skip
    columns = ["pairs", "accuracy", "low", "high", "longer_wins", "shorter_wins", "ties"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns).astype({"pairs": int, "ties": int})


def spillover_gap(
    inside: tuple[torch.Tensor, Sequence[Preference]], outside: tuple[torch.Tensor, Sequence[Preference]]
) -> Estimate:
    """Held-out accuracy in the domains that were trained on, minus that in one that was not.

    inside, outside: rewards [N, K] or [R, N, K], and the preferences that they are of. This is not overfitting, which is
    training against held-out accuracy in the same domains. Nor is it all shift: the two sides ask different questions, of
    which one may be easier. What the shift costs says `accuracy_difference` on the outside, with a model that was trained
    on such questions too. The interval resamples the groups of each side.
    """
    sides = []
    for rewards, preferences in (inside, outside):
        ranks = ranks_tensor(preferences)
        pairs = judged_pairs(rewards, ranks)
        numbers, right = of_pairs([p.group for p in preferences], pairs, ranks), _right(pairs)
        _, numbers = np.unique(
            numbers, return_inverse=True
        )  # of groups without a decisive pair there is nothing to draw
        sides.append((right, np.bincount(numbers, right), np.bincount(numbers)))
    (right_in, *sums_in), (right_out, *sums_out) = sides

    def gap(i: np.ndarray, o: np.ndarray) -> float:
        (a, n), (b, m) = (
            [column[drawn.astype(int)].sum() for column in side] for side, drawn in ((sums_in, i), (sums_out, o))
        )
        return a / n - b / m

    value = float(right_in.mean() - right_out.mean())
    interval = _interval((np.arange(len(sums_in[0])), np.arange(len(sums_out[0]))), gap, 0, vectorized=False)
    return Estimate(value, *interval, len(right_in) + len(right_out))


def reward_summary(rewards: torch.Tensor, preferences: Sequence[Preference]) -> pd.Series:
    """How rewards [N, K] are distributed, which accuracy does not show.

    mean, standard_deviation, lowest, highest over all completions; spread: the mean over prompts of the highest minus
    the lowest; saturated: the share of judged pairs to which the model gives more than 99 % or less than 1 %;
    length_correlation: Spearman's, of reward and characters, over all completions. nan where there is nothing to measure.
    """
    ranks = ranks_tensor(preferences)
    require_matrix(rewards, ranks)
    present, rewards = ranks >= 0, rewards.detach().double().cpu()
    values, sizes = rewards[present].numpy(), lengths(preferences)[present].numpy()
    absent = torch.where(present, 0.0, float("nan")).double()
    spread = np.nanmax(rewards + absent, 1) - np.nanmin(rewards + absent, 1)
    told = not all(p.is_tie for p in preferences)
    certain = stats.logistic.cdf(np.abs(judged_pairs(rewards, ranks).difference)) > SATURATED if told else np.nan
    varied = np.ptp(values) and np.ptp(sizes)
    return pd.Series(
        {
            "mean": values.mean(), "standard_deviation": values.std(), "lowest": values.min(), "highest": values.max(),
            "spread": spread.mean(), "saturated": np.mean(certain),
            "length_correlation": stats.spearmanr(values, sizes).statistic if varied else np.nan,
        }
    )  # fmt: skip


def grouped_folds(
    preferences: Sequence[Preference], folds: int = 5, repeats: int = 1, seed: int = 0
) -> Iterator[tuple[list[int], list[int]]]:
    """(indices to train on, indices held out), for each fold of each repeat; no group on both sides, domains in proportion."""
    groups, domains = [p.group for p in preferences], [p.domain for p in preferences]
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(
            folds, shuffle=True, random_state=np.random.SeedSequence([seed, repeat]).generate_state(1)[0]
        )
        for train, held_out in splitter.split(domains, domains, groups):
            yield train.tolist(), held_out.tolist()


def mean_of_pairs(scores: np.ndarray, pairs: Pairs, ranks: torch.Tensor, groups: Sequence[Hashable] | None) -> Estimate:
    """The mean of scores [..., M], one a pair, and its interval: a bootstrap over the groups; repetitions are averaged."""
    scores = scores.reshape(-1, scores.shape[-1]).mean(0)
    return Estimate(float(scores.mean()), *_mean_interval(of_pairs(groups, pairs, ranks), scores), len(scores))


def of_pairs(groups: Sequence[Hashable] | None, pairs: Pairs, ranks: torch.Tensor) -> np.ndarray:
    """The group of every pair, as a number: its preference, where nobody says otherwise."""
    if groups is None:
        return pairs.preference
    if len(groups) != len(ranks):
        raise ValueError(f"groups has one for each preference: got {len(groups)} for {len(ranks)}")
    return _numbered(groups)[pairs.preference]


def require_matrix(rewards: torch.Tensor, ranks: torch.Tensor) -> None:
    """Raise ValueError for repetitions, where each has to be measured by itself."""
    if rewards.shape != ranks.shape or ranks.ndim != 2:
        raise ValueError(
            f"rewards and ranks are both [N, K] here, one repetition at a time: got {list(rewards.shape)} and {list(ranks.shape)}"
        )


def _right(pairs: Pairs) -> np.ndarray:
    """[M]: 1 for a pair ranked right, 0 for wrong, ½ for equal rewards; averaged over repetitions."""
    return ((np.sign(pairs.difference) + 1) / 2).reshape(-1, pairs.difference.shape[-1]).mean(0)
