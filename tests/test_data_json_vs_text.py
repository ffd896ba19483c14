"""data/json_vs_text.jsonl keeps the promises of its datasheet, and the datasheet its numbers."""

import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
COLUMNS = ["prompt", "chosen", "rejected", "domain", "group", "shape", "style"]
ROW = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
MOST_TOKENS = 60


@pytest.fixture(scope="module")
def maker():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DATA)
        return importlib.import_module("make_json_vs_text")


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (DATA / "json_vs_text.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def count_tokens(smollm2):
    def count(text):
        return len(smollm2.tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def facts_of(row):
    """{key: value} that the chosen answer states, whatever its shape; the topic is checked on the way."""
    answer = json.loads(row["chosen"])
    match row["shape"]:
        case "nested":
            assert list(answer) == [row["group"]]
            return answer[row["group"]]
        case "topic_facts":
            assert answer["topic"] == row["group"]
            return answer["facts"]
        case "pairs":
            return dict(answer)
        case "records":
            return {record["attribute"]: record["value"] for record in answer}
        case "columns":
            return dict(zip(answer["columns"], answer["values"], strict=True))
        case _:
            return answer


def says(text, value):
    """Whether the value stands in the text as words of its own."""
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text) is not None


def assert_balanced(rows, length):
    """Neither "longer is chosen" nor "shorter is chosen" is right for more than 60 % of the pairs."""
    pairs = [(length(row["chosen"]), length(row["rejected"])) for row in rows]
    assert sum(chosen > rejected for chosen, rejected in pairs) <= 0.6 * len(pairs)
    assert sum(chosen < rejected for chosen, rejected in pairs) <= 0.6 * len(pairs)


# --- the file -------------------------------------------------------------------------------------------


def test_file_is_what_the_script_makes(tmp_path):
    """Protects: anybody gets the same bytes, from any folder, in a process of their own."""
    script = [sys.executable, str(DATA / "make_json_vs_text.py"), "--check"]
    run = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("content", [None, b'{"prompt": "Tell me about tea."}\n'], ids=["missing", "changed"])
def test_check_notices_another_file(maker, monkeypatch, tmp_path, content):
    """Protects: --check fails when the file is missing or somebody edited it."""
    path = tmp_path / "json_vs_text.jsonl"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(maker, "PATH", path)
    monkeypatch.setattr(sys, "argv", ["make_json_vs_text.py", "--check"])
    with pytest.raises(SystemExit, match="run the script without --check"):
        maker.main()


def test_file_is_plain(rows):
    """Protects: readers on every platform: ASCII, "\\n" line ends, the columns in their order, all of them text."""
    content = (DATA / "json_vs_text.jsonl").read_bytes()
    assert content.isascii()
    assert b"\r" not in content
    assert content.endswith(b"}\n")
    for row in rows:
        assert list(row) == COLUMNS
        assert all(isinstance(cell, str) and cell.strip() == cell != "" for cell in row.values())


def test_split_by_group_is_exact(rows):
    """Protects: 80/20 by topic inside every domain is 400/100, and the first 400 rows are such a split."""
    assert len(rows) == 500
    assert set(Counter(row["group"] for row in rows).values()) == {4}
    topics = {(row["domain"], row["group"]) for row in rows}
    assert len(topics) == 125, "a topic stands in two domains"
    assert sorted(Counter(domain for domain, _ in topics).values()) == [25] * 5
    first = {(row["domain"], row["group"]) for row in rows[:400]}
    assert sorted(Counter(domain for domain, _ in first).values()) == [20] * 5


# --- the pairs ------------------------------------------------------------------------------------------


def test_only_the_chosen_answer_is_json(rows):
    """Protects: the one difference that the preference is about, which the first character already shows."""
    for row in rows:
        assert isinstance(json.loads(row["chosen"]), (dict, list))
        assert row["rejected"][0] not in "{["
        with pytest.raises(json.JSONDecodeError):
            json.loads(row["rejected"])


def test_both_answers_say_the_same(rows, maker):
    """Protects: content cannot decide: both answers hold the same 2 or 3 facts of the topic, and no other."""
    topics = {
        domain: {maker.bare(name): facts for name, facts in topics.items()}
        for domain, topics in maker.read_topics().items()
    }
    for row in rows:
        known = {key: value for key, _, _, value in topics[row["domain"]][row["group"]]}
        stated = facts_of(row)
        assert stated.items() <= known.items()
        assert len(stated) in (2, 3)
        for key, value in known.items():
            assert says(row["rejected"], value) == (key in stated), (row, key)


def test_shape_is_as_labelled(rows):
    """Protects: the column `shape`: how each answer is laid out (facts_of checks what it holds)."""
    layouts = {"indented": {"indent": 4}, "compact": {"separators": (",", ":")}}
    for row in rows:
        assert row["chosen"] == json.dumps(json.loads(row["chosen"]), **layouts.get(row["shape"], {}))
        assert all(not isinstance(value, (dict, list)) for value in facts_of(row).values())


def test_prompts_are_distinct_and_neutral(rows):
    """Protects: no request occurs twice, and none asks for a format."""
    prompts = [row["prompt"] for row in rows]
    assert len(set(prompts)) == len(prompts)
    hint = re.compile(r"json|format|list|table|field|bullet|sentence|word|text|structur|brief|short|detail", re.I)
    assert not [prompt for prompt in prompts if hint.search(prompt)]
    for row in rows:
        assert says(row["prompt"], row["group"])


def test_two_topics_in_one_out(rows):
    """Protects: the demonstrations that ask about Kubernetes and green tea; Kafka stays unseen for them."""
    groups = {row["group"] for row in rows}
    assert {"Kubernetes", "green tea"} <= groups
    for path in DATA.glob("*json_vs_text*"):
        assert "kafka" not in path.read_text("utf-8").lower()


def test_articles_agree(rows):
    """Protects: the reader's ear: "an ice giant", "a unit", never "a animal" or "the the"."""
    for row in rows:
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeio]|\b(\w+) \1\b", row["rejected"] + "|" + row["prompt"])


# --- the balance ----------------------------------------------------------------------------------------


def test_forms_are_used_equally(rows, maker):
    """Protects: no shape, style or ask stands for a domain, or for another shape, style or ask."""
    forms = [{"shape": row["shape"], "style": row["style"], "ask": maker.ask_of(row)} for row in rows]
    kinds = {"shape": maker.SHAPES, "style": maker.STYLES, "ask": maker.ASKS}
    assert [len(names) for names in kinds.values()] == [8, 8, 16]
    for kind, names in kinds.items():
        for domain in maker.TOPICS:
            used = Counter(form[kind] for form, row in zip(forms, rows, strict=True) if row["domain"] == domain)
            assert set(used) == set(names)
            assert max(used.values()) - min(used.values()) <= 1
    for one, other in combinations(kinds, 2):
        pairs = Counter((form[one], form[other]) for form in forms)
        assert max(pairs.values()) <= 2.5 * len(rows) / (len(kinds[one]) * len(kinds[other]))


def test_no_topic_repeats_a_form(rows):
    """Protects: the four pairs of a topic differ in shape, in style and in ask."""
    for start in range(0, len(rows), 4):
        four = rows[start : start + 4]
        assert len({row["group"] for row in four}) == 1
        for column in ("shape", "style", "prompt"):
            assert len({row[column] for row in four}) == 4


def test_length_in_characters_does_not_decide(rows, maker):
    """Protects: a model that only measures characters stays near chance, in every domain."""
    assert_balanced(rows, len)
    for domain in maker.TOPICS:
        assert_balanced([row for row in rows if row["domain"] == domain], len)


def test_length_in_tokens_does_not_decide(rows, maker, count_tokens):
    """Protects: a model that only counts tokens stays near chance, in every domain."""
    assert_balanced(rows, count_tokens)
    for domain in maker.TOPICS:
        assert_balanced([row for row in rows if row["domain"] == domain], count_tokens)


def test_rows_are_short(rows, count_tokens):
    """Protects: the time that a training run takes on two slow cores."""
    for row in rows:
        for answer in (row["chosen"], row["rejected"]):
            assert count_tokens(ROW.format(row["prompt"], answer)) <= MOST_TOKENS


# --- the datasheet --------------------------------------------------------------------------------------


def test_datasheet_tables_are_current(rows, maker):
    """Protects: the numbers of data/README.md that need no tokenizer."""
    assert maker.describe(rows) in (DATA / "README.md").read_text("utf-8")


def test_datasheet_token_table_is_current(rows, maker, count_tokens):
    """Protects: the numbers of data/README.md that come from the tokenizer; with `-s` it prints them."""
    lengths = [count_tokens(ROW.format(row["prompt"], row[side])) for row in rows for side in ("chosen", "rejected")]
    table = maker.balance_table(rows, count_tokens, "SmolLM2 tokens")
    summary = f"whole rows have {sum(lengths) / len(lengths):.0f} tokens on average and at most {max(lengths)}."
    print(f"\n{table}\n\n{summary}")
    readme = (DATA / "README.md").read_text("utf-8")
    assert table in readme
    assert summary in readme
