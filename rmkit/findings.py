"""What there is to find in a model's rewards: a row a finding, with what stands beside it and what it means (`rmkit.report`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy import stats

from rmkit.base import BaseRewardModel
from rmkit.batching import ranks_tensor
from rmkit.calibration import BINS, calibration_error, fit_temperature, temperature_scaled
from rmkit.metrics import (
    FEW_GROUPS,
    SATURATED,
    Estimate,
    accuracy_difference,
    accuracy_table,
    bootstrap_interval,
    judged_pairs,
    lengths,
    nll,
    of_pairs,
    share_interval,
    spillover_gap,
)
from rmkit.plots import LN2
from rmkit.preferences import Preference, require_preferences
from rmkit.trunk import computed_once

TRAINING, HELD_OUT = "training", "held-out"
LEAST_PAIRS = 20  # of a domain that may be called the weakest
CHANCE_DRAWS = 1000
INFINITE = 1e9  # stands for the temperature of rewards that are wrong on the whole: an interval wants numbers


# --- the sets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredSet:
    """Preferences in which a pair was told apart, with their rewards [N, K] and their places in the set as it was given."""

    name: str
    preferences: list[Preference]
    rewards: torch.Tensor
    places: np.ndarray

    @cached_property
    def ranks(self) -> torch.Tensor:
        return ranks_tensor(self.preferences)

    @cached_property
    def groups(self) -> list[str]:
        return [p.group for p in self.preferences]

    @cached_property
    def domains(self) -> list[str]:
        return ["(none)" if not p.domain else "(all)" if p.domain == "all" else p.domain for p in self.preferences]

    @cached_property
    def pairs(self) -> list[tuple[int, int, int]]:
        """(preference, better completion, other completion) of every pair that was told apart, as `judged_pairs` has them."""
        return [
            (n, i, j)
            for n, p in enumerate(self.preferences)
            for i, a in enumerate(p.ranks)
            for j, b in enumerate(p.ranks)
            if a < b
        ]

    @cached_property
    def difference(self) -> np.ndarray:
        """The reward of the better one minus that of the other, [M]."""
        return judged_pairs(self.rewards, self.ranks).difference

    @cached_property
    def longer(self) -> np.ndarray:
        """By how many characters the better one is longer, [M]."""
        return judged_pairs(lengths(self.preferences), self.ranks).difference

    @cached_property
    def owners(self) -> np.ndarray:
        """The group of every pair, as a number, [M]."""
        return of_pairs(self.groups, judged_pairs(self.rewards, self.ranks), self.ranks)

    @cached_property
    def accuracy(self) -> pd.Series:
        """`accuracy_table`'s row of all."""
        table = accuracy_table(self.rewards, self.preferences, by=[self.name] * len(self.preferences))
        return table.loc["all"].rename(self.name)


def named_sets(
    model: BaseRewardModel, held_out: object, train: object, elsewhere: object, ceiling: object
) -> dict[str, Sequence[Preference]]:
    """The sets by name, or TypeError or ValueError for what cannot be reported on."""
    if not isinstance(model, BaseRewardModel):
        raise TypeError(f"model is a RewardModel: got {type(model).__name__}")
    if elsewhere is not None and not isinstance(elsewhere, Mapping):
        raise TypeError(f"elsewhere is a dict of preferences by name: got {type(elsewhere).__name__}")
    for name in elsewhere or {}:
        if not isinstance(name, str) or not name.strip() or name in (HELD_OUT, TRAINING, "all"):
            raise ValueError(f"a set elsewhere has a name, other than {HELD_OUT}, {TRAINING} and all: got {name!r}")
    if ceiling is not None and (
        isinstance(ceiling, bool) or not isinstance(ceiling, (int, float)) or not 0.5 <= ceiling <= 1
    ):
        raise ValueError(f"ceiling is an accuracy from 0.5 to 1, or None where it is not known: got {ceiling!r}")
    sets = {HELD_OUT: held_out, TRAINING: train, **(elsewhere or {})}
    for name, preferences in sets.items():
        try:
            require_preferences(preferences)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        if not preferences and name != TRAINING:
            raise ValueError(f"report wants preferences to measure on, and {name} has none")
    return {name: preferences for name, preferences in sets.items() if preferences}


def score_sets(model: BaseRewardModel, sets: Mapping[str, Sequence[Preference]]) -> dict[str, ScoredSet]:
    """Every set with its rewards. Raises ValueError where one is not finite, or no pair of a set was told apart."""
    encoded = {name: model.encode(preferences, f"{name} preference") for name, preferences in sets.items()}
    with computed_once(model, [e for part in encoded.values() for e in part]):
        rewards = {name: model.rewards(part) for name, part in encoded.items()}
    scored = {}
    for name, preferences in sets.items():
        if broken := (~rewards[name].isfinite()).any(1).nonzero().flatten().tolist():
            raise ValueError(
                f"{name} preference {broken[0]} ({preferences[broken[0]].prompt[:60]!r}) has a reward that is not a finite "
                f"number, and so have {len(broken) - 1} others: rmkit.diagnose looks for the cause"
            )
        told = [i for i, p in enumerate(preferences) if not p.is_tie]
        if not told:
            raise ValueError(
                f"no pair of the {name} preferences was told apart by an annotator: nothing can be measured"
            )
        kept = [preferences[i] for i in told]
        scored[name] = ScoredSet(name, kept, rewards[name][told, : max(len(p.ranks) for p in kept)], np.array(told))
    return scored


# --- the findings -------------------------------------------------------------------------------------------

Row = tuple[str, float, float, float, str, str]  # what, measured, low, high, beside, reading


def findings(
    held: ScoredSet,
    trained: ScoredSet | None,
    elsewhere: Iterable[ScoredSet],
    ceiling: float | None,
    leaked: list[int],
    given: int,
) -> tuple[list[Row], float]:
    """The rows of a report, and the best temperature. leaked: which of the `given` held-out preferences are; rules: `report`."""
    halves = _halves(held)
    temperature = _temperature(held, halves)
    rows = [
        *([_training(trained, ceiling)] if trained else []),
        _accuracy(held, ceiling),
        *([_overfitting(trained, held, len(leaked))] if trained else []),
        *_weakest_domain(held),
        *(row for other in elsewhere for row in (_accuracy(other), _shift(held, other))),
        _loss(held, halves),
        *_calibration(held),
        temperature,
        _saturated(held),
        *_length(held),
        *([_leaks(held, given, leaked)] if trained else []),
    ]
    return rows, temperature[1]


def _estimate(measure: Callable[[], Estimate], value: float, *sets: ScoredSet) -> Estimate:
    """What `measure` gives; where a set is of one group, by which nothing can be drawn, the value alone."""
    if min(len(set(one.groups)) for one in sets) < 2:
        return Estimate(float(value), math.nan, math.nan, sum(len(one.difference) for one in sets))
    return measure()


def _row(what: str, found: Estimate, beside: str, reading: str) -> Row:
    return what, found.value, found.low, found.high, beside, reading


def _reading(found: Estimate, against: float, below: str, unclear: str, above: str, *drawn: ScoredSet) -> str:
    """The sentence for an interval below, around or above a number. drawn: the sets whose groups were drawn for it."""
    if math.isnan(found.low):
        return "One group alone: no interval, and no verdict."
    text = above if found.low > against else below if found.high < against else unclear
    few = any(len(set(one.groups)) < FEW_GROUPS for one in drawn)
    return text + f" (Of fewer than {FEW_GROUPS} groups, such an interval is too narrow.)" * few


def _training(one: ScoredSet, ceiling: float | None) -> Row:
    found = _share(one)
    if found.low <= 0.5:
        reading = "Not above chance even on what it was trained on: it has not learned yet."
    elif ceiling is not None and found.low > ceiling:
        reading = "Above the ceiling: it has learned the annotators' errors by heart."
    elif found.value > 0.99:
        reading = "It ranks what it was trained on almost without error, which says nothing of other prompts."
    else:
        reading = "It has learned from these pairs; what that is worth, only held-out pairs say."
    return _row("training accuracy", found, _beside(one, ceiling), reading)


def _accuracy(one: ScoredSet, ceiling: float | None = None) -> Row:
    found, longer = _share(one), one.accuracy.longer_wins
    sign, rule = (1, "the longer wins") if longer >= 0.5 else (-1, "the shorter wins")
    alone = max(longer, 1 - longer)
    gain = _estimate(
        lambda: accuracy_difference(one.rewards, sign * lengths(one.preferences), one.ranks, one.groups),
        found.value - alone,
        one,
    )
    says = [
        _reading(found, 0.5, "Worse than chance: are chosen and rejected exchanged, or does it dislike what is wanted here?",
                 "Cannot be told from chance on so many pairs.", "Better than chance."),
        _reading(gain, 0, f"Worse than “{rule}”, which reads nothing.", f"Cannot be told from “{rule}”.",
                 f"Better than “{rule}” by {gain}.", one),
    ]  # fmt: skip
    if ceiling is not None:
        above = "Above the ceiling, where no model can be: look for leaks, and at how the ceiling was computed."
        says.append(_reading(found, ceiling, "Below the ceiling.", "The interval reaches the ceiling.", above))
    if equal := int((one.difference == 0).sum()):
        says.append(f"Pairs with equal rewards, which count half: {equal}.")
    return _row(f"{one.name} accuracy", found, _beside(one, ceiling), " ".join(says))


def _share(one: ScoredSet) -> Estimate:
    a = one.accuracy
    return Estimate(float(a.accuracy), float(a.low), float(a.high), int(a.pairs))


def _beside(one: ScoredSet, ceiling: float | None) -> str:
    longer = one.accuracy.longer_wins
    text = f"{len(one.difference)} pairs; chance 0.5; the longer wins {longer:.3f}, the shorter {1 - longer:.3f}"
    return text + (f"; ceiling {ceiling:.3f}" if ceiling is not None else "")


def _gap(one: ScoredSet, other: ScoredSet) -> Estimate:
    value = one.accuracy.accuracy - other.accuracy.accuracy
    sides = [(side.rewards, side.preferences) for side in (one, other)]
    return _estimate(lambda: spillover_gap(*sides), value, one, other)


def _overfitting(trained: ScoredSet, held: ScoredSet, leaked: int) -> Row:
    gap = _gap(trained, held)
    reading = _reading(
        gap, 0,
        "The held-out pairs are the easier ones: the two sides do not ask alike.",
        f"No sign that it overfits; a gap of up to {max(gap.high, 0):.2f} could hide in so few pairs.",
        "It overfits: so large a gap is no chance. That alone is no reason to stop: what counts is where held-out accuracy is "
        "highest.",
        trained, held,
    )  # fmt: skip
    reading += " Leaks hide a part of it." * bool(leaked)
    return _row("training minus held-out", gap, "0: as good on new prompts", reading)


def _shift(held: ScoredSet, other: ScoredSet) -> Row:
    gap = _gap(held, other)
    reading = _reading(
        gap, 0,
        "These are easier for it than the held-out pairs.",
        "No sign that it ranks these worse or better than the held-out pairs.",
        "It ranks these worse: that is shift, or harder questions; not overfitting.",
        held, other,
    )  # fmt: skip
    return _row(f"held-out minus {other.name}", gap, "0: as good as on held-out pairs", reading)


def _weakest_domain(held: ScoredSet) -> list[Row]:
    table = accuracy_table(held.rewards, held.preferences, by=held.domains).drop("all")
    table = table[table.pairs >= LEAST_PAIRS]
    if len(table) < 2:
        return []
    name = table.accuracy.idxmin()
    found = Estimate(*map(float, table.loc[name, ["accuracy", "low", "high"]]), int(table.pairs[name]))
    by_chance = _lowest_by_chance(held, set(table.index))
    beside = f"{name}, {found.count} pairs; all held-out {held.accuracy.accuracy:.3f}; the longer wins {table.longer_wins[name]:.3f}"
    seldom = f"the weakest of {len(table)} alike would be below {by_chance:.3f} once in twenty"
    if found.value < by_chance:
        reading = f"Weaker than chance makes it: {seldom}. Read its mistakes."
    else:
        reading = f"No sign that it is weaker than the others: {seldom}."
    return [_row("weakest domain", found, beside, reading)]


def _lowest_by_chance(held: ScoredSet, eligible: set[str]) -> float:
    """The 5th percentile of the lowest accuracy of a domain, where domains are dealt to the groups at random."""
    domains = np.array(held.domains)[[n for n, *_ in held.pairs]]
    kept = np.isin(domains, sorted(eligible))
    units = pd.DataFrame({"owner": held.owners, "domain": domains, "right": right_shares(held.difference)})[kept]
    units = units.groupby(["owner", "domain"]).right.agg(["sum", "count"]).reset_index()
    codes, rng = pd.factorize(units.domain)[0], np.random.default_rng(0)
    dealt = (rng.permutation(codes) for _ in range(CHANCE_DRAWS))
    lowest = [(np.bincount(c, units["sum"]) / np.bincount(c, units["count"])).min() for c in dealt]
    return float(np.quantile(lowest, 0.05))


def _halves(held: ScoredSet) -> tuple[float, float] | None:
    """The NLL of half of the groups, as it is and at the temperature of the others; None where these have no best one."""
    try:
        return tuple(temperature_scaled(held.rewards, held.ranks, held.groups).nll)
    except ValueError:
        return None


def _loss(held: ScoredSet, halves: tuple[float, float] | None) -> Row:
    found = _estimate(
        lambda: nll(held.rewards, held.ranks, held.groups), np.logaddexp(0, -held.difference).mean(), held
    )
    beside = f"ln 2 = {LN2:.3f}"
    if halves:
        beside += "; on half of the groups {:.3f}, and {:.3f} at the temperature of the other half".format(*halves)
    reading = _reading(
        found, LN2,
        "Better than saying one half of every pair.",
        "Cannot be told from saying one half of every pair.",
        "Worse than saying one half of every pair: it is too sure where it is wrong.",
        held,
    )  # fmt: skip
    return _row("NLL (nats)", found, beside, reading)


def _calibration(held: ScoredSet) -> list[Row]:
    if len(set(held.groups)) < 2:
        return []
    found = calibration_error(held.rewards, held.ranks, held.groups, bins=bins_for(held))
    if found.value > found.by_chance:
        reading = f"Its probabilities are off by {found.value:.2f} on average: more than chance makes."
    else:
        reading = "No more than chance makes of a calibrated model on so many pairs."
    beside = f"by chance up to {found.by_chance:.3f}; the interval has what chance adds taken off"
    return [("calibration error", found.value, found.low, found.high, beside, reading)]


def bins_for(held: ScoredSet) -> int:
    return min(BINS, 2 * len(held.difference))


def _temperature(held: ScoredSet, halves: tuple[float, float] | None) -> Row:
    what, beside = "best temperature", "1: probabilities as they should be"
    try:
        value = fit_temperature(held.rewards, held.ranks)
    except ValueError as error:
        return what, math.nan, math.nan, math.nan, beside, f"There is none: {error}."
    found = _estimate(
        lambda: Estimate(value, *bootstrap_interval(_fitted, held.owners, held.difference), len(held.difference)),
        value,
        held,
    )
    if found.high > INFINITE / 1000:
        found = replace(found, high=math.inf)
    if halves and halves[1] < halves[0]:
        advice = ": divide rewards by it before reading probabilities; no ranking changes."
    else:
        advice = " on these pairs; yet the temperature of half of the groups does not help the others. More pairs would tell."
    reading = _reading(
        found, 1, f"Not sure enough{advice}", "No sign that it is too sure, or not sure enough.", f"Too sure{advice}", held
    )  # fmt: skip
    return _row(what, found, beside, reading)


def _fitted(difference: np.ndarray) -> float:
    """The best temperature of a resample, also where it is 0 or infinite."""
    if not (difference < 0).any():
        return 0.0
    if difference.mean() <= 0:
        return INFINITE
    rewards = torch.from_numpy(np.stack([difference, np.zeros_like(difference)], 1))
    return fit_temperature(rewards, torch.tensor([[0, 1]]).expand(len(rewards), 2))


def _saturated(held: ScoredSet) -> Row:
    sure = stats.logistic.cdf(np.abs(held.difference)) > SATURATED
    wrong = (held.difference < 0)[sure].astype(float)
    low, high = share_interval(held.owners, sure.astype(float))
    beside = f"{len(wrong)} of {len(sure)} pairs; ranked wrong: {int(wrong.sum())}"
    if not len(wrong):
        reading = "It is so sure of no pair: every one still has a gradient."
    else:
        share = Estimate(wrong.mean(), *share_interval(held.owners[sure], wrong), len(wrong))
        reading = _reading(
            share, 1 - SATURATED,
            "Wrong less often than the 1 % that it allows for.",
            "Wrong no more often than the 1 % that it allows for, as far as so many pairs can tell.",
            "Wrong more often than the 1 % that it allows for: read the mistakes below. Either the judgements are wrong, or it "
            "is too sure.",
        )  # fmt: skip
    return _row("pairs above 99 %", Estimate(sure.mean(), low, high, len(sure)), beside, reading)


def _length(held: ScoredSet) -> list[Row]:
    unlike = held.longer != 0
    if not unlike.any():
        return []
    longer, owners = np.sign(held.longer[unlike]), held.owners[unlike]
    judged, preferred = (longer + 1) / 2, (np.sign(held.difference[unlike]) * longer + 1) / 2
    net, several = preferred - judged, len(set(owners)) > 1
    low, high = bootstrap_interval(np.mean, owners, net) if several else (math.nan, math.nan)
    found = Estimate(net.mean(), low, high, len(net))
    at_random = 0.5 - judged.mean()
    beside = (
        f"preferred {preferred.mean():.3f}, judged better {judged.mean():.3f}, of {len(longer)} pairs; ranking at random "
        f"would make it {at_random:+.3f}"
    )
    reading = _reading(
        found, 0,
        "It likes length less than the annotators do.",
        "No sign that it likes length more, or less, than the annotators do.",
        "It likes length more than the annotators do.",
        held,
    )  # fmt: skip
    if (low > 0 or high < 0) and found.value * at_random > 0 and abs(at_random) >= abs(found.value):
        reading += " But so would a model that ranks at random."
    return [_row("longer preferred, minus judged", found, beside, reading)]


def _leaks(held: ScoredSet, given: int, leaked: list[int]) -> Row:
    other = ~np.isin(held.places[[n for n, *_ in held.pairs]], leaked)
    if not leaked:
        reading = "No prompt or group is on both sides."
    elif other.any():
        accuracy = right_shares(held.difference)[other].mean()
        reading = f"These were seen in training; the other {other.sum()} pairs have an accuracy of {accuracy:.3f}."
    else:
        reading = "All that is held out was seen in training: nothing here says how it does on new prompts."
    reading += " Split with split_preferences, and train anew." * bool(leaked)
    return "leaks", float(len(leaked)), math.nan, math.nan, f"of {given} held-out preferences; 0 is right", reading


def right_shares(difference: np.ndarray) -> np.ndarray:
    """1 for a pair ranked right, 0 for wrong, ½ for equal rewards."""
    return (np.sign(difference) + 1) / 2
