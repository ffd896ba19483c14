"""What to measure of a reward model, and how sure to be of it (notebook 05)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Accuracy:
    """A share of pairs ranked right, with its 95 % interval (Wilson 1927, for independent pairs)."""

    value: float
    low: float
    high: float
    pairs: int  # pairs that an annotator told apart
    tied_rewards: int  # of these, the pairs to which the model gave equal rewards: half right each
    tied_judgements: int  # pairs that an annotator called equal: not counted above

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.pairs} pairs"


def pairwise_accuracy(rewards: torch.Tensor, ranks: torch.Tensor) -> Accuracy:
    """The share of pairs, told apart by an annotator, in which the better completion got the higher reward.

    rewards, ranks [N, K], as in `bradley_terry`. Every pair weighs the same, equal rewards count half.
    Raises ValueError where no pair was told apart, a reward is not a number, or the shapes differ.
    """
    if rewards.shape != ranks.shape or rewards.ndim != 2:
        raise ValueError(f"rewards and ranks are both [N, K]: got {list(rewards.shape)} and {list(ranks.shape)}")
    present = ranks >= 0
    if not torch.isfinite(rewards[present]).all():
        raise ValueError("a reward is not a finite number: accuracy would count it as wrong")
    decisive = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None]
    tied = (ranks[:, :, None] == ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    pairs = int(decisive.sum())
    if not pairs:
        raise ValueError("no pair was told apart by an annotator: there is no accuracy to measure")
    difference = (rewards[:, :, None] - rewards[:, None, :])[decisive]
    equal = int((difference == 0).sum())
    right = int((difference > 0).sum()) + equal / 2
    low, high = wilson_interval(right, pairs)
    return Accuracy(right / pairs, low, high, pairs, equal, int(tied.triu(1).sum()))


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
