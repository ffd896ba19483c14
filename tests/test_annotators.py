"""Protects: simulated annotators say what their formulas promise, and ceilings are what the oracle itself reaches."""

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from rmkit import Annotator, GradedAnswer, GradedPair, GradedPrompt, ceilings, pairwise_accuracy, panel_ratings
from rmkit.annotators import TIE_MODELS
from rmkit.batching import ranks_tensor
from rmkit.graded import WEIGHTS
from rmkit.metrics import brier, nll

ANNOTATORS = {
    "plain": Annotator(),
    "flips": Annotator(temperature=1.0, flips=0.25),
    "rao_kupper": Annotator(tie_model="rao_kupper", tie_rate=0.3),
    "davidson": Annotator(temperature=3.0, tie_model="davidson", tie_rate=0.4),
    "careless": Annotator(tie_model="rao_kupper", tie_rate=0.2, careless=0.15),
    "all of it": Annotator(1.5, "davidson", 0.2, flips=0.1, length_taste=0.7, position_bias=1.5, careless=0.1),
}


def answer(total: int, words: int = 10, name: str = "a") -> GradedAnswer:
    """One with so many points in all, of 0 to 10, taken criterion by criterion."""
    grades = {}
    for criterion in WEIGHTS:
        grades[criterion] = min(2, max(0, total))
        total -= 2
    return GradedAnswer(" ".join([name] * words), grades, {})


def pair(first: GradedAnswer, second: GradedAnswer) -> GradedPair:
    return GradedPair(GradedPrompt("Which?", (first, second), "d", "k", "g"), first, second)


@pytest.fixture(scope="module")
def many() -> list[GradedPair]:
    rng = np.random.default_rng(0)
    drawn = rng.integers([0, 0, 8, 8], [11, 11, 61, 61], (6000, 4)).tolist()
    return [pair(answer(a, n, "first"), answer(b, m, "second")) for a, b, n, m in drawn]


@pytest.mark.parametrize("name", TIE_MODELS)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_tie_rate_is_that_of_equals(name, rate):
    """And the further apart two answers are, the fewer ties."""
    p = Annotator(1.0, name, rate).probabilities([pair(answer(total), answer(5)) for total in (5, 6, 8, 10)])
    assert p[0].tolist() == pytest.approx([(1 - rate) / 2, (1 - rate) / 2, rate])
    assert (p[:, 2].diff() < 0).all() and torch.allclose(p.sum(1), torch.ones(4).double(), atol=1e-12)


def test_careless_ties_are_mixed_in_whatever_the_difference():
    """c + (1 − c) P(tie), and (1 − c) of the rest; with no tie model they are all the ties there are."""
    pairs = [pair(answer(a), answer(b)) for a, b in ((5, 5), (4, 9), (10, 0))]
    honest = Annotator(tie_model="davidson", tie_rate=0.3, flips=0.1, position_bias=1.0)
    looked, found = honest.probabilities(pairs), replace(honest, careless=0.25).probabilities(pairs)
    assert torch.allclose(found[:, :2], 0.75 * looked[:, :2], atol=1e-12)
    assert torch.allclose(found[:, 2], 0.25 + 0.75 * looked[:, 2], atol=1e-12)
    assert Annotator(careless=0.25).probabilities(pairs)[:, 2].tolist() == pytest.approx([0.25] * 3)


def test_temperature_and_flips_by_hand():
    two_points = pair(answer(4), answer(3))
    gap = two_points.first.utility - two_points.second.utility
    p = Annotator(temperature=gap).probabilities([two_points])[0]
    assert p[0].item() == pytest.approx(1 / (1 + math.exp(-1))) and p[2] == 0
    turned = Annotator(temperature=gap, flips=0.2).probabilities([two_points])[0]
    assert turned[0].item() == pytest.approx(0.8 * p[0].item() + 0.2 * p[1].item())
    assert Annotator(temperature=gap, flips=1.0).probabilities([two_points])[0, 1].item() == pytest.approx(p[0].item())


def test_each_setting_by_hand():
    """One nat apart: Rao and Kupper's, Davidson's, and a bias of two nats, which shows the pair at 3 and at −1 nats."""
    nat = pair(answer(4), answer(3))
    gap = nat.first.utility - nat.second.utility

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    eta, nu = math.log(1.25 / 0.75), 0.5 / 0.75
    shares = math.exp(0.5), math.exp(-0.5), nu
    by_hand = {
        Annotator(gap, "rao_kupper", 0.25): [sigmoid(1 - eta), sigmoid(-1 - eta)],
        Annotator(gap, "davidson", 0.25): [shares[0] / sum(shares), shares[1] / sum(shares)],
        Annotator(gap, position_bias=2 * gap): [(sigmoid(3) + sigmoid(-1)) / 2, (sigmoid(-3) + sigmoid(1)) / 2],
    }
    for annotator, expected in by_hand.items():
        assert annotator.probabilities([nat])[0, :2].tolist() == pytest.approx(expected), annotator


def test_taste_for_length_is_worth_points():
    """Thirty words more at 0.5 points for ten are worth 1.5 points."""
    short, long = answer(6, 10), answer(6, 40)
    p = Annotator(temperature=1.5, length_taste=0.5).probabilities([pair(long, short)])[0]
    assert p[0].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_position_bias_looks_like_noise():
    """The order of showing is not kept: a bias towards what comes first leaves equals equal and blurs the rest."""
    better = pair(answer(9), answer(5))
    fair, biased = (Annotator(position_bias=b).probabilities([better, pair(answer(5), answer(5))]) for b in (0.0, 3.0))
    assert biased[1, 0] == pytest.approx(0.5)
    assert 0.5 < biased[0, 0] < fair[0, 0]


@pytest.mark.parametrize("name", ANNOTATORS)
def test_judgements_follow_the_probabilities(name, many):
    """Each outcome as often as its probability says, within four standard errors; and the same for the same seed."""
    annotator = ANNOTATORS[name]
    p = annotator.probabilities(many)
    said = annotator.judge(many, seed=1)
    outcomes = torch.tensor([2 if j.is_tie else int(j.chosen != q.first.text) for j, q in zip(said, many, strict=True)])
    # texts of one kind and length may be equal only across first and second, which are named otherwise
    for outcome in range(3):
        expected, spread = p[:, outcome].sum(), (p[:, outcome] * (1 - p[:, outcome])).sum().sqrt()
        assert abs((outcomes == outcome).sum() - expected) <= 4 * spread + 1e-9
    assert annotator.judge(many, seed=1) == said
    assert annotator.judge(many, seed=2) != said


@pytest.mark.parametrize("name", ANNOTATORS)
def test_the_oracle_reaches_the_ceilings(name, many):
    """A model that knows every probability, scored by our metrics on drawn judgements: within four standard errors."""
    annotator = ANNOTATORS[name]
    p = annotator.probabilities(many)
    ceiling = ceilings(p)
    logit = p[:, 0].log() - p[:, 1].log()
    drawn = []
    for seed in range(4):
        judged = annotator.judge(many, seed)
        swapped = torch.tensor([j.chosen != q.first.text for j, q in zip(judged, many, strict=True)])
        rewards = torch.stack([torch.where(swapped, -logit, logit), torch.zeros_like(logit)], 1)
        ranks = ranks_tensor(judged)
        tied = ranks[:, 1] == 0
        half = (torch.where(tied, 0.5, ((rewards[:, 0] > 0) + 0.5 * (rewards[:, 0] == 0)).double())).mean()
        outcome = torch.where(tied, 2, swapped.long())
        three_way = -p.gather(1, outcome[:, None]).log().mean()
        brier_three = (p - torch.nn.functional.one_hot(outcome, 3)).square().sum(1).mean()
        drawn.append(
            [
                pairwise_accuracy(rewards, ranks).value, half.item(), nll(rewards, ranks).value,
                brier(rewards, ranks).value, three_way.item(), brier_three.item(),
            ]
        )  # fmt: skip
    errors = (np.mean(drawn, 0) - np.array(astuple(ceiling))) / (0.5 / math.sqrt(4 * len(many)))
    # the standard deviation of one pair's score is at most 0.5 for shares, and below 1 for nats
    assert np.abs(errors[[0, 1, 3, 5]]).max() < 4 and np.abs(errors[[2, 4]]).max() < 8


def test_ceilings_by_hand():
    """p = 0.8 and 0.5: no model is right more often than 0.65, and the Brier floor is E[p(1 − p)], not E[min(p², …)]."""
    found = ceilings(torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64))
    assert found.accuracy == found.accuracy_ties_half == pytest.approx(0.65)
    assert found.brier == pytest.approx((0.16 + 0.25) / 2) and found.three_way_brier == pytest.approx(2 * found.brier)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert found.nll == found.three_way_nll == pytest.approx((entropy + math.log(2)) / 2)
    tied = ceilings(torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64))
    assert tied.accuracy == pytest.approx((0.6 + 0.3) / (0.8 + 0.4))
    assert tied.accuracy_ties_half == pytest.approx((0.7 + 0.6) / 2)


def test_panel_rates_from_one_to_seven():
    quality = torch.linspace(0, 10, 400)
    rated = panel_ratings(quality, raters=5, seed=3)
    assert rated.shape == (400, 5) and rated.min() == 1 and rated.max() == 7
    assert torch.equal(rated, panel_ratings(quality, raters=5, seed=3))
    exact = panel_ratings(quality, raters=2, noise=0, leniency=0)
    assert torch.equal(exact[:, 0], exact[:, 1]) and torch.equal(
        exact[:, 0], (1 + 0.6 * quality).double().round().long()
    )
    strict = panel_ratings(torch.full((50,), 5.0), raters=40, noise=0, leniency=1.0)
    assert (strict == strict[0]).all() and strict[
        0
    ].unique().numel() > 2  # own for each rater, the same for all answers
    one, panel = (np.corrcoef(quality, panel_ratings(quality, n, noise=2.0).double().mean(1))[0, 1] for n in (1, 25))
    assert one < panel  # more raters, less noise


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"temperature": 0}, "temperature is 0; it wants utility points"),
        ({"tie_model": "thurstone", "tie_rate": 0.1}, "tie_model is 'thurstone'; it wants one of None"),
        ({"tie_rate": 0.2}, "it wants a tie_model"),
        ({"tie_model": "davidson"}, "tie_rate is 0.0; it wants"),
        ({"tie_model": "davidson", "tie_rate": 1.0}, "less than 1"),
        ({"tie_model": "rao_kupper", "tie_rate": -0.1}, "tie_rate is -0.1; it wants a share"),
        ({"flips": -0.1}, "flips is -0.1; it wants a share"),
        ({"careless": -0.1}, "careless is -0.1; it wants a share, at least 0"),
        ({"careless": 1.0}, "careless is 1.0; it wants a share, at least 0 and less than 1"),
        ({"careless": None}, "careless is None; it wants a number"),
        ({"length_taste": float("nan")}, "length_taste is nan; it wants a number"),
    ],
)
def test_settings_that_do_not_exist(setting, told):
    with pytest.raises(ValueError, match=told):
        replace(Annotator(), **setting)


def test_ceilings_want_probabilities():
    for wrong in (torch.tensor([[0.5, 0.5]]), torch.tensor([[0.7, 0.7, 0.0]]), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match=r"probabilities are \[N, 3\]"):
            ceilings(wrong)
    with pytest.raises(ValueError, match="call every pair a tie"):
        ceilings(torch.tensor([[0.0, 0.0, 1.0]]))


def test_what_is_no_pair_is_refused():
    with pytest.raises(TypeError, match="pairs come from graded_pairs: got a str"):
        Annotator().probabilities(["a"])
    with pytest.raises(ValueError, match="no pairs to judge"):
        Annotator().judge([])
