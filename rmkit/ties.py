"""Judging a model of ties, and the ties themselves (notebook 04)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import optimize, stats

from rmkit.calibration import BINS, CHANCE_DRAWS, COLUMNS, CalibrationError, curve, mean_gap, places
from rmkit.losses import RaoKupper, TieModel
from rmkit.metrics import Estimate, Pairs, bootstrap_interval, judged_pairs, mean_of_pairs, of_pairs, require_matrix

SURE = stats.norm.ppf(0.975)  # 1.96: a profile log-likelihood is SURE² / 2 nats lower at the ends of its 95 % interval
FIRST, TIE = 0, 2  # outcomes; a pair that was told apart has its better one first


def three_way_nll(
    ties: TieModel, rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None
) -> Estimate:
    """−log P(what was said), first, second or tie: the mean over all judged pairs, in nats.

    rewards, ranks [N, K]; or rewards [R, N, K] of R repetitions, over which a pair is averaged. groups: one for each
    preference; the interval is a bootstrap over them, over preferences where there are none. Its floor is
    `ceilings(...).three_way_nll`. Raises ValueError for what is no reward, and shapes that differ.
    """
    pairs, log_probabilities = _outcomes(ties, rewards, ranks)
    said = np.where(pairs.is_tie, log_probabilities[..., TIE], log_probabilities[..., FIRST])
    return mean_of_pairs(-said, pairs, ranks, groups)


def three_way_brier(
    ties: TieModel, rewards: torch.Tensor, ranks: torch.Tensor, groups: Sequence[Hashable] | None = None
) -> Estimate:
    """Σ (p − o)² over the three outcomes, o = 1 for what was said and 0 else: the mean over all judged pairs (Brier 1950).

    From 0 to 2; without ties it is twice `brier`. Arguments, interval and errors as in `three_way_nll`.
    """
    pairs, log_probabilities = _outcomes(ties, rewards, ranks)
    said = np.eye(3)[np.where(pairs.is_tie, TIE, FIRST)]  # (M, 3)
    return mean_of_pairs(np.square(np.exp(log_probabilities) - said).sum(-1), pairs, ranks, groups)


def tie_reliability(
    ties: TieModel,
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    groups: Sequence[Hashable] | None = None,
    bins: int = BINS,
) -> pd.DataFrame:
    """Of the pairs to which the model gave about the same probability of a tie, the share that was called a tie.

    rewards, ranks [N, K]. All judged pairs, in `bins` of equal mass (fewer, where many have equal probabilities). groups:
    one for each preference, for the intervals (`share_interval`). Columns: said (mean probability of a tie), found (share
    of ties), low, high, count (pairs of the bin). Raises ValueError for repetitions, and bins that the pairs do not fill.
    """
    pairs, said = _tie_probabilities(ties, rewards, ranks, bins)
    owners = of_pairs(groups, pairs, ranks)
    return pd.DataFrame(curve(said, pairs.is_tie.astype(float), places(said, bins), owners), columns=COLUMNS)


def tie_calibration_error(
    ties: TieModel,
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    groups: Sequence[Hashable] | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> CalibrationError:
    """The expected calibration error (Naeini et al. 2015) of P(tie): mean |said − found| over the bins of `tie_reliability`.

    What its interval is, and what chance makes of the error, says `CalibrationError`. Arguments and errors as there.
    """
    pairs, said = _tie_probabilities(ties, rewards, ranks, bins)
    found = pairs.is_tie.astype(float)

    def error(said: np.ndarray, found: np.ndarray) -> float:
        return mean_gap(said, found, places(said, bins))

    drawn = np.random.default_rng(seed).random((CHANCE_DRAWS, len(said))) < said
    by_chance = float(np.quantile([error(said, row.astype(float)) for row in drawn], 0.95))
    interval = bootstrap_interval(error, of_pairs(groups, pairs, ranks), said, found, seed=seed, method="basic")
    low, high = (max(0.0, end) for end in interval)
    return CalibrationError(error(said, found), low, high, by_chance, len(said))


def careless_ties(rewards: torch.Tensor, ranks: torch.Tensor) -> Estimate:
    """The share c of judgements in which "a tie" was said without a look, whatever the difference.

    rewards, ranks [N, K]. P(tie) = c + (1 − c) RK(tie), P(first) = (1 − c) RK(first), with RK Rao and Kupper's
    probabilities of the rewards times a scale; scale, tie rate and c by maximum likelihood, and for c the 95 % interval of
    its profile likelihood (Venzon and Moolgavkar 1988), which takes judgements for independent. An honest tie is rare
    where rewards are far apart; what remains there is c. So the rewards are to be ones that these judgements did not train,
    gold grades or held-out rewards, and good ones: noise as large as their differences makes pairs look far apart that are
    not, and leaves c anything from 0 up. Annotators whose honest ties reach further than Rao and Kupper's, as Davidson's
    do, look careless: compare ties on clear pairs with those of annotators whom you trust.
    Raises ValueError for judgements without ties or with nothing else, for repetitions, and for rewards that rank no better
    than chance, of which no scale is best.
    """
    require_matrix(rewards, ranks)
    pairs = judged_pairs(rewards, ranks, ties=True)
    told = pairs.difference[~pairs.is_tie]
    if not pairs.tied or not len(told):
        what = "ties" if len(told) else "pairs that were told apart"
        raise ValueError(f"without {what} nothing tells careless ties from honest ones: got {len(pairs.is_tie)} pairs")
    if told.mean() <= 0:
        raise ValueError(
            "these rewards rank no better than chance: where they are far apart, a tie says nothing. Take better rewards"
        )
    scale = np.abs(told).mean()  # rewards of any scale are as good
    told, tied = (torch.from_numpy(part / scale) for part in (told, pairs.difference[pairs.is_tie]))
    share = pairs.tied / len(pairs.is_tie)  # the most that c can be
    best = _fit(told, tied, (0.0, share), [0.0, math.log(pairs.tied / len(told)), share / 4])

    def excess(c: float) -> float:  # of the root, which is nearly straight, and quickly followed to where it is 0
        return math.sqrt(2 * max(0.0, _fit(told, tied, (c, c), [*best.x[:2], c]).fun - best.fun)) - SURE

    value = float(best.x[2])
    low = optimize.brentq(excess, 0, value, xtol=1e-4) if value > 0 and excess(0.0) > 0 else 0.0
    return Estimate(value, low, optimize.brentq(excess, value, 1 - 1e-6, xtol=1e-4), len(pairs.is_tie))


def _fit(told: torch.Tensor, tied: torch.Tensor, c: tuple[float, float], start: list[float]) -> optimize.OptimizeResult:
    """The least NLL, in nats, over (log scale, logit of the tie rate, c), with c from one end to the other, or fixed."""
    model, (log_scale, careless) = RaoKupper(0.5), torch.zeros(2, dtype=torch.float64).unbind()
    parameters = (log_scale.requires_grad_(), model.logit, careless.requires_grad_())

    def nll(x: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            for parameter, value in zip(parameters, x, strict=True):
                parameter.fill_(value)
        looked = model.log_probabilities(torch.cat([told, tied]) * log_scale.exp())
        first, honest = looked[: len(told), FIRST], looked[len(told) :, TIE].clamp(min=-600)  # exp is not to overflow
        tie = honest + torch.log1p(careless * torch.expm1(-honest))  # log(c + (1 − c) P(tie)), at c = 0 too
        loss = -(first + torch.log1p(-careless)).sum() - tie.sum()
        return loss.item(), np.array([gradient.item() for gradient in torch.autograd.grad(loss, parameters)])

    return optimize.minimize(nll, start, jac=True, method="L-BFGS-B", bounds=[(-7, 5), (-20, 20), c])


def _outcomes(ties: TieModel, rewards: torch.Tensor, ranks: torch.Tensor) -> tuple[Pairs, np.ndarray]:
    """All judged pairs, and the model's log-probabilities [..., M, 3]."""
    if not isinstance(ties, TieModel):
        raise TypeError(
            f"ties is a model of ties, such as RaoKupper(0.3) or the loss that was trained: got {ties!r:.80}"
        )
    pairs = judged_pairs(rewards, ranks, ties=True)
    with torch.no_grad():
        return pairs, ties.log_probabilities(torch.from_numpy(pairs.difference)).numpy()


def _tie_probabilities(
    ties: TieModel, rewards: torch.Tensor, ranks: torch.Tensor, bins: int
) -> tuple[Pairs, np.ndarray]:
    require_matrix(rewards, ranks)
    pairs, log_probabilities = _outcomes(ties, rewards, ranks)
    if not isinstance(bins, int) or not 1 <= bins <= len(pairs.is_tie):
        raise ValueError(f"bins is a whole number from 1 to the pairs, {len(pairs.is_tie)}: got {bins!r}")
    # a pair and its mirror image differ in the last digit, which is not to sort them
    return pairs, np.exp(log_probabilities[:, TIE]).round(12)
