"""Protects: the Bradley–Terry loss is the negative log-likelihood of what was judged, in value and in gradient."""

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from rmkit import bradley_terry, losses

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
    found = bradley_terry(rewards, PAIR.expand(100, 2))
    difference = (rewards[:, 0] - rewards[:, 1]).detach()
    torch.testing.assert_close(
        found, F.binary_cross_entropy_with_logits(difference, torch.ones(100).double(), reduction="none")
    )
    (gradient,) = torch.autograd.grad(found.sum(), rewards)
    torch.testing.assert_close(gradient[:, 0], -torch.sigmoid(-difference))
    torch.testing.assert_close(gradient[:, 1], torch.sigmoid(-difference))


def test_far_rewards_stay_finite_in_fp32():
    """log(sigmoid(−1e4)) is −inf; the loss is 1e4, and its gradient still pulls."""
    rewards = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    found = bradley_terry(rewards, PAIR.expand(2, 2))
    assert found.tolist() == [0.0, 1e4]
    found.sum().backward()
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


def by_pairs(loss: Callable[[float], float], rewards: list[float], ranks: tuple[int, ...]) -> float:
    pairs = [(i, j) for i, j in permutations(range(len(ranks)), 2) if 0 <= ranks[i] < ranks[j]]
    return sum(loss(rewards[i] - rewards[j]) for i, j in pairs) / len(pairs)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


PAIRWISE = {  # loss of a batch → the same of one difference, in plain Python
    "bradley_terry": (bradley_terry, lambda d: softplus(-d)),
    "classification": (losses.classification, lambda d: -math.log(1 / (1 + math.exp(-d)))),
    "label_smoothed": (lambda r, k: losses.label_smoothed(r, k, 0.2), lambda d: 0.8 * softplus(-d) + 0.2 * softplus(d)),
    "margin": (lambda r, k: losses.margin_bradley_terry(r, k, torch.full(r.shape[:1], 0.7)), lambda d: softplus(0.7 - d)),
    "hinge": (lambda r, k: losses.hinge(r, k, 0.5), lambda d: max(0.0, 0.5 - d)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("ranks", [(0, 1), *RANKINGS])
def test_pairwise_losses_by_hand(name, ranks):
    batch, one = PAIRWISE[name]
    rewards = [0.3, -1.2, 2.5, 0.4, -0.7][: len(ranks)]
    got = batch(torch.tensor([rewards, rewards]), torch.tensor([ranks, ranks]))
    assert got.tolist() == pytest.approx([by_pairs(one, rewards, ranks)] * 2, rel=1e-5)


EVERY = {name: loss for name, (loss, _) in PAIRWISE.items()} | {
    "squared_error": losses.squared_error, "plackett_luce": losses.plackett_luce, "centering": losses.centering
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_gradient_equals_finite_differences(name):
    """And an absent completion pulls nothing."""
    ranks = torch.tensor([[0, 1, 2], [2, 0, 1], [0, 1, -1]])
    rewards = torch.randn(3, 3, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(EVERY[name], (rewards, ranks))
    (gradient,) = torch.autograd.grad(EVERY[name](rewards, ranks).sum(), rewards)
    assert gradient[2, 2] == 0 and gradient.abs().sum() > 0


@pytest.mark.parametrize("name", EVERY)
def test_only_differences_count_but_for_two(name):
    """A constant on a prompt's rewards moves the squared error and the centering term, which is what that is for."""
    rewards = torch.randn(4, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    ranks = torch.tensor([[0, 1, 2]] * 4)
    moved = not torch.allclose(EVERY[name](rewards + 3, ranks), EVERY[name](rewards, ranks))
    assert moved == (name in ("squared_error", "centering"))


def test_label_smoothing_has_its_least_at_the_logit_of_the_flips():
    difference = torch.linspace(-6, 6, 2401)
    rewards = torch.stack([difference, torch.zeros_like(difference)], 1)
    values = losses.label_smoothed(rewards, PAIR.expand(2401, 2), 0.1)
    assert difference[values.argmin()].item() == pytest.approx(math.log(9), abs=0.01)
    least = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))  # the entropy of such judgements
    assert values.min().item() == pytest.approx(least, abs=1e-4)


def test_squared_error_by_hand():
    """Targets 1 and 0, ½ and ½, 1 and ½ and 0; and too high a reward of the better one costs."""
    rewards = torch.tensor([[3.0, 0.0, 9.0], [1.0, 0.0, 9.0], [0.5, 0.5, 9.0], [1.0, 0.0, 0.5]])
    ranks = torch.tensor([[0, 1, -1], [0, 0, -1], [0, 0, -1], [0, 2, 1]])
    assert losses.squared_error(rewards, ranks).tolist() == pytest.approx([4.0, 0.5, 0.0, 0.0])


def test_plackett_luce_is_a_product_of_choices():
    """P(a, c, b) = e^a / (e^a + e^b + e^c) · e^c / (e^b + e^c); over all orders the probabilities sum to one."""
    a, b, c = 0.3, -1.0, 0.8
    rewards = torch.tensor([[a, b, c]], dtype=torch.float64)
    by_hand = math.exp(a) / sum(map(math.exp, (a, b, c))) * math.exp(c) / (math.exp(b) + math.exp(c))
    assert losses.plackett_luce(rewards, torch.tensor([[0, 2, 1]])).item() == pytest.approx(-math.log(by_hand))
    orders = torch.tensor(list(permutations(range(3))))
    assert torch.exp(-losses.plackett_luce(rewards.expand(6, 3), orders)).sum().item() == pytest.approx(1)
    torch.testing.assert_close(losses.plackett_luce(rewards[:, :2], PAIR), bradley_terry(rewards[:, :2], PAIR))
    shorter = losses.plackett_luce(rewards, torch.tensor([[0, 1, -1]]))
    torch.testing.assert_close(shorter, bradley_terry(rewards[:, :2], PAIR))


def test_what_a_loss_cannot_use_is_refused():
    rewards, ranks = torch.zeros(2, 2), torch.tensor([[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"preferences \[0\] of the batch have tied ranks"):
        losses.plackett_luce(rewards, torch.tensor([[0, 0], [0, 1]]))
    with pytest.raises(ValueError, match="from 0 to less than half: got 0.5"):
        losses.label_smoothed(rewards, ranks, 0.5)
    with pytest.raises(ValueError, match="a number from 0 up for each preference"):
        losses.margin_bradley_terry(rewards, ranks, torch.tensor([1.0]))
    for loss in (losses.squared_error, losses.plackett_luce, losses.centering, losses.hinge):
        with pytest.raises(ValueError, match=r"both \[B, K\]: got \[2, 2\] and \[1, 2\]"):
            loss(rewards, ranks[:1])
