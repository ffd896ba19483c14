"""What notebook 06 compares and cannot train in its minutes: explicit and implicit rewards on the same pairs, seed by seed.

python -m tests.benchmarks.implicit   # writes data/implicit.json; an hour of two slow cores; goes on where it stopped

Both models train the last two layers and the final norm by `fit`, with the same pairs in the same order, the same rate and
the same number of steps: one with a head on top, one as a language model whose head is frozen (DPO). On json_vs_text a
seed draws the order, and the explicit model's head; on graded_answers also which prompts are trained on. There, a
preference is the order of a prompt's four answers to someone who does not check whether they are correct (the annotators of
notebook 05, without noise), and a loss the mean over its pairs that differ; no prompt of `advice` is trained on. What is kept is what the models give to unseen answers: rewards of the explicit ones, and of the others
all that an implicit reward can be made of (`LogProbabilities`).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace

import torch

from rmkit import (
    ImplicitRewardModel,
    LogProbabilities,
    Preference,
    RewardModel,
    TrainConfig,
    fit,
    load_backbone,
    load_graded_answers,
    load_preferences,
    log_probabilities,
    split_preferences,
)
from rmkit.graded import SPILLOVER, ignoring
from rmkit.metrics import grouped_folds
from rmkit.preferences import DATA
from tests.benchmarks.overfitting import data_hash

FILE = DATA / "implicit.json"
BACKBONE = "smollm2-135m"
SEEDS = 3
RATE = 1e-4
CONFIGS = {  # an epoch of 400 pairs, and three of the rankings of some 90 prompts
    "json_vs_text": TrainConfig(RATE, epochs=1, eval_every=25, patience=None),
    "graded_answers": TrainConfig(RATE, epochs=3, patience=None),
}
MODELS = ("explicit", "β = 0.1")
OTHERS = ("β = 0.03", "β = 0.3")  # on graded_answers alone, one seed: what β does, not how surely


def json_parts() -> tuple[list[Preference], dict[str, list[Preference]]]:
    """The 400 pairs that are trained on; of the others, 40 to choose the weights by and 60 held out. No topic in two."""
    train, others = split_preferences(load_preferences("json_vs_text"), validation=0.2, seed=0)
    validation, held_out = split_preferences(others, validation=0.6, seed=0)
    return train, {"validation": validation, "held out": held_out}


def graded_parts(seed: int) -> tuple[list[Preference], dict[str, list[Preference]]]:
    """Rankings of four: three fifths to train on, a fifth to choose by, a fifth held out; and the spillover domain."""
    rankings = [prompt.preference for prompt in ignoring(load_graded_answers(), "correct")]
    everything = [ranking for ranking in rankings if not ranking.is_tie]
    inside = [p for p in everything if p.domain != SPILLOVER]
    folds = [held for _, held in grouped_folds(inside, 5, seed=seed)]
    train, validation, held_out = (
        [inside[i] for i in part] for part in (sorted(sum(folds[2:], [])), folds[1], folds[0])
    )
    spillover = [p for p in everything if p.domain == SPILLOVER]
    return train, {"validation": validation, "held out": held_out, "spillover": spillover}


def parts(data: str, seed: int) -> tuple[list[Preference], dict[str, list[Preference]]]:
    return json_parts() if data == "json_vs_text" else graded_parts(seed)


def untrained(name: str, seed: int) -> RewardModel | ImplicitRewardModel:
    torch.manual_seed(seed)  # of the explicit model's head
    if name == "explicit":
        return RewardModel(load_backbone(BACKBONE), trainable="last:2")
    return ImplicitRewardModel(load_backbone(BACKBONE), float(name.removeprefix("β = ")), trainable="last:2")


def run(data: str, name: str, seed: int) -> dict:
    """One model, trained by `fit`, and what it gives to the answers that it has not seen, best answer first."""
    train, others = parts(data, seed)
    model = untrained(name, seed)
    began = time.process_time()
    history = fit(model, train, others["validation"], replace(CONFIGS[data], seed=seed))
    seen = {
        "data": data, "model": name, "seed": seed, "cpu_seconds": round(time.process_time() - began),
        "training_seconds": round(history.seconds, 1), "best_step": history.best_step,
        "losses": [round(step["loss"], 4) for step in history.steps],
    }  # fmt: skip
    print(data, name, seed, seen["cpu_seconds"], [round(v["accuracy"], 3) for v in history.validations], flush=True)
    for part, preferences in others.items():
        if part != "validation":
            seen[part] = given(model, preferences)
    return seen


def given(model: RewardModel | ImplicitRewardModel, preferences: list[Preference]) -> dict[str, list]:
    """What a model gives to every answer, by name, rounded."""
    if isinstance(model, RewardModel):
        found = {"rewards": model.rewards(preferences)}
    else:
        found = asdict(log_probabilities(model, preferences))
    return {name: [_rounded(row) for row in tensor.tolist()] for name, tensor in found.items()}


def _rounded(value: float | list[float]) -> float | list[float]:
    return [_rounded(v) for v in value] if isinstance(value, list) else round(value, 4)


def read(stored: dict[str, list]) -> torch.Tensor | LogProbabilities:
    """What `given` kept, again: rewards [N, K] of an explicit model, `LogProbabilities` of another."""
    tensors = {name: torch.tensor(values) for name, values in stored.items()}
    return tensors["rewards"] if "rewards" in tensors else LogProbabilities(**tensors)


def settings() -> dict[str, dict]:
    """What the runs were trained with, as JSON has it: without how a step is cut up, which changes nothing but rounding."""
    settings = {data: asdict(config) for data, config in CONFIGS.items()}
    for config in settings.values():
        del config["micro_batch_tokens"]
    return settings


def missing(known: list[dict]) -> list[tuple[str, str, int]]:
    """The runs that the file does not have yet."""
    done = {(run["data"], run["model"], run["seed"]) for run in known}
    wanted = [(data, name, seed) for name in MODELS for data in CONFIGS for seed in range(SEEDS)]
    wanted += [("graded_answers", name, 0) for name in OTHERS]
    return [one for one in wanted if one not in done]


def main() -> None:
    """Do what is missing, and write the file after every run."""
    measured = {"backbone": BACKBONE, "graded_answers": data_hash(), "configs": settings(), "runs": []}
    if FILE.exists():
        known = json.loads(FILE.read_text())
        if any(known[name] != measured[name] for name in measured if name != "runs"):
            raise SystemExit(f"{FILE.name} is of other answers or settings: delete it to measure anew")
        measured = known
    for one in missing(measured["runs"]):
        measured["runs"].append(run(*one))
        FILE.with_suffix(".new").write_text(json.dumps(measured) + "\n")
        os.replace(FILE.with_suffix(".new"), FILE)  # an interrupted run loses no other


if __name__ == "__main__":
    main()
