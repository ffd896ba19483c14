"""Protects: a loss is the negative log-likelihood of what was judged, ties included, in value and in gradient."""

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from rmkit import bradley_terry, losses
from rmkit.losses import Davidson, RaoKupper, TieModel, tie_as_half, tie_rate

PAIR = torch.tensor([[0, 1]])
OUTCOMES = torch.tensor([[0, 1], [1, 0], [0, 0]])  # first, second, tie
TIE_MODELS = [RaoKupper, Davidson]


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


# --- losses that know ties ----------------------------------------------------------------------------------

RATES = [1e-9, 1e-3, 0.05, 0.3, 0.8, 1 - 1e-3, 1 - 1e-9]


def outcomes_by_hand(model: type[TieModel], rate: float, difference: float) -> list[float]:
    """P of first, second and tie, as the papers write them."""
    if model is RaoKupper:
        eta = math.log((1 + rate) / (1 - rate))
        first, second = (1 / (1 + math.exp(eta - d)) for d in (difference, -difference))
        return [first, second, math.expm1(2 * eta) * first * second]
    weights = [math.exp(difference / 2), math.exp(-difference / 2), 2 * rate / (1 - rate)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("model", TIE_MODELS)
@pytest.mark.parametrize("rate", RATES)
def test_outcomes_are_those_of_the_papers(model, rate):
    """They sum to 1, turn with the pair, and equals are called equal as often as the tie rate says."""
    loss = model(rate)
    difference = torch.tensor([-300, -7, -1, -0.1, 0, 0.1, 1, 7, 300], dtype=torch.float64)
    p = loss.log_probabilities(difference).exp().detach()
    assert (p.sum(-1) - 1).abs().max() <= 1e-12
    torch.testing.assert_close(p.flip(0)[:, [1, 0, 2]], p, rtol=0, atol=1e-12)
    for row, d in zip(p[1:-1].tolist(), difference[1:-1].tolist(), strict=True):
        assert row == pytest.approx(outcomes_by_hand(model, rate, d), rel=1e-6)  # 1 − rate has so many digits left
    assert p[4, 2].item() == pytest.approx(rate, rel=1e-12) and loss.tie_rate == pytest.approx(rate, rel=1e-12)
    assert p[:, 2].argmax() == 4, "equals are not called equal most often"
    assert f"tie_rate={rate:.3g}" in repr(loss)


@pytest.mark.parametrize("model", TIE_MODELS)
@pytest.mark.parametrize("rate", RATES)
def test_far_rewards_and_rare_ties_stay_finite_in_fp32(model, rate):
    """Loss and gradients of all three outcomes; and what is wrong by 300 nats still pulls."""
    loss = model(rate)
    difference = torch.tensor([-300.0, -20.0, 0.0, 20.0, 300.0])
    rewards = torch.stack([difference, torch.zeros(5)], 1).repeat(3, 1).requires_grad_()
    found = loss(rewards, OUTCOMES.repeat_interleave(5, 0))
    found.sum().backward()
    assert found.dtype == torch.float32 and torch.isfinite(found).all() and (found >= 0).all()
    assert torch.isfinite(rewards.grad).all() and torch.isfinite(loss.logit.grad)
    assert rewards.grad[[0, 9], 0].tolist() == pytest.approx([-1, 1], abs=1e-3)


@pytest.mark.parametrize("model", TIE_MODELS)
def test_gradients_equal_finite_differences(model):
    """With respect to the rewards and to the logit of the tie rate; an absent completion pulls nothing."""
    ranks = torch.tensor([[0, 1, 2], [0, 0, 1], [0, 0, 0], [0, 1, -1], [0, 0, -1]])
    rewards = 2 * torch.randn(5, 3, dtype=torch.float64, generator=torch.manual_seed(0))

    def loss(rewards: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model(0.5), {"logit": logit}, (rewards, ranks))

    for logit in (-6.0, 0.0, 3.0):
        both = rewards.clone().requires_grad_(), torch.tensor(logit, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(loss, both)
        pull = torch.autograd.grad(loss(*both).sum(), both)
        assert (pull[0][3:, 2] == 0).all() and pull[1] != 0
    assert torch.autograd.gradcheck(lambda r: tie_as_half(r, ranks), (rewards.requires_grad_(),))


@pytest.mark.parametrize("model", TIE_MODELS)
def test_without_ties_it_is_bradley_terry(model):
    rewards = 3 * torch.randn(50, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    ranks = OUTCOMES[torch.arange(50) % 2]
    expected = bradley_terry(rewards, ranks)
    torch.testing.assert_close(tie_as_half(rewards, ranks), expected)
    torch.testing.assert_close(model(1e-12)(rewards, ranks).detach(), expected, atol=1e-9, rtol=1e-9)
    assert (model(0.3)(rewards, ranks) - expected).abs().max() > 0.1, "the tie rate counts for nothing"


def test_each_is_what_its_docstring_says():
    """Davidson's decided pairs have the odds e^Δ at every ν; Rao and Kupper's is the ordered logit, ±η its thresholds."""
    difference = torch.linspace(-8, 8, 33, dtype=torch.float64)
    for rate in (0.01, 0.3, 0.9):
        davidson, rao_kupper = Davidson(rate), RaoKupper(rate)
        log_p = davidson.log_probabilities(difference)
        torch.testing.assert_close(log_p[:, 0] - log_p[:, 1], difference)
        assert davidson.nu.item() == pytest.approx(2 * rate / (1 - rate))
        p, eta = rao_kupper.log_probabilities(difference).exp(), rao_kupper.eta
        assert eta.item() == pytest.approx(math.log((1 + rate) / (1 - rate)))
        assert math.tanh(eta.item() / 2) == pytest.approx(rate)
        torch.testing.assert_close(p[:, 2], torch.sigmoid(eta - difference) - torch.sigmoid(-eta - difference))
        odds = p[:, 0].log() - p[:, 1].log()
        assert (odds[difference != 0].abs() > difference[difference != 0].abs()).all()  # surer of what was decided


def test_tie_as_half_is_cross_entropy_with_soft_targets():
    rewards = 3 * torch.randn(60, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    which = torch.arange(60) % 3
    target = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)[which]
    expected = F.binary_cross_entropy_with_logits(rewards[:, 0] - rewards[:, 1], target, reduction="none")
    torch.testing.assert_close(tie_as_half(rewards, OUTCOMES[which]), expected)
    far = torch.tensor([[1e4, 0.0]] * 3)
    assert tie_as_half(far, OUTCOMES).tolist() == [0.0, 1e4, 5e3]


@pytest.mark.parametrize("ranks", [*RANKINGS, (0, 0, 0), (1, 0, 1, 0), (0, 0, -1, -1), (2, 0, 1, 1, 0)])
def test_more_than_two_is_the_mean_over_all_pairs(ranks):
    """Tied ones too; and it is said which of the two is the better one."""
    rewards = [0.3, -1.2, 2.5, 0.4, -0.7][: len(ranks)]
    batch = torch.tensor([rewards, rewards[::-1]]), torch.tensor([ranks, ranks[::-1]])
    pairs = [(i, j) for i in range(len(ranks)) for j in range(i) if ranks[i] >= 0 <= ranks[j]]
    half, expected = 0.0, dict.fromkeys(TIE_MODELS, 0.0)
    for i, j in pairs:
        outcome = 2 if ranks[i] == ranks[j] else int(ranks[i] > ranks[j])
        d = rewards[i] - rewards[j]
        half += {0: softplus(-d), 1: softplus(d), 2: (softplus(d) + softplus(-d)) / 2}[outcome] / len(pairs)
        for model in TIE_MODELS:
            expected[model] -= math.log(outcomes_by_hand(model, 0.3, d)[outcome]) / len(pairs)
    assert tie_as_half(*batch).tolist() == pytest.approx([half] * 2, rel=1e-5)
    for model in TIE_MODELS:
        assert model(0.3)(*batch).tolist() == pytest.approx([expected[model]] * 2, rel=1e-5)
    assert tie_rate(batch[1]) == pytest.approx(sum(ranks[i] == ranks[j] for i, j in pairs) / len(pairs))


def judgements(model: type[TieModel], rate: float, seed: int, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of features [count, 5], first minus second, and what such annotators say of them, ranks [count, 2]."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        p = model(rate).log_probabilities(features @ WEIGHTS).exp()
    return features, OUTCOMES[torch.multinomial(p, 1, generator=generator).flatten()]


WEIGHTS = torch.tensor([1.0, -0.5, 0.0, 2.0, 0.3], dtype=torch.float64)


def errors(loss: Callable, features: torch.Tensor, ranks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How many standard errors the maximum-likelihood estimate is from the truth: the inverse observed information's."""

    def nll(x: torch.Tensor) -> torch.Tensor:
        rewards = torch.stack([features @ x[:5], features.new_zeros(len(features))], 1)
        return loss(rewards, ranks, *x[5:]).sum()

    x = torch.zeros_like(truth, requires_grad=True)
    optimizer = torch.optim.LBFGS([x], max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = nll(x)
        value.backward()
        return value

    optimizer.step(closure)
    assert x.grad.abs().max() < 0.01, "not at the maximum"
    information = torch.autograd.functional.hessian(nll, x.detach())
    return ((x.detach() - truth) / information.inverse().diagonal().sqrt()).abs()


@pytest.mark.parametrize("model", TIE_MODELS)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
def test_weights_and_tie_rate_are_recovered(model, rate):
    """A linear reward and the tie rate, fitted together to 4,000 judgements: within four standard errors, all of them."""
    truth = torch.cat([WEIGHTS, torch.logit(torch.tensor([rate], dtype=torch.float64))])

    def loss(rewards: torch.Tensor, ranks: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model(0.5), {"logit": logit}, (rewards, ranks))

    for seed in range(5):
        assert errors(loss, *judgements(model, rate, seed), truth).max() < 4, seed


def test_a_wrong_tie_rate_and_ties_left_out_are_seen():
    """What the test above would say of a wrong model; only Davidson's ties can be left out, and cost nothing but data."""
    said = judgements(RaoKupper, 0.5, 0)
    with torch.no_grad():
        fixed = RaoKupper(0.1).requires_grad_(False)
    assert errors(fixed, *said, WEIGHTS).max() > 10
    for model, biased in ((RaoKupper, True), (Davidson, False)):
        features, ranks = judgements(model, 0.5, 0)
        decided = ranks[:, 0] != ranks[:, 1]
        assert (errors(bradley_terry, features[decided], ranks[decided], WEIGHTS).max() > 4) == biased, model


def test_tie_rate_is_the_share_of_pairs_that_were_called_equal():
    assert tie_rate(OUTCOMES) == pytest.approx(1 / 3)
    assert tie_rate(torch.tensor([[0, 0, 1], [0, 1, -1], [0, 0, -1]])) == pytest.approx(2 / 5)
    assert tie_rate(PAIR) == 0 and tie_rate(OUTCOMES[2:]) == 1


@pytest.mark.parametrize("model", TIE_MODELS)
def test_what_a_model_of_ties_cannot_use_is_refused(model):
    for rate in (0, 1, -0.1, float("nan"), True, "0.3", None):
        with pytest.raises(
            ValueError, match=rf"more than 0 and less than 1, no percentage: got {rate!r}\. Without ties, bradley_terry"
        ):
            model(rate)
    for loss in (model(0.3), tie_as_half):
        with pytest.raises(ValueError, match=r"both \[B, K\]: got \[2, 2\] and \[1, 2\]"):
            loss(torch.zeros(2, 2), PAIR)
    with pytest.raises(ValueError, match=r"both \[B, K\]: got \[2\] and \[2\]"):
        tie_rate(PAIR[0])
