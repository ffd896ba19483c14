"""Protects: data/freezing.json, which notebook 01 reads, is what its script makes, and whole."""

import json

import pytest
import torch

from rmkit import load_graded_answers, pairwise_accuracy
from rmkit.batching import ranks_tensor
from tests.benchmarks import freezing

MEASURED = json.loads(freezing.FILE.read_text())
RUNS = MEASURED["runs"]
PREFERENCES = {p.prompt: p.preference for p in load_graded_answers()}


def test_nothing_is_missing():
    """Every design with every seed, once, on the backbone of the script."""
    assert MEASURED["backbone"] == freezing.BACKBONE
    assert list(freezing.missing(RUNS)) == []
    assert len(RUNS) == len({(run["trainable"], run["seed"]) for run in RUNS})


@pytest.mark.parametrize("seed", range(freezing.SEEDS))
def test_held_out_prompts_are_those_of_the_seed(seed):
    """And no group of theirs was trained on, or chose the epoch."""
    train, validation, held_out = freezing.halves(seed)
    assert not {p.group for p in train + validation} & {p.group for p in held_out}
    for run in RUNS:
        if run["seed"] == seed:
            assert run["prompts"] == [p.prompt for p in held_out]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['trainable']}-{run['seed']}")
def test_rewards_are_those_that_were_measured(run):
    """The accuracy that the run wrote down, from the rewards that it wrote down, with the setting of the script."""
    rewards = torch.tensor(run["rewards"])
    ranks = ranks_tensor([PREFERENCES[text] for text in run["prompts"]])
    assert torch.isfinite(rewards).all()
    assert pairwise_accuracy(rewards, ranks).value == pytest.approx(run["held_out_accuracy"], abs=0.005)
    assert (run["learning_rate"], run["epochs"]) == freezing.SETTINGS[run["trainable"]]
    assert 0 <= run["best_step"] <= run["steps"]
