"""What scores, one round a step: rmkit, a plain loop of transformers, the matrix products alone (see turns.py)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.functional import linear

from rmkit import Encoded, RewardModel, collate, load_backbone
from rmkit.batching import in_parts
from tests.benchmarks.turns import classifier


def random_preferences(pairs: int, prompt: int, completions: tuple[int, ...]) -> list[Encoded]:
    """Of random tokens: so many in the prompt, so many in each completion."""
    rng = random.Random(f"{pairs} {prompt} {completions}")

    def words(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1000, 49000) for _ in range(n))

    return [
        Encoded(words(prompt), tuple(map(words, completions)), tuple(range(len(completions)))) for _ in range(pairs)
    ]


def scoring_model() -> RewardModel:
    return RewardModel(load_backbone("smollm2-135m"), trainable="head").eval()


def by_rmkit(data: list[Encoded]) -> Callable[[], object]:
    model = scoring_model()
    return lambda: model.rewards(data)


def by_transformers(data: list[Encoded]) -> Callable[[], object]:
    """Eight texts at a time, as they come, padded to the longest: what a short script does."""
    model, tokenizer = classifier()
    model.eval()
    pad = tokenizer.pad_token_id
    texts = [[*e.prompt, *c] for e in data for c in e.completions]

    @torch.no_grad()
    def work() -> None:
        for i in range(0, len(texts), 8):
            rows = texts[i : i + 8]
            width = max(map(len, rows))
            ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            model(input_ids=ids, attention_mask=mask, use_cache=False)

    return work


def by_products(shapes: list[tuple[int, int]]) -> Callable[[], object]:
    """The matrix products of forward passes over batches of [rows, width] tokens, of the same shapes, and nothing else."""
    config = load_backbone("smollm2-135m").model.config
    h, f, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    kv = h // heads * config.num_key_value_heads
    weights = [torch.randn(b, a) for a, b in [(h, h), (h, kv), (h, kv), (h, h), (h, f), (h, f), (f, h)]]
    batches = [
        (
            {n: torch.randn(rows * width, n) for n in (h, f)},
            torch.randn(rows * heads, width, h // heads),
            torch.randn(rows * heads, h // heads, width),
            torch.randn(rows * heads, width, width),
        )
        for rows, width in shapes
    ]

    def work() -> None:
        for inputs, query, key, seen in batches:
            for _ in range(config.num_hidden_layers):
                for weight in weights:
                    linear(inputs[weight.shape[1]], weight)
                torch.bmm(query, key)
                torch.bmm(seen, key.mT)

    return work


def sharing_its_prompt(data: list[Encoded]) -> Callable[[], object]:
    """Best-of-n: the completions of each preference in rows of 16."""
    return by_rmkit(
        [replace(e, completions=part, ranks=(0,) * len(part)) for e in data for part in in_parts(e.completions, 16)]
    )


def repeating_its_prompt(data: list[Encoded]) -> Callable[[], object]:
    """The same, a row for every completion, two at a time."""
    model = scoring_model()
    simple = [replace(e, completions=(c,), ranks=(0,)) for e in data for c in e.completions]

    @torch.no_grad()
    def work() -> None:
        for i in range(0, len(simple), 2):
            model(collate(simple[i : i + 2], model.tokenizer.pad_token_id))

    return work


def rounds_of(go: Callable, report: Callable, make: Callable, rounds: int, **arguments) -> None:
    """What `make` makes, so many times: CPU seconds of each."""
    work = make(**arguments)
    for _ in range(rounds):
        go()
        began = time.process_time()
        work()
        report(time.process_time() - began)
