"""The exercises of notebook 03: reference, known wrong answers, hint and reason for each."""

import torch
import torch.nn.functional as F

from rmkit.exercises import Exercise
from rmkit.quizzes import Question


def bradley_terry_loss(chosen, rejected):
    return -F.logsigmoid(chosen - rejected).mean()


def learning_rate_at(step, total, warmup, peak):
    return peak * min((step + 1) / (warmup + 1), (total - step) / (total - warmup))


def training_step(model, optimizer, batch, max_grad_norm):
    rewards = model(batch)  # (B, 2): chosen, rejected
    loss = bradley_terry_loss(rewards[:, 0], rewards[:, 1])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def training_bytes(parameters, trainable):
    return 4 * parameters + 12 * trainable


def last_token_positions(attention_mask):
    return attention_mask.sum(dim=1) - 1


def ranking_accuracy(chosen, rejected):
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean().item()


class _ToyModel(torch.nn.Module):
    """Two weights; `model(batch)` with batch [B, 2, 2] gives rewards [B, 2]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, batch):
        return batch @ self.weight


def _try_training_step(function, case):
    """Three steps on the toy: the losses that were returned, and the weights that were left."""
    model = _ToyModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = [function(model, optimizer, *case) for _ in range(3)]
    if None in losses:
        return None
    if any(isinstance(loss, torch.Tensor) for loss in losses):
        return "tensors"
    return torch.tensor([*losses, *model.weight.detach()])


def _step(swapped=False, clip=True, zero=True, order=("backward", "step"), item=True):
    """A training step with faults to choose."""

    def step(model, optimizer, batch, max_grad_norm):
        rewards = model(batch)
        loss = bradley_terry_loss(*(rewards.T.flip(0) if swapped else rewards.T))
        for action in order:
            if action == "backward":
                loss.backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            else:
                optimizer.step()
        if zero:
            optimizer.zero_grad()
        return loss.item() if item else loss

    return step


def _log_sigmoid(difference):
    return torch.log(torch.sigmoid(difference))


_PAIRS = (torch.tensor([2.0, 0.0, 1.0], requires_grad=True), torch.tensor([0.0, 1.0, 1.0]))
_FAR = (torch.tensor([-150.0, 3.0], requires_grad=True), torch.tensor([0.0, 1.0]))
_TOY_BATCH = (torch.tensor([[[1.0, 0.5], [0.2, 1.0]], [[2.0, -1.0], [-1.0, 0.5]]]), 0.5)

EXERCISES = {
    "bradley_terry_loss": Exercise(
        reference=bradley_terry_loss,
        cases=(_PAIRS, _FAR),
        mistakes={
            "the arguments are swapped: the loss must fall when the chosen reward rises.": lambda c, r: (
                -F.logsigmoid(r - c).mean()
            ),
            "the minus sign is missing: a loss is what training makes smaller.": lambda c, r: F.logsigmoid(
                c - r
            ).mean(),
            "the mean over the pairs is missing: `backward` wants one number.": lambda c, r: -F.logsigmoid(c - r),
            "the pairs are added up, not averaged: the step would grow with the batch.": lambda c, r: (
                -F.logsigmoid(c - r).sum()
            ),
            "the mean is taken too early: average the losses of the pairs, not their differences.": lambda c, r: (
                -F.logsigmoid((c - r).mean())
            ),
            "log(sigmoid(x)), or log(1 + exp(−x)), becomes infinite where exp overflows: F.logsigmoid never does.": lambda c, r: (
                -_log_sigmoid(c - r).mean()
            ),
            "log(sigmoid(x)) becomes −∞ where exp overflows (use F.logsigmoid), and the mean is missing.": lambda c, r: (
                -_log_sigmoid(c - r)
            ),
            "log(sigmoid(x)) becomes −∞ where exp overflows (use F.logsigmoid), and the minus sign is missing.": lambda c, r: (
                _log_sigmoid(c - r).mean()
            ),
            "this is the probability that the chosen one wins, not its negative logarithm.": lambda c, r: torch.sigmoid(
                c - r
            ).mean(),
            "this is the probability of being wrong: the loss is a logarithm.": lambda c, r: torch.sigmoid(
                r - c
            ).mean(),
        },
        hints=(
            "The loss of a pair is the negative logarithm of the probability that the chosen one wins. What is that probability?",
            "The log of the sigmoid of a difference is one function, F.logsigmoid.",
            "Chosen minus rejected, F.logsigmoid, a minus sign, and the mean over the pairs.",
        ),
        reason="The loss is the negative log-likelihood of what the annotator said, σ(r_chosen − r_rejected), averaged over "
        "the pairs. logsigmoid computes −softplus(−x), which stays finite where log(sigmoid(x)) does not.",
    ),
    "learning_rate_at": Exercise(
        reference=learning_rate_at,
        cases=tuple((step, 10, warmup, 1.0) for warmup in (3, 0, 1) for step in range(10)),
        mistakes={
            "the first step has learning rate 0 and is wasted: begin at peak / (warmup + 1).": lambda s, t, w, p: (
                p * min(s / w if w else 1, (t - s) / (t - w))
            ),
            "it rises too fast: with warmup + 1 in the denominator, step `warmup` is the one with the peak.": lambda s, t, w, p: (
                p * min((s + 1) / w if w else 1, (t - s) / (t - w))
            ),
            "it rises and never falls: after the warm-up, go down in a straight line to 0 at `total`.": lambda s, t, w, p: (
                p * min((s + 1) / (w + 1), 1)
            ),
            "it only falls: the warm-up is missing.": lambda s, t, w, p: p * (t - s) / t,
            "the way down starts at step 0: it should start from the peak, at step `warmup`.": lambda s, t, w, p: (
                p * min((s + 1) / (w + 1), (t - s) / t)
            ),
            "it reaches 0 one step early: the last step, total − 1, still has a small learning rate.": lambda s, t, w, p: (
                p * min((s + 1) / (w + 1), (t - s - 1) / (t - w - 1))
            ),
            "the larger of the two lines was taken: the smaller one holds.": lambda s, t, w, p: (
                p * max((s + 1) / (w + 1), (t - s) / (t - w))
            ),
        },
        hints=(
            "Two straight lines: one going up during the warm-up, one going down to 0 at `total`.",
            "(step + 1) / (warmup + 1) goes up, (total − step) / (total − warmup) comes down. Which of the two holds when?",
            "The smaller of the two always holds: min, times peak.",
        ),
        reason="The smaller of the two lines is the rising one before the end of the warm-up and the falling one after it.",
    ),
    "training_step": Exercise(
        reference=training_step,
        cases=(_TOY_BATCH,),
        probe=_try_training_step,
        mistakes={
            "return loss.item(): the tensor would keep the whole computation alive.": _step(item=False),
            "gradients add up from step to step: optimizer.zero_grad() is missing.": _step(zero=False),
            "the columns are swapped: rewards[:, 0] are the chosen ones.": _step(swapped=True),
            "the gradient is not clipped: torch.nn.utils.clip_grad_norm_, between backward and step.": _step(
                clip=False
            ),
            "the gradient of this step is used in the next one: backward, then step.": _step(
                order=("step", "backward"), zero=False
            ),
            "the weights never move: optimizer.step() is missing, or there is no gradient when it comes: it belongs after "
            "backward and before zero_grad.": _step(order=("backward",)),
        },
        hints=(
            "Six lines: rewards, loss, backward, clip, step, zero_grad.",
            "The rewards have a column for chosen and one for rejected; the loss is that of the exercise before.",
            "clip_grad_norm_ wants model.parameters() and the norm; return loss.item().",
        ),
        reason="backward adds to what is in .grad, so someone has to empty it once a step; clipping must see the finished "
        "gradient, and the step must see the clipped one.",
    ),
    "training_bytes": Exercise(
        reference=training_bytes,
        cases=((1_000_000, 1_000_000), (1_000_000, 10_000), (7_000_000_000, 0)),
        mistakes={
            "frozen parameters need no gradient and no Adam state: only `trainable` ones cost 12 bytes more.": lambda n, t: (
                16 * n
            ),
            "the frozen weights are missing: every parameter takes 4 bytes, trained or not.": lambda n, t: 16 * t,
            "trained weights are counted twice: they are among `parameters` already.": lambda n, t: 4 * n + 16 * t,
            "a number is missing: a trained parameter has a gradient and two moments, 12 bytes.": lambda n, t: (
                4 * n + 8 * t
            ),
            "Adam's two moments are missing: 8 bytes for every trained parameter.": lambda n, t: 4 * n + 4 * t,
            "the weights themselves are missing: 4 bytes for each parameter, trained or not.": lambda n, t: 12 * t,
            "these are numbers, not bytes: an fp32 number takes 4.": lambda n, t: n + 3 * t,
            "this is for 2-byte weights; here everything is fp32.": lambda n, t: 2 * n + 12 * t,
        },
        hints=(
            "Each fp32 number takes 4 bytes. How many numbers does a frozen parameter need?",
            "A frozen parameter is one number; a trained one is four: weight, gradient, and two of Adam.",
            "4 bytes for all `parameters`, and 12 more for those that are `trainable`.",
        ),
        reason="A trained parameter is held as weight, gradient, and Adam's two moments: 16 bytes. A frozen one is a weight: "
        "4 bytes. Activations come on top, and grow with the tokens in a micro-batch.",
    ),
    "last_token_positions": Exercise(
        reference=last_token_positions,
        cases=((torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]),),),
        mistakes={
            "this is the number of tokens: positions count from 0, so the last one is one less.": lambda m: m.sum(
                dim=1
            ),
            "this is the last position of the row, padding or not: the very bug of the section.": lambda m: torch.full(
                (len(m),), m.shape[1] - 1
            ),
            "−1 is the last position of the row, padding or not: the very bug of the section.": lambda m: torch.full(
                (len(m),), -1
            ),
            "this is the first token: argmax finds the first of equal values.": lambda m: m.argmax(dim=1),
            "this looks for the first padding, which a full row does not have.": lambda m: m.argmin(dim=1) - 1,
            "the sum runs down the batch: sum along each row, dim=1.": lambda m: m.sum(dim=0) - 1,
            "the sum runs over the whole batch: sum along each row, dim=1.": lambda m: m.sum() - 1,
            "one dimension too many: leave out keepdim.": lambda m: m.sum(dim=1, keepdim=True) - 1,
        },
        hints=(
            "The mask holds a 1 for every token: how many are there in a row?",
            "Sum along each row, dim=1. And where does counting begin?",
        ),
        reason="With padding on the right, a row of n tokens has them at positions 0 … n − 1. (rmkit reads the position off "
        "the segments instead, which also holds when several completions share a row.)",
    ),
    "ranking_accuracy": Exercise(
        reference=ranking_accuracy,
        cases=(
            (torch.tensor([2.0, 0.0, 1.0, 3.0]), torch.tensor([0.0, 1.0, 1.0, 2.0])),
            (torch.zeros(4), torch.zeros(4)),
        ),
        mistakes={
            "equal rewards count as wrong: a model that says nothing then gets 0, not one half.": lambda c, r: (
                (c > r).float().mean()
            ),
            "equal rewards count as right: a model that says nothing then gets 100 %.": lambda c, r: (
                (c >= r).float().mean()
            ),
            "chosen and rejected are swapped.": lambda c, r: ranking_accuracy(r, c),
            "wrong pairs get one half: only equal ones should.": lambda c, r: torch.where(c > r, 1.0, 0.5).mean(),
            "equal rewards are left out, and where there is nothing else nothing is left.": lambda c, r: (
                (c > r)[c != r].float().mean()
            ),
            "this is the number of pairs that are right, not their share.": lambda c, r: (
                (c > r).float() + 0.5 * (c == r).float()
            ).sum(),
        },
        hints=(
            "A pair is right, wrong, or neither: what should a model get that gives every answer the same reward?",
            "Count a pair as 1 where chosen > rejected (as .float()), as ½ where they are equal.",
            "Add the two, and take the mean.",
        ),
        reason="A coin would get half of the equal ones. Counting them as wrong punishes coarse scores, such as bf16's; "
        "counting them as right rewards a model that gives everything the same score.",
    ),
}


QUIZ = [
    Question(
        "Your first training loss is 0.45. What follows?",
        right=(
            "Nothing yet: it may be the random head.",
            "All pairs of one kind of preference lean the same way, so one head's luck moves the whole loss.",
        ),
        wrong=(
            (
                "The model already knows a little about the preference.",
                "Not from this alone: random heads start anywhere around ln 2 (section 3). Try three seeds.",
            ),
            (
                "The learning rate is too high.",
                "The first loss is computed before any update; no learning rate has acted yet.",
            ),
        ),
    ),
    Question(
        "Training loss 0.000 after two steps. What do you check first?",
        right=(
            "Whether the body still knows its language, and whether a trivial rule decides the pairs.",
            "The first finds a destructive learning rate, the second an easy task. A leak between the splits is the third "
            "suspect.",
        ),
        wrong=(
            (
                "Nothing; lower is better.",
                "Section 8: the lowest loss belonged to the run that damaged the body most.",
            ),
            (
                "Whether the batch was too large.",
                "A large batch makes gradients less noisy; it cannot make a loss vanish.",
            ),
        ),
    ),
    Question(
        "The reward of a text changes from 1.2 to 0.7 when it is scored in another batch. What is the likeliest cause?",
        right=(
            "The reward is read from a padding position.",
            "Most likely. Score the text alone and beside a longer neighbour.",
        ),
        wrong=(
            (
                "Rounding: batched arithmetic differs in the last digits.",
                "Section 10 measures how much that is in fp32: thousands of times less than 0.5.",
            ),
            (
                "Dropout is still on.",
                "Possible, and worth excluding with model.eval(); but then it would change in the same batch, too.",
            ),
        ),
    ),
    Question(
        "Why is a step of LoRA dearer than one of the last two layers, although it trains fewer parameters?",
        right=(
            "Its gradient passes through every layer.",
            "It skips the gradients and moments of the frozen matrices, not the journey through them.",
        ),
        wrong=(
            ("Its adapters have as many parameters as the model.", "The table of section 7 counts them: they do not."),
            ("It must be merged after every step.", "Merging happens once, when the model is saved."),
        ),
    ),
]
