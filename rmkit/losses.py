"""Losses: functions of rewards and judgements, one number a preference (notebook 02; those for ties: notebook 04).

All take rewards [B, K] fp32 and ranks [B, K] (0 best, equal a tie, −1 for no completion) and give losses [B], in nats
where they are likelihoods. With K > 2 a pairwise loss is the mean over the pairs that were told apart, as InstructGPT
has it (arXiv:2203.02155, eq. 1); one for ties is the mean over all pairs. ValueError for shapes that differ, which torch
might broadcast; and for preferences in which nothing was told apart, from those that have no probability for a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def bradley_terry(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """−log σ(r_better − r_worse) → [B], nats. Bradley and Terry, Biometrika 1952."""
    return _over_pairs(lambda difference: -F.logsigmoid(difference), rewards, ranks)


def classification(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of "the first is better" with the logit r_better − r_worse → [B], nats: `bradley_terry` again."""
    return _over_pairs(
        lambda d: F.binary_cross_entropy_with_logits(d, torch.ones_like(d), reduction="none"), rewards, ranks
    )


def label_smoothed(rewards: torch.Tensor, ranks: torch.Tensor, flips: float = 0.1) -> torch.Tensor:
    """−(1 − ε) log σ(Δ) − ε log σ(−Δ) → [B], nats, where a share ε of the judgements is turned around.

    Least at Δ = log((1 − ε) / ε), no longer at infinity. Mitchell, "A note on DPO with noisy preferences", 2023.
    """
    if not 0 <= flips < 0.5:
        raise ValueError(f"flips is the share of judgements that are wrong, from 0 to less than half: got {flips!r}")
    return _over_pairs(lambda d: -(1 - flips) * F.logsigmoid(d) - flips * F.logsigmoid(-d), rewards, ranks)


def margin_bradley_terry(rewards: torch.Tensor, ranks: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """−log σ(Δ − m) → [B], nats: the better one is to lead by m, more where it was called much better.

    margins [B], in nats, not negative. Llama 2, arXiv:2307.09288, eq. 2.
    """
    if margins.shape != ranks.shape[:1] or (margins < 0).any():
        raise ValueError(f"margins holds a number from 0 up for each preference: got {margins}")
    return _over_pairs(lambda difference: -F.logsigmoid(difference - margins[:, None, None]), rewards, ranks)


def hinge(rewards: torch.Tensor, ranks: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """max(0, margin − Δ) → [B]: a lead of `margin` is enough, and pairs that have it pull no more.

    No likelihood: it gives no probabilities. Joachims, KDD 2002 (RankSVM).
    """
    return _over_pairs(lambda difference: F.relu(margin - difference), rewards, ranks)


def squared_error(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Σ (r − target)² over the completions → [B], with the target 1 for the best rank, 0 for the worst, ½ for a tie.

    Regression on scores that nobody gave: it also punishes a reward for being higher than 1, and moves with a constant
    on all rewards. Ranks in between get targets in between.
    """
    _require_shapes(rewards, ranks)
    present = ranks >= 0
    worst = ranks.amax(1, keepdim=True)
    target = torch.where(worst > 0, 1 - ranks / worst.clamp(min=1), 0.5)
    return ((rewards - target).square() * present).sum(1)


def plackett_luce(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """−Σₖ [r₍ₖ₎ − logsumexp_{j ≥ k} r₍ⱼ₎] → [B], nats: the ranking as choices of the best of what is left.

    Luce 1959, Plackett, Applied Statistics 1975. K = 2 is `bradley_terry`. Raises ValueError for tied ranks, for which
    it has no probability.
    """
    _require_shapes(rewards, ranks)
    places = torch.arange(ranks.shape[1], device=ranks.device)
    ordered = ranks.masked_fill(ranks < 0, ranks.shape[1]).sort(1)
    present = ordered.values < ranks.shape[1]
    if tied := ((ordered.values != places) & present).any(1).nonzero().flatten().tolist():
        raise ValueError(
            f"preferences {tied} of the batch have tied ranks, to which Plackett–Luce gives no probability"
        )
    r = rewards.gather(1, ordered.indices).masked_fill(~present, float("-inf"))  # best first
    left = r.flip(1).logcumsumexp(1).flip(1)  # logsumexp of this one and all after it
    return ((left - r).masked_fill(~present, 0.0)).sum(1)


def centering(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """(Σ r)² over the completions → [B]: added with a small weight (0.01), it keeps rewards around 0.

    A loss of differences leaves every prompt's rewards free to drift together. Eisenstein et al., arXiv:2312.09244.
    """
    _require_shapes(rewards, ranks)
    return rewards.masked_fill(ranks < 0, 0.0).sum(1).square()


def tie_as_half(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """−q log σ(Δ) − (1 − q) log σ(−Δ) → [B], nats, with q = 1 for the better one and ½ for a tie.

    Soft-label Bradley–Terry: a tie is half a win for each, and pulls Δ to 0. It has no probability of a tie to give; what
    it models is the expected score. Liu et al., arXiv:2411.12843; an arena's leaderboard does the same.
    """
    ordered, tied, pairs = _all_pairs(rewards, ranks)
    losses = torch.where(tied, 0.5 * (F.softplus(ordered) + F.softplus(-ordered)), F.softplus(-ordered))
    return (losses * pairs).sum((1, 2)) / pairs.sum((1, 2))


class TieModel(nn.Module):
    """Three outcomes, first, second and tie, from a difference of rewards; a loss whose one parameter trains with the model.

    tie_rate: how often completions of equal reward are called equal, more than 0 and less than 1. Start it from the share
    of ties in the data, which is never above it. It is read back at any time, and `RaoKupper(loss.tie_rate)` is the same
    loss again. Called as other losses are; `fit` trains the parameter, its logit, in place, at a rate of its own.
    Raises ValueError for a tie_rate at which there is nothing to learn: where nothing, or all, is a tie.
    """

    def __init__(self, tie_rate: float):
        super().__init__()
        if isinstance(tie_rate, bool) or not isinstance(tie_rate, (int, float)) or not 0 < tie_rate < 1:
            raise ValueError(
                f"tie_rate is a share of ties, more than 0 and less than 1, no percentage: got {tie_rate!r}. Without ties, bradley_terry "
                "is all there is; with nothing else, there is nothing to learn"
            )
        logit = math.log(tie_rate) - math.log1p(-tie_rate)
        self.logit = nn.Parameter(torch.tensor(logit, dtype=torch.float64))  # of which small steps are not rounded away

    @property
    def tie_rate(self) -> float:
        return torch.sigmoid(self.logit).item()

    def log_probabilities(self, difference: torch.Tensor) -> torch.Tensor:
        """difference [...] of rewards, first minus second, in nats → [..., 3]: log P of first, second and tie."""
        raise NotImplementedError

    def forward(self, rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        ordered, tied, pairs = _all_pairs(rewards, ranks)
        first, _, tie = self.log_probabilities(ordered).unbind(-1)
        return -(torch.where(tied, tie, first) * pairs).sum((1, 2)) / pairs.sum((1, 2))

    def extra_repr(self) -> str:
        return f"tie_rate={self.tie_rate:.3g}"


class RaoKupper(TieModel):
    """P(first) = σ(Δ − η), P(second) = σ(−Δ − η), P(tie) = (e^2η − 1) P(first) P(second). Rao and Kupper, JASA 1967.

    η > 0 is half the width of the band in which a noisy difference is not told apart: the ordered logit, and BTT of
    arXiv:2410.05328. Towards η = 0 it is Bradley–Terry. tanh(η / 2) is the tie rate of equal rewards.
    """

    @property
    def eta(self) -> torch.Tensor:
        """η, nats: log((1 + t) / (1 − t)) of the tie rate t, from its logit, so that neither edge is reached or rounded to."""
        return torch.log1p(torch.sigmoid(self.logit)) + F.softplus(self.logit)

    def log_probabilities(self, difference: torch.Tensor) -> torch.Tensor:
        eta = self.eta.to(difference)
        first, second = F.logsigmoid(difference - eta), F.logsigmoid(-difference - eta)
        # log(e^2η − 1), which is log(4t / (1 − t)²)
        band = (math.log(4) + F.logsigmoid(self.logit) + 2 * F.softplus(self.logit)).to(difference)
        return torch.stack([first, second, band + first + second], -1)


class Davidson(TieModel):
    """A softmax over (Δ/2, −Δ/2, log ν). Davidson, JASA 1970.

    ν > 0: towards 0 it is Bradley–Terry; ν / (2 + ν) is the tie rate of equal rewards. Who wins a pair that is told apart
    has the odds e^Δ, whatever ν is.
    """

    @property
    def nu(self) -> torch.Tensor:
        """ν = 2t / (1 − t) of the tie rate t."""
        return 2 * self.logit.exp()

    def log_probabilities(self, difference: torch.Tensor) -> torch.Tensor:
        tie = (math.log(2) + self.logit).to(difference).expand(difference.shape)
        return torch.stack([difference / 2, -difference / 2, tie], -1).log_softmax(-1)


def tie_rate(ranks: torch.Tensor) -> float:
    """The share of pairs that were called equal, ranks [N, K]: where a `TieModel` starts from."""
    _, tied, pairs = _all_pairs(torch.zeros(ranks.shape), ranks)
    return ((tied & pairs).sum() / pairs.sum()).item()


def _all_pairs(rewards: torch.Tensor, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All [B, K, K]: the reward of the better one minus that of the other; whether they are tied; the pairs that count, once each."""
    _require_shapes(rewards, ranks)
    order = ranks[:, None, :] - ranks[:, :, None]  # more than 0 where the first is the better one
    difference = rewards[:, :, None] - rewards[:, None, :]
    present = ranks >= 0
    pairs = (present[:, :, None] & present[:, None, :]).triu(1)
    return torch.where(order < 0, -difference, difference), order == 0, pairs


def _over_pairs(
    loss: Callable[[torch.Tensor], torch.Tensor], rewards: torch.Tensor, ranks: torch.Tensor
) -> torch.Tensor:
    """The mean of a loss of differences over the pairs of each preference that were told apart."""
    _require_shapes(rewards, ranks)
    decisive = (ranks[:, :, None] < ranks[:, None, :]) & (
        ranks[:, :, None] >= 0
    )  # (B, K, K): i was judged better than j
    pairs = decisive.sum((1, 2))
    if not pairs.all():
        tied = (pairs == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"preferences {tied} of the batch are ties, to which this loss gives no probability: take one that does (tie_as_half, RaoKupper, Davidson), or leave them out, and say so"
        )
    difference = rewards[:, :, None] - rewards[:, None, :]  # (B, K, K)
    return (loss(difference) * decisive).sum((1, 2)) / pairs


def _require_shapes(rewards: torch.Tensor, ranks: torch.Tensor) -> None:
    if rewards.shape != ranks.shape or rewards.ndim != 2:
        raise ValueError(f"rewards and ranks are both [B, K]: got {list(rewards.shape)} and {list(ranks.shape)}")
