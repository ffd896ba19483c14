"""Losses: pure functions of rewards and judgements, one number a preference (notebook 02).

All take rewards [B, K] fp32 and ranks [B, K] (0 best, equal a tie, −1 for no completion) and give losses [B], in nats
where they are likelihoods. With K > 2 a pairwise loss is the mean over the pairs that were told apart, as InstructGPT
has it (arXiv:2203.02155, eq. 1). ValueError for shapes that differ, which torch might broadcast; and for preferences
in which nothing was told apart, from those that have no probability for a tie.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


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
            f"preferences {tied} of the batch are ties, to which Bradley–Terry gives no probability: leave them out, and say so"
        )
    difference = rewards[:, :, None] - rewards[:, None, :]  # (B, K, K)
    return (loss(difference) * decisive).sum((1, 2)) / pairs


def _require_shapes(rewards: torch.Tensor, ranks: torch.Tensor) -> None:
    if rewards.shape != ranks.shape or rewards.ndim != 2:
        raise ValueError(f"rewards and ranks are both [B, K]: got {list(rewards.shape)} and {list(ranks.shape)}")
