"""Real human preferences: a head, and the last two layers, on 900 pairs of HH-RLHF, 100 of which choose the weights; 300 held out.

python -m tests.benchmarks.hh_rlhf FILE   # harmless-base as Anthropic publishes it; measured beside other work: 17 min a first head, 32 a first last:2

Length baselines stand beside every accuracy. The text is never printed.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace

import torch

from rmkit import RewardModel, TrainConfig, computed_once, fit, load_backbone, load_preferences, pairwise_accuracy
from rmkit.batching import ranks_tensor
from rmkit.metrics import lengths
from rmkit.preferences import PreferenceError, split_preferences

PAIRS, MAX_LENGTH = 1200, 512
CONFIGS = {  # not tuned; the weights kept are those of the best of the 100 training pairs set aside
    "head": TrainConfig(learning_rate=1e-2, batch_size=32, epochs=10),
    "last:2": TrainConfig(learning_rate=5e-5, batch_size=16, epochs=3, eval_every=25),
}


def main(path: str, seeds: int = 3) -> None:
    """Print a row for each method and seed; and the length baselines."""
    warnings.simplefilter("ignore")  # of rows that are cut, once a model
    try:
        pairs = load_preferences(path)
    except PreferenceError as error:
        print(f"{len(error.problems)} rows cannot be used\n")  # and their text is not to be shown
        pairs = error.usable
    train, held_out = split_preferences(pairs[:PAIRS], validation=0.25)
    size, groups = lengths(held_out), [p.group for p in held_out]
    longer = pairwise_accuracy(size, ranks_tensor(held_out), groups)
    train, validation = split_preferences(train, validation=1 / 9)
    print(
        f"{len(train)} pairs to train on, {len(validation)} to choose the weights, {len(held_out)} held out\n"
        f"the longer answer wins: {longer}; the shorter: {1 - longer.value:.3f}\n\n"
        "| trains | seed | training | held out | best step | steps | s |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for trainable, config in CONFIGS.items():
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = RewardModel(load_backbone("smollm2-135m"), trainable=trainable, max_length=MAX_LENGTH)
            began = time.perf_counter()
            history = fit(model, train, validation, replace(config, seed=seed))
            with computed_once(model, model.encode([*train, *held_out])):
                trained = pairwise_accuracy(model.rewards(train), ranks_tensor(train)).value
                found = pairwise_accuracy(model.rewards(held_out), ranks_tensor(held_out), groups)
            print(
                f"| {trainable} | {seed} | {trained:.3f} | {found} | {history.best_step} | {len(history.steps)} | "
                f"{time.perf_counter() - began:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
