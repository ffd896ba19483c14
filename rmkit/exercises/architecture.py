"""The exercises of notebook 01: reference, known wrong answers, hints and reason for each, and its quiz."""

import torch

from rmkit.exercises import Exercise
from rmkit.quizzes import Question


def rewards_from_states(hidden, last, weight):
    return hidden[torch.arange(len(hidden)), last] @ weight


def last_real_token(attention_mask):
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * positions).argmax(dim=1)


def mean_over_answer(hidden, segment):
    answer = (segment == 1).float()
    return (hidden * answer[:, :, None]).sum(dim=1) / answer.sum(dim=1, keepdim=True)


def body_parameters(hidden, layers, heads, kv_heads, feed_forward, vocabulary):
    head_size = hidden // heads
    attention = 2 * hidden * hidden + 2 * hidden * kv_heads * head_size  # queries and output; keys and values
    mlp = 3 * hidden * feed_forward  # gate, up, down
    norms = 2 * hidden
    return vocabulary * hidden + layers * (attention + mlp + norms) + hidden


def shared_row_mask(segment):
    places = torch.arange(len(segment))
    not_later = places[None, :] <= places[:, None]
    seen = (segment[None, :] == 0) | (segment[None, :] == segment[:, None])
    return not_later & seen


def _as_whole_number(function, case):
    """The count, or what it is if it is no whole number."""
    count = function(*case)
    return "no whole number" if isinstance(count, float) else count


def _as_truths(function, case):
    """The mask, or what it is if it does not hold true and false."""
    mask = function(*case)
    return "numbers" if isinstance(mask, torch.Tensor) and mask.dtype != torch.bool else mask


def _parameters(embeddings=1, attention=(2, 2), grouped=True, mlp=3, norms=2, final=1):
    """A count of the body with mistakes to choose."""

    def count(hidden, layers, heads, kv_heads, feed_forward, vocabulary):
        keys = kv_heads * hidden // heads if grouped else hidden
        layer = attention[0] * hidden * hidden + attention[1] * hidden * keys + mlp * hidden * feed_forward
        return embeddings * vocabulary * hidden + layers * (layer + norms * hidden) + final * hidden

    return count


def _mask(not_later=True, prompt=True, others=False, transposed=False):
    """A mask of a shared row with mistakes to choose."""

    def mask(segment):
        seen = segment[None, :] == segment[:, None]
        if prompt:
            seen = seen | (segment[None, :] == 0)
        if others:
            seen = torch.ones_like(seen)
        seen = seen.tril() if not_later else seen
        return seen.T if transposed else seen

    return mask


_STATES = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]], [[2.0, 0.0], [1.0, 1.0], [9.0, 9.0]]])
_RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
_LEFT = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
_SEGMENTS = torch.tensor([[0, 1, 1, -1], [0, 0, 1, -1]])
_TOKENS = torch.arange(24.0).view(2, 4, 3).square() / 10  # H = 3, which no other dimension is

EXERCISES = {
    "rewards_from_states": Exercise(
        reference=rewards_from_states,
        cases=(
            (_STATES, torch.tensor([2, 0]), torch.tensor([1.0, 10.0])),
            (_STATES, torch.tensor([1, 1]), torch.tensor([-2.0, 0.5])),
        ),
        mistakes={
            "this reads the last position of every row, whatever `last` says: in a short row that is padding.": (
                lambda h, last, w: h[:, -1] @ w
            ),
            "this gives a reward for every position: pick one token from each row, with two index tensors.": (
                lambda h, last, w: h @ w
            ),
            "`hidden[:, last]` takes every position in `last` from every row: index the rows, too.": (
                lambda h, last, w: h[:, last] @ w
            ),
            "this reads the first token of every row, which has seen nothing of the answer.": (
                lambda h, last, w: h[:, 0] @ w
            ),
            "this takes the mean over all positions, padding too: read the state at `last`.": (
                lambda h, last, w: h.mean(1) @ w
            ),
            "these are the states at the last tokens, not yet weighed: the head makes one number of each.": (
                lambda h, last, w: h[torch.arange(len(h)), last]
            ),
            "this multiplies entry by entry and forgets to add up: a head is a sum of weighted entries.": (
                lambda h, last, w: h[torch.arange(len(h)), last] * w
            ),
            "a reward is any number: there is no sigmoid on it.": lambda h, last, w: torch.sigmoid(
                rewards_from_states(h, last, w)
            ),
            "rewards have the shape (N,): there is a dimension too many.": lambda h, last, w: rewards_from_states(
                h, last, w
            )[:, None],
        },
        hints=(
            "Two steps: pick one state from each row, (N, H), then weigh its entries, (N,).",
            "hidden[a, b] with two index tensors of length N gives N states: a says the row, b the position.",
            "The rows are torch.arange(len(hidden)); a matrix times a vector is `@`.",
        ),
        reason="A reward model is one hidden state a row, at the last token of the answer, and a weighted sum of its entries.",
    ),
    "last_real_token": Exercise(
        reference=last_real_token,
        cases=((_RIGHT,), (_LEFT,)),
        mistakes={
            "this counts the tokens: right where they begin at position 0, and wrong where padding stands on the left.": (
                lambda mask: mask.sum(1) - 1
            ),
            "this is always the last position: right where padding stands on the left, and padding where it does not.": (
                lambda mask: torch.full((len(mask),), mask.shape[1] - 1)
            ),
            "this finds the first token: argmax gives the first of equal values. Give each token its position first.": (
                lambda mask: mask.argmax(1)
            ),
            "this is the number of tokens; positions begin at 0, and padding may stand on the left.": (
                lambda mask: mask.sum(1)
            ),
            "this is one position too far: positions begin at 0.": lambda mask: last_real_token(mask) + 1,
            "this is one position too early.": lambda mask: last_real_token(mask) - 1,
            "these are the largest values of the mask, all of them 1: you want where they stand.": (
                lambda mask: mask.amax(1)
            ),
        },
        hints=(
            "The mask is 1 at every token. Which number could you put there instead, so that the last token has the largest?",
            "Multiply the mask by the positions 0, 1, … T − 1, on the mask's device; padding becomes 0.",
            "argmax(dim=1) of that product says where the largest stands.",
        ),
        reason="The largest position at which the mask is 1 is the last token, wherever the padding stands.",
    ),
    "mean_over_answer": Exercise(
        reference=mean_over_answer,
        cases=((_TOKENS, _SEGMENTS), (_TOKENS.flip(1), _SEGMENTS.flip(1))),
        mistakes={
            "this is the mean over all positions: prompt and padding are in it.": lambda h, s: h.mean(1),
            "the prompt is in it: take the tokens whose segment is 1.": lambda h, s: (
                (h * (s >= 0)[..., None]).sum(1) / (s >= 0).sum(1, keepdim=True)
            ),
            "the sum is right, but it is divided by all positions: divide by the answer's tokens.": lambda h, s: (
                (h * (s == 1)[..., None]).mean(1)
            ),
            "this is the sum over the answer: a long answer would have a long vector. Divide by its number of tokens.": (
                lambda h, s: (h * (s == 1)[..., None]).sum(1)
            ),
            "this is the mean over the prompt, which is the same for every answer to it.": lambda h, s: (
                (h * (s == 0)[..., None]).sum(1) / (s == 0).sum(1, keepdim=True)
            ),
            "padding is in it: −1 counts as true. Compare the segment with 1.": lambda h, s: (
                (h * s.bool()[..., None]).sum(1) / s.bool().sum(1, keepdim=True)
            ),
            "one mean for the whole batch: a long answer would tell on a short one. Take the mean row by row.": (
                lambda h, s: h[s == 1].mean(0).expand(len(h), -1)
            ),
        },
        hints=(
            "segment == 1 is true at the answer's tokens: make it a number, and multiply the states by it.",
            "It has the shape (N, T) and the states (N, T, H): it needs a dimension at its end.",
            "Sum over dim 1, and divide by how many tokens of the answer each row has, as (N, 1).",
        ),
        reason="States outside the answer are multiplied by 0, and what is left is divided by the number that was not.",
    ),
    "body_parameters": Exercise(
        reference=body_parameters,
        cases=((6, 2, 3, 1, 10, 7), (8, 3, 4, 2, 5, 11), (4, 1, 2, 2, 3, 5)),
        mistakes={
            "queries, keys, values and output are not all H × H: keys and values have `kv_heads` heads of size H / heads.": (
                _parameters(grouped=False)
            ),
            "the feed-forward part has three matrices here: gate, up and down.": _parameters(mlp=2),
            "the norms are missing: two vectors a layer, and one at the end.": _parameters(norms=0, final=0),
            "the last norm, behind all layers, is missing.": _parameters(final=0),
            "every layer has two norms: before attention and before the feed-forward part.": _parameters(norms=1),
            "the language-model head is counted: it is stripped. The embedding counts once.": _parameters(embeddings=2),
            "the embedding is missing: a vector of size H for every token of the vocabulary.": _parameters(embeddings=0),
            "the matrix that attention's output goes through is missing.": _parameters(attention=(1, 2)),
            "keys or values are missing: there is a matrix for each.": _parameters(attention=(2, 1)),
            "a count is a whole number: divide with //, not with /.": lambda *sizes: float(body_parameters(*sizes)),
            "this is one layer: there are `layers` of them.": lambda h, n, a, kv, f, v: _parameters()(
                h, 1, a, kv, f, v
            ),
        },
        hints=(
            "An embedding, `layers` equal layers, and one norm at the end. A layer: attention, feed-forward part, two norms.",
            "Attention has four matrices. Queries and output are H × H; keys and values H × (kv_heads · H / heads).",
            "The feed-forward part has three of H × feed_forward, a norm H weights, the embedding vocabulary × H.",
        ),
        probe=_as_whole_number,
        reason="Matrices without bias: embedding V·H; a layer 2·H² + 2·H·(kv_heads·H/heads) + 3·H·F + 2·H; a last norm H.",
    ),
    "shared_row_mask": Exercise(
        reference=shared_row_mask,
        cases=(
            (torch.tensor([0, 0, 1, 1, 2, 2]),),
            (torch.tensor([0, 1, 2, 2, 3]),),
        ),
        mistakes={
            "the answers see each other: a reward would depend on which answers stand before.": _mask(others=True),
            "an answer does not see the prompt: a token sees segment 0, too.": _mask(prompt=False),
            "a token sees later ones of its own answer, and the prompt sees its own future: only `key ≤ query`.": _mask(
                not_later=False
            ),
            "rows and columns are exchanged: mask[i, j] says whether token i sees token j.": _mask(transposed=True),
            "this hides what should be seen: true means that a token sees another.": lambda s: ~_mask()(s),
            "a token does not see itself: it does.": lambda s: _mask()(s) & ~torch.eye(len(s), dtype=torch.bool),
            "these are numbers, and attention adds numbers to its scores: give true and false, with comparisons or .bool().": (
                lambda s: _mask()(s).float()
            ),
            "the prompt sees the answers: it is segment 0 of the token that is looked *at* that lets everybody see.": (
                lambda s: _mask(prompt=False, not_later=False)(s) | (s == 0)[:, None]
            ),
        },
        hints=(
            "Two conditions, both to hold. The first is the causal mask: a token sees none after it.",
            "The second: the token that is looked at is of the prompt (segment 0), or of one's own answer.",
            "segment[None, :] is what is looked at, segment[:, None] who looks; `|` is or, `&` is and; .tril() is the first condition.",
        ),
        probe=_as_truths,
        reason="What an answer's token sees is then just what it would see in a row of its own: so its state is the same.",
    ),
}  # fmt: skip


QUIZ = [
    Question(
        "Why is the reward read at the last token of the answer, and not where the answer begins?",
        right=(
            "Only there has the hidden state seen all of the answer.",
            "A causal mask lets a token see what stands before it, and nothing else: section 2 measured it.",
        ),
        wrong=(
            (
                "The last token carries the most meaning.",
                "It is the end-of-turn marker, which means nothing in itself. Its state is read for what it has seen.",
            ),
            (
                "The first tokens are the same in all answers.",
                "They differ. But whatever stands there, the rest of the answer is unseen.",
            ),
        ),
    ),
    Question(
        "Two encoders, one for prompts and one for answers, and a linear head on both states side by side. What is wrong?",
        right=(
            "The prompt cannot change which answer wins.",
            "Its part of the sum is the same for every answer to it, and cancels: section 7 showed the very same ranking.",
        ),
        wrong=(
            (
                "Nothing: it has seen prompt and answer.",
                "It has seen both and can combine neither: an addition is no comparison of one with the other.",
            ),
            (
                "It has too many parameters for the head.",
                "The head is twice as long, still nothing beside the body.",
            ),
        ),
    ),
    Question(
        "With 200 prompts, design A has an accuracy of 0.61 and design B 0.63; the paired difference is 0.02 [−0.01, 0.05]. "
        "What do you report?",
        right=(
            "That these data do not tell them apart.",
            "The interval holds zero. It also says how large a difference could have been missed: five points.",
        ),
        wrong=(
            ("That B is better by two points.", "Other prompts, or another seed, may well have turned it around."),
            (
                "That A and B are equally good.",
                "Not that either: the interval reaches up to five points. No evidence of a difference is no evidence of none.",
            ),
        ),
    ),
    Question(
        "A model's rewards lie between −30 and 30, another's between −3 and 3, on the same texts. Which one is better?",
        right=(
            "The range does not say: compare how they rank, and their probabilities with what came true.",
            "Scale is confidence: without regularisation it grows as long as training goes on. Accuracy does not see it.",
        ),
        wrong=(
            (
                "The first: it separates good from bad more clearly.",
                "Multiply any model's rewards by ten: nothing is ranked otherwise, and it is ten times as sure of its mistakes.",
            ),
            (
                "The second: rewards ought to be small.",
                "Small may be just as wrong: a model that knows and says 0.6 wastes what it knows.",
            ),
        ),
    ),
]
