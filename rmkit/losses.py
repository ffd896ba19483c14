"""Losses: pure functions of rewards and judgements, one number a preference (notebook 02)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def bradley_terry(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """−log σ(r_better − r_worse) of every preference, in nats.

    rewards [B, K] fp32; ranks [B, K], 0 best, −1 for no completion → losses [B]. With K > 2 the mean over all
    pairs of the preference that were told apart, as InstructGPT does (arXiv:2203.02155, eq. 1); with K = 2
    the loss of Bradley and Terry (Biometrika 1952). Raises ValueError for a preference in which nothing was
    told apart: this model has no probability for a tie; and where the shapes differ, which torch might broadcast.
    """
    if rewards.shape != ranks.shape or rewards.ndim != 2:
        raise ValueError(f"rewards and ranks are both [B, K]: got {list(rewards.shape)} and {list(ranks.shape)}")
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
    return (-F.logsigmoid(difference) * decisive).sum((1, 2)) / pairs
