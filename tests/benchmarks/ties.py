"""What notebook 04 confirms and cannot compute in its minutes: three treatments of ties with two layers that train.

python -m tests.benchmarks.ties   # writes data/ties.json; an hour of two slow cores; goes on where it stopped

The annotators are those of the notebook's grid: their truth is a reward that a head on SmolLM2's frozen states gives, and
Rao and Kupper's rule makes TIES of their judgements ties. Each of SEEDS seeds draws other judgements, other prompts to
train on, to validate with and to test, and another head to begin with; all treatments of a seed share them. What is kept is
the truth, what was said and which prompts were held out, the rewards of the answers to the prompts of validation and test,
best answer first, and the tie rate that was learned.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import torch

from rmkit import (
    GradedPrompt,
    Preference,
    RewardModel,
    TrainConfig,
    features,
    fit,
    load_backbone,
    load_graded_answers,
)
from rmkit.graded import SPILLOVER
from rmkit.heads import differences, fit_heads
from rmkit.losses import RaoKupper, bradley_terry, tie_as_half
from rmkit.metrics import grouped_folds
from rmkit.preferences import DATA
from tests.benchmarks.graded_answers import FIRST, SECOND
from tests.benchmarks.overfitting import data_hash

FILE = DATA / "ties.json"
BACKBONE = "smollm2-135m"
COMPONENTS, RIDGE, SPREAD = 64, 0.02, 1.2  # of the features; of the head that is the truth; nats, its typical lead
TIES = 0.3
SEEDS = 3
CONFIG = TrainConfig(2e-4, batch_size=16, epochs=3, patience=None)
TREATMENTS = ("dropped", "half a win", "Rao–Kupper")


def the_prompts() -> list[GradedPrompt]:
    """Those of the domains that are trained on."""
    return [p for p in load_graded_answers() if p.domain != SPILLOVER]


def the_truth(prompts: list[GradedPrompt], states: torch.Tensor) -> torch.Tensor:
    """states [N, 4, H] → the rewards [N, 4] that annotators judge by, nats: of a head on the features' main components."""
    flat = states.flatten(0, 1).double()
    flat = (flat - flat.mean(0)) / flat.std(0).clamp(min=1e-6)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    x = (u * s)[:, :COMPONENTS]
    x = (x / x.std()).unflatten(0, states.shape[:2])
    ranked = [p.preference for p in prompts]
    decided = [
        Preference(p.prompt, (p.completions[a], p.completions[b]))
        for p in ranked for a, b in zip(FIRST.tolist(), SECOND.tolist(), strict=True) if p.ranks[a] < p.ranks[b]
    ]  # fmt: skip
    rewards = x @ fit_heads(differences(x, prompts, decided)[None], RIDGE)[0]
    return rewards * SPREAD / (rewards[:, FIRST] - rewards[:, SECOND]).square().mean().sqrt()


def rate_for(leads: torch.Tensor, share: float) -> float:
    """The tie rate of equal answers at which `share` of these pairs are ties, by Rao and Kupper's rule."""
    low, high = 0.0, 1.0
    for _ in range(40):
        rate = (low + high) / 2
        ties = RaoKupper(rate).log_probabilities(leads)[..., 2].exp().mean()
        low, high = (rate, high) if ties < share else (low, rate)
    return rate


@torch.no_grad()
def judgements(truth: torch.Tensor, seed: int) -> torch.Tensor:
    """[N, 6] what was said of every pair: 0 the first is better, 1 the second, 2 a tie."""
    leads = truth[:, FIRST] - truth[:, SECOND]
    probabilities = RaoKupper(rate_for(leads, TIES)).log_probabilities(leads).exp()
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(leads.shape)


def parts(prompts: list[GradedPrompt], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Prompts to train on (three fifths), to validate with and to test, by their place; no topic in two of them."""
    folds = [held for _, held in grouped_folds([p.preference for p in prompts], 5, seed=seed)]
    return sorted(sum(folds[2:], [])), folds[1], folds[0]


def as_preferences(prompts: list[GradedPrompt], said: torch.Tensor, places: list[int]) -> list[Preference]:
    """The judged pairs of these prompts, ties among them."""
    found = []
    for n in places:
        answers, domain, group = prompts[n].preference.completions, prompts[n].domain, prompts[n].group
        for a, b, outcome in zip(FIRST.tolist(), SECOND.tolist(), said[n].tolist(), strict=True):
            pair = (answers[b], answers[a]) if outcome == 1 else (answers[a], answers[b])
            found.append(
                Preference(prompts[n].prompt, pair, (0, 0) if outcome == 2 else (0, 1), domain=domain, group=group)
            )
    return found


def run(treatment: str, truth: torch.Tensor, seed: int) -> dict:
    """One model, trained by `fit`, and what it gives to all answers."""
    prompts = the_prompts()
    said, (train, validation, test) = judgements(truth, seed), parts(prompts, seed)
    sides = [as_preferences(prompts, said, side) for side in (train, validation)]
    if treatment == "dropped":
        sides = [[p for p in side if not p.is_tie] for side in sides]
    loss = {"dropped": bradley_terry, "half a win": tie_as_half, "Rao–Kupper": RaoKupper(TIES)}[treatment]
    torch.manual_seed(seed)
    model = RewardModel(load_backbone(BACKBONE), trainable="last:2")
    began = time.process_time()
    history = fit(model, *sides, replace(CONFIG, seed=seed), loss)
    rewards = model.rewards([prompts[i].preference for i in validation + test])
    print(treatment, seed, [round(v["accuracy"], 3) for v in history.validations], loss, flush=True)
    return {
        "treatment": treatment, "seed": seed, "cpu_seconds": round(time.process_time() - began),
        "tie_rate": getattr(loss, "tie_rate", None), "best_step": history.best_step,
        "rewards": [[round(r, 4) for r in row] for row in rewards.tolist()],
    }  # fmt: skip


def drawn(truth: torch.Tensor) -> list[dict]:
    """Of every seed: what was said of the six pairs of every prompt (0 first, 1 second, 2 a tie), and the three parts."""
    sides = [parts(the_prompts(), seed) for seed in range(SEEDS)]
    return [
        {"said": judgements(truth, seed).tolist(), "train": train, "validation": validation, "test": test}
        for seed, (train, validation, test) in enumerate(sides)
    ]


def missing(known: list[dict]) -> list[tuple[str, int]]:
    """The runs that the file does not have yet."""
    done = {(run["treatment"], run["seed"]) for run in known}
    return [(t, seed) for seed in range(SEEDS) for t in TREATMENTS if (t, seed) not in done]


def main() -> None:
    """Do what is missing, and write the file after every run."""
    if FILE.exists():
        measured = json.loads(FILE.read_text())
    else:
        prompts = the_prompts()
        model = RewardModel(load_backbone(BACKBONE), trainable="last:1")
        truth = the_truth(prompts, features(model, [p.preference for p in prompts]))
        rounded = [[round(r, 4) for r in row] for row in truth.tolist()]
        measured = {"backbone": BACKBONE, "data": data_hash(), "truth": rounded, "runs": []}
    truth = torch.tensor(measured["truth"], dtype=torch.float64)
    measured["seeds"] = drawn(truth)
    for treatment, seed in missing(measured["runs"]):
        measured["runs"].append(run(treatment, truth, seed))
        FILE.with_suffix(".new").write_text(json.dumps(measured) + "\n")
        os.replace(FILE.with_suffix(".new"), FILE)  # an interrupted run loses no other


if __name__ == "__main__":
    main()
