"""What a head on a frozen backbone makes of the graded answers: the first table of data/README.md.

python -m tests.benchmarks.graded_answers   # prints it; about 8 minutes of two slow cores

The frozen body is computed once. Heads are Bradley–Terry regressions on the differences of two answers' features, with a
ridge chosen by inner folds of the training prompts. All of it is repeated for SEEDS seeds: other judgements, other folds.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from rmkit import (  # fmt: skip
    Annotator,
    RewardModel,
    ceilings,
    features,
    graded_pairs,
    load_backbone,
    load_graded_answers,
    load_preferences,
    panel_ratings,
)
from rmkit.batching import ranks_tensor
from rmkit.calibration import calibration_error
from rmkit.graded import SPILLOVER, WEIGHTS, GradedPrompt, texts, utilities
from rmkit.metrics import (
    accuracy_table,
    brier,
    grouped_folds,
    nll,
    pairwise_accuracy,
    rank_correlation,
    reward_summary,
    spillover_gap,
)
from rmkit.preferences import Preference

SEEDS, FOLDS = 5, 5
ANNOTATOR = Annotator(temperature=2.0)
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # inverse strengths
FIRST, SECOND = torch.combinations(torch.arange(4)).T  # the order of graded_pairs

Wins = np.ndarray  # [N, 6]: 1 the first of a pair is better, −1 the second, 0 not told apart


def fit_head(x: np.ndarray, wins: Wins, inverse_ridge: float) -> np.ndarray:
    """The linear head [H] of features [N, 4, H] that Bradley–Terry likes best, with a ridge on standardised features."""
    scale = x.reshape(-1, x.shape[-1]).std(0)
    rows, pairs = wins.nonzero()
    difference = (x[rows, FIRST[pairs]] - x[rows, SECOND[pairs]]) / scale
    first = wins[rows, pairs] > 0
    model = LogisticRegression(C=inverse_ridge, fit_intercept=False, max_iter=2000)
    return model.fit(np.concatenate([difference, -difference]), np.concatenate([first, ~first])).coef_[0] / scale


def share_right(rewards: np.ndarray, wins: Wins) -> float:
    """Of the pairs told apart."""
    told = wins != 0
    return float((np.sign(rewards[:, FIRST] - rewards[:, SECOND]) == wins)[told].mean())


def best_ridge(x: np.ndarray, wins: Wins, prompts: list[Preference]) -> float:
    """The one with the least NLL on inner held-out prompts."""
    losses = defaultdict(float)
    for train, held_out in grouped_folds(prompts, folds=4):
        for inverse in RIDGES:
            rewards = x[held_out] @ fit_head(x[train], wins[train], inverse)
            margin = (rewards[:, FIRST] - rewards[:, SECOND]) * wins[held_out]
            losses[inverse] += np.logaddexp(0, -margin)[wins[held_out] != 0].sum()
    return min(losses, key=losses.get)


def out_of_fold(
    x: np.ndarray, prompts: list[Preference], wins_of: Callable[[int], Wins], elsewhere: list[np.ndarray]
) -> tuple[torch.Tensor, list[torch.Tensor], list[float], list[float]]:
    """Rewards [SEEDS, N, 4] of prompts that their head did not see; [SEEDS · FOLDS, …] of the features in `elsewhere`.

    And the training accuracy of every head, and its ridge.
    """
    held, others, accuracies, ridges = np.zeros((SEEDS, *x.shape[:2])), [[] for _ in elsewhere], [], []
    for seed in range(SEEDS):
        wins = wins_of(seed)
        for train, held_out in grouped_folds(prompts, FOLDS, seed=seed):
            inverse = best_ridge(x[train], wins[train], [prompts[i] for i in train])
            head = fit_head(x[train], wins[train], inverse)
            held[seed, held_out] = x[held_out] @ head
            for rewards, features_ in zip(others, elsewhere, strict=True):
                rewards.append(features_ @ head)
            accuracies.append(share_right(x[train] @ head, wins[train]))
            ridges.append(inverse)
    return torch.tensor(held), [torch.tensor(np.array(rewards)) for rewards in others], accuracies, ridges


def in_file_order(prompts: list[GradedPrompt]) -> torch.Tensor:
    """Ranks [N, 4] by utility, of the answers as they stand in the file."""
    return torch.tensor([[sorted({-u for u in row}).index(-u) for u in row] for row in utilities(prompts).tolist()])


def ranked(prompts: list[GradedPrompt], rewards: torch.Tensor) -> tuple[torch.Tensor, list[Preference]]:
    """Rewards and preferences in the order of utility, in which `Preference` wants its completions."""
    order = utilities(prompts).argsort(dim=1, descending=True, stable=True)
    return rewards.gather(-1, order.expand_as(rewards)), [p.preference for p in prompts]


def judged(prompts: list[GradedPrompt], seed: int) -> tuple[Wins, list[Preference]]:
    """What the annotators say of all pairs, as signs and as preferences in the order of `graded_pairs`."""
    pairs = graded_pairs(prompts)
    said = ANNOTATOR.judge(pairs, seed)
    signs = [1 if s.chosen == p.first.text else -1 for p, s in zip(pairs, said, strict=True)]
    return np.array(signs).reshape(-1, 6), said


def show(table: pd.DataFrame | pd.Series) -> None:
    """As markdown, rounded to what an interval of ten points leaves significant."""
    table = table.to_frame() if isinstance(table, pd.Series) else table
    print(f"| {' | '.join(['', *map(str, table.columns)])} |\n|{' --- |' * (len(table.columns) + 1)}")
    for name, row in table.iterrows():
        cells = (f"{v:.2f}" if isinstance(v, float) and v != int(v) or v in (0.0, 1.0) else f"{v:.0f}" for v in row)
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)


def what_it_sees(x: np.ndarray, prompts: list[GradedPrompt]) -> None:
    """Heads for one criterion each, trained on its grades themselves: accuracy on held-out pairs whose grades differ."""
    plain, rows = texts(prompts), {}
    for criterion in WEIGHTS:
        grades = torch.tensor([[a.grades[criterion] for a in p.answers] for p in prompts])
        wins = (grades[:, FIRST] - grades[:, SECOND]).sign().numpy()
        rewards, _, _, _ = out_of_fold(x, plain, lambda seed, wins=wins: wins, [])
        row = {}
        for part in ("coding", "writing", "fact", "arithmetic", "explanation", "all"):
            chosen = [i for i, p in enumerate(prompts) if part in (p.domain, p.kind, "all") and np.any(wins[i])]
            ranks = (grades[chosen].amax(1, keepdim=True) - grades[chosen]).long()
            found = pairwise_accuracy(rewards[:, chosen], ranks, [plain[i].group for i in chosen])
            row[part] = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}], {found.pairs}"
        rows[criterion] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    print(f"| criterion | {' | '.join(table.columns)} |\n|{' --- |' * (len(table.columns) + 1)}")
    for name, row in table.iterrows():
        print(f"| {name} | {' | '.join(row)} |")
    print(flush=True)


def main() -> None:
    """Compute features, train the heads, print the tables."""
    prompts, adversarial = load_graded_answers(), load_preferences("adversarial")
    model = RewardModel(load_backbone("smollm2-135m"), trainable="head")
    began, cpu = time.perf_counter(), time.process_time()
    all_features = features(model, texts(prompts)).numpy()
    took = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"features of {all_features.shape[0] * 4} answers: {took[0]:.0f} s, {took[1]:.0f} s of CPU "
        "(0 where the store had them)\n"
    )
    tricky = features(model, adversarial).numpy()
    inside = [i for i, p in enumerate(prompts) if p.domain != SPILLOVER]
    outside = [i for i, p in enumerate(prompts) if p.domain == SPILLOVER]
    training, advice = [prompts[i] for i in inside], [prompts[i] for i in outside]
    x, plain = all_features[inside], texts(training)
    said = [judged(training, seed) for seed in range(SEEDS)]
    held, (of_advice, of_tricky), accuracies, ridges = out_of_fold(
        x, plain, lambda seed: said[seed][0], [all_features[outside], tricky]
    )
    ceiling = ceilings(ANNOTATOR.probabilities(graded_pairs(training)))
    swapped = torch.tensor(np.stack([wins for wins, _ in said])) < 0  # (SEEDS, N, 6)
    first, second = held[..., FIRST], held[..., SECOND]
    of_pairs = torch.stack([torch.where(swapped, second, first), torch.where(swapped, first, second)], -1).flatten(1, 2)
    as_judged, groups = ranks_tensor(said[0][1]), [p.group for p in said[0][1]]
    ranks = in_file_order(training)
    rows = {
        "training pairs, as judged": f"{np.mean(accuracies):.3f} (heads: {min(accuracies):.3f} to {max(accuracies):.3f})",
        "held-out pairs, as judged": pairwise_accuracy(of_pairs, as_judged, groups),
        "ceiling of that": f"{ceiling.accuracy:.3f}",
        "held-out NLL (ceiling)": f"{nll(of_pairs, as_judged, groups)} ({ceiling.nll:.3f})",
        "held-out Brier score (ceiling)": f"{brier(of_pairs, as_judged, groups)} ({ceiling.brier:.3f})",
        "calibration error": calibration_error(of_pairs[0], as_judged, groups),
        "held-out pairs, true order": pairwise_accuracy(held, ranks, [p.group for p in plain]),
        "training minus held-out, as judged": f"{np.mean(accuracies) - pairwise_accuracy(of_pairs, as_judged).value:.3f}",
        "spillover gap, true order": spillover_gap(ranked(training, held), ranked(advice, of_advice)),
        "ridges chosen": f"{dict(pd.Series(ridges).value_counts())}",
    }
    quality = utilities(training)
    centred = (held - held.mean(-1, keepdim=True)).mean(0).flatten()
    owners = [p.group for p in plain for _ in range(4)]
    within = (quality - quality.mean(-1, keepdim=True)).flatten()
    rating = panel_ratings(quality).double().mean(-1)
    panel = (rating - rating.mean(-1, keepdim=True)).flatten()
    for method in ("spearman", "kendall"):
        rows[f"{method} with utility, inside prompts"] = rank_correlation(centred, within, owners, method)
    rows["spearman with a panel of five, inside prompts"] = rank_correlation(centred, panel, owners)
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    print()
    show(accuracy_table(*ranked(training, held)))
    show(accuracy_table(*ranked(advice, of_advice)))
    show(accuracy_table(of_tricky, adversarial))
    show(reward_summary(*ranked(training, held[0])))
    what_it_sees(x, training)


if __name__ == "__main__":
    main()
