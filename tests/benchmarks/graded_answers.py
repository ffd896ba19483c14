"""What a head on a frozen backbone makes of the graded answers: the first table of data/README.md.

python -m tests.benchmarks.graded_answers   # prints it; about 10 minutes of two slow cores

The frozen body is computed once. Heads are Bradley–Terry regressions on the differences of two answers' features, with a
ridge chosen by inner folds of the training prompts. All of it is repeated for SEEDS seeds: other judgements, other folds.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from rmkit import (
    Annotator,
    Preference,
    RewardModel,
    ceilings,
    features,
    graded_pairs,
    load_backbone,
    load_graded_answers,
    load_preferences,
    pairwise_accuracy,
    panel_ratings,
)
from rmkit.batching import ranks_tensor
from rmkit.calibration import calibration_error
from rmkit.graded import SPILLOVER, WEIGHTS, GradedPrompt, rewards_of, utilities
from rmkit.metrics import (
    accuracy_difference,
    accuracy_table,
    brier,
    grouped_folds,
    lengths,
    nll,
    rank_correlation,
    reward_summary,
    spillover_gap,
)

SEEDS, FOLDS = 5, 5
ANNOTATOR = Annotator(temperature=2.0)
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # inverse strengths
FIRST, SECOND = torch.combinations(torch.arange(4)).T
Wins = (
    np.ndarray
)  # [N, 6], of the answers as they are ranked: 1 the first of a pair was called better, −1 the second, 0 neither


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
    x: np.ndarray, prompts: list[Preference], wins_of: list[Wins], elsewhere: list[np.ndarray]
) -> tuple[torch.Tensor, list[torch.Tensor], list[float], list[float]]:
    """Rewards [SEEDS, N, 4] of prompts that their head did not see; [SEEDS · FOLDS, …] of the features in `elsewhere`.

    And the training accuracy of every head, and its ridge.
    """
    held, others, accuracies, ridges = np.zeros((SEEDS, *x.shape[:2])), [[] for _ in elsewhere], [], []
    for seed in range(SEEDS):
        wins = wins_of[seed]
        for train, held_out in grouped_folds(prompts, FOLDS, seed=seed):
            inverse = best_ridge(x[train], wins[train], [prompts[i] for i in train])
            head = fit_head(x[train], wins[train], inverse)
            held[seed, held_out] = x[held_out] @ head
            for rewards, features_ in zip(others, elsewhere, strict=True):
                rewards.append(features_ @ head)
            accuracies.append(share_right(x[train] @ head, wins[train]))
            ridges.append(inverse)
    return torch.tensor(held), [torch.tensor(np.array(rewards)) for rewards in others], accuracies, ridges


def as_wins(judged: list[Preference], prompts: list[GradedPrompt]) -> Wins:
    """Judgements of all pairs as signs."""
    number = {(p.prompt, a.text): (n, k) for n, p in enumerate(prompts) for k, a in enumerate(p.ranked)}
    pair = {(int(i), int(j)): m for m, (i, j) in enumerate(zip(FIRST, SECOND, strict=True))}
    wins = np.zeros((len(prompts), len(pair)))
    for judgement in judged:
        (n, better), (_, worse) = (number[judgement.prompt, text] for text in judgement.completions)
        wins[n, pair[min(better, worse), max(better, worse)]] = 1 if better < worse else -1
    return wins


def show(table: pd.DataFrame) -> None:
    """As markdown: counts whole, shares to two digits, of which an interval of ten points leaves one significant."""
    print(f"| {' | '.join(['', *table.columns])} |\n|{' --- |' * (len(table.columns) + 1)}")
    for name, row in table.astype(object).iterrows():
        print(f"| {name} | {' | '.join(f'{v:.2f}' if isinstance(v, float) else str(v) for v in row)} |")
    print(flush=True)


def what_it_sees(x: np.ndarray, prompts: list[GradedPrompt]) -> None:
    """Heads for one criterion each, trained on its grades themselves: accuracy on held-out pairs whose grades differ."""
    plain, rows = [p.preference for p in prompts], {}
    for criterion in WEIGHTS:
        grades = torch.tensor([[a.grades[criterion] for a in p.ranked] for p in prompts])
        wins = (grades[:, FIRST] - grades[:, SECOND]).sign().numpy()
        rewards, _, _, _ = out_of_fold(x, plain, [wins] * SEEDS, [])
        row = {}
        for part in ("coding", "writing", "fact", "arithmetic", "explanation", "all"):
            chosen = [i for i, p in enumerate(prompts) if part in (p.domain, p.kind, "all") and np.any(wins[i])]
            ranks = (grades[chosen].amax(1, keepdim=True) - grades[chosen]).long()
            groups = [plain[i].group for i in chosen]
            found = pairwise_accuracy(rewards[:, chosen], ranks, groups)
            row[part] = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}], {found.pairs}"
        longer = pairwise_accuracy(lengths(plain)[chosen], ranks).value
        rows[criterion] = row | {"all: longer, shorter wins": f"{longer:.2f}, {1 - longer:.2f}"}
    table = pd.DataFrame.from_dict(rows, orient="index")
    print(f"| criterion | {' | '.join(table.columns)} |\n|{' --- |' * (len(table.columns) + 1)}")
    for name, row in table.iterrows():
        print(f"| {name} | {' | '.join(row)} |")
    print(flush=True)


def centred(values: torch.Tensor) -> torch.Tensor:
    """[..., N, K] → [..., N · K], less the mean of its prompt."""
    return (values - values.mean(-1, keepdim=True)).flatten(-2)


def main() -> None:
    """Compute features, train the heads, print the tables."""
    prompts, adversarial = load_graded_answers(), load_preferences("adversarial")
    everything = [p.preference for p in prompts]
    model = RewardModel(load_backbone("smollm2-135m"), trainable="head")
    began, cpu = time.perf_counter(), time.process_time()
    all_features = features(model, everything).numpy()
    took = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"features of {all_features.shape[0] * 4} answers: {took[0]:.0f} s, {took[1]:.0f} s of CPU "
        "(a few where the store had them)\n"
    )
    tricky = features(model, adversarial).numpy()
    inside = [i for i, p in enumerate(prompts) if p.domain != SPILLOVER]
    outside = [i for i, p in enumerate(prompts) if p.domain == SPILLOVER]
    training, advice = [prompts[i] for i in inside], [everything[i] for i in outside]
    x, plain = all_features[inside], [everything[i] for i in inside]
    said = [ANNOTATOR.judge(graded_pairs(prompts), seed) for seed in range(SEEDS)]
    all_wins = [as_wins(judged, prompts) for judged in said]
    wins = [w[inside] for w in all_wins]
    held, (of_advice, of_tricky), accuracies, ridges = out_of_fold(x, plain, wins, [all_features[outside], tricky])
    held_all, _, _, _ = out_of_fold(all_features, everything, all_wins, [])

    ceiling = ceilings(ANNOTATOR.probabilities(graded_pairs(training)))
    per_seed = []
    for seed, rewards in enumerate(held):
        judged = [j for j in said[seed] if j.domain != SPILLOVER]
        ranks, groups = ranks_tensor(judged), [j.group for j in judged]
        of_pairs = rewards_of(judged, training, rewards)
        per_seed.append([m(of_pairs, ranks, groups) for m in (pairwise_accuracy, nll, brier, calibration_error)])
    as_judged, losses, briers, calibrations = zip(*per_seed, strict=True)
    ranks, groups = ranks_tensor(plain), [p.group for p in plain]
    seen = of_advice.reshape(SEEDS, FOLDS, *of_advice.shape[1:]).mean(1)  # the heads of a seed, averaged
    quality, owners = utilities(training), [p.group for p in plain for _ in range(4)]
    panel = panel_ratings(quality).double().mean(-1)
    held_out = np.mean([a.value for a in as_judged])
    rows = {
        "training pairs, as judged": f"{np.mean(accuracies):.3f} (heads: {min(accuracies):.3f} to {max(accuracies):.3f})",
        "held-out pairs, as judged": over_seeds(as_judged),
        "ceiling of that": f"{ceiling.accuracy:.3f}",
        "training minus held-out": f"{np.mean(accuracies) - held_out:.3f}",
        "held-out NLL": f"{over_seeds(losses)}; floor {ceiling.nll:.3f}, one half to all {np.log(2):.3f}",
        "held-out Brier score": f"{over_seeds(briers)}; floor {ceiling.brier:.3f}, one half to all 0.25",
        "calibration error": over_seeds(calibrations)
        + f"; by chance up to {np.mean([c.by_chance for c in calibrations]):.3f}",
        "held-out pairs, true order": pairwise_accuracy(held, ranks, groups),
        "advice, true order": pairwise_accuracy(of_advice, ranks_tensor(advice), [p.group for p in advice]),
        "spillover gap": spillover_gap((held, plain), (of_advice, advice)),
        "what training on advice too would add there": accuracy_difference(
            held_all[:, outside], seen, ranks_tensor(advice), [p.group for p in advice]
        ),
        "Spearman with utility, centred by prompt": rank_correlation(centred(held), centred(quality), owners),
        "Kendall with utility, centred by prompt": rank_correlation(centred(held), centred(quality), owners, "kendall"),
        "Spearman with a panel of five, centred by prompt": rank_correlation(centred(held), centred(panel), owners),
        "spread of rewards inside a prompt; pairs above 99 %": "{spread:.2f}; {saturated:.1%}".format(
            **reward_summary(held[0], plain)
        ),
        "ridges chosen (inverse): heads": ", ".join(f"{c:g}: {n}" for c, n in sorted(Counter(ridges).items())),
    }
    print("| measured | value |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    print()
    show(accuracy_table(held, plain))
    show(accuracy_table(of_advice, advice).drop("all"))
    show(accuracy_table(of_tricky, adversarial))
    what_it_sees(x, training)


def over_seeds(found: tuple) -> str:
    """The mean of an estimate over seeds, its smallest and largest value, and the mean interval."""
    values, low, high = ([getattr(one, end) for one in found] for end in ("value", "low", "high"))
    return (
        f"{np.mean(values):.3f} [{np.mean(low):.3f}, {np.mean(high):.3f}], seeds {min(values):.3f} to {max(values):.3f}"
    )


if __name__ == "__main__":
    main()
