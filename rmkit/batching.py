"""From text to tokens to a batch of plain tensors (notebook 01)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from transformers import PreTrainedTokenizerBase

from rmkit.preferences import Preference

PADDING, PROMPT = -1, 0  # values of `segment`; completion k is k


@dataclass(frozen=True)
class Encoded:
    """The token ids of one preference. Every completion ends in the end-of-turn token that closes it."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens in the longest row, prompt and one completion."""
        return len(self.prompt) + max(map(len, self.completions))


@dataclass(frozen=True)
class Batch:
    """B preferences of up to K completions, laid out in N rows of T tokens.

    input_ids, position_ids [N, T]; segment [N, T]: −1 padding, 0 prompt, k = 1 … the tokens of completion k.
    row, slot [B, K]: where completion k of preference b is: in which row, and as which segment of it.
    ranks [B, K]: 0 is best, equal is a tie, −1 where a preference has fewer than K completions.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment: torch.Tensor
    row: torch.Tensor
    slot: torch.Tensor
    ranks: torch.Tensor

    @property
    def attention_mask(self) -> torch.Tensor:
        """[N, T], 1 for a token and 0 for padding; a token sees the tokens before it."""
        return (self.segment != PADDING).long()

    @property
    def tokens(self) -> int:
        return int(self.attention_mask.sum())

    def completion_masks(self) -> torch.Tensor:
        """[N, S, T] true where token t of row n belongs to completion s + 1 of that row."""
        slots = torch.arange(1, int(self.slot.max()) + 1, device=self.segment.device)
        return self.segment[:, None, :] == slots[None, :, None]

    def last_positions(self) -> torch.Tensor:
        """[B, K] the position of the last token of every completion: where its reward is read."""
        positions = torch.arange(self.segment.shape[1], device=self.segment.device)
        last = (self.completion_masks() * positions).amax(-1)  # (N, S)
        return last[self.row, self.slot - 1]  # (B, K)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def encode(preference: Preference, tokenizer: PreTrainedTokenizerBase, context: int | None = None) -> Encoded:
    """Token ids of a preference in the tokenizer's chat format, prompt and completions apart.

    The prompt's ids are those that a model would be given to answer; a completion's are what it would then
    have to write, its end of turn included. Text that holds one of the tokenizer's special tokens is refused:
    it would end a turn, or begin one. So is a row of more than `context` tokens.
    """
    special = _special_tokens(tokenizer)
    texts = {"prompt": preference.prompt, **{f"completion {i}": t for i, t in enumerate(preference.completions)}}
    for name, text in texts.items():
        if token := next((t for t in special if t in text), None):
            where = f"the {name} of {preference.prompt[:60]!r}"
            raise ValueError(f"{where} holds the special token {token!r}: take it out or write it otherwise")
    ask = [{"role": "user", "content": preference.prompt}]
    opening = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(opening, add_special_tokens=False)
    completions = []
    for completion in preference.completions:
        whole = tokenizer.apply_chat_template([*ask, {"role": "assistant", "content": completion}], tokenize=False)
        if not whole.startswith(opening):
            raise ValueError(
                "the tokenizer's chat template writes the prompt differently once it is answered: rmkit cannot use it"
            )
        whole = whole.rstrip()  # the reward is read at the end of turn, not at the line break after it
        if whole.endswith(completion.rstrip()) and not whole.endswith(special):  # a template without end of turn
            whole += tokenizer.eos_token
        ids = tokenizer.encode(whole, add_special_tokens=False)
        if ids[: len(prompt)] == prompt:
            ids = ids[len(prompt) :]
        else:  # a token would span the boundary, and a model that has been given the prompt cannot write half a token
            ids = tokenizer.encode(whole.removeprefix(opening), add_special_tokens=False)
        completions.append(tuple(ids))
    encoded = Encoded(tuple(prompt), tuple(completions), preference.ranks)
    if context and encoded.length > context:
        raise ValueError(
            f"{preference.prompt[:60]!r} and its longest completion have {encoded.length} tokens; the backbone reads {context}"
        )
    return encoded


@functools.lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Once a tokenizer: transformers builds the table anew at every look."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added.union(tokenizer.all_special_tokens)))


def collate(encoded: Sequence[Encoded], pad_token_id: int) -> Batch:
    """Batch preferences with a right-padded row for every completion, its prompt repeated in front."""
    rows = [(e.prompt, c) for e in encoded for c in e.completions]
    width = max(len(p) + len(c) for p, c in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    segment = torch.full((len(rows), width), PADDING)
    for i, (prompt, completion) in enumerate(rows):
        input_ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        segment[i, : len(prompt)] = PROMPT
        segment[i, len(prompt) : len(prompt) + len(completion)] = 1
    ranks = ranks_tensor(encoded)  # (B, K)
    row = torch.zeros_like(ranks)
    row[ranks >= 0] = torch.arange(len(rows))
    position_ids = torch.arange(width).repeat(len(rows), 1)
    return Batch(input_ids, position_ids, segment, row, torch.ones_like(row), ranks)


def ranks_tensor(preferences: Sequence[Preference | Encoded]) -> torch.Tensor:
    """The judgements of N preferences as [N, K] integers: 0 best, equal a tie, −1 where there is no completion."""
    most = max(len(p.ranks) for p in preferences)
    return torch.tensor([[*p.ranks, *[-1] * (most - len(p.ranks))] for p in preferences])
