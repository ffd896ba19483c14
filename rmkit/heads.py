"""Many linear heads on frozen features at once, in milliseconds each (notebook 02 builds them, 05 lives on them)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from rmkit.graded import GradedPrompt, rewards_of
from rmkit.preferences import Preference


def differences(features: torch.Tensor, prompts: Sequence[GradedPrompt], judged: Sequence[Preference]) -> torch.Tensor:
    """What Bradley–Terry regresses on: the features of the better answer minus those of the other, [M, H].

    features [N, K, H] of the answers to N prompts, best first, as `rmkit.features` gives them; judged: M pairs of them.
    """
    better, worse = rewards_of(judged, prompts, features.movedim(-1, 0)).unbind(-1)  # (H, M) each
    return (better - worse).T


def fit_heads(differences: torch.Tensor, ridge: float | torch.Tensor, steps: int = 50) -> torch.Tensor:
    """The linear heads [S, H] that Bradley–Terry likes best, for S training sets of M differences each: [S, M, H].

    Each minimises the mean of −log σ(w · d), in nats, plus ridge / 2 · |w|²; ridge: one number, or one for each set [S].
    It is the maximum of a posterior with a normal prior. Features want a scale of about 1: the ridge is measured in it.
    steps: iterations of L-BFGS at most. Raises ValueError for other shapes, or a ridge below 0.
    """
    ridge = torch.as_tensor(ridge, dtype=differences.dtype)
    if differences.ndim != 3 or ridge.shape not in ((), differences.shape[:1]) or (ridge < 0).any():
        raise ValueError(
            f"differences are [S, M, H], and a ridge is a number from 0 up or [S] of them: got {list(differences.shape)} and "
            f"{list(ridge.shape) or ridge.item()}"
        )
    heads = torch.zeros(len(differences), differences.shape[-1], dtype=differences.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([heads], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        leads = torch.einsum("smh,sh->sm", differences, heads)
        loss = F.softplus(-leads).mean(1).sum() + (ridge / 2 * heads.square().sum(1)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return heads.detach()
