"""How much of the body to train, on graded answers: what notebook 01 shows of `trainable`.

python -m tests.benchmarks.freezing   # writes data/freezing.json; an hour of two slow cores; goes on where it stopped

Every seed splits the prompts in halves: one is trained on (a fifth of it chooses the epoch), the other is held out. The
labels are the true order of each prompt's four answers, equal ones left out; the loss is Bradley–Terry. What is kept is
the held-out rewards, from which the notebook computes what it says.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import torch

from rmkit import (
    Preference,
    RewardModel,
    TrainConfig,
    computed_once,
    fit,
    load_backbone,
    load_graded_answers,
    pairwise_accuracy,
    split_preferences,
)
from rmkit.batching import ranks_tensor
from rmkit.preferences import DATA

FILE = DATA / "freezing.json"
BACKBONE = "smollm2-135m"
SEEDS = 3
SETTINGS = {  # learning rate, from the ranges in TrainConfig, and epochs
    "head": (3e-3, 20),
    "last:1": (1e-4, 4),
    "last:2": (1e-4, 4),
    "last:4": (1e-4, 4),
    "lora": (2e-4, 1),
    "all": (2e-5, 1),
}


def halves(seed: int) -> tuple[list[Preference], list[Preference], list[Preference]]:
    """To train on, to choose the epoch with, held out; no group on two sides."""
    everything = [p.preference for p in load_graded_answers()]
    known, held_out = split_preferences(everything, validation=0.5, seed=seed)
    train, validation = split_preferences(known, validation=0.2, seed=seed)
    return train, validation, held_out


def measured(trainable: str, seed: int) -> dict:
    """One run: what it cost, and the rewards of the held-out answers, best answer first."""
    rate, epochs = SETTINGS[trainable]
    train, validation, held_out = halves(seed)
    torch.manual_seed(seed)
    model = RewardModel(load_backbone(BACKBONE), trainable=trainable)
    began, cpu = time.perf_counter(), time.process_time()
    config = TrainConfig(rate, batch_size=8, epochs=epochs, patience=None, seed=seed)
    history = fit(model, train, validation, config)
    took = time.perf_counter() - began, time.process_time() - cpu
    encoded = model.encode(held_out)
    with computed_once(model, encoded):
        rewards = model.rewards(encoded)
    return {
        "trainable": trainable,
        "seed": seed,
        "learning_rate": rate,
        "epochs": epochs,
        "best_step": history.best_step,
        "steps": len(history.steps),
        "seconds": round(took[0]),
        "cpu_seconds": round(took[1]),
        "held_out_accuracy": pairwise_accuracy(rewards, ranks_tensor(held_out)).value,
        "prompts": [p.prompt for p in held_out],
        "rewards": [[round(r, 4) for r in row] for row in rewards.tolist()],
    }


def missing(known: list[dict]) -> Iterator[tuple[str, int]]:
    """The runs that the file does not have yet, seed by seed."""
    done = {(run["trainable"], run["seed"]) for run in known}
    return ((t, seed) for seed in range(SEEDS) for t in SETTINGS if (t, seed) not in done)


def main() -> None:
    """Do what is missing, and write the file after every run."""
    runs = json.loads(FILE.read_text())["runs"] if FILE.exists() else []
    for trainable, seed in missing(runs):
        runs.append(measured(trainable, seed))
        runs.sort(key=lambda run: (run["seed"], list(SETTINGS).index(run["trainable"])))
        new = FILE.with_suffix(".new")
        new.write_text(json.dumps({"backbone": BACKBONE, "runs": runs}) + "\n")
        os.replace(new, FILE)  # an interrupted run loses no other
        print(trainable, seed, flush=True)


if __name__ == "__main__":
    main()
