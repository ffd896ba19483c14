"""Protects: the grades of data/graded_answers.jsonl are true where a machine can tell, and length does not give them away."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from rmkit import load_graded_answers, load_preferences, split_preferences
from rmkit.graded import SPILLOVER, WEIGHTS, paraphrased, utilities
from rmkit.preferences import DATA
from tests.code_answers import code_of, passed

ROWS = [json.loads(line) for line in (DATA / "graded_answers.jsonl").read_text("utf-8").splitlines()]
PARAPHRASES = [json.loads(line) for line in (DATA / "paraphrases.jsonl").read_text("utf-8").splitlines()]
ADVERSARIAL = [json.loads(line) for line in (DATA / "adversarial.jsonl").read_text("utf-8").splitlines()]
VARIATIONS = {row["prompt"]: row["variations"] for row in PARAPHRASES}
DOMAINS = {"coding": 60, "writing": 40, "question_answering": 60, "advice": 40}
KINDS = (
    "confident_falsehood", "padding", "keyword_stuffing", "flattery", "formatting", "repetition", "needless_refusal",
    "grader_instructions",
)  # fmt: skip
CODING = [row for row in ROWS if row["domain"] == "coding"]
QUESTIONS = [row for row in ROWS if row["domain"] == "question_answering"]


def rows_of(domain: str) -> list[dict]:
    return ROWS if domain == "all" else [row for row in ROWS if row["domain"] == domain]


def grams(text: str) -> set[tuple[str, ...]]:
    """Its 5-grams of words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_sizes():
    assert Counter(row["domain"] for row in ROWS) == DOMAINS
    assert all(len(row["answers"]) == 4 for row in ROWS)
    words = [len(answer["text"].split()) for row in ROWS for answer in row["answers"]]
    assert min(words) >= 8 and max(words) <= 60
    assert len({row["prompt"].casefold() for row in ROWS}) == len(ROWS)


def test_grades_reasons_and_utilities_keep_the_rubric():
    """`load_graded_answers` checks all three; here, that every reason says something."""
    prompts = load_graded_answers()
    assert len(prompts) == len(ROWS)
    reasons = [reason for p in prompts for a in p.answers for reason in a.reason.values()]
    assert all(3 <= len(reason.split()) <= 30 for reason in reasons)
    assert len(set(reasons)) > 0.9 * len(reasons)  # each for its answer, not from a list
    for criterion in WEIGHTS:
        counts = Counter(a.grades[criterion] for p in prompts for a in p.answers)
        assert min(counts[0], counts[1]) >= 20, criterion


@pytest.mark.skipif(sys.platform == "win32", reason="the time limit is a signal that Windows does not have")
@pytest.mark.parametrize("row", CODING, ids=[row["group"] for row in CODING])
def test_code_answers_earn_their_grade(row):
    """2 passes every assert, 1 some, 0 none, without a code fence too; the light variations alike."""
    for place, answer in enumerate(row["answers"]):
        for text in (answer["text"], VARIATIONS[row["prompt"]][place]):
            results = passed(text, row["tests"])
            grade = 2 if all(results) else int(any(results))
            assert grade == answer["grades"]["correct"], (place, text, results)


def test_asserts_can_fail_and_hang_without_harm():
    tests = ["assert f(1) == 1", "assert f(2) == 2"]
    assert passed("def f(x):\n    return x", tests) == [True, True]
    assert passed("Try this:\n```python\ndef f(x):\n    return 1\n```\nDone.", tests) == [True, False]
    assert passed("```\ndef f(x):\n    while x > 1: pass\n    return x\n```", tests) == [True, False]
    assert passed("```\nimport os\nos._exit(0)\n```", tests) == [False, False]
    assert passed("I would rather not say.", tests) == [False, False] and code_of("Not code at all, sorry.") is None


@pytest.mark.parametrize("row", QUESTIONS, ids=[row["group"] for row in QUESTIONS])
def test_right_answers_stand_in_right_answers_only(row):
    """And in their variations."""
    for place, answer in enumerate(row["answers"]):
        for text in (answer["text"], VARIATIONS[row["prompt"]][place]):
            found = any(right.lower() in text.lower() for right in row["right_answer"])
            assert found == (answer["grades"]["correct"] >= 1), (place, text)


@pytest.mark.parametrize("row", [row for row in QUESTIONS if row["kind"] == "arithmetic"], ids=lambda row: row["group"])
def test_arithmetic_is_right(row):
    """The expression, recomputed, is one of the right answers, to the digits that they give."""
    tree = ast.parse(row["expression"], mode="eval")
    allowed = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
    assert all(isinstance(node, allowed) for node in ast.walk(tree))
    value = eval(compile(tree, "expression", "eval"))
    numbers = [n.replace(",", "") for right in row["right_answer"] for n in re.findall(r"\d[\d,]*\.?\d*", right)[:1]]
    assert any(round(value, len(number.partition(".")[2])) == float(number.rstrip(".")) for number in numbers), value


@pytest.mark.parametrize("measure", ["characters", "words"])
@pytest.mark.parametrize("domain", [*DOMAINS, "all"])
def test_length_does_not_tell_quality(domain, measure):
    """Not across prompts, nor inside them, nor as a rule for pairs."""
    size = len if measure == "characters" else (lambda text: len(text.split()))
    rows = rows_of(domain)
    sizes = np.array([[size(answer["text"]) for answer in row["answers"]] for row in rows])
    quality = np.array([[answer["utility"] for answer in row["answers"]] for row in rows])
    assert abs(stats.spearmanr(sizes.ravel(), quality.ravel()).statistic) <= 0.1
    inside = [
        stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0 for a, b in zip(sizes, quality, strict=True)
    ]
    assert abs(np.mean(inside)) <= 0.1
    first, second = np.array(list(combinations(range(4), 2))).T
    wins = np.sign(sizes[:, first] - sizes[:, second]) * np.sign(quality[:, first] - quality[:, second])
    decisive = quality[:, first] != quality[:, second]
    assert 0.45 <= (wins[decisive] + 1).mean() / 2 <= 0.55


@pytest.mark.parametrize("domain", [*DOMAINS, "all"])
def test_a_fifth_to_a_third_of_the_pairs_are_ties(domain):
    quality = utilities([p for p in load_graded_answers() if domain in (p.domain, "all")]).numpy()
    first, second = np.array(list(combinations(range(4), 2))).T
    assert 0.20 <= (quality[:, first] == quality[:, second]).mean() <= 0.30


def test_place_in_the_list_does_not_tell_quality():
    mean = np.mean([[answer["utility"] for answer in row["answers"]] for row in ROWS], 0)
    assert mean.max() - mean.min() < 0.5


def test_answers_are_not_made_from_one_another():
    """No two outside coding share more than half of their 5-grams, and openings differ."""
    answers = [grams(a["text"]) for row in ROWS if row["domain"] != "coding" for a in row["answers"]]
    for one, other in combinations(filter(None, answers), 2):
        assert len(one & other) <= min(len(one), len(other)) / 2
    openings = Counter(" ".join(a["text"].lower().split()[:3]) for row in ROWS for a in row["answers"])
    assert all(n <= 4 for opening, n in openings.items() if not opening.startswith(("```", "def ", "from ", "import ")))


def test_groups_keep_to_a_domain_and_split():
    domains = defaultdict(set)
    for row in ROWS:
        domains[row["group"]].add(row["domain"])
    assert all(len(found) == 1 for found in domains.values())
    prompts = [p.preference for p in load_graded_answers() if p.domain != SPILLOVER]
    train, validation = split_preferences(prompts)
    assert (len(train), len(validation)) == (128, 32)  # as the datasheet says


def test_paraphrases_are_of_the_training_prompts():
    """Two other wordings each, all different, and answers of about the original's length."""
    training = [row for row in ROWS if row["domain"] != SPILLOVER]
    assert [row["prompt"] for row in PARAPHRASES] == [row["prompt"] for row in training]
    wordings = [w for row in PARAPHRASES for w in (row["prompt"], *row["rewordings"])]
    assert len(set(map(str.casefold, wordings))) == 3 * len(training)
    for row, paraphrase in zip(training, PARAPHRASES, strict=True):
        assert paraphrase.keys() == {"prompt", "rewordings", "variations"}
        for answer, variation in zip(row["answers"], paraphrase["variations"], strict=True):
            words = len(answer["text"].split())
            assert variation != answer["text"] and abs(len(variation.split()) - words) <= max(3, words / 4)
    assert [p.prompt for p in paraphrased(load_graded_answers())] == [
        w for row in PARAPHRASES for w in row["rewordings"]
    ]


def test_variations_do_not_bring_length_back():
    sizes = [len(text) for row in PARAPHRASES for text in row["variations"]]
    quality = [a["utility"] for row in ROWS if row["domain"] != SPILLOVER for a in row["answers"]]
    assert abs(stats.spearmanr(sizes, quality).statistic) <= 0.1


def test_adversarial_pairs():
    """Eight kinds of twenty, each over the four topics, none of them a prompt of the graded answers."""
    assert Counter(row["domain"] for row in ADVERSARIAL) == dict.fromkeys(KINDS, 20)
    assert all(set(Counter(r["topic"] for r in ADVERSARIAL if r["domain"] == kind)) == set(DOMAINS) for kind in KINDS)
    prompts = [row["prompt"].casefold() for row in ADVERSARIAL]
    assert len(set(prompts)) == 160 and not set(prompts) & {row["prompt"].casefold() for row in ROWS}
    answers = [grams(row[side]) for row in ADVERSARIAL for side in ("chosen", "rejected")]
    for i, j in combinations(range(len(answers)), 2):
        if i // 2 != j // 2 and answers[i] and answers[j]:
            assert len(answers[i] & answers[j]) <= min(len(answers[i]), len(answers[j])) / 2
    assert len(load_preferences("adversarial")) == 160


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_answers_are_not_told_by_length_alone(kind):
    """Except for padding and repetition, which are long by nature; the datasheet has the shares."""
    longer = np.mean([len(r["rejected"]) > len(r["chosen"]) for r in ADVERSARIAL if r["domain"] == kind])
    assert longer == 1 if kind == "padding" else longer <= 0.8 if kind == "repetition" else 0.4 <= longer <= 0.65


def agreement() -> list[str]:
    """Rows of the datasheet: for each criterion, kappa of every reader of `regraded.jsonl` with the file."""
    rows = [json.loads(line) for line in (DATA / "regraded.jsonl").read_text("utf-8").splitlines()]
    stored = {row["prompt"]: row["answers"] for row in ROWS}
    table = []
    for criterion in WEIGHTS:
        cells = []
        for reader in ("1", "2", "3"):
            read = [row for row in rows if reader in row["readers"]]
            theirs = [row["readers"][reader][criterion] for row in read]
            ours = [stored[row["prompt"]][row["answer"]]["grades"][criterion] for row in read]
            kappa = cohen_kappa_score(theirs, ours, labels=[0, 1, 2], weights="quadratic")
            cells.append(f"{kappa:.2f} ({sum(a == b for a, b in zip(theirs, ours, strict=True))})")
        table.append(f"| {criterion} | {' | '.join(cells)} |")
    return table


def test_datasheet_has_the_agreement_of_the_second_readers():
    """To print the rows: pytest tests/test_data_graded_answers.py -k agreement -s"""
    print("\n" + "\n".join(agreement()))
    datasheet = (DATA / "README.md").read_text("utf-8")
    assert all(row in datasheet for row in agreement())


def test_datasheet_has_the_weights():
    datasheet = (DATA / "README.md").read_text("utf-8")
    assert all(f"| {criterion} | {weight:g} |" in datasheet for criterion, weight in WEIGHTS.items())


def test_page_of_figures_is_that_of_the_data():
    script = [sys.executable, str(DATA / "draw_graded_answers.py"), "--check"]
    run = subprocess.run(script, capture_output=True, text=True, cwd=DATA.parent)
    assert run.returncode == 0, run.stdout + run.stderr
    page = (DATA / "GRADED_ANSWERS.md").read_text("utf-8")
    for image in re.findall(r"\]\((images/[^)]+)\)", page):
        assert (DATA / image).read_bytes().startswith(b"\x89PNG")


def test_datasheet_says_what_decides_and_what_ties():
    """Where `correct` differs the utility follows it; ties between perfect answers, and between different faults."""
    pairs = [pair for row in ROWS for pair in combinations(row["answers"], 2)]
    decisive = [(a, b) for a, b in pairs if a["utility"] != b["utility"]]
    differ = [(a, b) for a, b in decisive if a["grades"]["correct"] != b["grades"]["correct"]]
    assert all((a["grades"]["correct"] > b["grades"]["correct"]) == (a["utility"] > b["utility"]) for a, b in differ)
    ties = [(a, b) for a, b in pairs if a["utility"] == b["utility"]]
    perfect, other = sum(a["utility"] == 10 for a, _ in ties), sum(a["grades"] != b["grades"] for a, b in ties)
    datasheet = (DATA / "README.md").read_text("utf-8")
    assert f"as they do in {len(differ) / len(decisive):.0%} of the decisive".replace("%", " %") in datasheet
    assert f"{perfect / len(ties):.0%} are between two perfect answers".replace("%", " %") in datasheet
    assert f"{other / len(ties):.0%} between answers with different faults".replace("%", " %") in datasheet


def test_second_readings_are_as_many_as_the_datasheet_says():
    rows = [json.loads(line) for line in (DATA / "regraded.jsonl").read_text("utf-8").splitlines()]
    stored = {row["prompt"]: row for row in ROWS}
    assert Counter(stored[row["prompt"]]["domain"] for row in rows) == dict.fromkeys(DOMAINS, 20)
    answers = [(stored[row["prompt"]]["answers"][row["answer"]], row) for row in rows]
    differ = sum(a["grades"][c] != g[c] for a, row in answers for g in row["readers"].values() for c in WEIGHTS)
    mended = sum(answer["text"] != row["text"] for answer, row in answers)
    assert (differ, mended) == (1, 2) and sum(len(row["readers"]) for row in rows) * len(WEIGHTS) == 600
