"""From text to tokens to a batch of plain tensors (notebook 01)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rmkit.preferences import SURROGATE, Preference, require_preferences

PADDING, PROMPT = -1, 0  # values of `segment`; completion k is k
SHARED_ROW = 16  # completions at most: attention grows with the square of a row's length


@dataclass(frozen=True)
class Encoded:
    """The token ids of one preference. Every completion ends in the end-of-turn token that closes it."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    cut: int = 0  # tokens that the longest row had too many, and lost

    @property
    def length(self) -> int:
        """Tokens in the longest row, prompt and one completion."""
        return len(self.prompt) + max(map(len, self.completions))

    @property
    def is_blurred(self) -> bool:
        """Whether two completions are the same tokens and were judged differently: nothing can be learned from them."""
        return len(set(self.completions)) < len(set(zip(self.completions, self.ranks, strict=True)))


@dataclass(frozen=True)
class Batch:
    """B preferences of up to K completions, laid out in N rows of T tokens.

    input_ids, position_ids [N, T]; segment [N, T]: −1 padding, 0 prompt, k = 1 … the tokens of completion k.
    row, slot [B, K]: where completion k of preference b is: in which row, and as which segment of it.
    ranks [B, K]: 0 is best, equal is a tie, −1 where a preference has fewer than K completions.
    hidden: what the frozen part of the model has computed already (`Trunk`): [N, T, H], what enters the layers
        that train, or [B, K, H], what enters the head; None where the model is to compute all of it.
    reference [B, K]: log π_ref of every completion, nats, which an ImplicitRewardModel compares with; None for others.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment: torch.Tensor
    row: torch.Tensor
    slot: torch.Tensor
    ranks: torch.Tensor
    hidden: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    @property
    def is_shared(self) -> bool:
        """Whether a row holds more than one completion."""
        return bool(self.slot.max() > 1)

    @property
    def attention_mask(self) -> torch.Tensor:
        """What a token may see. With one completion a row, [N, T]: 1 for a token, 0 for padding, all before it.

        With several, [N, 1, T, T]: true where query t may see key u: u is not after t, and in the prompt or in t's
        own completion. Padding sees itself, since a softmax over nothing is not a number.
        """
        if not self.is_shared:
            return (self.segment != PADDING).long()
        query, key = self.segment[:, :, None], self.segment[:, None, :]
        visible = ((key == PROMPT) | (key == query)).tril()  # (N, T, T)
        return visible[:, None]

    @property
    def tokens(self) -> int:
        return int((self.segment != PADDING).sum())

    def completion_masks(self) -> torch.Tensor:
        """[N, S, T] true where token t of row n belongs to completion s + 1 of that row."""
        slots = torch.arange(1, int(self.slot.max()) + 1, device=self.segment.device)
        return self.segment[:, None, :] == slots[None, :, None]

    def last_positions(self) -> torch.Tensor:
        """[B, K] the position of the last token of every completion: where its reward is read."""
        positions = torch.arange(self.segment.shape[1], device=self.segment.device)
        last = (self.completion_masks() * positions).amax(-1)  # (N, S)
        return last[self.row, self.slot - 1]  # (B, K)

    def predicting_positions(self) -> torch.Tensor:
        """[N, T] the position whose hidden state predicts each token: the one before it in its own text.

        For the first token of every completion of a row that is the prompt's last. The first of a row is predicted by none, and
        gets 0, as padding may.
        """
        before = torch.arange(-1, self.segment.shape[1] - 1, device=self.segment.device).clamp(min=0)
        prompt_end = (self.segment == PROMPT).sum(1, keepdim=True) - 1  # (N, 1)
        begins = (self.segment > PROMPT) & (self.position_ids == prompt_end + 1)
        return torch.where(begins, prompt_end, before)

    def to(self, device: torch.device | str) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: tensor if tensor is None else tensor.to(device) for name, tensor in tensors.items()})


def encode(preference: Preference, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> Encoded:
    """Token ids of a preference in the tokenizer's chat format, prompt and completions apart.

    The prompt's ids are those that a model would be given to answer; a completion's are what it would then
    have to write, its end of turn included. A row of more than `max_length` tokens loses its oldest ones: the
    prompt loses as many as the longest row has too many, down to one token; a completion that is too long even
    so keeps its end. Raises ValueError for text that holds one of the tokenizer's special tokens, which would end
    a turn or begin one, and for turns that the chat template refuses.
    """
    require_preferences([preference])
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"tokenizer is a tokenizer of transformers, such as backbone.tokenizer: got {type(tokenizer).__name__}"
        )
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length is a number of tokens from 2 up: got {max_length!r}")
    _require_plain_text(preference, tokenizer)
    opening = render(tokenizer, preference.messages, add_generation_prompt=True)
    prompt = _ids(tokenizer, opening)
    completions = []
    for completion in preference.completions:
        whole = render(tokenizer, [*preference.messages, {"role": "assistant", "content": completion}])
        if not whole.startswith(opening):
            raise ValueError(
                "the tokenizer's chat template writes the prompt differently once it is answered: rmkit cannot use it"
            )
        ids = _ids(tokenizer, whole)
        if ids[: len(prompt)] == prompt:
            ids = ids[len(prompt) :]
        else:  # a token would span the boundary, and a model that has been given the prompt cannot write half a token
            ids = _ids(tokenizer, whole.removeprefix(opening))
        completions.append(tuple(ids))
    encoded = Encoded(tuple(prompt), tuple(completions), preference.ranks)
    return _truncated(encoded, max_length) if max_length and encoded.length > max_length else encoded


def _require_plain_text(preference: Preference, tokenizer: PreTrainedTokenizerBase) -> None:
    special = _special_tokens(tokenizer)
    texts = [(f"turn {i}", text) for i, (_, text) in enumerate(preference.history)]
    texts += [("prompt", preference.prompt), *((f"completion {i}", t) for i, t in enumerate(preference.completions))]
    for name, text in texts:
        where = f"the {name} of {preference.prompt[:60]!r}"
        if token := next((t for t in special if t in text), None):
            raise ValueError(f"{where} holds the special token {token!r}: take it out or write it otherwise")
        if SURROGATE.search(text):
            raise ValueError(f"{where} holds half of a surrogate pair, which no tokenizer reads: take it out")


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **options) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the tokenizer's chat template refuses a dialogue of {roles}: {error}") from None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # verbose: it warns of long texts


def _truncated(encoded: Encoded, max_length: int) -> Encoded:
    """The prompt is cut alike for all completions, so that they still answer the same words."""
    cut = encoded.length - max_length
    return Encoded(
        prompt=encoded.prompt[min(cut, len(encoded.prompt) - 1) :],
        completions=tuple(completion[-(max_length - 1) :] for completion in encoded.completions),
        ranks=encoded.ranks,
        cut=cut,
    )


@functools.lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Once a tokenizer: transformers builds the table anew at every look."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added.union(tokenizer.all_special_tokens)))


def collate(encoded: Sequence[Encoded], pad_token_id: int, per_row: int = 1) -> Batch:
    """Batch preferences in right-padded rows of a prompt and up to `per_row` of its completions.

    One completion a row is the simple layout. With more, the prompt is computed once for all of them: each
    completion's positions go on from the prompt's, and the batch's attention mask keeps it from seeing the others.
    """
    if not encoded or not all(isinstance(e, Encoded) for e in encoded):
        raise TypeError(f"collate wants one or more of what encode gives: got {encoded!r:.80}")
    rows = _rows(encoded, per_row)
    width = max(map(_width, rows))
    input_ids = torch.full((len(rows), width), pad_token_id)
    position_ids = torch.zeros(len(rows), width, dtype=torch.long)  # of padding: 0, never the longest of the batch
    segment = torch.full((len(rows), width), PADDING)
    places = []  # (row, slot) of every completion
    for i, (prompt, completions) in enumerate(rows):
        start = len(prompt)
        input_ids[i, :start] = torch.tensor(prompt)
        position_ids[i, :start] = torch.arange(start)
        segment[i, :start] = PROMPT
        for slot, completion in enumerate(completions, start=1):
            here = slice(start, start + len(completion))
            input_ids[i, here] = torch.tensor(completion)
            position_ids[i, here] = torch.arange(len(prompt), len(prompt) + len(completion))
            segment[i, here] = slot
            places.append((i, slot))
            start = here.stop
    ranks = ranks_tensor(encoded)  # (B, K)
    row, slot = torch.zeros_like(ranks), torch.ones_like(ranks)
    row[ranks >= 0], slot[ranks >= 0] = torch.tensor(places).T
    return Batch(input_ids, position_ids, segment, row, slot, ranks)


def sharing_pays(encoded: Sequence[Encoded]) -> bool:
    """Whether shared rows cost less, by a twentieth at least, than a row for every completion, padding counted.

    A row of T tokens costs T · (1 + T / 1000): its matrix products, and the attention that grows with its square.
    Measured for SmolLM2-135M on a CPU, where the 1000 came out as 500 to 3500; larger models have it higher.
    """

    def cost(per_row: int) -> float:
        widths = [_width(row) for row in _rows(encoded, per_row)]
        return len(widths) * max(widths) * (1 + max(widths) / 1000)

    return cost(SHARED_ROW) <= 0.95 * cost(1)


def micro_batches(encoded: Sequence[Encoded], tokens: int, sharing: bool = True, processes: int = 1) -> list[list[int]]:
    """Indices, in micro-batches of like width that hold `tokens` tokens at most, padding counted; or a lone preference.

    As few as can be, and of like size. What shares rows (`sharing_pays`) comes apart from what does not. processes: the
    number of micro-batches is a multiple of it, while there are preferences to split.
    """
    order = []  # (completions a row, width, rows, index), so that the last of a micro-batch is its widest
    for i, e in enumerate(encoded):
        per_row = SHARED_ROW if sharing and sharing_pays([e]) else 1
        rows = _rows([e], per_row)
        order.append((per_row, max(map(_width, rows)), len(rows), i))
    order.sort()
    least, most = 1, tokens
    few = len(_cut(order, tokens))
    while least < most:  # the smallest budget that gives no more of them
        middle = (least + most) // 2
        least, most = (least, middle) if len(_cut(order, middle)) == few else (middle + 1, most)
    micro = _cut(order, least)
    while len(micro) % processes and len(largest := max(micro, key=len)) > 1:
        at, half = micro.index(largest), len(largest) // 2
        micro[at : at + 1] = [largest[:half], largest[half:]]
    return micro


def _cut(order: list[tuple[int, int, int, int]], tokens: int) -> list[list[int]]:
    micro, rows, before = [], 0, None
    for per_row, width, more, i in order:
        if per_row == before and (rows + more) * width <= tokens:
            micro[-1].append(i)
            rows += more
        else:
            micro.append([i])
            rows, before = more, per_row
    return micro


def _rows(encoded: Sequence[Encoded], per_row: int) -> list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]:
    """A prompt and up to `per_row` of its completions, for every row."""
    return [(e.prompt, part) for e in encoded for part in in_parts(e.completions, per_row)]


def in_parts(completions: Sequence, most: int) -> list[Sequence]:
    """As few parts as there can be of `most` at most, of like size."""
    size = math.ceil(len(completions) / math.ceil(len(completions) / most))
    return [completions[i : i + size] for i in range(0, len(completions), size)]


def _width(row: tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]) -> int:
    prompt, completions = row
    return len(prompt) + sum(map(len, completions))


def ranks_tensor(preferences: Sequence[Preference | Encoded]) -> torch.Tensor:
    """The judgements of N preferences as [N, K] integers: 0 best, equal a tie, −1 where there is no completion."""
    require_preferences(preferences, Encoded)
    most = max(len(p.ranks) for p in preferences)
    return torch.tensor([[*p.ranks, *[-1] * (most - len(p.ranks))] for p in preferences])
