"""What the exact savings save: frozen layers computed once, and prompts that completions share.

python -m tests.benchmarks.savings HH_RLHF [pairs]   # a .jsonl.gz file of Anthropic's HH-RLHF

Measured in CPU time of this process with one thread, what is compared in turns, medians; and the largest differences,
which should be those of fp32 sums taken in another order. Needs about 40 minutes of a slow core and 10 GB.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

from rmkit import RewardModel, TrainConfig, bradley_terry, collate, fit, load_backbone, load_preferences
from rmkit.batching import SHARED_ROW, Encoded, sharing_pays
from rmkit.preferences import PreferenceError
from tests.test_shared_rows import encoded, rewards_and_gradients

STEPS = 50  # an epoch of 400 pairs


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def fresh(trainable: str) -> RewardModel:
    torch.manual_seed(0)
    return RewardModel(load_backbone("smollm2-135m"), trainable=trainable)


def epochs(trainable: str, rate: float) -> None:
    """The second of two epochs of `fit`, with the store and without, and the difference of their loss curves."""
    data = load_preferences("json_vs_text")
    train, validation = data[:400], data[400:416]
    config = TrainConfig(learning_rate=rate, epochs=2, eval_every=STEPS, patience=None)
    taken, curves = {}, {}
    for gigabytes in ("0", "2"):
        os.environ["RMKIT_TRUNK_GB"] = gigabytes
        moments = []  # of the calls of the loss: one a step, between two validations

        def loss(rewards: torch.Tensor, ranks: torch.Tensor, moments: list[float] = moments) -> torch.Tensor:
            moments.append(time.process_time())
            return bradley_terry(rewards, ranks)

        history = fit(fresh(trainable), train, validation, config, loss)
        taken[gigabytes] = moments[-2] - moments[-1 - STEPS]  # 49 steps of the second epoch, each whole
        curves[gigabytes] = [step["loss"] for step in history.steps]
    apart = max(abs(a - b) for a, b in zip(curves["0"], curves["2"], strict=True))
    print(
        f"| second epoch, `{trainable}`, {STEPS - 1} steps of 8 pairs | {taken['0']:.1f} s | {taken['2']:.2f} s | "
        f"{taken['0'] / taken['2']:.1f} | losses of {len(curves['0'])} steps: {apart:.1e} |",
        flush=True,
    )


def rows_apart(model: RewardModel) -> tuple[float, float]:
    """Largest difference of rewards (relative to max(1, |r|)) and of a gradient (relative to its norm), over K and prompts."""
    of_rewards = of_gradients = 0.0
    for completions in ((40, 25), (12, 30, 8, 21, 16)):
        for prompt in (3, 30, 100, 300):
            data = [encoded(prompt, completions, vocabulary=49000)]
            simple, slopes = rewards_and_gradients(model, collate(data, 0))
            shared, found = rewards_and_gradients(model, collate(data, 0, SHARED_ROW))
            of_rewards = max(of_rewards, float(((shared - simple).abs() / simple.abs().clamp(min=1)).max()))
            of_gradients = max(of_gradients, *(float((found[n] - s).norm() / s.norm()) for n, s in slopes.items()))
    return of_rewards, of_gradients


def rows(path: str, pairs: int) -> None:
    """Forward and backward passes over HH-RLHF pairs: shared rows, simple rows of like length, simple rows as they come."""
    try:
        data = load_preferences(path)
    except PreferenceError as error:
        data = error.usable
    model = fresh("all")
    encodings = model.encode(data[:pairs])
    by_length = sorted(encodings, key=lambda e: e.length)
    batches = {
        "as they come": [encodings[i : i + 4] for i in range(0, pairs, 4)],
        "of like length": [by_length[i : i + 4] for i in range(0, pairs, 4)],
    }

    def passes(chosen: list[list[Encoded]], per_row: int) -> None:
        for chunk in chosen:
            rewards = model(collate(chunk, 0, per_row))
            (-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1])).mean().backward()
            model.zero_grad()

    taken = {"simple, as they come": [], "simple": [], "shared": []}
    for start in range(0, len(batches["of like length"]), 4):  # in turns, so that a busy machine is busy for all
        part = slice(start, start + 4)
        taken["simple, as they come"].append(seconds(lambda part=part: passes(batches["as they come"][part], 1)))
        taken["simple"].append(seconds(lambda part=part: passes(batches["of like length"][part], 1)))
        taken["shared"].append(seconds(lambda part=part: passes(batches["of like length"][part], SHARED_ROW)))
    total = {name: sum(times) for name, times in taken.items()}
    ratios = [a / b for a, b in zip(taken["simple"], taken["shared"], strict=True)]
    prompt, whole = (
        sum(len(e.prompt) for e in encodings),
        sum(len(e.prompt) + len(c) for e in encodings for c in e.completions),
    )
    paid = sum(map(sharing_pays, batches["of like length"]))
    print(
        f"| {pairs} HH-RLHF pairs, {whole / 2 / pairs:.0f} tokens a row, {2 * prompt / whole:.0%} prompt: shared rows against simple "
        f"rows of like length | {total['simple']:.0f} s | {total['shared']:.0f} s | {total['simple'] / total['shared']:.2f} "
        f"(median of parts {statistics.median(ratios):.2f}) | the rule shares in {paid} of {len(batches['of like length'])} batches |"
    )
    print(
        f"| the same against simple rows as they come | {total['simple, as they come']:.0f} s | {total['shared']:.0f} s | "
        f"{total['simple, as they come'] / total['shared']:.2f} | |"
    )
    of_rewards, of_gradients = rows_apart(model.eval())
    print(f"\nK = 2 and 5, prompts of 3 to 300 tokens: rewards {of_rewards:.1e} apart, gradients {of_gradients:.1e}")


def main(path: str, pairs: int = 96) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| what | without | with | ratio | largest difference |\n| --- | --- | --- | --- | --- |")
    epochs("head", 1e-2)
    epochs("last:2", 1e-4)
    rows(path, pairs)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
