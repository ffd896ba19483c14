"""Simulated annotators over known quality, and the best that any model can do with what they say (notebooks 04 and 05)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rmkit.graded import GradedPair
from rmkit.losses import Davidson, RaoKupper
from rmkit.preferences import Preference

TIE_MODELS = {"rao_kupper": RaoKupper, "davidson": Davidson}


@dataclass(frozen=True)
class Annotator:
    """Someone who compares two answers of known utility, and errs as people do.

    temperature: utility points that make one nat: so large a difference is judged right 73 % of the time.
    tie_model: None, and a winner is always named; `"rao_kupper"`, who cannot tell small differences; `"davidson"`.
    tie_rate: how often two answers of equal utility are called equal.
    flips: the share of judgements that are turned around, whatever the difference.
    careless: the share of judgements in which "a tie" is said without a look, whatever the difference.
    length_taste: utility points that ten words more seem to be worth.
    position_bias: utility points that being shown first seems to be worth. Which answer is, is drawn for each pair.
    Raises ValueError for a setting that does not exist.
    """

    temperature: float = 2.0
    tie_model: str | None = None
    tie_rate: float = 0.0
    flips: float = 0.0
    length_taste: float = 0.0
    position_bias: float = 0.0
    careless: float = 0.0

    def __post_init__(self):
        def check(name: str, holds: bool, wanted: str):
            if not holds:
                raise ValueError(f"Annotator.{name} is {getattr(self, name)!r}; it wants {wanted}")

        for name in ("temperature", "tie_rate", "flips", "length_taste", "position_bias", "careless"):
            value = getattr(self, name)
            check(name, isinstance(value, (int, float)) and math.isfinite(value), "a number")
        check("temperature", self.temperature > 0, "utility points a nat, more than 0")
        check("tie_model", self.tie_model in (None, *TIE_MODELS), f"one of None, {', '.join(map(repr, TIE_MODELS))}")
        check("tie_rate", 0 <= self.tie_rate < 1, "a share, at least 0 and less than 1")
        check("tie_rate", bool(self.tie_rate) == bool(self.tie_model), "a tie_model, and a tie_model wants a tie_rate")
        check("flips", 0 <= self.flips <= 1, "a share, from 0 to 1")
        check("careless", 0 <= self.careless < 1, "a share, at least 0 and less than 1")

    def probabilities(self, pairs: Sequence[GradedPair]) -> torch.Tensor:
        """[N, 3] in fp64: how probable it is that the first, the second or neither is called better.

        Which answer is shown first is not known to whoever reads the judgement: both orders count half.
        """
        _require_pairs(pairs)
        difference = torch.tensor([self._seems(p.first) - self._seems(p.second) for p in pairs], dtype=torch.float64)
        orders = (difference + self.position_bias, difference - self.position_bias)
        first, second, tie = torch.stack([self._outcomes(d / self.temperature) for d in orders]).mean(0).T
        turned = self.flips * (second - first)
        looked = torch.stack([first + turned, second - turned, tie], -1)
        return (1 - self.careless) * looked + self.careless * looked.new_tensor([0, 0, 1])

    def judge(self, pairs: Sequence[GradedPair], seed: int = 0) -> list[Preference]:
        """One judgement for each pair, drawn anew for each seed: the better answer first, or a tie in the pair's order."""
        drawn = np.random.default_rng(seed).random(len(pairs))
        bounds = self.probabilities(pairs).cumsum(-1).numpy()
        said = (drawn[:, None] >= bounds[:, :2]).sum(1)  # 0 the first, 1 the second, 2 neither
        return [_judged(pair, int(outcome)) for pair, outcome in zip(pairs, said, strict=True)]

    def _seems(self, answer) -> float:
        return answer.utility + self.length_taste * len(answer.text.split()) / 10

    @torch.no_grad()
    def _outcomes(self, difference: torch.Tensor) -> torch.Tensor:
        if self.tie_model:
            return TIE_MODELS[self.tie_model](self.tie_rate).log_probabilities(difference).exp()
        return torch.stack([torch.sigmoid(difference), torch.sigmoid(-difference), torch.zeros_like(difference)], -1)


def panel_ratings(
    utilities: torch.Tensor, raters: int = 5, noise: float = 1.0, leniency: float = 0.5, seed: int = 0
) -> torch.Tensor:
    """Ratings from 1 to 7 that a panel gives to answers: utilities [...], 0 to 10 → [..., raters], integers.

    Utility 0 is a 1 and utility 10 a 7; every rater adds a leniency of their own, which they keep for all answers, and
    noise for each answer: normal, with these standard deviations in points of the rating; the sum is rounded and cut.
    """
    if raters < 1 or noise < 0 or leniency < 0 or not torch.isfinite(utilities).all():
        raise ValueError(
            f"a panel has a rater or more, no negative spread, and utilities to rate: got {raters}, {noise}, {leniency}"
        )
    rng = np.random.default_rng(seed)
    quality = 1 + 6 * utilities.double()[..., None] / 10
    own = torch.from_numpy(rng.normal(0, leniency, raters))
    error = torch.from_numpy(rng.normal(0, noise, (*utilities.shape, raters)))
    return (quality + own + error).round().clamp(1, 7).long()


@dataclass(frozen=True)
class Ceilings:
    """What the best possible model scores against such annotators: one that knows every probability.

    With flips or a position bias no differences of rewards give just these probabilities, and a reward model stays a
    little above the floors of NLL and Brier score; the accuracies it can reach.

    accuracy, nll, brier: on the pairs that they tell apart, as `pairwise_accuracy`, `nll` and `brier` measure them.
    accuracy_ties_half: on all pairs, a tie half right whatever the model says.
    three_way_nll, three_way_brier: of a model that gives ties a probability, too; the Brier score of three outcomes is
        Σ (p − o)², so that without ties it is twice `brier`.
    Nats, and squared probabilities; NLL and Brier score are floors: the least that is possible.
    """

    accuracy: float
    accuracy_ties_half: float
    nll: float
    brier: float
    three_way_nll: float
    three_way_brier: float


def ceilings(probabilities: torch.Tensor) -> Ceilings:
    """The ceilings that true probabilities [N, 3] of first, second and tie imply, for these pairs on average.

    With p = P(first) where there are no ties: accuracy E[max(p, 1−p)], NLL E[H(p)], Brier E[p(1−p)]. (Not
    E[min(p², (1−p)²)], which is sometimes given for it, and makes a perfect model look overconfident.) With ties, pairs
    count by how probably they are told apart: accuracy E[max(p₁, p₂)] / E[p₁ + p₂], and so on.
    Raises ValueError for what are no probabilities, or where no pair is ever told apart.
    """
    p = probabilities.double()
    if p.ndim != 2 or p.shape[1] != 3 or not len(p) or (p < 0).any() or not torch.allclose(p.sum(1), p.new_ones(())):
        raise ValueError(f"probabilities are [N, 3] of first, second and tie, and sum to 1: got {list(p.shape)}")
    best, decisive, tie = p[:, :2].amax(1), p[:, :2].sum(1), p[:, 2]
    if not decisive.sum():
        raise ValueError("these annotators call every pair a tie: no model can be compared with them")
    first = (p[:, 0] / decisive).nan_to_num(0.5)  # given that they told the two apart
    told = decisive.mean()
    return Ceilings(
        accuracy=float(best.mean() / told),
        accuracy_ties_half=float((best + tie / 2).mean()),
        nll=float((decisive * _entropy(torch.stack([first, 1 - first], 1))).mean() / told),
        brier=float((decisive * first * (1 - first)).mean() / told),
        three_way_nll=float(_entropy(p).mean()),
        three_way_brier=float((1 - p.square().sum(1)).mean()),
    )


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -torch.xlogy(p, p).sum(-1)


def _judged(pair: GradedPair, outcome: int) -> Preference:
    answers = (pair.first.text, pair.second.text)
    return Preference(
        pair.prompt.prompt,
        answers[::-1] if outcome == 1 else answers,
        (0, 0) if outcome == 2 else (0, 1),
        domain=pair.prompt.domain,
        group=pair.prompt.group,
    )


def _require_pairs(pairs: Sequence[GradedPair]) -> None:
    if wrong := [type(p).__name__ for p in pairs if not isinstance(p, GradedPair)]:
        raise TypeError(f"pairs come from graded_pairs: got a {wrong[0]}")
    if not pairs:
        raise ValueError("no pairs to judge")
