"""Protects: the Bradley–Terry loss is the negative log-likelihood of what was judged, in value and in gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from rmkit import bradley_terry

PAIR = torch.tensor([[0, 1]])


@pytest.mark.parametrize(
    ("difference", "loss"),
    [(0.0, math.log(2)), (1.0, 0.3132617), (-1.0, 1.3132617), (2.0, 0.1269280), (math.log(3), math.log(4 / 3))],
)
def test_known_values(difference, loss):
    """ln 2 where the model cannot tell; softplus(−Δ) elsewhere; a reward ln 3 higher wins 3 times out of 4."""
    got = bradley_terry(torch.tensor([[difference + 5, 5.0]]), PAIR)
    assert got.shape == (1,)
    assert got.item() == pytest.approx(loss, abs=1e-6)


def test_equals_binary_cross_entropy_on_the_difference():
    """The classification framing is the same number with the same gradient: −σ(−Δ) for the better completion."""
    rewards = (5 * torch.randn(100, 2, dtype=torch.float64, generator=torch.manual_seed(0))).requires_grad_()
    losses = bradley_terry(rewards, PAIR.expand(100, 2))
    difference = (rewards[:, 0] - rewards[:, 1]).detach()
    torch.testing.assert_close(
        losses, F.binary_cross_entropy_with_logits(difference, torch.ones(100).double(), reduction="none")
    )
    (gradient,) = torch.autograd.grad(losses.sum(), rewards)
    torch.testing.assert_close(gradient[:, 0], -torch.sigmoid(-difference))
    torch.testing.assert_close(gradient[:, 1], torch.sigmoid(-difference))


def test_far_rewards_stay_finite_in_fp32():
    """log(sigmoid(−1e4)) is −inf; the loss is 1e4, and its gradient still pulls."""
    rewards = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    losses = bradley_terry(rewards, PAIR.expand(2, 2))
    assert losses.tolist() == [0.0, 1e4]
    losses.sum().backward()
    assert rewards.grad.tolist() == [[0.0, 0.0], [-1.0, 1.0]]


RANKINGS = {  # ranks → the pairs (better, worse) that they tell apart
    (0, 1, 2): [(0, 1), (0, 2), (1, 2)],
    (0, 1, 1): [(0, 1), (0, 2)],
    (0, 0, 1): [(0, 2), (1, 2)],
    (0, 1, -1): [(0, 1)],
    (0, 0, 1, 2, -1): [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
}


@pytest.mark.parametrize(("ranks", "pairs"), RANKINGS.items())
def test_more_than_two_is_the_mean_over_pairs_that_were_told_apart(ranks, pairs):
    """Ties inside a ranking add nothing, and absent completions are never read."""
    rewards = torch.tensor([[0.3, -1.2, 2.5, 0.4, -0.7]])[:, : len(ranks)]
    by_hand = sum(math.log1p(math.exp(rewards[0, j] - rewards[0, i])) for i, j in pairs) / len(pairs)
    assert bradley_terry(rewards, torch.tensor([ranks])).item() == pytest.approx(by_hand, rel=1e-6)


def test_gradient_equals_finite_differences():
    ranks = torch.tensor([[0, 1, 2], [0, 1, 1], [0, 1, -1]])
    rewards = torch.randn(3, 3, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(bradley_terry, (rewards, ranks))
    (gradient,) = torch.autograd.grad(bradley_terry(rewards, ranks).sum(), rewards)
    assert gradient[2, 2] == 0, "an absent completion pulls"


def test_only_differences_count():
    """A constant on every reward of a prompt changes nothing; gradients of a prompt add up to zero."""
    rewards = torch.randn(4, 3, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    ranks = torch.tensor([[0, 1, 2]] * 4)
    shift = torch.tensor([[-7.0], [0.0], [3.0], [100.0]])
    torch.testing.assert_close(bradley_terry(rewards + shift, ranks), bradley_terry(rewards, ranks))
    (gradient,) = torch.autograd.grad(bradley_terry(rewards, ranks).sum(), rewards)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(4).double())


def test_whole_ties_are_refused_by_name():
    """Turned into chosen = rejected they would cost a constant ln 2 for ever."""
    ranks = torch.tensor([[0, 1, -1], [0, 0, -1], [0, 0, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"preferences \[1, 3\] of the batch are ties"):
        bradley_terry(torch.zeros(4, 3), ranks)
