"""The exercises of notebook 02: reference, known wrong answers, hint and reason for each."""

import torch
import torch.nn.functional as F

from rmkit.exercises import Exercise
from rmkit.quizzes import Question


def elo_update(first, second, first_won, k):
    expected = 1 / (1 + 10 ** ((second - first) / 400))
    change = k * (first_won - expected)
    return first + change, second - change


def loss_gradient(chosen, rejected):
    return -torch.sigmoid(rejected - chosen)


def plackett_luce_loss(rewards):
    left = rewards.flip(-1).logcumsumexp(-1).flip(-1)  # (..., K): logsumexp of each place and all behind it
    return (left - rewards).sum(-1)


def label_smoothed_loss(difference, flips):
    return -(1 - flips) * F.logsigmoid(difference) - flips * F.logsigmoid(-difference)


def comparisons_needed(differences, relative_error):
    right = torch.sigmoid(differences)
    information = (right * (1 - right) * differences**2).mean()  # of one comparison, about the scale
    return (1.96 / relative_error) ** 2 / information


def _elo(base=10.0, scale=400, both=False, only_first=False, turned=False, expects=True, losses=True):
    """An update with faults to choose."""

    def update(first, second, first_won, k):
        lead = first - second if turned else second - first
        expected = 1 / (1 + base ** (lead / scale)) if expects else 0.0
        change = k * (first_won - expected) if losses or first_won else 0.0
        return first + change, second + change if both else second if only_first else second - change

    return update


_E = 2.718281828459045
_PAIRS = (torch.tensor([2.0, 0.0, 1.0, -150.0]), torch.tensor([0.0, 1.0, 1.0, 0.0]))
_RANKED = (
    (torch.tensor([[2.0, 0.5, 1.0], [0.0, -1.0, 0.3]], requires_grad=True),),
    (torch.tensor([200.0, 199.0, 198.0, -3.0]),),
    (torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]),),
)
_DIFFERENCES = (
    (torch.tensor([2.0, -1.0, 0.5], requires_grad=True), 0.1),
    (torch.tensor([0.0, -150.0, 150.0]), 0.2),
    (torch.tensor([1.0]), 0.0),
)
_DESIGNS = (
    (torch.tensor([0.5, -1.0, 2.0, 3.0]), 0.1),
    (torch.tensor([2.4]), 0.2),
)


def _needed(z=1.96, weight=lambda p, d: p * (1 - p) * d**2, power=2, together=torch.mean):
    return lambda d, e: (z / e) ** power / together(weight(torch.sigmoid(d), d))


EXERCISES = {
    "elo_update": Exercise(
        reference=elo_update,
        cases=((1500.0, 1500.0, True, 32.0), (1600.0, 1400.0, True, 32.0), (1600.0, 1400.0, False, 32.0)),
        mistakes={
            "the odds are powers of 10 here, not of e: 400 points are a factor of ten.": _elo(base=_E),
            "both ratings move the same way: what one gains, the other loses.": _elo(both=True),
            "only the first rating moves: the second loses what the first gains.": _elo(only_first=True),
            "the expectation is turned around: the one with the higher rating is expected to win.": _elo(turned=True),
            "every win counts the same: compare the result with what was expected, first_won − expected.": _elo(
                expects=False
            ),
            "a defeat changes nothing: it counts 0, and 0 − expected is what changes the rating.": _elo(losses=False),
            "the 400 is missing: the exponent is the difference divided by 400.": _elo(scale=1),
            "these are new ratings without k: what was expected falls short, and that is multiplied by k.": lambda a, b, w, k: (
                elo_update(a, b, w, 1.0)
            ),
        },
        hints=(
            "First the probability that the first one was expected to win: Bradley–Terry with base 10 and scale 400.",
            "expected = 1 / (1 + 10 ** ((second - first) / 400)).",
            "The change is k · (first_won − expected); add it to the first rating, take it from the second.",
        ),
        reason="first_won − expected is σ(−Δ) for the winner: the gradient of −log σ(Δ) with its sign turned around. An Elo "
        "update is one step of stochastic gradient descent on the Bradley–Terry loss of one match, and k is the learning rate.",
    ),
    "loss_gradient": Exercise(
        reference=loss_gradient,
        cases=(_PAIRS,),
        mistakes={
            "the sign is wrong: raising the chosen reward lowers the loss, so this gradient is negative. (With a plus it is "
            "that of the rejected reward.)": lambda c, r: torch.sigmoid(r - c),
            "this weighs pairs by the probability of being right: the surer the model, the less should it learn.": lambda c, r: (
                -torch.sigmoid(c - r)
            ),
            "this is the probability of being right, and not a slope.": lambda c, r: torch.sigmoid(c - r),
            "this is the loss itself: its slope was asked for.": lambda c, r: F.softplus(r - c),
            "this is the slope of the sigmoid: the logarithm is missing.": lambda c, r: (
                -torch.sigmoid(c - r) * torch.sigmoid(r - c)
            ),
            "one number for every pair, please: no mean.": lambda c, r: -torch.sigmoid(r - c).mean(),
            "this is the gradient of the mean: leave out the division by the number of pairs.": lambda c, r: (
                -torch.sigmoid(r - c) / len(c)
            ),
        },
        hints=(
            "With Δ = chosen − rejected the loss is −log σ(Δ). The derivative of log σ(Δ) is 1 − σ(Δ).",
            "1 − σ(Δ) is σ(−Δ): the probability of being wrong. And the sign?",
        ),
        reason="d/dΔ of −log σ(Δ) is −(1 − σ(Δ)) = −σ(−Δ). The chosen reward enters Δ with a plus, so that is its gradient; "
        "the rejected one gets the same with the sign turned around.",
    ),
    "plackett_luce_loss": Exercise(
        reference=plackett_luce_loss,
        cases=_RANKED,
        mistakes={
            "those that are chosen already still stand in the sum: each choice is among what is left.": lambda r: (
                r.logsumexp(-1, keepdim=True) - r
            ).sum(-1),
            "the ranking is read from its end: the best comes first, and at place k the sum holds that place and those behind "
            "it (flip, logcumsumexp, flip).": lambda r: (r.logcumsumexp(-1) - r).sum(-1),
            "this is the first choice only: there are K − 1 of them.": lambda r: r.logsumexp(-1) - r[..., 0],
            "the sign is wrong: a loss is a negative log-likelihood.": lambda r: -plackett_luce_loss(r),
            "the choices of a ranking are added up, not averaged: their probabilities multiply.": lambda r: (
                plackett_luce_loss(r) / r.shape[-1]
            ),
            "one number for each ranking, please: no mean over them.": lambda r: plackett_luce_loss(r).mean(),
            "this is Bradley–Terry on all pairs of the ranking, which for K > 2 is another loss.": lambda r: (
                torch.stack(
                    [F.softplus(r[..., j] - r[..., i]) for i in range(r.shape[-1]) for j in range(i + 1, r.shape[-1])]
                ).sum(0)
            ),
            "exp overflows for large rewards: logcumsumexp (or logsumexp) does not.": lambda r: (
                r.exp().flip(-1).cumsum(-1).flip(-1).log() - r
            ).sum(-1),
        },
        hints=(
            "The choice at place k costs logsumexp(rewards from place k on) − reward at place k; add up the places.",
            "A loop over k with rewards[..., k:].logsumexp(-1) will do. (The last place costs 0.)",
            "Without a loop: flip the rewards, logcumsumexp, flip back; subtract the rewards; sum over the last dimension.",
        ),
        reason="A ranking is the best of K, then the best of the K − 1 that are left, and so on: probabilities multiply, "
        "logarithms add. logcumsumexp runs from the front, so the rewards are flipped before and after.",
    ),
    "label_smoothed_loss": Exercise(
        reference=label_smoothed_loss,
        cases=_DIFFERENCES,
        mistakes={
            "the weights are swapped: the larger one, 1 − flips, belongs to the label as it stands.": lambda d, e: (
                label_smoothed_loss(d, 1 - e)
            ),
            "this is the logarithm of a mixture, another loss, which comes next: here two losses are mixed.": lambda d, e: (
                -torch.log((1 - e) * torch.sigmoid(d) + e * torch.sigmoid(-d))
            ),
            "half of flips is used, as in F.cross_entropy(label_smoothing=…): here flips is the whole share that is "
            "turned around.": lambda d, e: label_smoothed_loss(d, e / 2),
            "the second half is missing: with weight `flips` the label is turned around.": lambda d, e: (
                -(1 - e) * F.logsigmoid(d)
            ),
            "the minus sign is missing: a loss is what training makes smaller.": lambda d, e: (
                -label_smoothed_loss(d, e)
            ),
            "a minus sign is missing inside: turned around, the difference is −Δ.": lambda d, e: -F.logsigmoid(d),
            "log(sigmoid(x)) becomes −∞ for large differences: use F.logsigmoid.": lambda d, e: (
                -(1 - e) * torch.sigmoid(d).log() - e * torch.sigmoid(-d).log()
            ),
            "one number for each pair, please: no mean.": lambda d, e: label_smoothed_loss(d, e).mean(),
        },
        hints=(
            "With probability 1 − flips the label is as it stands, and costs −log σ(Δ). Otherwise it costs …?",
            "Turned around, the difference is −Δ: −log σ(−Δ). Weigh the two by 1 − flips and flips.",
            "Two terms, each with F.logsigmoid and a minus sign.",
        ),
        reason="It is the cross-entropy with the target 1 − ε instead of 1: the least is at Δ = log((1 − ε)/ε), where the "
        "model gives the label just this probability. (Not the logarithm of the mixed probability, which undoes flips.)",
    ),
    "comparisons_needed": Exercise(
        reference=comparisons_needed,
        cases=_DESIGNS,
        mistakes={
            "this is for one standard error: the 95 % interval reaches 1.96 of them to each side.": _needed(z=1.0),
            "the square is missing: for half the error it takes four times as many.": _needed(power=1),
            "this is what comparisons say of a difference; about the scale each says Δ² times as much.": _needed(
                weight=lambda p, d: p * (1 - p)
            ),
            "Δ enters squared: the information is p (1 − p) Δ².": _needed(weight=lambda p, d: p * (1 - p) * d.abs()),
            "(1 − p) is missing: a comparison whose outcome is certain says nothing.": _needed(
                weight=lambda p, d: p * d**2
            ),
            "this is how often these pairs must be judged, all of them: take the mean of the information, not the sum.": _needed(
                together=torch.sum
            ),
            "p (1 − p) is missing: a comparison whose outcome is certain says nothing.": _needed(
                weight=lambda p, d: d**2
            ),
            "right, and rounded up: for a budget that is well, but give the number itself.": lambda d, e: (
                comparisons_needed(d, e).ceil()
            ),
        },
        hints=(
            "The standard error after n comparisons is 1/√(n·I). The 95 % interval is ± 1.96 of these. Set it equal to "
            "relative_error.",
            "n = (1.96 / relative_error)² / I.",
            "I is the mean of p (1 − p) Δ², with p = torch.sigmoid(differences).",
        ),
        reason="Solve 1.96/√(n·I) = relative_error for n. The scale multiplies Δ, so a comparison tells of it Δ² times what it "
        "tells of Δ itself, which is p (1 − p): the slope of σ.",
    ),
}


QUIZ = [
    Question(
        "A reward model gives 7.1 to an answer to one prompt and 5.3 to an answer to another. Which answer is better?",
        right=(
            "Nobody can say from these numbers.",
            "Every loss of differences leaves each prompt's zero wherever it was (section 4). Centering makes such a "
            "comparison less absurd; only comparisons across prompts would make it right.",
        ),
        wrong=(
            (
                "The first, by odds of about 6 to 1.",
                "That is the reading within one prompt. Across prompts an unknown constant is in the difference.",
            ),
            (
                "The first, but the odds need a temperature.",
                "A temperature stretches differences. The constant between two prompts is still in there.",
            ),
        ),
    ),
    Question(
        "All 1,000 pairs of a batch are ranked right, by a difference of 5 each. What does the Bradley–Terry loss do next?",
        right=(
            "It pushes them further apart, each with less than a hundredth of its full pull.",
            "The pull is the probability of being wrong, σ(−5), which is never 0. The hinge would have stopped at its margin.",
        ),
        wrong=(
            (
                "Nothing: the loss of pairs that are right is zero.",
                "It is near zero, and never zero: a larger difference is always a little better, which is how rewards "
                "grow and models become too sure.",
            ),
            (
                "It pulls the rewards back towards 1 and 0.",
                "That would be the squared error of section 5.",
            ),
        ),
    ),
    Question(
        "A fifth of your labels is turned around at random, you have very many of them, and you want honest probabilities. What helps?",
        right=(
            "The likelihood of a mixture: −log((1 − ε) σ(Δ) + ε σ(−Δ)).",
            "It models what happened to the labels, so σ(Δ) is left to model the annotator (section 8). With few labels it "
            "overfits worse than the plain loss.",
        ),
        wrong=(
            (
                "Label smoothing with ε = 0.2.",
                "The flips have already shrunk the differences, and smoothing shrinks them once more (section 8).",
            ),
            (
                "Nothing: flips ruin the ranking itself.",
                "Symmetric flips below one half leave the order of probabilities as it is; they cost information and scale.",
            ),
        ),
    ),
    Question(
        "In a contest of losses, one is 1 point more accurate than Bradley–Terry; the 95 % interval of the difference is −1 to +3. What do you report?",
        right=(
            "That on these pairs the two cannot be told apart.",
            "And how large a difference could have been missed: up to 3 points. Section 9 says what a narrower interval costs.",
        ),
        wrong=(
            (
                "That the new loss is 1 point better.",
                "With other prompts it might as well have been a point worse: zero is inside the interval.",
            ),
            (
                "That all losses are equally good.",
                "Not seeing a difference is not seeing that there is none: the interval still allows 3 points.",
            ),
        ),
    ),
]
