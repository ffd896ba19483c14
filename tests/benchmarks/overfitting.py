"""What notebook 05 shows and cannot compute in its minutes: paraphrases, smaller backbones, fine-tuning by epochs.

python -m tests.benchmarks.overfitting   # writes data/overfitting.json; an hour of two slow cores; goes on where it stopped

The annotators are those of the notebook: they do not check whether an answer is correct, and half a point of the rest
makes a nat. What is kept is the rewards of all answers, in the order of `load_graded_answers()`, best answer first, from
which the notebook computes what it says.

heads: of SEEDS seeds, each prompt's reward by a head that did not see it (grouped folds), trained on PAIRS judged pairs.
runs: fine-tuning on the six judged pairs of each of 40 prompts, with 40 others held out; rewards after every epoch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

from rmkit import (
    Annotator,
    Preference,
    RewardModel,
    TrainConfig,
    computed_once,
    features,
    graded_pairs,
    load_backbone,
    load_graded_answers,
    split_preferences,
)
from rmkit.graded import SPILLOVER, GradedPrompt, ignoring, paraphrased
from rmkit.heads import differences, fit_heads
from rmkit.metrics import grouped_folds
from rmkit.preferences import DATA
from rmkit.training import draw_batches, make_optimizer, trained_parameters
from tests.benchmarks.graded_answers import FIRST, SECOND, as_wins

FILE = DATA / "overfitting.json"
BACKBONE = "smollm2-135m"
ANNOTATOR = Annotator(temperature=0.5)
SEEDS, FOLDS, INNER, PAIRS = 5, 5, 4, 320
RIDGES = (0.01, 0.1, 1.0, 10.0)  # the first is next to none
LAYERS = (10, 20, 30)
RUNS = [  # trainable, learning rate, weight decay, epochs, seeds
    ("last:2", 2e-4, 0.01, 14, 3),
    ("last:2", 2e-4, 0.1, 14, 1),
    ("all", 3e-5, 0.01, 8, 1),
]


def the_prompts() -> list[GradedPrompt]:
    """Those of the domains that are trained on."""
    return [p for p in load_graded_answers() if p.domain != SPILLOVER]


def judgements(prompts: list[GradedPrompt], seed: int) -> list[Preference]:
    """Of all pairs, in the order of `graded_pairs`."""
    return ANNOTATOR.judge(graded_pairs(ignoring(prompts, "correct")), seed)


def training_sets(prompts: list[GradedPrompt]) -> list[tuple[int, list[int], np.ndarray]]:
    """(seed, prompts held out, PAIRS pairs of the other prompts, by their place in `graded_pairs`), fold by fold."""
    owner = np.repeat(np.arange(len(prompts)), 6)
    return [
        (seed, held, np.random.default_rng([seed, held[0]]).permutation(np.isin(owner, train).nonzero()[0])[:PAIRS])
        for seed in range(SEEDS)
        for train, held in grouped_folds([p.preference for p in prompts], FOLDS, seed=seed)
    ]


def standardised(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """x [N, K, H] in units of how the features `by` are spread; no judgement is looked at."""
    by = by.flatten(0, 1)
    return (x - by.mean(0)) / by.std(0).clamp(min=1e-6)


def out_of_fold(
    x: torch.Tensor, sets: list, copies: list[list[torch.Tensor]], ridge: float | None
) -> list[list[list[float]]]:
    """Rewards [SEEDS, N, 4] of heads trained on copies [copy][seed] [960, H] of each set's pairs; no ridge: chosen inside."""
    data = torch.stack([torch.cat([copy[seed][pairs] for copy in copies]) for seed, _, pairs in sets])  # (S, M, H)
    chosen = torch.full((len(sets),), ridge) if ridge else best_ridges(data, sets, len(copies))
    rewards = torch.zeros(SEEDS, *x.shape[:2])
    for (seed, held, _), head in zip(sets, fit_heads(data, chosen), strict=True):
        rewards[seed, held] = x[held] @ head
    return [[[round(r, 3) for r in row] for row in one] for one in rewards.tolist()]


def best_ridges(data: torch.Tensor, sets: list, copies: int) -> torch.Tensor:
    """For each set the ridge with the least NLL on inner folds of its own prompts; only pairs as they were are judged."""
    losses = torch.zeros(len(RIDGES), len(sets))
    for inner in range(INNER):
        prompt = [torch.from_numpy(pairs // 6) for *_, pairs in sets]
        out = torch.stack([p % INNER == inner for p in prompt])  # (S, PAIRS)
        fewest = int((~out).sum(1).min())
        kept = torch.stack([(~o).nonzero().flatten()[:fewest] for o in out])  # (S, fewest): of every copy
        kept = torch.cat([kept + copy * out.shape[1] for copy in range(copies)], 1)
        train = data.gather(1, kept[..., None].expand(-1, -1, data.shape[-1]))
        for r, ridge in enumerate(RIDGES):
            leads = torch.einsum("smh,sh->sm", data[:, : out.shape[1]], fit_heads(train, ridge))
            losses[r] += (F.softplus(-leads) * out).sum(1)
    return torch.tensor(RIDGES)[losses.argmin(0)]


def heads() -> tuple[dict[str, list], dict[str, float]]:
    """Rewards by design, and the CPU seconds of the features of each depth."""
    prompts = the_prompts()
    sets, cpu, found = training_sets(prompts), {}, {}
    said = [judgements(prompts, seed) for seed in range(SEEDS)]
    again = [[judgements(prompts, 1000 * copy + seed) for seed in range(SEEDS)] for copy in (1, 2)]
    for layers in LAYERS:
        backbone = load_backbone(BACKBONE)
        body = backbone.model.base_model
        body.layers = body.layers[:layers]
        body.config.num_hidden_layers = layers
        model = RewardModel(backbone, trainable="head")
        began = time.process_time()
        raw = features(model, [p.preference for p in prompts])
        cpu[f"{layers} layers"] = round(time.process_time() - began, 1)
        x = standardised(raw, raw)
        found[f"{layers} layers"] = out_of_fold(x, sets, [[differences(x, prompts, j) for j in said]], None)
    plain = [differences(x, prompts, j) for j in said]
    of = {}  # the two rewordings: prompts in the same order, answers as they are and varied
    for number in (0, 1):
        new = [paraphrased([p])[number] for p in prompts]
        x_new = standardised(features(model, [p.preference for p in new]), raw)
        of[number] = lambda judged, x_new=x_new: differences(x_new, prompts, judged)
    designs = {
        "plain": [plain],
        "reworded": [plain, [of[0](j) for j in said]],
        "reworded and varied": [plain, [of[0](j) for j in said], [of[1](j) for j in said]],
        "reworded and varied, judged anew": [plain, *([of[n](j) for j in again[n]] for n in (0, 1))],
        "three judgements": [plain, *([differences(x, prompts, j) for j in again[n]] for n in (0, 1))],
    }
    for name, copies in designs.items():
        found[f"{name}, hardly a ridge"] = out_of_fold(x, sets, copies, RIDGES[0])
        found[f"{name}, ridge chosen"] = out_of_fold(x, sets, copies, None)
    return found, cpu


def halves(prompts: list[GradedPrompt], seed: int) -> tuple[list[int], list[int]]:
    """40 prompts to train on and 40 held out, by their place; no group on both sides."""
    plain = [p.preference for p in prompts]
    place = {p.prompt: i for i, p in enumerate(plain)}
    train, held = split_preferences(plain, validation=0.5, seed=seed)
    train, held = (
        [place[p.prompt] for p in split_preferences(side, validation=0.5, seed=seed)[0]] for side in (train, held)
    )
    return train[:40], held[:40]


def run(trainable: str, rate: float, decay: float, epochs: int, seed: int) -> dict:
    """Bradley–Terry on the six judged pairs of every training prompt, and the rewards before training and after every epoch."""
    prompts = the_prompts()
    train, held = halves(prompts, seed)
    wins = torch.tensor(as_wins(judgements(prompts, seed), prompts)).float()
    torch.manual_seed(seed)
    model = RewardModel(load_backbone(BACKBONE), trainable=trainable)
    encoded = model.encode([prompts[i].preference for i in train + held])
    config = TrainConfig(rate, batch_size=8, weight_decay=decay, seed=seed)
    optimizer, batches, began = (
        make_optimizer(trained_parameters(model), config),
        draw_batches(len(train), config),
        time.process_time(),
    )
    rewards = []
    with computed_once(model, encoded):
        for epoch in range(epochs + 1):
            rewards.append([[round(r, 3) for r in row] for row in model.rewards(encoded).tolist()])
            print(trainable, decay, seed, "epoch", epoch, flush=True)
            for _ in range(len(train) // config.batch_size if epoch < epochs else 0):
                model.train()
                for i in (indices := next(batches)):
                    r = model(model.batch([encoded[i]]))[0]  # (4,)
                    loss = F.softplus(-(r[FIRST] - r[SECOND]) * wins[train[i]].to(r)).mean()
                    (loss / len(indices)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
    return {
        "trainable": trainable, "learning_rate": rate, "weight_decay": decay, "seed": seed,
        "cpu_seconds": round(time.process_time() - began), "train": train, "held_out": held, "rewards": rewards,
    }  # fmt: skip


def missing(known: list[dict]) -> list[tuple]:
    """The runs that the file does not have yet."""
    done = {(run["trainable"], run["weight_decay"], run["seed"]) for run in known}
    wanted = [(t, rate, decay, epochs, seed) for t, rate, decay, epochs, seeds in RUNS for seed in range(seeds)]
    return [w for w in wanted if (w[0], w[2], w[4]) not in done]


def data_hash() -> str:
    """Of the answers that the rewards are of."""
    return hashlib.sha256((DATA / "graded_answers.jsonl").read_bytes()).hexdigest()


def main() -> None:
    """Do what is missing, and write the file after every part."""
    measured = (
        json.loads(FILE.read_text()) if FILE.exists() else {"backbone": BACKBONE, "data": data_hash(), "runs": []}
    )

    def keep() -> None:
        FILE.with_suffix(".new").write_text(json.dumps(measured) + "\n")
        os.replace(FILE.with_suffix(".new"), FILE)  # an interrupted run loses no other

    if "heads" not in measured:
        measured["heads"], measured["cpu_seconds"] = heads()
        keep()
    for wanted in missing(measured["runs"]):
        measured["runs"].append(run(*wanted))
        keep()


if __name__ == "__main__":
    main()
