"""Protects: data/ties.json, which notebook 04 reads, is what its script makes, of the answers as they are, and whole."""

import json

import pytest
import torch

from tests.benchmarks import ties
from tests.benchmarks.graded_answers import FIRST, SECOND
from tests.benchmarks.overfitting import data_hash

MEASURED = json.loads(ties.FILE.read_text())
TRUTH = torch.tensor(MEASURED["truth"], dtype=torch.float64)
LEADS = TRUTH[:, FIRST] - TRUTH[:, SECOND]
PROMPTS = ties.the_prompts()


def test_it_is_of_these_answers():
    """Rewards are stored by the order of the answers: with other answers the script has to run again."""
    assert MEASURED["backbone"] == ties.BACKBONE
    assert MEASURED["data"] == data_hash()


def test_nothing_is_missing():
    assert ties.missing(MEASURED["runs"]) == []


def test_truth_has_the_spread_of_a_reward_and_the_share_of_ties():
    assert TRUTH.shape == (len(PROMPTS), 4)
    assert LEADS.square().mean().sqrt().item() == pytest.approx(ties.SPREAD, abs=1e-3)
    said = torch.stack([ties.judgements(TRUTH, seed) for seed in range(ties.SEEDS)])
    assert (said == 2).double().mean().item() == pytest.approx(ties.TIES, abs=0.03)
    agreed = ((said == 0) == (LEADS > 0))[said != 2].double().mean()
    assert 0.65 < agreed < 0.85  # of decided judgements with the truth


def test_judgements_and_parts_are_drawn_again_alike():
    assert MEASURED["seeds"] == ties.drawn(TRUTH)
    for seed in range(ties.SEEDS):
        topics = [{PROMPTS[i].group for i in part} for part in ties.parts(PROMPTS, seed)]
        assert sum(map(len, topics)) == len(set().union(*topics))  # none in two parts


@pytest.mark.parametrize("run", MEASURED["runs"], ids=lambda run: f"{run['treatment']}-{run['seed']}")
def test_runs_rank_unseen_pairs_better_than_chance(run):
    """Finite rewards of all answers of validation and test; a tie rate where there is one to learn."""
    drawn = MEASURED["seeds"][run["seed"]]
    rewards = torch.tensor(run["rewards"])
    assert rewards.shape == (len(drawn["validation"]) + len(drawn["test"]), 4) and torch.isfinite(rewards).all()
    ours, truth = (rewards[:, FIRST] - rewards[:, SECOND])[-len(drawn["test"]) :], LEADS[drawn["test"]]
    assert (ours.sign() == truth.sign()).double().mean() > 0.6
    assert (run["tie_rate"] is not None) == (run["treatment"] == "Rao–Kupper")
    assert run["tie_rate"] is None or 0.2 < run["tie_rate"] < 0.6
