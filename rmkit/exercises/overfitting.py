"""The exercises of notebook 05: reference, known wrong answers, hints and reason for each, and its quiz."""

import math
import operator
import re

import torch

from rmkit.exercises import Exercise
from rmkit.preferences import Preference
from rmkit.quizzes import Question


def best_accuracy(p):
    return torch.maximum(p, 1 - p).mean()


def early_stop(losses, patience):
    kept = 0
    for check, loss in enumerate(losses):
        if loss < losses[kept]:
            kept = check
        elif check - kept == patience:
            break
    return kept


def leaked(train, held_out):
    """Indices into held_out, rising, of those whose prompt (letter for letter) or whose group is in train, too."""
    prompts, groups = {p.prompt for p in train}, {p.group for p in train}
    return [i for i, p in enumerate(held_out) if p.prompt in prompts or p.group in groups]


def expected_calibration_error(leads, bins):
    leads = leads[leads.abs().argsort()]
    right = (1 + leads.sign()) / 2  # 1, ½ where the rewards are equal, 0
    gap = leads.abs().sigmoid() - right  # (M,)
    return sum(part.sum().abs() for part in gap.tensor_split(bins)) / len(leads)


def disagreement(rewards):
    return (rewards[..., 0] - rewards[..., 1]).std(dim=0)  # (E, M) to (M,)


def _stop(better=operator.lt, longer=0, in_a_row=True, before=False, gives=lambda kept, stopped, _: kept):
    """Early stopping with faults to choose."""

    def stop(losses, patience):
        kept = waited = check = 0
        for check in range(1, len(losses)):
            improved = better(losses[check], losses[check - 1 if before else kept])
            if better(losses[check], losses[kept]):
                kept = check
            waited = 0 if improved and in_a_row else waited + (not improved)
            if waited == patience + longer:
                break
        return gives(kept, check, patience)

    return stop


def _preferences(text, completions):
    """Those that a case names as `prompt (group name)`."""
    found = re.findall(r"(\w[\w ]*) \(group (\w+)\)", text)
    return [Preference(prompt, completions, group=group) for prompt, group in found]


def _try_leaked(function, case):
    """The indices, or what it is if it holds none. Different prompts share an answer, and one prompt has several."""
    train, held_out = case
    found = function(_preferences(train, ("yes", "no")), _preferences(held_out, ("no", "perhaps")))
    if isinstance(found, list) and any(isinstance(one, Preference) for one in found):
        return "preferences"
    return found


def _found(leaks):
    """Indices by another rule, `leaks(preference, texts of train, groups of train)`."""

    def found(train, held_out):
        known = {p.prompt for p in train}, {p.group for p in train}
        return [i for i, p in enumerate(held_out) if leaks(p, *known)]

    return found


def _calibration(
    together=lambda gaps: gaps.abs().mean(),
    sureness=lambda leads: leads.abs().sigmoid(),
    right=lambda leads: (1 + leads.sign()) / 2,
    order=torch.abs,
):
    """A calibration error with faults to choose; as many pairs in every part."""

    def error(leads, bins):
        leads = leads[order(leads).argsort()]
        gaps = (sureness(leads) - right(leads)).tensor_split(bins)
        return together(torch.stack([part.mean() for part in gaps]))

    return error


def _equally_wide(lowest):
    """A calibration error in parts of equal width, from the sureness `lowest` to 1."""

    def error(leads, bins):
        sureness = leads.abs().sigmoid()
        place = ((sureness - lowest) / (1 - lowest) * bins).long().clamp(max=bins - 1)
        return place.bincount(sureness - (1 + leads.sign()) / 2).abs().sum() / len(leads)

    return error


def _lead(rewards):
    return rewards[..., 0] - rewards[..., 1]


_LOSSES = (
    ([0.69, 0.60, 0.55, 0.58, 0.57, 0.56, 0.50], 3),
    ([0.69, 0.60, 0.62, 0.61, 0.55, 0.57, 0.52, 0.60, 0.61, 0.60, 0.40], 3),
    ([0.69, 0.50, 0.40, 0.45], 2),
    ([0.69, 0.60, 0.60, 0.60, 0.50], 2),
    ([0.69, 0.70, 0.71, 0.60, 0.70, 0.70, 0.70, 0.50], 2),
    ([0.69], 1),
)
_SPLITS = (
    (
        "train: make tea (group drinks), cook rice (group food), mend a bike (group bikes)",
        "held_out: paint a wall (group paint), brew tea (group drinks), cook rice (group grains), "
        "cook rice (group food)",
    ),
    ("train: make tea (group drinks)", "held_out: boil milk (group milk)"),
)
_LEADS = (
    (torch.tensor([0.3, 3.9, 0.8, -2.0, 0.0, 0.6, 0.7, -4.0, 1.3, 0.9, 2.4, 1.8]), 3),
    (torch.tensor([0.4, -0.1, 0.2, -1.5]), 2),
)
_REWARDS = torch.tensor(  # three models, four pairs, two answers
    [
        [[1.0, 0.2], [0.5, 0.1], [2.0, 2.5], [1.4, -1.0]],
        [[6.1, 5.0], [5.2, 5.6], [7.3, 7.4], [6.0, 5.2]],
        [[-2.0, -2.9], [-3.0, -4.1], [-1.0, -2.2], [-1.0, -2.6]],
    ]
)

EXERCISES = {
    "best_accuracy": Exercise(
        reference=best_accuracy,
        cases=((torch.tensor([0.9, 0.2, 0.5, 0.7]),), (torch.tensor([0.1, 0.4]),)),
        mistakes={
            "this model always takes the first answer: where p is below ½, take the second.": torch.mean,
            "one decision for all pairs: choose in each, then take the mean.": lambda p: max(p.mean(), 1 - p.mean()),
            "this is how often two annotators agree: both draw, where the model takes the likelier answer.": lambda p: (
                p**2 + (1 - p) ** 2
            ).mean(),
            "this model knows the judgement; ours knows p, and the annotator may still say the other.": lambda p: 1.0,
            "pairs with p below ½ are left out: there the model is right in 1 − p.": lambda p: p[p > 0.5].mean(),
            "this is 1 minus the entropy, in bits, where p = ½ counts 0: half of such pairs come out right.": lambda p: (
                1 + (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean() / math.log(2)
            ),
            "this is how often it takes the first answer, not how often that is right.": lambda p: (
                (p > 0.5).float().mean()
            ),
            "one number for all pairs, please: the mean is missing.": lambda p: torch.maximum(p, 1 - p),
        },
        hints=(
            "Take one pair with p = 0.2. Which answer does the model name, and how often does the annotator say the same?",
            "It names the likelier answer, and is right with the larger one of p and 1 − p.",
            "torch.maximum(p, 1 - p) for each pair, then the mean.",
        ),
        reason="No model can know which way the annotator's coin will fall, only how it is loaded. Taking the likelier side "
        "wins max(p, 1 − p) of the time, and no other rule wins more. What is missing to 100 % is noise, not overfitting.",
    ),
    "early_stop": Exercise(
        reference=early_stop,
        cases=_LOSSES,
        mistakes={
            "this is the lowest of all: what comes after the stop is never measured.": lambda a, _: a.index(min(a)),
            "this is where it stopped: kept is the lowest before.": _stop(gives=lambda kept, stopped, _: stopped),
            "each check is compared with the one before: compare with the lowest so far.": _stop(before=True),
            "it stops one check too late: after `patience` checks in vain, not one more.": _stop(longer=1),
            "it stops one check too early: the lowest one itself was not in vain.": _stop(longer=-1),
            "an equal loss counts as lower: it is no improvement.": _stop(better=operator.le),
            "the highest loss is kept: a loss is better when it is lower.": _stop(better=operator.gt),
            "checks in vain count over the whole run: a lower loss sets them back to 0.": _stop(in_a_row=False),
            "going back by `patience` is right after a stop; training may also run to its end.": _stop(
                gives=lambda kept, stopped, patience: max(stopped - patience, 0)
            ),
            "the loss before training counts, too.": lambda a, n: 1 + early_stop(a[1:], n) if a[1:] else 0,
        },
        hints=(
            "Go through the losses in order and remember one thing: the index of the lowest so far.",
            "A lower loss (<, not ≤) is the new one to keep. Otherwise: how many checks ago was the lowest?",
            "If that is `patience` checks ago, break. Return the index after the loop, so that it also works without a stop.",
        ),
        reason="check − kept is the number of checks in a row that brought nothing. The index is returned after the loop, "
        "because most runs should reach their end. Patience is a bet: a lower loss just beyond the stop is never seen.",
    ),
    "leaked": Exercise(
        reference=leaked,
        cases=_SPLITS,
        probe=_try_leaked,
        mistakes={
            "the text alone misses reworded prompts: they share a group.": _found(
                lambda p, texts, _: p.prompt in texts
            ),
            "the group alone misses a prompt that train has in another.": _found(
                lambda p, _, groups: p.group in groups
            ),
            "prompt or group, not both: each is a leak by itself.": _found(
                lambda p, texts, groups: p.prompt in texts and p.group in groups
            ),
            "whole preferences, or their answers, are compared: a prompt leaks with other answers, too.": lambda t, h: (
                [i for i, p in enumerate(h) if p in t]
            ),
            'answers are compared: "no" answers many prompts. It is prompts and groups that leak.': lambda t, h: (
                [i for i, p in enumerate(h) if any({*p.completions} & {*other.completions} for other in t)]
            ),
            "these are indices into train: into held_out, please.": lambda t, h: leaked(h, t),
            "this is how many there are: which ones?": lambda t, h: len(leaked(t, h)),
            "this is true or false for each: give the indices of the true ones.": lambda t, h: (
                [bool(leaked(t, [p])) for p in h]
            ),
            "these are the preferences: give their indices.": lambda t, h: [h[i] for i in leaked(t, h)],
        },
        hints=(
            "What does train know? Collect two sets: its prompts (p.prompt) and its groups (p.group).",
            "Go through enumerate(held_out), which counts the indices in order.",
            "Keep index i where p.prompt is in the first set or p.group in the second.",
        ),
        reason="A reworded prompt has another text and the same group; a prompt that was collected twice may have the same text "
        "and another group. Either lets a model score by memory, so either is a leak. rmkit.on_both_sides follows the same "
        "rule, and also looks past capitals and blanks, and at the turns before the prompt.",
    ),
    "expected_calibration_error": Exercise(
        reference=expected_calibration_error,
        cases=_LEADS,
        mistakes={
            "signs cancel, too sure against too timid: take |gap| of each part.": _calibration(torch.mean),
            "this is one gap for everything: take |gap| of each part.": _calibration(lambda g: g.mean().abs()),
            "this is the largest gap (maximum calibration error): add them up.": _calibration(lambda g: g.abs().max()),
            "weights are missing: a part counts by its share of the pairs.": _calibration(lambda g: g.abs().sum()),
            "σ(lead) is low where the model is wrong, which it cannot know.": _calibration(sureness=torch.sigmoid),
            "σ is missing: |lead| is in nats, sureness is a probability.": _calibration(sureness=torch.abs),
            "equal rewards count as wrong: half of them are right.": _calibration(right=lambda d: (d > 0).float()),
            "equal rewards count as right: half of them are.": _calibration(right=lambda d: (d >= 0).float()),
            "the pairs are cut as they stand: sort by |lead|.": _calibration(order=lambda d: torch.arange(len(d))),
            "sorted by lead, all wrong ones come first: sort by |lead|.": _calibration(order=lambda d: d),
            "the parts are equally wide, from ½ to 1: make them equally large.": _equally_wide(0.5),
            "the parts are equally wide, from 0 to 1, half of them empty: make them equally large.": _equally_wide(0.0),
        },
        hints=(
            "Sort by |lead|: leads[leads.abs().argsort()]. Then each pair has a sureness, σ(|lead|), and is right: 1, ½ or 0.",
            "Cut both with .tensor_split(bins). In each part: mean sureness minus share right, and its absolute value.",
            "Weigh each by its part's share of the pairs, len(part) / len(leads), and add up.",
        ),
        reason="size · |mean sureness − share right| is |sum of sureness − right|, so one split of the differences does. "
        "Parts of equal size are about equally noisy; with parts of equal width a handful of pairs may fill one. In a sample the "
        "error is hardly ever 0, however honest the model: compare it with what chance alone would make of it.",
    ),
    "disagreement": Exercise(
        reference=disagreement,
        cases=((_REWARDS,), (_REWARDS[:2, :2] * 3,)),
        mistakes={
            "each model's zero is its own, and no disagreement: take r₁ − r₂ first.": lambda r: r.std(dim=0).mean(1),
            "the spread comes too early: first each model's r₁ − r₂, then its spread.": lambda r: _lead(r.std(dim=0)),
            "this is over the pairs of each model: over the models, dim=0.": lambda r: _lead(r).std(dim=1),
            "this is the spread of probabilities: leave out σ.": lambda r: _lead(r).sigmoid().std(dim=0),
            "this is the mean, the ensemble's verdict: how far apart are its models?": lambda r: _lead(r).mean(dim=0),
            "this is the range: take the standard deviation.": lambda r: _lead(r).amax(dim=0) - _lead(r).amin(dim=0),
            "this is the variance: its square root is in nats, as rewards are.": lambda r: _lead(r).var(dim=0),
            "this divides by E: torch.std divides by E − 1.": lambda r: _lead(r).std(dim=0, correction=0),
            "one number for each pair, please: no mean.": lambda r: _lead(r).std(dim=0).mean(),
        },
        hints=(
            "Add 10 to all rewards of one model: it judges every pair as before. What is left unchanged by that?",
            "r₁ − r₂ of each model: rewards[..., 0] - rewards[..., 1], of shape (E, M).",
            ".std(dim=0) runs over the models and leaves one number for each pair.",
        ),
        reason="A Bradley–Terry loss leaves each model's zero wherever it was, so only differences can be compared between "
        "models. Their spread shows what depends on the sample and the seed. What all members learned alike, it cannot show.",
    ),
}


QUIZ = [
    Question(
        "Training accuracy is 0.96, held-out 0.60, the ceiling 0.71. A remedy brings training to 0.75 and held-out to 0.61; the 95 % interval of that gain is −1 to +3 points. What did it buy?",
        right=(
            "A smaller gap, from the training side; on held-out pairs, nothing that can be told from noise.",
            "Of the 22 points by which the gap shrank, 21 were lost in training. Look at the held-out NLL next: a model that "
            "is less sure where it is wrong gains there without ranking one pair better.",
        ),
        wrong=(
            (
                "It cured most of the overfitting: the gap fell from 36 points to 14.",
                "A coin has no gap at all. What counts is the distance from held-out to the ceiling: 11 points before, 10 now, "
                "and that one point may be noise.",
            ),
            (
                "Nothing, and that is proved.",
                "Not seeing a gain is not seeing that there is none: the interval still allows 3 points, and the held-out "
                "NLL may have fallen a lot.",
            ),
        ),
    ),
    Question(
        "A reward model ranks 92 % of its validation pairs right, and 70 % of the pairs of another domain. Is it overfitting?",
        right=(
            "These two numbers cannot tell.",
            "Overfitting shows between training pairs and held-out pairs of the same kind. Between two domains lies a shift, "
            "or pairs that are simply harder: put the ceiling of each domain beside its accuracy.",
        ),
        wrong=(
            (
                "Yes: 22 points are lost on pairs that it has not seen.",
                "It has not seen the validation pairs either. If annotators of the other domain agree less, 70 % may be its "
                "ceiling, and a model that memorised nothing shows the same drop.",
            ),
            (
                "No: 92 % on validation pairs rules it out.",
                "The training accuracy is not given. And validation pairs that share prompts with training, or that chose "
                "among many runs, flatter the model.",
            ),
        ),
    ),
    Question(
        "Each pair is judged by one annotator, drawn at random, and two of them agree on 70 % of the pairs. Your target is an accuracy of 85 % on such judgements. Can it be reached?",
        right=(
            "No: the ceiling lies between 70 % and 82 %.",
            "With p the share of annotators who prefer the first answer, agreement is the mean of p² + (1−p)², the ceiling that of "
            "max(p, 1−p). Where all pairs are equally hard, p is 0.82; a mix of easy and hard ones has a lower ceiling (Jensen), "
            "down to 70 %. More is possible against a majority, or for a model that is told who judges.",
        ),
        wrong=(
            (
                "No: no model can agree with annotators more often than they agree with each other.",
                "It can. A second annotator draws, and errs as well; a model may always name the likelier answer. With "
                "p = 0.82 everywhere, annotators agree on 70 %, and the best model is right on 82 %.",
            ),
            (
                "Yes, with enough data and a larger model.",
                "They bring a model closer to knowing p. What the one annotator says beyond p is chance, in the held-out "
                "pairs as well.",
            ),
        ),
    ),
    Question(
        "On most held-out pairs the rewards of the two answers differ by more than 5. Is the model overconfident?",
        right=(
            "The size alone does not tell: compare σ(difference) with how often it is right.",
            "Beyond 5 it says 99.3 % and more. If so many of these pairs come out right, it is honest; if 90 % do, it is too "
            "sure, and a temperature may mend that without changing one ranking.",
        ),
        wrong=(
            (
                "Yes: rewards belong between −1 and 1.",
                "Bradley–Terry asks for no range: pairs that every annotator judges alike deserve a large difference.",
            ),
            (
                "No: published reward models have differences as large.",
                "Their scale says nothing of this one. The same difference is honest on clear pairs and too sure on open ones.",
            ),
        ),
    ),
    Question(
        "Five heads, trained on five bootstraps of the same pairs, all agree on an adversarial pair. Can their verdict be trusted?",
        right=(
            "Not for that reason: members that were trained on the same data share their mistakes.",
            "Agreement shows that the variance is small; it says nothing of the bias. If length paid in the training pairs, all "
            "five have learned to pay for length.",
        ),
        wrong=(
            (
                "Yes: five models rarely make the same mistake.",
                "Independent ones rarely do. These share features, prompts and annotators, and each bootstrap holds about 63 % "
                "of all pairs.",
            ),
            (
                "No, and if they disagreed, that would mean nothing either.",
                "Disagreement is a warning: the verdict hangs on which pairs were drawn. It is the silence that proves nothing.",
            ),
        ),
    ),
]
