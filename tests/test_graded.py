"""Protects: graded answers are read as the rubric means them, and a row that breaks it is named."""

import json

import pytest
import torch

from rmkit import (
    Annotator,
    GradedAnswer,
    Preference,
    PreferenceError,
    graded_pairs,
    load_graded_answers,
    pairwise_accuracy,
)
from rmkit.batching import ranks_tensor
from rmkit.graded import WEIGHTS, GradedPrompt, ignoring, paraphrased, rewards_of, utilities


def answer(text: str, **lost: int) -> dict:
    grades = dict.fromkeys(WEIGHTS, 2) | lost
    utility = sum(WEIGHTS[criterion] * grade for criterion, grade in grades.items())
    return {"text": text, "grades": grades, "utility": utility, "reason": dict.fromkeys(lost, "because")}


def row(**other) -> dict:
    answers = [answer("bad", correct=0), answer("good"), answer("rude", civil=1), answer("also good")]
    return {"prompt": "Why?", "domain": "d", "kind": "k", "group": "g", "answers": answers} | other


@pytest.fixture
def write(tmp_path):
    def _write(*rows) -> str:
        path = tmp_path / "graded.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
        return str(path)

    return _write


def test_weights_make_ten():
    assert 2 * sum(WEIGHTS.values()) == 10
    assert GradedAnswer("", dict.fromkeys(WEIGHTS, 2), {}).utility == 10


def test_answers_become_a_ranking_with_ties(write):
    (prompt,) = load_graded_answers(write(row()))
    assert prompt.preference.completions == ("good", "also good", "rude", "bad")
    assert prompt.preference.ranks == (0, 0, 1, 2)
    assert (prompt.preference.domain, prompt.preference.group) == ("d", "g")
    assert utilities([prompt]).tolist() == [[10, 10, 9.5, 5]]
    assert len(graded_pairs([prompt])) == 6


def test_utilities_preferences_and_rewards_are_in_one_order(write):
    """So that an oracle that gives every answer its utility ranks all pairs right, and its judgements find their rewards."""
    prompts = load_graded_answers(write(row(), row(prompt="How?", group="h")))
    preferences, quality = [p.preference for p in prompts], utilities(prompts)
    assert pairwise_accuracy(quality, ranks_tensor(preferences)).value == 1
    for prompt, preference, values in zip(prompts, preferences, quality.tolist(), strict=True):
        by_text = {a.text: a.utility for a in prompt.answers}
        assert [by_text[text] for text in preference.completions] == values
    judged = Annotator(temperature=1e-3).judge(graded_pairs(prompts))
    rewards = rewards_of(judged, prompts, torch.stack([quality, -quality]))
    assert rewards.shape == (2, 12, 2) and (rewards[0, :, 0] >= rewards[0, :, 1]).all()
    assert torch.equal(rewards[1], -rewards[0])
    with pytest.raises(KeyError):
        rewards_of([Preference("Why?", ("good", "unheard of"))], prompts, quality)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"prompt": ""}, "prompt: is empty"),
        ({"group": None}, "group: is null, not a text"),
        ({"answers": [answer("alone")]}, "answers: is no list of two or more"),
        ({"answers": ["a", answer("b")]}, r"answers\[0\]: is text, not an object"),
        ({"answers": [answer(" "), answer("b")]}, r"answers\[0\].text: is no text"),
        (
            {"answers": [answer("a") | {"grades": {"correct": 2}}, answer("b")]},
            r"answers\[0\].grades: wants a grade for",
        ),
        ({"answers": [answer("a"), answer("b", clear=3)]}, r"answers\[1\].grades.clear: is 3, not 0, 1 or 2"),
        ({"answers": [answer("a"), answer("b", clear=True)]}, r"answers\[1\].grades.clear: is True, not"),
        (
            {"answers": [answer("a"), answer("b", clear=1) | {"reason": {}}]},
            r"answers\[1\].reason: wants one for .*clear",
        ),
        (
            {"answers": [answer("a"), answer("b") | {"utility": 9}]},
            r"answers\[1\].utility: is 9, but the grades make 10.0",
        ),
    ],
)
def test_broken_row_is_named(write, broken, told):
    with pytest.raises(PreferenceError, match=r"graded.jsonl:2: " + told) as caught:
        load_graded_answers(write(row(), row(**broken)))
    assert len(caught.value.usable) == 1


def test_missing_and_empty_file(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere.jsonl"):
        load_graded_answers(tmp_path / "nowhere.jsonl")
    with pytest.raises(PreferenceError, match="has no rows"):
        load_graded_answers(write())


def test_paraphrases_keep_grades_and_group(tmp_path):
    prompts = [
        GradedPrompt(text, tuple(GradedAnswer(f"{text}{i}", {**dict.fromkeys(WEIGHTS, 2)}, {}) for i in range(2)), "d", "k", text)
        for text in ("one", "two")
    ]  # fmt: skip
    path = tmp_path / "paraphrases.jsonl"
    path.write_text(json.dumps({"prompt": "one", "rewordings": ["eins", "uno"], "variations": ["x", "y"]}), "utf-8")
    first, second = paraphrased(prompts, path)
    assert (first.prompt, second.prompt) == ("eins", "uno") and first.group == second.group == "one"
    assert [a.text for a in first.answers] == ["one0", "one1"] and [a.text for a in second.answers] == ["x", "y"]
    assert second.answers[0].grades == prompts[0].answers[0].grades


def test_what_is_not_checked_is_the_same_for_all_answers():
    """And nothing else changes, so that what a hurried annotator sees differs by the other criteria alone."""
    prompts = load_graded_answers()[:20]
    hurried = ignoring(prompts, "correct")
    for before, after in zip(prompts, hurried, strict=True):
        assert [a.text for a in after.answers] == [a.text for a in before.answers]
        for old, new in zip(before.answers, after.answers, strict=True):
            assert new.utility == old.utility - WEIGHTS["correct"] * (old.grades["correct"] - 1)
    assert prompts == load_graded_answers()[:20], "the prompts themselves were changed"


def test_a_criterion_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="criterion is one of correct, relevant, complete, clear, civil: got 'truth'"):
        ignoring(load_graded_answers()[:1], "truth")
