"""The exercises of notebook 04: reference, known wrong answers, hints and reason for each, and its quiz."""

import math

import torch
import torch.nn.functional as F

from rmkit.exercises import Exercise
from rmkit.quizzes import Question


def half_win_loss(difference, outcome):
    win = difference.new_tensor([1.0, 0.0, 0.5])[outcome]  # how much of a win it is for the first
    return -win * F.logsigmoid(difference) - (1 - win) * F.logsigmoid(-difference)


def starting_width(tie_rate):
    return 2 * torch.atanh(torch.as_tensor(tie_rate))


def rao_kupper_logs(difference, eta):
    first, second = F.logsigmoid(difference - eta), F.logsigmoid(-difference - eta)
    band = 2 * eta + torch.log(-torch.expm1(-2 * eta))  # log(e^2η − 1)
    return torch.stack([first, second, band + first + second], -1)


def judgement_information(probabilities, slopes):
    return torch.where(probabilities > 0, slopes.square() / probabilities, 0.0).sum(-1)


def tie_agreement(first, second):
    agreed = (first == second).float().mean()
    first, second = first.float().mean(), second.float().mean()  # how often each says "a tie"
    by_chance = first * second + (1 - first) * (1 - second)
    return (agreed - by_chance) / (1 - by_chance)


def _half_win(first=(1.0, 0.0, 0.5), second=(0.0, 1.0, 0.5), log_sigmoid=F.logsigmoid):
    """Half a win, with other weights of log σ(Δ) and log σ(−Δ), for each outcome, or another logarithm."""

    def half_win(difference, outcome):
        won, lost = torch.tensor(first)[outcome], torch.tensor(second)[outcome]
        return -won * log_sigmoid(difference) - lost * log_sigmoid(-difference)

    return half_win


def _constant_tie(cost):
    return lambda d, o: torch.where(o == 2, cost, half_win_loss(d, o))


def _width(rule):
    return lambda tie_rate: rule(torch.as_tensor(tie_rate))


def _band(eta):
    return 2 * eta + torch.log(-torch.expm1(-2 * eta))


def _logs(
    first=lambda d, e: F.logsigmoid(d - e),
    second=lambda d, e: F.logsigmoid(-d - e),
    band=_band,
    tie=None,
    together=lambda first, second, tie: torch.stack([first, second, tie], -1),
):
    """Rao and Kupper's logarithms with faults to choose."""

    def logs(difference, eta):
        one, two = first(difference, eta), second(difference, eta)
        return together(one, two, tie(one, two) if tie else band(eta) + one + two)

    return logs


def _naive(tie):
    """The logarithms of probabilities, as a formula has them."""

    def logs(difference, eta):
        first, second = torch.sigmoid(difference - eta), torch.sigmoid(-difference - eta)
        return torch.stack([first, second, tie(first, second, eta)], -1).log()

    return logs


def _try_logs(function, case):
    """The logarithms; of a case that begins with words, the gradients of their sum, for Δ and then for η."""
    if isinstance(case[0], torch.Tensor):
        return function(*case)
    gradients = torch.autograd.grad(function(*case[1:]).sum(), case[1:], materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _three_outcomes(difference, nu):
    """Davidson's probabilities (..., 3) and their slopes, fp64; ν = 0 is Bradley–Terry, where a tie has no probability."""
    worth = torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64)
    difference = torch.tensor(difference, dtype=torch.float64)[..., None]
    p = (difference * worth + torch.tensor([1.0, 1.0, nu]).double().log()).softmax(-1)
    return p, p * (worth - (p * worth).sum(-1, keepdim=True))


def _information(each, together=lambda parts: parts.sum(-1)):
    """The information with faults to choose; an outcome that never occurs adds nothing."""
    return lambda p, slopes: together(torch.where(p > 0, each(p, slopes), 0.0))


def _agreement(by_chance):
    """κ with another idea of what chance does, from how often each says "a tie"."""

    def agreement(first, second):
        agreed, expected = _agreed(first, second), by_chance(first.float().mean(), second.float().mean())
        return (agreed - expected) / (1 - expected)

    return agreement


def _agreed(first, second):
    return (first == second).float().mean()


def _chance(first, second):
    first, second = first.float().mean(), second.float().mean()
    return first * second + (1 - first) * (1 - second)


def _said(*annotators):
    """What each said, written as letters: t a tie, . a winner."""
    return tuple(torch.tensor([letter == "t" for letter in annotator]) for annotator in annotators)


_HALVES = (
    (
        torch.tensor([[2.0, -1.0, 0.5], [0.0, -2.0, 1.5]], requires_grad=True),
        torch.tensor([[0, 1, 2], [2, 0, 1]]),
    ),
    (torch.tensor([-150.0, 150.0, -150.0, 150.0]), torch.tensor([0, 1, 2, 2])),
)
_FAR = torch.tensor([2.0, -150.0, 150.0], requires_grad=True)
_WIDTHS = (  # in fp32, e^2η − 1 is 0 at the second η, and infinite at the third
    (torch.tensor([[2.0, 0.0, -1.0], [150.0, -150.0, 0.3]]), torch.tensor(0.85, requires_grad=True)),
    (torch.tensor([0.0, 150.0, -150.0]), torch.tensor(1e-8)),
    (torch.tensor([0.0, 40.0, 150.0]), torch.tensor(60.0)),
    ("the slopes at", _FAR, torch.tensor(0.85, requires_grad=True)),
    ("the slopes at", _FAR, torch.tensor(60.0, requires_grad=True)),
)

EXERCISES = {
    "half_win_loss": Exercise(
        reference=half_win_loss,
        cases=_HALVES,
        mistakes={
            "a tie costs nothing here, so it is thrown away: it is half a win, and half a defeat.": _constant_tie(0.0),
            "every tie costs ln 2 here, a constant, and pulls nothing: ln 2 is right at Δ = 0 only, where a tie costs "
            "least.": _constant_tie(math.log(2)),
            "the minus sign is missing: a loss is what training makes smaller.": lambda d, o: -half_win_loss(d, o),
            "first and second are swapped: outcome 0 says that the first is better.": lambda d, o: half_win_loss(-d, o),
            "outcome 2 is a tie and 1 is the second, not the other way round.": _half_win((1, 0.5, 0), (0, 0.5, 1)),
            "both logarithms of a tie have their whole weight: half a win is ½ for each.": _half_win(
                (1, 0, 1), (0, 1, 1)
            ),
            "a tie is half a defeat, too: −½ log σ(−Δ) is missing, and Δ is pulled up instead of to 0.": _half_win(
                second=(0, 1, 0)
            ),
            "log(sigmoid(x)) becomes −∞ for large differences: use F.logsigmoid.": _half_win(
                log_sigmoid=lambda x: torch.log(torch.sigmoid(x))
            ),
            "one number for each judgement, please: no mean.": lambda d, o: half_win_loss(d, o).mean(),
        },
        hints=(
            "How much of a win is each outcome for the first? 1, 0, and for a tie …?",
            "With that number as win, the loss is −win · log σ(Δ) − (1 − win) · log σ(−Δ).",
            "torch.tensor([1.0, 0.0, 0.5])[outcome] is win; take F.logsigmoid for the logarithms.",
        ),
        reason="It is the cross-entropy with the target 1, 0 or ½. A tie pulls Δ towards 0 with a force of σ(Δ) − ½: none where the "
        "rewards are equal, and never more than ½. There it costs ln 2, the least it can; a tie is never free.",
    ),
    "starting_width": Exercise(
        reference=starting_width,
        cases=((0.3,), (0.999,), (torch.tensor([0.02, 0.3, 0.6]),)),
        mistakes={
            "this is Davidson's ν: in Rao and Kupper's rule equal answers are called equal with probability tanh(η / 2).": _width(
                lambda t: 2 * t / (1 - t)
            ),
            "this solves σ(−η) = 1 − t: first and second share what ties leave, so σ(−η) is (1 − t) / 2.": _width(
                torch.logit
            ),
            "this is half of it: t is tanh(η / 2), not tanh(η).": _width(torch.atanh),
            "this is e^η: the logarithm is missing.": _width(lambda t: (1 + t) / (1 - t)),
            "the sign is turned around: more ties want a wider band.": _width(lambda t: -2 * torch.atanh(t)),
            "2t is nearly right for few ties, and far off for many: solve t = tanh(η / 2) for η.": _width(
                lambda t: 2 * t
            ),
            "this is the way back, the tie rate of a width: solve it for η.": _width(lambda t: torch.tanh(t / 2)),
        },
        hints=(
            "Set Δ = 0. Then first and second have the same probability, σ(−η). What is left for a tie?",
            "tie_rate = 1 − 2σ(−η), which is tanh(η / 2). Solve for η.",
            "log((1 + t) / (1 − t)), or 2 · atanh(t). torch.as_tensor turns a plain number into a tensor.",
        ),
        reason="At Δ = 0 each side wins with probability σ(−η), which leaves t = 1 − 2σ(−η) = tanh(η / 2) for a tie; turned around, "
        "η = 2 atanh(t) = log((1 + t) / (1 − t)). Pairs with a lead tie less often, so the tie rate of all pairs is a start "
        "that is a little too low.",
    ),
    "rao_kupper_logs": Exercise(
        reference=rao_kupper_logs,
        cases=_WIDTHS,
        probe=_try_logs,
        mistakes={
            "1 − P(first) − P(second) loses all its digits where a tie is rare: P(tie) = (e^2η − 1) P(first) P(second).": _logs(
                tie=lambda one, two: torch.log(1 - one.exp() - two.exp())
            ),
            "the sign of η is turned around: to win, an answer has to lead by more than η.": _logs(
                first=lambda d, e: F.logsigmoid(d + e), second=lambda d, e: F.logsigmoid(e - d)
            ),
            "the second takes all that the first leaves, and none is left for a tie: it has to lead by η as well, "
            "−Δ − η.": _logs(second=lambda d, e: F.logsigmoid(e - d)),
            "only the first has to lead by η: the second must, too, −Δ − η.": _logs(
                second=lambda d, e: F.logsigmoid(-d)
            ),
            "it is e^2η in P(tie), not e^η: the band is 2η wide.": _logs(band=lambda e: _band(e / 2)),
            "the −1 of e^2η − 1 is missing: with η near 0 ties should become impossible.": _logs(band=lambda e: 2 * e),
            "e^2η overflows for a large η: log(e^2η − 1) is 2η + log(1 − e^−2η).": _logs(
                band=lambda e: torch.log(torch.expm1(2 * e))
            ),
            "e^2η − 1 is 0 for a small η in fp32, and overflows for a large one: torch.expm1 mends the first, 2η + "
            "log(1 − e^−2η) the second.": _logs(band=lambda e: torch.log(torch.exp(2 * e) - 1)),
            "1 − e^−2η is 0 for a small η in fp32: −torch.expm1(−2η) keeps its digits.": _logs(
                band=lambda e: 2 * e + torch.log(1 - torch.exp(-2 * e))
            ),
            "the numbers are right and a gradient is not: torch.where also computes the side it does not take, and there "
            "0 · ∞ is no number. 2η + log(1 − e^−2η) needs no where.": _logs(
                band=lambda e: torch.where(2 * e > 30, 2 * e, torch.log(torch.expm1(2 * e)))
            ),
            "log(sigmoid(x)) becomes −∞ for large differences: use F.logsigmoid.": _logs(
                first=lambda d, e: torch.log(torch.sigmoid(d - e)), second=lambda d, e: torch.log(torch.sigmoid(-d - e))
            ),
            "a probability of 0 has the logarithm −∞, and 1 − P(first) − P(second) loses its digits: start from F.logsigmoid, "
            "and add up.": _naive(lambda one, two, e: 1 - one - two),
            "the formula is right and its parts overflow, or become 0: start from F.logsigmoid, and add up.": _naive(
                lambda one, two, e: (torch.exp(2 * e) - 1) * one * two
            ),
            "these are probabilities: their logarithms, please.": lambda d, e: rao_kupper_logs(d, e).exp(),
            "the order is first, second, tie: outcome 2 is the tie.": _logs(
                together=lambda one, two, tie: torch.stack([one, tie, two], -1)
            ),
            "the outcomes are in front, (3, ...): stack them in the last dimension, −1.": _logs(
                together=lambda one, two, tie: torch.stack([one, two, tie])
            ),
        },
        hints=(
            "The first wins with probability σ(Δ − η): its logarithm is F.logsigmoid(difference - eta). And the second?",
            "A product becomes a sum: log P(tie) = log(e^2η − 1) + log P(first) + log P(second).",
            "log(e^2η − 1) is 2η + log(1 − e^−2η), and 1 − e^−2η is -torch.expm1(-2 * eta). Stack the three with dim=-1.",
        ),
        reason="Sums of logarithms never cancel, and logsigmoid is finite at any difference. e^2η is taken out of e^2η − 1 so that what "
        "is left, 1 − e^−2η, lies between 0 and 1 and cannot overflow; expm1 keeps its digits when η is small.",
    ),
    "judgement_information": Exercise(
        reference=judgement_information,
        cases=(
            _three_outcomes([0.0, 2.0, -1.0], 0.8),
            _three_outcomes([[0.5, -3.0], [1.0, 6.0]], 3.0),
            _three_outcomes([0.0, 1.0], 0.0),
        ),
        mistakes={
            "0 / 0 is no number: an outcome of probability 0 adds nothing (torch.where).": lambda p, s: (
                s.square() / p
            ).sum(-1),
            "the division is missing: a slope tells more where the probability is small.": _information(
                lambda p, s: s.square()
            ),
            "multiplied where it should be divided: a slope tells more where the probability is small.": _information(
                lambda p, s: s.square() * p
            ),
            "the tie is left out: all three outcomes tell of Δ.": lambda p, s: judgement_information(
                p[..., :2], s[..., :2]
            ),
            "this is a third of it: the outcomes are added up, not averaged.": _information(
                lambda p, s: s.square() / p, lambda parts: parts.mean(-1)
            ),
            "slopes add up to 0, because probabilities add up to 1: square each of them first.": _information(
                lambda p, s: s
            ),
            "the slopes are not squared.": _information(lambda p, s: s / p),
            "this is the sum of squared slopes of log P: each counts as often as its outcome occurs, times p.": _information(
                lambda p, s: (s / p).square()
            ),
            "this counts the outcomes as three questions with yes or no, of which each tells what the others do: divide by "
            "p, not by p (1 − p).": _information(lambda p, s: s.square() / (p * (1 - p))),
            "one number for each pair, please: sum over the last dimension only.": lambda p, s: judgement_information(
                p, s
            ).sum(),
        },
        hints=(
            "The score of an outcome is the slope of its log-probability, slope / p. Information is the mean of its square.",
            "The mean over what annotators say: Σ p · (slope / p)². One p cancels.",
            "(slopes.square() / probabilities).sum(-1), with torch.where for probabilities of 0.",
        ),
        reason="Information is the expected square of d log P / dΔ, Σ p (slope / p)² = Σ slope² / p. With two outcomes it is the p (1 − p) "
        "of Bradley–Terry. What never happens tells nothing, so it adds 0 and not 0 / 0.",
    ),
    "tie_agreement": Exercise(
        reference=tie_agreement,
        cases=(
            _said("ttt.....", "tt......"),
            _said("....", "t..t"),
            _said("t.t.", ".t.t"),
            _said("ttttt.t.", "t.tt..tt"),
        ),
        mistakes={
            "this is how often they agree: two who hardly ever tie agree often, by chance.": _agreed,
            "this is how often both said a tie: two who name a winner agree as well, and chance is to be taken off.": lambda a, b: (
                (a & b).float().mean()
            ),
            "this is the share of ties that both called one (Jaccard), which chance also brings about.": lambda a, b: (
                (a & b).sum() / (a | b).sum()
            ),
            "by chance they also agree on no tie: add (1 − first) · (1 − second) to p_e.": _agreement(
                lambda a, b: a * b
            ),
            "chance is no even coin here: p_e follows from how often each says a tie.": _agreement(
                lambda a, b: 0.5 + 0 * a
            ),
            "this is Scott's π, in which both tie equally often: Cohen's chance takes each annotator's own share.": _agreement(
                lambda a, b: ((a + b) / 2).square() + (1 - (a + b) / 2).square()
            ),
            "this is p_o / p_e: subtract chance, and divide by what it leaves, 1 − p_e.": lambda a, b: (
                _agreed(a, b) / _chance(a, b)
            ),
            "the division is missing: 1 − p_e is the most that can be above chance.": lambda a, b: (
                _agreed(a, b) - _chance(a, b)
            ),
            "this is the correlation (φ): close to κ, equal only where both tie equally often.": lambda a, b: (
                torch.corrcoef(torch.stack([a, b]).float())[0, 1]
            ),
        },
        hints=(
            "p_o is how often they say the same: (first == second).float().mean().",
            "By chance both say a tie in first · second of the pairs, with the share of ties of each, and both no tie in …?",
            "p_e = first · second + (1 − first) · (1 − second); κ = (p_o − p_e) / (1 − p_e).",
        ),
        reason="Two annotators who tie at random agree as well, the more often the rarer ties are. κ says how far they got on the way "
        "from there, 0, to agreeing always, 1. Careless ties are at 0, however many there are; but honest ones of close pairs "
        "are hardly above it, so a small κ proves no carelessness.",
    ),
}


QUIZ = [
    Question(
        "30 % of the judgements of a project are ties. What follows?",
        right=(
            "Nothing yet: look where they are.",
            "Many ties on close pairs are honest, and there may be many close pairs. Many ties on clear ones are another matter: "
            "somebody may have stopped looking. The number alone cannot tell one from the other.",
        ),
        wrong=(
            (
                "The guidelines are unclear: that is the limit practice quotes.",
                "They may be. But if every third pair is two correct sums, the annotators are doing just what they should.",
            ),
            (
                "30 % of the budget is lost: a tie teaches a reward model nothing.",
                "A tie says that the lead is small, and that is news wherever the model believes otherwise. Only a loss that "
                "has no place for ties throws it away.",
            ),
        ),
    ),
    Question(
        "Bradley–Terry wants winners, so a coin decides every tie. What does that cost, compared with leaving the ties out?",
        right=(
            "More: it adds noise to what was known to be even.",
            "Of two answers of equal reward that tie with probability t, a coin keeps 1 − t of the information that is left when "
            "ties are left out: with 30 % ties, 70 %.",
        ),
        wrong=(
            (
                "Nothing: in the mean a coin is half a win.",
                "In the mean, yes. But half a win pulls towards equal rewards every time, and a coin pulls one way or the other "
                "with full force. That noise is paid for in judgements.",
            ),
            (
                "Less: all judgements are used.",
                "Judgements count by what they tell. What the coin adds tells of the coin.",
            ),
        ),
    ),
    Question(
        "A model was trained with ties as half a win. Which question can it not answer?",
        right=(
            "How probable is it that annotators call these two equal?",
            "It has one number for a pair, σ(Δ). At ½ that may be a pair that everybody calls equal, or one on which they are "
            "divided and never tie.",
        ),
        wrong=(
            (
                "Which of the two answers is better?",
                "That is the sign of Δ, and a tie at Δ = 0 favours neither.",
            ),
            (
                "What score will the first get, with 1 for a win and ½ for a tie?",
                "That is the very thing it models: σ(Δ) is the expected score.",
            ),
        ),
    ),
    Question(
        "A loader turns each tied pair into chosen = rejected, the same text twice. What do you see in training?",
        right=(
            "These pairs cost ln 2 for ever, and pull nothing.",
            "A text leads itself by 0, whatever the weights are, and both its gradients cancel. The curve stops falling too high "
            "up, and what the ties had to say is lost.",
        ),
        wrong=(
            (
                "They pull the two rewards together, as ties should.",
                "That would take the two texts that were compared. Of one text there is only one reward.",
            ),
            (
                "The loss is no longer a number.",
                "If only it were: somebody would look. ln 2 is a perfectly good number, which is why this goes unnoticed.",
            ),
        ),
    ),
    Question(
        "A Bradley–Terry model costs 0.60 nats a judgement, with ties left out; a Rao–Kupper model 0.95 on all judgements. Which is better?",
        right=(
            "These two numbers cannot tell.",
            "One bets on two outcomes of some pairs, the other on three outcomes of all: their floors differ, too. Give the first a "
            "width, fitted afterwards, and let both bet on the same judgements.",
        ),
        wrong=(
            (
                "Bradley–Terry: its loss is lower.",
                "It was spared the harder question, whether there is a winner at all. A model that says ½ to every decided "
                "pair pays 0.69; one that says ⅓ to each of three outcomes pays 1.10.",
            ),
            (
                "Rao–Kupper: 0.95 is further below ln 3 than 0.60 is below ln 2.",
                "It is, 0.15 against 0.09. But to know the tie rate may be enough to get below ln 3, and how low each could "
                "get depends on the annotators.",
            ),
        ),
    ),
    Question(
        "Ties are left out, and Bradley–Terry is trained on the decided pairs alone. Whose leads come out right, given enough judgements?",
        right=(
            "Those of annotators who tie by Davidson's rule; by Rao and Kupper's they are stretched.",
            "Davidson's decided pairs have the odds e^Δ, however many ties there are: nothing is biased, some information is "
            "lost. Rao and Kupper's close pairs drop out first, and what remains looks clearer than it is: leads grow by up "
            "to 1 + t, with t the tie rate of equals, so they may nearly double.",
        ),
        wrong=(
            (
                "Everybody's: a tie does not say who is better.",
                "Not who, but by how much. Where an answer has to lead by η to win, an upset is rarer among decided pairs than σ(Δ) says.",
            ),
            (
                "Nobody's: what is left out always biases.",
                "Not if it leaves the odds of the others alone. Under Davidson's rule it does, and so do ties said without a look.",
            ),
        ),
    ),
]
