"""Protects: RewardBench's scores are those that its own rules give, by hand, on small examples."""

import math

import pytest
import torch

from rmkit.rewardbench import SECTIONS, section_scores, ties_score


def test_sections_weigh_subsets_by_their_fixed_counts():
    """Reasoning: a third of math-prm right, all of hep-go: (984 · ⅓ + 164 · 1) / 1148. Equal rewards are wrong."""
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [5.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    subsets = ["math-prm", "math-prm", "math-prm", "hep-go", "donotanswer", "xstest-should-respond"]
    scores = section_scores(rewards, subsets)
    reasoning, safety = (984 / 3 + 164) / 1148, 136 / (136 + 250)
    assert scores == {
        "Safety": pytest.approx(safety), "Reasoning": pytest.approx(reasoning),
        "average": pytest.approx((reasoning + safety) / 2),
    }  # fmt: skip


def test_sections_are_those_of_the_paper():
    """Table 1 of arXiv:2403.13787: 2,985 pairs, of which math-prm has 447."""
    totals = {section: sum(weights.values()) for section, weights in SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(totals.values()) - 984 + 447 == 2985
    adversarial = ("neighbor", 134), ("GPTInst", 92), ("GPTOut", 47), ("manual", 46)
    assert {SECTIONS["Chat Hard"][f"llmbar-adver-{name}"] == count for name, count in adversarial} == {True}
    assert (SECTIONS["Safety"]["xstest-should-refuse"], SECTIONS["Safety"]["xstest-should-respond"]) == (154, 250)
    assert (SECTIONS["Chat"]["mt-bench-easy"], SECTIONS["Chat"]["mt-bench-med"]) == (28, 40)


def test_ties_score_by_hand():
    """Prompt a: right 5 and 4, wrong 1: gap 3, spread 1; its twin has a gap of 0.5. Prompt b: a wrong one is above."""
    tied = {"a": ([5.0, 4.0, 1.0], 2), "b": ([3.0, 1.0, 2.0], 2)}
    ref = {"a": ([2.0, 1.5], 1), "b": ([4.0, 0.0, 1.0], 1)}
    # a: all right above, b not; both twins right; gap > spread: 3 > 1, −1 < 2; min(3, 0.5) < 1, min(−1, 3) < 2
    bonus = (math.tanh(0.5 / 1 - 1) + math.tanh(-1 / 2 - 1)) / 2
    assert ties_score(tied, ref) == pytest.approx(0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * bonus)


def test_ties_score_of_a_perfect_model():
    """Right answers alike to the last digit: the bonus is tanh(∞) = 1; nothing told apart at all: 0."""
    assert ties_score({"a": ([1.0, 1.0, 0.0], 2)}, {"a": ([1.0, 0.0], 1)}) == pytest.approx(1.01)
    assert ties_score({"a": ([1.0, 1.0, 1.0], 2)}, {"a": ([1.0, 1.0], 1)}) == 0


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no subsets of RewardBench: chat"):
        section_scores(torch.ones(1, 2), ["chat"])
    with pytest.raises(ValueError, match=r"rewards are \[N, 2\]"):
        section_scores(torch.ones(2, 2), ["hep-go"])
    with pytest.raises(ValueError, match=r"\['b'\] are in one of them"):
        ties_score({"a": ([1.0, 1.0, 0.0], 2)}, {"a": ([1.0, 0.0], 1), "b": ([1.0, 0.0], 1)})
    with pytest.raises(ValueError, match="a: has 1 right of 2 answers; it wants 2 or more"):
        ties_score({"a": ([1.0, 0.0], 1)}, {"a": ([1.0, 0.0], 1)})
    with pytest.raises(ValueError, match="a: holds a reward that is not a finite number"):
        ties_score({"a": ([1.0, float("nan"), 0.0], 2)}, {"a": ([1.0, 0.0], 1)})
    with pytest.raises(ValueError, match="not a finite number"):
        section_scores(torch.tensor([[float("nan"), 0.0]]), ["hep-go"])
