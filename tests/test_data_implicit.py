"""Protects: data/implicit.json, which notebook 06 reads, is what its script makes, of the answers as they are, and whole."""

import json

import pytest
import torch

from rmkit import pairwise_accuracy
from rmkit.batching import ranks_tensor
from tests.benchmarks import implicit
from tests.benchmarks.overfitting import data_hash

MEASURED = json.loads(implicit.FILE.read_text())
RUNS = {(run["data"], run["model"], run["seed"]): run for run in MEASURED["runs"]}


def test_it_is_of_these_answers():
    """What was measured is stored by the order of the answers: with other answers the script has to run again."""
    assert MEASURED["backbone"] == implicit.BACKBONE
    assert MEASURED["graded_answers"] == data_hash()
    assert MEASURED["configs"] == implicit.settings()


def test_nothing_is_missing():
    assert implicit.missing(MEASURED["runs"]) == []


@pytest.mark.parametrize("data", implicit.CONFIGS)
@pytest.mark.parametrize("seed", range(implicit.SEEDS))
def test_parts_share_no_topic(data, seed):
    train, others = implicit.parts(data, seed)
    topics = [{p.group for p in part} for part in (train, *others.values())]
    assert sum(map(len, topics)) == len(set().union(*topics))


@pytest.mark.parametrize(("data", "model", "seed"), RUNS, ids=str)
def test_runs_rank_unseen_pairs_better_than_chance(data, model, seed):
    """Finite numbers for every answer, of the shape of their preferences."""
    run = RUNS[data, model, seed]
    _, others = implicit.parts(data, seed)
    right = []
    for part, preferences in others.items():
        if part == "validation":
            assert part not in run
            continue
        found, ranks = implicit.read(run[part]), ranks_tensor(preferences)
        if model == "explicit":
            rewards = found
        else:
            rewards = found.rewards()
            assert found.policy.shape == found.reference.shape == found.tokens.shape == ranks.shape
            assert (found.policy < 0).all() and (found.reference < 0).all() and (found.tokens > 0).all()
            assert found.prompt_policy.shape == found.prompt_tokens.shape == ranks.shape[:1]
        assert rewards.shape == ranks.shape and torch.isfinite(rewards).all()
        right.append(pairwise_accuracy(rewards, ranks).value)
    assert right[0] > (0.95 if data == "json_vs_text" else 0.55)


def test_the_reference_is_the_same_model_in_every_run():
    """Up to rounding, whatever was trained and at whatever β: on JSON for every seed, on graded answers for every β."""
    same = [("json_vs_text", "β = 0.1", seed) for seed in range(implicit.SEEDS)]
    also = [("graded_answers", name, 0) for name in ("β = 0.1", *implicit.OTHERS)]
    for runs in (same, also):
        first, *others = [implicit.read(RUNS[run]["held out"]).reference for run in runs]
        assert len(others) == 2
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=2e-3)
