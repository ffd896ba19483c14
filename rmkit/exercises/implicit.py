"""The exercises of notebook 06: reference, known wrong answers, hints and reason for each, and its quiz."""

import operator
import re

import torch
import torch.nn.functional as F

from rmkit.exercises import Exercise
from rmkit.quizzes import Question


def response_log_probability(logits, input_ids, segment):
    logs = logits[:, :-1].log_softmax(-1)  # (B, T − 1, V): what each position says of the next token
    found = logs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)  # (B, T − 1)
    return (found * (segment[:, 1:] == 1)).sum(1)  # (B,)


def optimal_policy(reference, rewards, beta):
    return torch.softmax(reference.log() + rewards / beta, dim=-1)  # dividing by Z is what softmax does


def dpo_loss(policy, reference, beta):
    log_ratios = policy - reference  # (B, 2)
    difference = beta * (log_ratios[:, 0] - log_ratios[:, 1])  # (B,)
    return -F.logsigmoid(difference).mean()


def averaging_flips(prompt, first, second):
    by_sum = first.sum() > second.sum()
    by_mean = torch.cat([prompt, first]).mean() > torch.cat([prompt, second]).mean()
    return bool(by_sum != by_mean)


def agreement(explicit, implicit):
    explicit, implicit = explicit[:, 0] > explicit[:, 1], implicit[:, 0] > implicit[:, 1]  # (N,) each
    cells = [explicit & implicit, explicit & ~implicit, ~explicit & implicit, ~explicit & ~implicit]
    return torch.stack(cells).float().mean(1).reshape(2, 2)


_ALL, _BUT_LAST, _BUT_FIRST = slice(None), slice(None, -1), slice(1, None)


def _response(
    reads=_BUT_LAST,
    scores=_BUT_FIRST,
    mask=None,
    logs=lambda logits: logits.log_softmax(-1),
    counts=lambda segment: segment == 1,
    together=lambda found, counted: (found * counted).sum(1),
):
    """A log-probability with faults to choose: which positions are read, which tokens are scored, and which are counted."""

    def response(logits, input_ids, segment):
        found = logs(logits[:, reads]).gather(-1, input_ids[:, scores, None]).squeeze(-1)
        return together(found, counts(segment[:, mask or scores]))

    return response


def _after_the_first(segment):
    return (segment == 1) & ((segment == 1).cumsum(1) > 1)


def _before_the_last(segment):
    place = (segment == 1).cumsum(1)
    return (segment == 1) & (place < place.amax(1, keepdim=True))


def _try_rows(function, case):
    """Of the rows that a case draws, with random logits of the size it says; a token of padding is 0, an end of turn 1."""
    rows, size = re.findall(r"[pc.]{4,}", case[0]), float(re.search(r"size (\d+)", case[0])[1])
    chance = torch.Generator().manual_seed(6)
    segment = torch.tensor([["pc".find(letter) for letter in row] for row in rows])
    input_ids = torch.randint(2, 6, segment.shape, generator=chance)
    input_ids[(segment == 1) & ~_before_the_last(segment)] = 1
    input_ids[segment == -1] = 0
    logits = size * torch.randn(*segment.shape, 6, generator=chance)
    return function(logits.requires_grad_(), input_ids, segment)


def _weights(reference, rewards, beta):
    return reference * torch.exp(rewards / beta)


def _dpo(
    ratios=lambda policy, reference, beta: beta * (policy - reference),
    loss=lambda better, worse: -F.logsigmoid(better - worse),
    together=torch.mean,
):
    """A DPO loss with faults to choose."""
    return lambda policy, reference, beta: together(loss(*ratios(policy, reference, beta).T))


def _flips(average, total=lambda prompt, tokens: tokens.sum(), compare=operator.ne):
    """What averaging does to a ranking, with another average or another comparison."""

    def flips(prompt, first, second):
        by_sum = total(prompt, first) > total(prompt, second)
        return bool(compare(by_sum, average(prompt, first) > average(prompt, second)))

    return flips


def _mean(prompt, tokens):
    return torch.cat([prompt, tokens]).mean()


def _try_tokens(function, case):
    """Of log-ratios that add up to what a case says, over as many tokens, and differ from token to token."""
    told = re.findall(r"([+−]?\d+) over (\d+)", case[0])
    return function(*(torch.linspace(-1, 1, int(n)) + float(total.replace("−", "-")) / int(n) for total, n in told))


def _agreement(right=lambda r: r[:, 0] > r[:, 1], together=lambda cells: cells.float().mean(1).reshape(2, 2)):
    """The four shares, with another idea of what is right, or put together in another way."""

    def shares(explicit, implicit):
        a, b = right(explicit), right(implicit)
        return together(torch.stack([a & b, a & ~b, ~a & b, ~a & ~b]))

    return shares


def _by_chance(explicit, implicit):
    """The shares if either model were right as often as it is, and independent of the other."""
    a, b = ((r[:, 0] > r[:, 1]).float().mean() for r in (explicit, implicit))
    return torch.outer(torch.stack([a, 1 - a]), torch.stack([b, 1 - b]))


def _decided(explicit, implicit):
    decided = (explicit[:, 0] != explicit[:, 1]) & (implicit[:, 0] != implicit[:, 1])
    return agreement(explicit[decided], implicit[decided])


_ROWS = (
    ("rows pppcccc.. pcc...... ppccccccc (p prompt, c completion, . padding) and logits of size 2",),
    ("rows ppppcc pccccc (p prompt, c completion) and logits of size 1",),
    ("the row pccccc (p prompt, c completion) and logits of size 300",),  # a softmax of 0, and none that is masked
)
_POLICIES = (
    (torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]), torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 1.0]]), 0.5),
    (torch.tensor([0.25, 0.75, 0.0]), torch.tensor([1.0, 0.0, 3.0]), 2.0),
    (torch.tensor([1e-5, 0.4, 0.59999]), torch.tensor([3.0, 2.875, 1.0]), 0.0125),  # e^240 overflows in fp32
)
_LOG_PROBABILITIES = (
    (
        torch.tensor([[-30.0, -42.0], [-55.0, -21.0], [-18.0, -17.0]], requires_grad=True),
        torch.tensor([[-33.0, -38.0], [-50.0, -24.0], [-16.0, -17.5]]),
        0.1,
    ),
    (torch.tensor([[-900.0, -100.0], [-40.0, -45.0]]), torch.tensor([[-300.0, -120.0], [-41.0, -43.0]]), 0.5),
)
_TOKENS = tuple(
    (f"prompt {prompt} tokens, first {first}, second {second}",)
    for prompt, first, second in (
        ("−20 over 20", "+2 over 10", "−1 over 40"),
        ("0 over 10", "+6 over 60", "+4 over 10"),
        ("−10 over 30", "+14 over 4", "+26 over 40"),
        ("0 over 20", "+5 over 20", "+4 over 10"),
        ("+30 over 20", "−6 over 40", "−8 over 10"),
        ("+12 over 30", "−6 over 12", "−9 over 30"),
        ("−30 over 30", "−9 over 30", "−6 over 12"),
        ("−10 over 10", "−3 over 30", "+2 over 10"),
    )
)
_REWARDS = (
    (
        torch.tensor([[2, 1], [3, -1], [-1, -2], [1, 1], [0.5, 2], [-3, -1], [4, 0], [1, 0.5]]),
        torch.tensor(
            [[0.4, 0.1], [-0.2, 0.3], [0.5, 0.5], [0.7, 0.2], [-0.1, 0.2], [0.1, -0.4], [-0.3, -0.9], [0.2, 0.6]]
        ),
    ),
    (
        torch.tensor([[1.0, 0.0], [2.0, 3.0], [5.0, 4.0], [0.0, -1.0]]),
        torch.tensor([[0.3, 0.1], [0.2, 0.1], [0.6, 0.7], [0.9, 0.8]]),
    ),
)

EXERCISES = {
    "response_log_probability": Exercise(
        reference=response_log_probability,
        cases=_ROWS,
        probe=_try_rows,
        mistakes={
            "the shift is missing: the logits at position t are about token t + 1.": _response(_ALL, _ALL),
            "the shift goes the wrong way: a token is predicted by the position before it, not after.": _response(
                _BUT_FIRST, _BUT_LAST
            ),
            "the mask was not shifted with the tokens: it drops a completion's first token and counts the one after its "
            "end; take segment[:, 1:].": _response(mask=_BUT_LAST),
            "the prompt's tokens are counted, too: the policy was given them, and wrote only the completion.": _response(
                counts=lambda s: s >= 0
            ),
            "padding is counted, too: count where segment is 1, not where it is other than 0.": _response(
                counts=lambda s: s != 0
            ),
            "there is no mask: prompt and padding are counted as if the policy had written them.": _response(
                counts=lambda s: s > -2
            ),
            "the first token of the completion is left out: the prompt's last position predicts it.": _response(
                counts=_after_the_first
            ),
            "the end of turn is left out: to stop there was the policy's choice as well.": _response(
                counts=_before_the_last
            ),
            "this is the mean over the tokens: their probabilities multiply, so the logarithms add up.": _response(
                together=lambda found, counted: (found * counted).sum(1) / counted.sum(1)
            ),
            "log(softmax(x)) becomes −∞ where a probability is too small for fp32: use log_softmax.": _response(
                logs=lambda logits: logits.softmax(-1).log()
            ),
            "these are sums of logits, which are no log-probabilities before log_softmax.": _response(
                logs=lambda logits: logits
            ),
            "the softmax runs over the positions: it is over the vocabulary, the last dimension.": _response(
                logs=lambda logits: logits.log_softmax(1)
            ),
            "these are sums of probabilities: the logarithm is missing.": _response(
                logs=lambda logits: logits.softmax(-1)
            ),
            "this is the probability, which is 0 in fp32 for any long text: leave out exp.": lambda *a: (
                response_log_probability(*a).exp()
            ),
            "one number for each row, please: sum over the tokens, not over the batch.": lambda *a: (
                response_log_probability(*a).sum()
            ),
            "the sign is turned around, as in a loss: a log-probability is never above 0.": lambda *a: (
                -response_log_probability(*a)
            ),
            "this is a language model's loss, with a minus sign and a mean over all tokens of the batch: one sum for each "
            "row, please.": _response(together=lambda found, counted: -found[counted].mean()),
        },
        hints=(
            "Which position of the logits knows nothing of token t yet, and has seen all before it? Where is it for "
            "the completion's first token?",
            "logits[:, :-1] is about input_ids[:, 1:], and segment[:, 1:] says which of these belong to the completion.",
            "log_softmax(-1), .gather(-1, input_ids[:, 1:, None]).squeeze(-1), times (segment[:, 1:] == 1), .sum(1).",
        ),
        reason="The probability of a text is a product of conditional ones, P(token | all before it), so logarithms "
        "add up. The prompt is what all of them are given. The end of turn counts: without it, a text and one that "
        "goes on after it would be the same answer.",
    ),
    "optimal_policy": Exercise(
        reference=optimal_policy,
        cases=_POLICIES,
        mistakes={
            "the reference is left out: multiply by it, so that what it hardly says stays rare.": lambda p, r, b: (
                torch.softmax(r / b, -1)
            ),
            "β multiplies here, but the reward is divided by it: a large β holds the policy at the reference.": lambda p, r, b: (
                torch.softmax(p.log() + r * b, -1)
            ),
            "β is left out: divide the reward by it.": lambda p, r, b: torch.softmax(p.log() + r, -1),
            "β divides the reference's logarithm as well: it belongs to the reward alone.": lambda p, r, b: (
                torch.softmax((p.log() + r) / b, -1)
            ),
            "these do not add up to 1: the division by Z is missing.": _weights,
            "a product of two distributions does not add up to 1: divide by Z last, after multiplying.": lambda p, r, b: (
                p * torch.softmax(r / b, -1)
            ),
            "Z is a sum over the answers to one prompt: the last dimension, not the first.": lambda p, r, b: (
                torch.softmax(p.log() + r / b, 0)
            ),
            "one Z for all prompts: each has its own, so sum over the last dimension and keep it.": lambda p, r, b: (
                torch.softmax((p.log() + r / b).flatten(), 0).view_as(p)
            ),
            "exp overflows for a small β, and ∞ / ∞ is no number: add log π_ref to r/β and let softmax do the rest.": lambda *a: (
                _weights(*a) / _weights(*a).sum(-1, keepdim=True)
            ),
            "all probability is on the highest reward, as in the limit β → 0: with β above 0, other answers keep a share.": lambda p, r, b: (
                F.one_hot(r.argmax(-1), r.shape[-1]).float()
            ),
            "π_ref stands in the exponent as it is: its logarithm belongs there.": lambda p, r, b: torch.softmax(
                p + r / b, -1
            ),
            "this mixes two distributions, with β as the weight: they are multiplied, and an answer that π_ref never gives "
            "stays at 0.": lambda p, r, b: b * p + (1 - b) * torch.softmax(r, -1),
            "the sign of the reward is turned around: a higher one makes an answer likelier.": lambda p, r, b: (
                torch.softmax(p.log() - r / b, -1)
            ),
            "these are logarithms: give the probabilities themselves.": lambda *a: optimal_policy(*a).log(),
        },
        hints=(
            "Each answer has the weight π_ref · exp(r / β). What has to happen to weights to make them probabilities?",
            "exp(r / β) overflows when β is small. What is the logarithm of the weight?",
            "The softmax, over the last dimension, of log π_ref + r / β.",
        ),
        reason="Softmax takes exp and divides by the sum, which is Z; it subtracts the largest logit first, so it "
        "never overflows. log 0 is −∞, and exp turns it back into 0: no reward can bring in what the reference never "
        "says.",
    ),
    "dpo_loss": Exercise(
        reference=dpo_loss,
        cases=_LOG_PROBABILITIES,
        mistakes={
            "the reference is left out: what counts is how far the policy has moved from it.": _dpo(
                lambda p, r, b: b * p
            ),
            "the reference is added: the logarithm of a ratio is a difference.": _dpo(lambda p, r, b: b * (p + r)),
            "these are logarithms already: subtract the reference, where a probability would be divided by it.": _dpo(
                lambda p, r, b: b * p / r
            ),
            "β is left out: it turns a log-ratio into a reward.": _dpo(lambda p, r, b: p - r),
            "β stands outside of the logarithm: it belongs to the reward, inside of log σ.": lambda p, r, b: (
                b * dpo_loss(p, r, 1.0)
            ),
            "β multiplies the policy alone: it belongs to the whole log-ratio.": _dpo(lambda p, r, b: b * p - r),
            "the difference is turned around: policy minus reference, and chosen minus rejected.": _dpo(
                lambda p, r, b: b * (r - p)
            ),
            "the rejected answer is left out: the loss is of the difference of two log-ratios.": _dpo(
                loss=lambda c, r: -F.logsigmoid(c)
            ),
            "each answer is judged by itself, as right or wrong: the loss is one logarithm, of their difference.": _dpo(
                loss=lambda c, r: -F.logsigmoid(c) - F.logsigmoid(-r)
            ),
            "the minus sign is missing: a loss is what training makes smaller.": lambda *a: -dpo_loss(*a),
            "log(sigmoid(x)) becomes −∞ for large differences: use F.logsigmoid.": _dpo(
                loss=lambda c, r: -torch.sigmoid(c - r).log()
            ),
            "the pairs are added up, not averaged: the step would grow with the batch.": _dpo(together=torch.sum),
            "the mean over the pairs is missing: `backward` wants one number.": _dpo(together=lambda losses: losses),
            "the mean is taken too early: average the losses of the pairs, not their differences.": _dpo(
                loss=lambda c, r: -F.logsigmoid((c - r).mean())
            ),
            "this is the probability that the chosen one wins: the loss is its negative logarithm.": _dpo(
                loss=lambda c, r: torch.sigmoid(c - r)
            ),
            "this is a hinge, which stops pulling at a difference of 1: log σ never stops.": _dpo(
                loss=lambda c, r: F.relu(1 - (c - r))
            ),
            "this is IPO's square, which wants a difference of 1/(2β): DPO takes −log σ.": lambda p, r, b: (
                ((p - r)[:, 0] - (p - r)[:, 1] - 1 / (2 * b)) ** 2
            ).mean(),
        },
        hints=(
            "It is the Bradley–Terry loss of notebook 02. What stands in the place of the reward?",
            "The reward is β · (policy − reference), for both columns at once: shape (B, 2).",
            "-F.logsigmoid of the first column minus the second, then .mean().",
        ),
        reason="The optimal policy, solved for the reward, is r = β log(π / π_ref) + β log Z(x). Both answers have "
        "the same prompt, so β log Z(x) cancels in the difference, and what is left is Bradley–Terry on log-ratios: a "
        "reward model whose reward a language model gives.",
    ),
    "averaging_flips": Exercise(
        reference=averaging_flips,
        cases=_TOKENS,
        probe=_try_tokens,
        mistakes={
            "this averages over the response alone (or takes the mean of two means, which ranks alike): put prompt and response "
            "together, then take one mean.": _flips(lambda p, t: t.mean()),
            "this never says yes: with the prompt added, or divided by one number for both, a sum keeps its order; each mean "
            "is over its own P + A or P + B tokens.": _flips(lambda p, t: p.sum() + t.sum()),
            "the prompt is in the count and not in the sum: its log-ratios belong to the mean, too.": _flips(
                lambda p, t: t.sum() / (len(p) + len(t))
            ),
            "the prompt is in the sum and not in the count: divide by all tokens.": _flips(
                lambda p, t: (p.sum() + t.sum()) / len(t)
            ),
            "absolute values are averaged: the sign of a log-ratio counts, too.": _flips(
                lambda p, t: torch.cat([p, t]).abs().mean()
            ),
            "two ways of averaging are compared: compare the mean over all tokens with the sum over the response's.": _flips(
                _mean, lambda p, t: t.mean()
            ),
            "this is the ranking by the mean: is it another than that by the sum?": lambda p, a, b: bool(
                _mean(p, a) > _mean(p, b)
            ),
            "this is the ranking by the sum: is it another than that by the mean?": lambda p, a, b: bool(
                a.sum() > b.sum()
            ),
            "this is true where the two rankings are the same: the question is where they differ.": _flips(
                _mean, compare=operator.eq
            ),
            "only one direction counts here: a flip may also bring the second down from its first place.": _flips(
                _mean, compare=operator.gt
            ),
            "this asks whether a reward changes its sign: compare the two responses.": lambda p, a, b: bool(
                (_mean(p, a) > 0) != (a.sum() > 0)
            ),
            "these are the two means: do they rank the responses otherwise than the sums do?": lambda p, a, b: (
                torch.stack([_mean(p, a), _mean(p, b)])
            ),
        },
        hints=(
            "Two rankings, then one question: are they the same? The first is first.sum() > second.sum().",
            "For the second, put the prompt before each response: torch.cat([prompt, first]).mean().",
            "bool(by_sum != by_mean).",
        ),
        reason="The mean is (S + s) / (P + n), with S and P of the prompt, s and n of the response. A longer response "
        "thins S / (P + n) out: where S is negative that is a bonus for length, where it is positive a penalty. In a "
        "sum, S is the same for both and cancels.",
    ),
    "agreement": Exercise(
        reference=agreement,
        cases=_REWARDS,
        mistakes={
            "these are counts: divide by the number of pairs.": _agreement(
                together=lambda cells: cells.sum(1).reshape(2, 2)
            ),
            "rows and columns are swapped: the first row is where the explicit reward is right.": lambda *a: (
                agreement(*a).T
            ),
            "the order of rows and columns is turned around: both right comes first, both wrong last.": lambda *a: (
                agreement(*a).flip(0, 1)
            ),
            "equal rewards count as right: the better answer has to be strictly higher.": _agreement(
                lambda r: r[:, 0] >= r[:, 1]
            ),
            "the better answer comes first: a model is right where that one has more.": _agreement(
                lambda r: r[:, 0] < r[:, 1]
            ),
            "a reward above 0 is not yet right: compare it with the other answer's.": _agreement(lambda r: r[:, 0] > 0),
            "explicit is compared with implicit, and their scales differ: compare two answers within each model.": lambda e, i: (
                agreement(*torch.stack([e, i], 2).unbind(1))
            ),
            "these are shares of each row: one whole, all pairs, for the four of them.": lambda *a: (
                agreement(*a) / agreement(*a).sum(1, keepdim=True)
            ),
            "pairs with equal rewards are left out: they count, as wrong.": _decided,
            "these are products of two accuracies, as if the models erred independently: count the pairs.": _by_chance,
            "this is how often the two agree: which of them is right where they do not?": lambda *a: agreement(
                *a
            ).trace(),
            "only the diagonal is filled: where just one is right counts, too.": lambda *a: agreement(*a).diag().diag(),
            "these are the two accuracies, which do not say whether both err on the same pairs.": lambda *a: (
                torch.stack([agreement(*a)[0].sum(), agreement(*a)[:, 0].sum()])
            ),
            "these are the right four numbers in one row: make a (2, 2) of them.": lambda *a: agreement(*a).flatten(),
        },
        hints=(
            "For each model, in which pairs is it right? rewards[:, 0] > rewards[:, 1] is a row of true and false.",
            "Four combinations, with & for and, ~ for not; the mean of true and false is a share.",
            "Stack the four, .float().mean(1), and .reshape(2, 2).",
        ),
        reason="Two accuracies may be equal and come from different pairs. The two cells off the diagonal say how "
        "often the models disagree, and their difference is the difference of the accuracies: all that a comparison "
        "of the two rests on.",
    ),
}


QUIZ = [
    Question(
        "A data set has one answer to each of many prompts, and you want to throw out the worst answers. By which reward may you sort them?",
        right=(
            "By neither, as far as the losses go: each leaves every prompt a constant of its own.",
            "Of the reward behind the preferences DPO's policy holds all but β log Z(x), which cancels between two "
            "answers to one prompt. Bradley–Terry leaves an explicit reward the same freedom. Its zeros may happen to "
            "agree from prompt to prompt; nothing in the loss asks for it.",
        ),
        wrong=(
            (
                "By the explicit one: only the implicit one lacks β log Z(x).",
                "Add 10 to the explicit rewards of all answers to one prompt: the loss stays what it was. There is no "
                "Z in its formula, and the same gap.",
            ),
            (
                "By the implicit one, once β log Z(x) is computed from the two models and added.",
                "Z is the sum of π_ref exp(r/β) with the reward that you do not know. With the implicit reward in its "
                "place the sum is that of π, which is 1 for every prompt: the two models hold no constant to find.",
            ),
        ),
    ),
    Question(
        "One script sums the log-ratios of prompt and response, another averages them. Neither should count the prompt. Which of them can rank two responses wrongly because of it?",
        right=(
            "The average alone.",
            "A sum gains the same number for both responses, so their difference stays. In an average that number is "
            "divided by two different lengths, and what the longer response gets of it is less.",
        ),
        wrong=(
            (
                "Both: tokens that do not belong to the reward are in it.",
                "They are, and the sum is the wrong number. But it is wrong by the same amount for both: the ranking "
                "stands, and so does the DPO loss.",
            ),
            (
                "Neither: both responses have the same prompt.",
                "The same log-ratios, yes; not the same share in the mean. With responses of equal length you would be right.",
            ),
        ),
    ),
    Question(
        "The log-ratios of one response add up to +6, those of the other to −1. A script takes the mean over the response's tokens instead. When does it rank the second first?",
        right=(
            "Never: a mean has the sign of its sum.",
            "Dividing by a length brings both closer to 0, and neither across. Two sums of one sign may change "
            "places: 6 over 60 tokens is less than 4 over 10. With a prompt in the mean even +6 and −1 may.",
        ),
        wrong=(
            (
                "When the first is much longer.",
                "Then its mean is close to 0, and still above it, where the mean of the other never gets.",
            ),
            (
                "When the second is much longer.",
                "That lifts its mean, −1 over many tokens, towards 0 and never past it.",
            ),
        ),
    ),
    Question(
        "A policy was trained by DPO with β = 0.1, and you read its rewards with β = 0.5. What becomes of the rankings?",
        right=(
            "They stay. Had it been trained with 0.5, they might be others.",
            "Reading, β stretches all rewards alike: the same order, larger differences, surer probabilities. In "
            "training it decides how far the policy has to leave the reference for the same loss, and another model "
            "comes out.",
        ),
        wrong=(
            (
                "They change: the policy is optimal for the reward at its own β only.",
                "At five times the β it is optimal for five times the reward. As probabilities of a preference the "
                "new numbers may be far off; they rank as the old ones do.",
            ),
            (
                "They stay, and would whatever β it had been trained with: β is only a scale.",
                "So it would be at the exact optimum, over all policies there are. A real one shares its weights "
                "between all texts, sees few pairs and stops early, and how it gets there depends on β.",
            ),
        ),
    ),
    Question(
        "During DPO the loss falls as it should, and so does the log-probability of the chosen answers. What do you conclude?",
        right=(
            "That the rejected ones fall faster: only the difference is trained.",
            "The loss is the same when both log-ratios drop by the same amount. What they lose goes to answers that "
            "stand in no pair, so read what such a policy writes before you let it write.",
        ),
        wrong=(
            (
                "That chosen and rejected are exchanged somewhere.",
                "Then the chosen one would fall behind the rejected one. Look at the difference of the two "
                "log-ratios, not at one of them: if it grows while the loss falls, the loss has them the right way "
                "round.",
            ),
            (
                "That there is a bug: the gradient of the loss raises the chosen answer's log-probability.",
                "It does, with that one number taken by itself. But both answers are made by the same weights, and "
                "often of the same words: a step that pushes the rejected one down may take the chosen one with it.",
            ),
        ),
    ),
    Question(
        "DPO gives a policy and a reward at once. What can still speak for training an explicit reward model?",
        right=(
            "The price of a score, when many are wanted.",
            "An implicit reward takes two language models, policy and reference, and for every token of the answer "
            "their distributions over the whole vocabulary. An explicit one takes one body and one vector, read once. "
            "Best-of-n and PPO, which score every answer that they sample, pay that price again and again.",
        ),
        wrong=(
            (
                "It can score what another policy wrote; an implicit reward knows only its own answers.",
                "Any text has a log-probability under both models, so an implicit reward scores any answer, whoever "
                "wrote it. How well either does so far from its training pairs has to be measured.",
            ),
            (
                "Nothing: both are Bradley–Terry on the same pairs, so they are the same reward.",
                "The same loss, on two different functions. One reads a state through a vector, the other adds up "
                "what two language models say of each token: from the same pairs they may learn to rank new ones "
                "differently.",
            ),
        ),
    ),
]
