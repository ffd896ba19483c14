"""Protects: data/overfitting.json, which notebook 05 reads, is what its script makes, of the answers as they are, and whole."""

import json

import pytest
import torch

from tests.benchmarks import overfitting
from tests.benchmarks.graded_answers import FIRST, SECOND, as_wins

MEASURED = json.loads(overfitting.FILE.read_text())
PROMPTS = overfitting.the_prompts()


def test_it_is_of_these_answers():
    """Rewards are stored by the order of the answers: with other answers the script has to run again."""
    assert MEASURED["backbone"] == overfitting.BACKBONE
    assert MEASURED["data"] == overfitting.data_hash()


def test_nothing_is_missing():
    assert overfitting.missing(MEASURED["runs"]) == []
    designs = {"plain", "reworded", "reworded and varied", "reworded and varied, judged anew", "three judgements"}
    wanted = {f"{design}, {ridge}" for design in designs for ridge in ("hardly a ridge", "ridge chosen")}
    assert set(MEASURED["heads"]) == wanted | {f"{layers} layers" for layers in overfitting.LAYERS}


@pytest.mark.parametrize("name", MEASURED["heads"])
def test_heads_rank_unseen_answers_better_than_chance(name):
    """Finite rewards of every answer, of every seed, that agree with the judgements of its seed."""
    rewards = torch.tensor(MEASURED["heads"][name])
    assert rewards.shape == (overfitting.SEEDS, len(PROMPTS), 4) and torch.isfinite(rewards).all()
    for seed, one in enumerate(rewards):
        wins = torch.tensor(as_wins(overfitting.judgements(PROMPTS, seed), PROMPTS))
        assert 0.54 < ((one[:, FIRST] - one[:, SECOND]).sign() == wins).double().mean() < 0.71


def test_folds_hold_out_whole_topics():
    for _, held, pairs in overfitting.training_sets(PROMPTS):
        assert len(set(pairs.tolist())) == overfitting.PAIRS
        assert not {PROMPTS[i].group for i in held} & {PROMPTS[p // 6].group for p in pairs}


@pytest.mark.parametrize(
    "run", MEASURED["runs"], ids=lambda run: f"{run['trainable']}-{run['weight_decay']}-{run['seed']}"
)
def test_runs_learn_their_training_prompts(run):
    """Of the prompts of the seed, no topic on both sides; and training accuracy rises by ten points or more."""
    assert (run["train"], run["held_out"]) == overfitting.halves(PROMPTS, run["seed"])
    assert not {PROMPTS[i].group for i in run["train"]} & {PROMPTS[i].group for i in run["held_out"]}
    rewards = torch.tensor(run["rewards"])
    assert rewards.shape[1:] == (80, 4) and torch.isfinite(rewards).all()
    wins = torch.tensor(as_wins(overfitting.judgements(PROMPTS, run["seed"]), PROMPTS))[run["train"]]
    right = ((rewards[:, :40, FIRST] - rewards[:, :40, SECOND]).sign() == wins).double().mean((1, 2))
    assert right[-1] > right[0] + 0.1
