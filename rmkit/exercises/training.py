"""The exercises of notebook 03: reference, known wrong answers, hint and reason for each."""

import torch
import torch.nn.functional as F

from rmkit.exercises import Exercise


def bradley_terry_loss(chosen, rejected):
    return -F.logsigmoid(chosen - rejected).mean()


def last_token_positions(attention_mask):
    return attention_mask.sum(dim=1) - 1


def ranking_accuracy(chosen, rejected):
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean().item()


def learning_rate_at(step, total, warmup, peak):
    return peak * min((step + 1) / (warmup + 1), (total - step) / (total - warmup))


def training_bytes(parameters, trainable):
    return 4 * parameters + 12 * trainable


_REWARDS = (torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0]))
_FAR = (torch.tensor([-150.0, 3.0]), torch.tensor([0.0, 1.0]))

EXERCISES = {
    "bradley_terry_loss": Exercise(
        reference=bradley_terry_loss,
        cases=(_REWARDS, _FAR),
        mistakes={
            "the arguments are swapped: the loss must fall when the chosen reward rises.": lambda c, r: (
                -F.logsigmoid(r - c).mean()
            ),
            "the minus sign is missing: a loss is what training makes smaller.": lambda c, r: F.logsigmoid(
                c - r
            ).mean(),
            "the mean over the pairs is missing: optimizers want one number.": lambda c, r: -F.logsigmoid(c - r),
            "the pairs are added up, not averaged: the step would grow with the batch.": lambda c, r: (
                -F.logsigmoid(c - r).sum()
            ),
            "log(sigmoid(x)) is −inf where sigmoid(x) rounds to 0: use F.logsigmoid, which never takes that detour.": lambda c, r: (
                -torch.log(torch.sigmoid(c - r)).mean()
            ),
            "this is the probability that the chosen one wins, not its negative logarithm.": lambda c, r: torch.sigmoid(
                c - r
            ).mean(),
        },
        hint="Take the difference of the rewards, chosen first; the log of its sigmoid is one function, F.logsigmoid.",
        reason="The loss is the negative log-likelihood of what the annotator said, σ(r_chosen − r_rejected), averaged over "
        "the pairs. logsigmoid computes −softplus(−x) and stays finite where sigmoid(x) has become 0.",
    ),
    "last_token_positions": Exercise(
        reference=last_token_positions,
        cases=((torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]),),),
        mistakes={
            "this is the number of tokens: positions count from 0, so the last one is one less.": lambda m: m.sum(
                dim=1
            ),
            "this is the last position of the row, padding or not: the very bug of the lesson.": lambda m: torch.full(
                (len(m),), m.shape[1] - 1
            ),
            "this is the first token: argmax finds the first of equal values.": lambda m: m.argmax(dim=1),
            "the sum runs down the batch: sum along each row, dim=1.": lambda m: m.sum(dim=0) - 1,
        },
        hint="The mask holds a 1 for every token: how many are there in a row, and where does counting begin?",
        reason="With padding on the right, a row of n tokens has them at positions 0 … n − 1. (rmkit reads the position off "
        "the segments instead, which also holds when several completions share a row.)",
    ),
    "ranking_accuracy": Exercise(
        reference=ranking_accuracy,
        cases=(_REWARDS, (torch.zeros(4), torch.zeros(4))),
        mistakes={
            "equal rewards count as wrong: a model that says nothing then gets 0, not one half.": lambda c, r: (
                (c > r).float().mean().item()
            ),
            "equal rewards count as right: a model that says nothing then gets 100 %.": lambda c, r: (
                (c >= r).float().mean().item()
            ),
            "chosen and rejected are swapped.": lambda c, r: ranking_accuracy(r, c),
            "this is the number of pairs that are right, not their share.": lambda c, r: (
                ((c > r).float() + 0.5 * (c == r).float()).sum().item()
            ),
        },
        hint="Count a pair as 1 where chosen > rejected, as ½ where they are equal, and average.",
        reason="A coin would get half of the equal ones. Counting them as wrong punishes coarse scores, such as bf16's; "
        "counting them as right rewards a model that gives everything the same score.",
    ),
    "learning_rate_at": Exercise(
        reference=learning_rate_at,
        cases=tuple((step, 20, 4, 1e-5) for step in range(20)),
        mistakes={
            "the first step has learning rate 0 and is wasted: rise by 1/(warmup + 1) from the very first step.": lambda s, t, w, p: (
                p * min(s / w, (t - s) / (t - w))
            ),
            "it rises and never falls: after the warm-up, go down in a straight line to 0 at `total`.": lambda s, t, w, p: (
                p * min((s + 1) / (w + 1), 1)
            ),
            "it only falls: the warm-up is missing.": lambda s, t, w, p: p * (t - s) / t,
            "this is the share of the peak, not the learning rate: multiply by `peak`.": lambda s, t, w, p: min(
                (s + 1) / (w + 1), (t - s) / (t - w)
            ),
        },
        hint="Two straight lines: (step + 1) / (warmup + 1) going up, (total − step) / (total − warmup) going down. Which holds when?",
        reason="The smaller of the two lines is the up-going one before the end of the warm-up and the down-going one after "
        "it. Adam's first updates are as long as the learning rate whatever the gradient's size, so it starts short.",
    ),
    "training_bytes": Exercise(
        reference=training_bytes,
        cases=((1_000_000, 1_000_000), (1_000_000, 10_000), (7_000_000_000, 0)),
        mistakes={
            "frozen parameters need no gradient and no Adam state: only `trainable` ones cost 12 bytes more.": lambda n, t: (
                16 * n
            ),
            "a number is missing: a trained parameter has a gradient and two Adam moments, 12 bytes.": lambda n, t: (
                4 * n + 8 * t
            ),
            "the weights themselves are missing: 4 bytes for each parameter, trained or not.": lambda n, t: 12 * t,
            "this is for 2-byte weights; here everything is fp32.": lambda n, t: 2 * n + 12 * t,
        },
        hint="Each fp32 number takes 4 bytes. A frozen parameter is one number; a trained one is four: which?",
        reason="A trained parameter is held as weight, gradient, and Adam's two moments: 16 bytes. A frozen one is a weight: "
        "4 bytes. Activations come on top, and grow with the tokens in a micro-batch.",
    ),
}
