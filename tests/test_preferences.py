"""Protects: what is read is what the data say, in whatever form; every fault is named with its place; no split leaks."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets.packaged_modules.json.json import Json

from rmkit import Preference, PreferenceError, load_preferences, split_preferences
from rmkit.preferences import AS_TEXT
from rmkit.rows import MAX_LINE_BYTES, WANTED

GOOD = {"prompt": "What is tea?", "chosen": "A drink.", "rejected": "No idea."}
TEA = Preference("What is tea?", ("A drink.", "No idea."))
CHAT = Preference("And tea?", ("A drink.", "No idea."), history=(("user", "What is milk?"), ("assistant", "A drink.")))


def said(role, text):
    return {"role": role, "content": text}


def transcript(messages):
    return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)


def forms(preference):
    """A pair in every form that a row may have: (name, row)."""
    asked, names = preference.messages, ("chosen", "rejected")
    texts = dict(zip(names, preference.completions, strict=True))
    answers = {name: [said("assistant", text)] for name, text in texts.items()}
    wholes = {name: asked + answer for name, answer in answers.items()}
    transcripts = {name: transcript(whole) for name, whole in wholes.items()}
    worse_first = {"completions": list(texts.values())[::-1], "ranks": [7, -2]}
    return [
        ("messages", {"prompt": asked, **answers}),
        ("messages, text answers", {"prompt": asked, **texts}),
        ("messages, whole dialogues", {"prompt": asked, **wholes}),
        ("last turn, whole dialogues", {"prompt": preference.prompt, **wholes}),
        ("first turn, whole dialogues", {"prompt": asked[0]["content"], **wholes}),
        ("whole dialogues", wholes),
        ("transcripts", transcripts),
        ("transcripts without the first line break", {name: text.lstrip() for name, text in transcripts.items()}),
        ("transcript, answers", {"prompt": transcript(asked), **texts}),
        ("transcript up to the answers", {"prompt": transcript(asked) + "\n\nAssistant:"} | {n: f" {t}" for n, t in texts.items()}),
        ("transcript, whole transcripts", {"prompt": transcript(asked), **transcripts}),
        ("ranking", {"prompt": asked, **worse_first}),
        ("ranking of messages", {"prompt": asked, "completions": list(answers.values()), "ranks": [0.0, 1.0]}),
        ("ranking of dialogues", {"prompt": asked, "completions": list(wholes.values()), "ranks": [0, 1]}),
    ]  # fmt: skip


FORMS = [("text", GOOD, TEA)] + [(name, row, pair) for pair in (TEA, CHAT) for name, row in forms(pair)]
FORM_NAMES = [f"{name}, {len(pair.messages)} turns" for name, _, pair in FORMS]


@pytest.fixture
def write(tmp_path):
    """A function that writes rows (objects, or lines as they are) to a JSONL file."""

    def write(*rows, end=b"\n", start=b"", name="my.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        content = start + b"".join(line + end for line in lines)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tmp_path / name

    return write


@pytest.fixture
def hub_folder(monkeypatch, tmp_path):
    """`datasets` reads a folder `owner/name` as it would read it off the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    return tmp_path / "owner" / "name"


def refused(name, split="train"):
    with pytest.raises(PreferenceError) as raised:
        load_preferences(name, split)
    return raised.value


def problems(name):
    return refused(name).problems


# --- what is read -------------------------------------------------------------------------------------------


def test_the_workbooks_own_set_by_name():
    preferences = load_preferences("json_vs_text")
    assert len(preferences) == 500
    first = preferences[0]
    assert first.prompt == "What should I know about PostgreSQL?"
    assert first.chosen.startswith("[[") and first.rejected.startswith("What kind")
    assert (first.ranks, first.margin, first.domain, first.group) == ((0, 1), None, "technology", "PostgreSQL")


@pytest.mark.parametrize(("row", "pair"), [(row, pair) for _, row, pair in FORMS], ids=FORM_NAMES)
def test_every_form_says_the_same(write, row, pair):
    assert load_preferences(write(row)) == [pair]


@pytest.mark.parametrize("name", ["my.jsonl", "my.jsonl.gz"])
def test_forms_may_be_mixed_in_a_file(write, name):
    assert load_preferences(write(*(row for _, row, _ in FORMS), name=name)) == [pair for _, _, pair in FORMS]


@pytest.mark.parametrize(("row", "pair"), [(row, pair) for _, row, pair in FORMS], ids=FORM_NAMES)
def test_every_form_through_datasets(hub_folder, write, row, pair):
    """Off the hub a row has nulls for what only other rows have, and a message for what only other messages have."""
    more = {"tie": None, "margin": 1.5, "domain": "drinks", "group": None}
    write(row, row | more).rename(hub_folder / "train.jsonl")
    first, second = load_preferences("owner/name")
    assert first == pair
    assert second == Preference(pair.prompt, pair.completions, (0, 1), 1.5, "drinks", "", pair.history)


def test_pairs_and_rankings_in_one_table(hub_folder, write):
    """Each row has nulls for the columns of the other kind."""
    write(GOOD, dict(forms(TEA))["ranking of messages"] | {"prompt": GOOD["prompt"], "completions": ["A drink.", "No idea."]}).rename(hub_folder / "train.jsonl")  # fmt: skip
    assert load_preferences("owner/name") == [TEA, TEA]


@pytest.mark.parametrize(
    ("opening", "chosen", "rejected"),
    [
        ("The sky is", "blue.", "green."),
        ("The sky is", "blue.", "black."),  # cut back from "The sky is bl"
        ("  Two\n\nlines:", "one", " one"),  # the second space is not shared
        ("Go on:", "a b", "a c d"),
    ],
)
def test_implicit_prompt_of_plain_texts(write, opening, chosen, rejected):
    """What the answers share up to a white space is the prompt; in the last case that is more than was meant."""
    (found,) = load_preferences(write({"chosen": f"{opening} {chosen}", "rejected": f"{opening} {rejected}"}))
    shared = "Go on: a" if chosen == "a b" else opening
    texts = [f"{opening} {text}".removeprefix(f"{shared} ") for text in (chosen, rejected)]
    assert found == Preference(shared, tuple(texts))


def test_implicit_prompt_in_a_script_without_spaces(write):
    """The cut is then after the last mark that both share."""
    row = {
        "chosen": "问题：天空为什么是蓝色的？回答：不是瑞利。",
        "rejected": "问题：天空为什么是蓝色的？回答：不知道。",
    }
    (found,) = load_preferences(write(row))
    assert found == Preference("问题：天空为什么是蓝色的？回答：", ("不是瑞利。", "不知道。"))


def test_prompt_under_another_name_is_not_guessed(write):
    """Two answers may begin alike by chance: where a column looks like the prompt, that is no implicit one."""
    rows = [
        {name: "What sat?", "context": " ", "chosen": "The cat sat", "rejected": "The dog sat"}
        for name in ("question", "input")
    ]
    assert problems(write(*rows)) == [
        f"my.jsonl:{i}: prompt: is missing (the row has {name}, context, chosen, rejected): rename {name}, if that is the prompt"
        for i, name in enumerate(("question", "input"), start=1)
    ]


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_transcript_of_windows(write, line_break):
    text = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: tea?\n\nAssistant:"
    rows = {name: f"{text} {name}".replace("\n", line_break) for name in ("chosen", "rejected")}
    (found,) = load_preferences(write(rows))
    assert found == Preference("tea?", ("chosen", "rejected"), history=(("user", "hi"), ("assistant", "hello")))


def test_ranking_is_put_in_order(write):
    """Any order, any spacing, ties; answers that are equal and rank equally; the order of a tie is the file's."""
    row = {"prompt": "p", "completions": ["c", "a", "b", "d", "a"], "ranks": [10, 2, 2, 11, 2]}
    (found,) = load_preferences(write(row))
    assert found == Preference("p", ("a", "b", "a", "c", "d"), (0, 0, 0, 1, 2))
    assert load_preferences(write(row | {"ranks": [3] * 5}))[0].is_tie


def test_equal_texts_may_tie(write):
    same = GOOD | {"rejected": GOOD["chosen"], "tie": True}
    assert load_preferences(write(same)) == [Preference("What is tea?", ("A drink.", "A drink."), (0, 0))]


def test_system_turn_is_history(write):
    """It may be empty: that is how a chat template's own system turn is kept out."""
    asked = [said("system", ""), said("user", "What is tea?")]
    (found,) = load_preferences(write(GOOD | {"prompt": asked}))
    assert (found.prompt, found.history, found.group) == ("What is tea?", (("system", ""),), "what is tea?")
    assert found.messages == asked


def test_columns_that_say_more_are_kept(write):
    """Tie, margin, domain, group, beside any form of a pair; null is as good as nothing; other columns are no fault."""
    more = {"tie": True, "margin": 0, "domain": "drinks", "group": "tea", "source": ["me"]}
    nothing = dict.fromkeys(["tie", "margin", "domain", "group", "completions", "ranks"])
    for name, row, pair in FORMS:
        if "ranks" not in row:
            tie, other = load_preferences(write(row | more, row | nothing | {"margin": 2.5}))
            assert tie == Preference(pair.prompt, pair.completions, (0, 0), 0, "drinks", "tea", pair.history), name
            assert tie.is_tie and not other.is_tie
            assert other == Preference(pair.prompt, pair.completions, (0, 1), 2.5, history=pair.history), name


def test_column_of_nulls_is_no_column(write):
    """`datasets` keeps an empty column: there is no prompt, so what the texts share is one."""
    row = {"prompt": None, "chosen": "Tea? Yes.", "rejected": "Tea? No."}
    assert load_preferences(write(row, row)) == [Preference("Tea?", ("Yes.", "No."))] * 2
    assert problems(write(row, GOOD)) == ["my.jsonl:1: prompt: is null (the row has chosen, rejected)"]


@pytest.mark.parametrize(
    ("start", "end"), [(b"", b"\n"), (b"\xef\xbb\xbf", b"\n"), (b"", b"\r\n"), (b"\n  \n", b"\n\n")],
    ids=["plain", "BOM", "CRLF", "blank lines"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["my.jsonl", "my.jsonl.gz"])
def test_text_comes_back_as_written(write, start, end, name):
    """U+2028 and U+0085 break lines for Python's splitlines, not for JSONL; spaces at the ends are content."""
    text = " a\u2028b\u0085c\r\n\td\x00 🎉 漢字 שלום "
    rows = [GOOD | {"chosen": text}, {"prompt": [said("user", text)], "chosen": [said("assistant", text)], "rejected": [said("assistant", "x")]}]  # fmt: skip
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    first, second = load_preferences(write(*lines, start=start, end=end, name=name))
    assert first.chosen == second.chosen == second.prompt == text


def test_transcript_keeps_all_but_the_spaces_around_turns(write):
    """Only "Human:" or "Assistant:" after an empty line begins a turn."""
    text = "a\nHuman: b\n\n\tc  d\n\nHumans: e Assistant: f\u2028"
    rows = {name: f"\n\nHuman:  {text}\n\n\nAssistant: {text}{name}\n" for name in ("chosen", "rejected")}
    (found,) = load_preferences(write(rows))
    assert found.prompt == text.strip()
    assert (found.chosen, found.rejected) == (f"{text}chosen", f"{text}rejected")


def test_last_line_needs_no_line_break(write):
    assert len(load_preferences(write(GOOD, end=b""))) == 1


def test_own_set_is_found_before_a_folder_of_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json_vs_text").mkdir()
    assert len(load_preferences("json_vs_text")) == 500


# --- real dialogues -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hh_rows(hh_rlhf_path):
    with gzip.open(hh_rlhf_path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def hh(hh_rlhf_path):
    return refused(hh_rlhf_path)


def empty_answers(rows):
    """Indices of the rows in which an answer is nothing but spaces."""
    return [i for i, row in enumerate(rows) if any(text.rstrip().endswith("\n\nAssistant:") for text in row.values())]


def test_hh_every_row_is_accounted_for(hh, hh_rows, hh_rlhf_path):
    """The four rows with an empty answer are named by their lines, the 1,196 others can be used."""
    faulty = empty_answers(hh_rows)
    assert len(faulty) == 4 and len(hh_rows) == 1200
    assert [problem.split(": ")[0] for problem in hh.problems] == [f"{hh_rlhf_path.name}:{i + 1}" for i in faulty]
    assert all(re.search(r": (chosen|rejected) turn \d+: is empty$", problem) for problem in hh.problems)
    assert len(hh.usable) == len(hh_rows) - len(faulty)
    assert f"4 problems; nothing is used (rows without fault, in .usable: {len(hh.usable)}):\n" in str(hh)


def test_hh_turns_rebuild_the_transcripts(hh, hh_rows):
    """No word is lost, doubled or moved, and the dialogue ends where the two answers begin."""
    faulty, exact = set(empty_answers(hh_rows)), 0
    sound = [(i, [row["chosen"], row["rejected"]]) for i, row in enumerate(hh_rows) if i not in faulty]
    for (i, texts), preference in zip(sound, hh.usable, strict=True):
        rebuilt = [transcript([*preference.messages, said("assistant", text)]) for text in preference.completions]
        same_words = [text.split() for text in rebuilt] == [text.split() for text in texts]
        assert same_words, f"row {i}"  # and not the texts themselves, which nobody wants to read
        exact += rebuilt == texts
    assert exact > 0.99 * len(sound)  # the others have spaces of their own around a turn


def test_hh_dialogues_that_share_an_opening_share_a_group(hh, hh_rows):
    """Else a validation row could go on from a training row."""
    faulty, opening = set(empty_answers(hh_rows)), re.compile(r"\n\nHuman:(.*?)\n\n(?:Human|Assistant):", re.DOTALL)
    openings = [opening.match(row["chosen"])[1] for i, row in enumerate(hh_rows) if i not in faulty]
    groups = [preference.group for preference in hh.usable]
    as_opened = groups == [" ".join(text.split()).casefold() for text in openings]
    assert as_opened
    assert len(set(groups)) < len(groups), "no two dialogues share an opening: this protects nothing"
    train, validation = split_preferences(hh.usable)
    assert len(train) + len(validation) == len(groups) and abs(len(validation) - 0.2 * len(groups)) < 1
    leaked = {p.group for p in train} & {p.group for p in validation}
    assert len(leaked) == 0


# --- what is refused ----------------------------------------------------------------------------------------

ASK, ANSWER = said("user", "Hi"), said("assistant", "Yes")
DIALOGUE = {"chosen": [ASK, ANSWER], "rejected": [ASK, said("assistant", "No")]}
HUMAN, ROBOT = "\n\nHuman: Hi", "\n\nAssistant:"
RANKING = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [0, 1, 2]}
NO_NUMBER = "a number from 0 up"
SAME = "are the same text, so there is nothing to learn from them"
FAULTS = [  # (a row, what is said of it after file and line)
    ({k: GOOD[k] for k in ("prompt", "chosen")}, ["rejected: is missing (the row has prompt, chosen)"]),
    ({"question": "a", "answer": "b"}, [f"{f}: is missing (the row has question, answer)" for f in ("prompt", "chosen", "rejected")]),
    ({}, [f"{field}: is missing (the row has nothing)" for field in ("prompt", "chosen", "rejected")]),
    (GOOD | {"prompt": None}, ["prompt: is null (the row has chosen, rejected)"]),
    ({"chosen": "Tea? Yes.", "rejected": "Tea? No."}, ["prompt: is missing (the row has chosen, rejected)"]),
    ({"chosen": [ANSWER], "rejected": [said("assistant", "No")]}, ["prompt: is missing (the row has chosen, rejected)"]),
    (GOOD | {"chosen": 7}, ["chosen: is a number, not text or messages"]),
    (GOOD | {"chosen": {"content": "a"}}, ["chosen: is an object, not text or messages"]),
    (GOOD | {"chosen": []}, ["chosen: is an empty list, not text or messages"]),
    (GOOD | {"chosen": 1, "rejected": ""}, ["chosen: is a number, not text or messages", "rejected: is empty"]),
    (GOOD | {"rejected": " \n"}, ["rejected: is empty"]),
    (GOOD | {"rejected": "\ud83d"}, ["rejected: holds half of a surrogate pair, which no tokenizer reads"]),
    (GOOD | {"rejected": "A drink."}, [f"chosen and rejected: {SAME}"]),
    # messages
    (GOOD | {"chosen": [ANSWER]}, ["chosen and rejected: are a list and text, and must be of one kind"]),
    (GOOD | {"rejected": [ANSWER]}, ["chosen and rejected: are text and a list, and must be of one kind"]),
    (DIALOGUE | {"chosen": [ASK, "Yes"]}, ["chosen turn 2: has the role '', not system, user, assistant"]),
    (DIALOGUE | {"chosen": [said("tool", "a"), ANSWER]}, ["chosen turn 1: has the role 'tool', not system, user, assistant"]),
    (DIALOGUE | {"chosen": [{"from": "gpt", "value": "a"}]}, ["chosen turn 1: has the role None, not system, user, assistant"]),
    (DIALOGUE | {"chosen": [said([], "a")]}, ["chosen turn 1: has the role [], not system, user, assistant"]),
    (DIALOGUE | {"rejected": [ASK, {"role": "assistant"}]}, ["rejected turn 2: has as content null, not text"]),
    (DIALOGUE | {"chosen": [said("user", [{"type": "text", "text": "a"}]), ANSWER]}, ["chosen turn 1: has as content a list, not text"]),
    (DIALOGUE | {"chosen": [said("user", " "), said("assistant", "")]}, ["chosen turn 1: is empty", "chosen turn 2: is empty"]),
    (DIALOGUE | {"chosen": [ASK, said("assistant", "\udfff")]}, ["chosen turn 2: holds half of a surrogate pair, which no tokenizer reads"]),
    (DIALOGUE | {"chosen": [ASK]}, ["chosen: ends in a turn of the user, not of the assistant"]),
    (GOOD | {"prompt": [ASK, ANSWER]}, ["prompt: ends in a turn of the assistant, not of the user"]),
    (GOOD | {"prompt": [said("system", "Be brief.")]}, ["prompt: ends in a turn of the system, not of the user"]),
    (DIALOGUE | {"chosen": [said("user", "Hello"), ANSWER]}, ["chosen and rejected: differ before their last answer (turn 1)"]),
    (DIALOGUE | {"chosen": [ASK, ANSWER, ASK, ANSWER]}, ["chosen and rejected: differ before their last answer (turn 2)"]),
    (DIALOGUE | {"rejected": [ASK, ANSWER]}, [f"chosen and rejected: {SAME}"]),
    ({"chosen": [ASK, ANSWER, ANSWER], "rejected": [ASK, ANSWER, said("assistant", "No")]}, ["chosen: its last answer is to a turn of the assistant, not of the user"]),
    (DIALOGUE | {"prompt": "Hello"}, ["prompt: is not what the dialogue of chosen says before its last answer"]),
    (DIALOGUE | {"prompt": [ASK, ANSWER, ASK]}, ["prompt: is not what the dialogue of chosen says before its last answer"]),
    # transcripts
    ({"chosen": f"{HUMAN}\n\nAssistant: Yes", "rejected": f"{HUMAN}\n\nAssistant:  "}, ["rejected turn 2: is empty"]),
    ({"chosen": f"{HUMAN}\n\nAssistant: Yes", "rejected": HUMAN}, [f"rejected: ends in a turn of the user, not of the assistant{AS_TEXT}"]),
    ({"chosen": f"{HUMAN}\n\nAssistant: a{HUMAN}\n\nAssistant: b", "rejected": f"{HUMAN}\n\nAssistant: a\n\nHuman: Ho\n\nAssistant: b"}, [f"chosen and rejected: differ before their last answer (turn 3){AS_TEXT}"]),
    ({"chosen": f"{HUMAN}\n\nAssistant: Yes", "rejected": "No"}, [f"chosen and rejected: differ before their last answer (turn 1){AS_TEXT}"]),
    (GOOD | {"prompt": f"{HUMAN}\n\nAssistant: Yes"}, [f"prompt: ends in a turn of the assistant, not of the user{AS_TEXT}"]),
    (GOOD | {"prompt": "\n\nHuman:"}, ["prompt: is empty"]),
    ({"prompt": f"{HUMAN}\n\nAssistant:", "chosen": "a", "rejected": " a"}, [f"chosen and rejected: {SAME}"]),
    (GOOD | {"prompt": f"Human: hi{ROBOT} hello\n\nWhich is politer?"}, [f"prompt: ends in a turn of the assistant, not of the user{AS_TEXT}"]),
    (GOOD | {"chosen": f"Human: hi{ROBOT} hello"}, [f"chosen and rejected: differ before their last answer (turn 1){AS_TEXT}", "prompt: is not what the dialogue of chosen says before its last answer"]),
    # rankings
    (RANKING | {"prompt": None}, ["prompt: is null (the row has completions, ranks)"]),
    ({"prompt": "p", "ranks": [0, 1]}, ["completions: is missing (the row has prompt, ranks)"]),
    ({"prompt": "p", "completions": ["a", "b"]}, ["ranks: is missing (the row has prompt, completions)"]),
    (RANKING | {"completions": "abc", "ranks": 1}, ["completions: is text, not a list", "ranks: is a number, not a list"]),
    (RANKING | {"ranks": [0, 1]}, ["ranks: has 2 for 3 completions; there are two or more, each ranked"]),
    (RANKING | {"completions": ["a"], "ranks": [0]}, ["ranks: has 1 for 1 completions; there are two or more, each ranked"]),
    (RANKING | {"completions": [], "ranks": []}, ["ranks: has 0 for 0 completions; there are two or more, each ranked"]),
    (RANKING | {"ranks": [None, None, None]}, ["ranks: holds None, not a whole number"]),
    (RANKING | {"ranks": [0, 1.5, 2]}, ["ranks: holds 1.5, not a whole number"]),
    (RANKING | {"ranks": [0, True, 2]}, ["ranks: holds True, not a whole number"]),
    (RANKING | {"ranks": [0, "1", 2]}, ["ranks: holds '1', not a whole number"]),
    (RANKING | {"ranks": [0, float("nan"), 2]}, ["ranks: holds nan, not a whole number"]),
    (RANKING | {"ranks": [0, float("inf"), 2]}, ["ranks: holds inf, not a whole number"]),
    (RANKING | {"completions": ["a", "", 3]}, ["completions[1]: is empty", "completions[2]: is a number, not text or messages"]),
    (RANKING | {"completions": ["a", "b", [ANSWER]]}, ["completions[0] and completions[2]: are text and a list, and must be of one kind"]),
    (RANKING | {"completions": ["a", "b", "a"]}, [f"completions[0] and completions[2]: {SAME}"]),
    (RANKING | {"tie": False}, ["tie: is for pairs; in a ranking, equal ranks are a tie"]),
    # beside the texts
    (GOOD | {"tie": "no"}, ["tie: is text, not true or false"]),
    (GOOD | {"tie": 0}, ["tie: is a number, not true or false"]),
    (GOOD | {"margin": -1}, [f"margin: is -1, not {NO_NUMBER}"]),
    (GOOD | {"margin": "3"}, [f"margin: is '3', not {NO_NUMBER}"]),
    (GOOD | {"margin": True}, [f"margin: is True, not {NO_NUMBER}"]),
    (GOOD | {"margin": float("nan")}, [f"margin: is nan, not {NO_NUMBER}"]),
    (GOOD | {"margin": float("inf")}, [f"margin: is inf, not {NO_NUMBER}"]),
    (GOOD | {"margin": 3, "tie": True}, ["margin: is 3, where tie says that neither is better"]),
    (GOOD | {"domain": 0}, ["domain: is a number, not text"]),
    (GOOD | {"group": ["a"]}, ["group: is a list, not text"]),
    (DIALOGUE | {"chosen": [ASK], "margin": -1}, [f"margin: is -1, not {NO_NUMBER}", "chosen: ends in a turn of the user, not of the assistant"]),
    # lines
    (b'{"prompt": "a", ', ["is not one JSON object"]),
    (b'{"prompt": "a"} {}', ["is not one JSON object"]),
    (b"[" * 100_000, ["is not one JSON object"]),
    (b'["a", "b"]', ["is not a JSON object but a list"]),
    (b'"text"', ["is not a JSON object but text"]),
    (b'{"prompt": "\xff"}', ["is not UTF-8 (byte 13 of the line)"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), FAULTS, ids=[f"{i}: {said[0][:60]}" for i, (_, said) in enumerate(FAULTS)])
@pytest.mark.parametrize("name", ["my.jsonl", "my.jsonl.gz"])
def test_fault_is_named_with_file_line_and_field(write, row, said, name):
    """The rows around it are offered, and no fault hides another of its row."""
    error = refused(write(GOOD, b"", row, GOOD, name=name))
    found = [re.sub("(is not one JSON object): .+", r"\1", problem) for problem in error.problems]  # Python's words
    assert found == [f"{name}:3: {fault}" for fault in said]
    assert error.usable == [TEA, TEA]


NO_PROMPT = [  # (chosen, rejected, what is said where no row has a prompt)
    ("Yes.", "No.", ["chosen and rejected: share no opening that could be the prompt, and no column prompt is there"]),
    (" Yes.", " No.", ["chosen and rejected: share no opening that could be the prompt, and no column prompt is there"]),
    ("Tea is", "Tea is green", ["chosen: has nothing after the opening that both share"]),
    ("Tea is \n", "Tea is green", ["chosen: has nothing after the opening that both share"]),
    ("Tea is", "Tea is", [f"{side}: has nothing after the opening that both share" for side in ("chosen", "rejected")]),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "rejected", "said"), NO_PROMPT)
@pytest.mark.parametrize("tie", [True, False])
def test_plain_texts_without_a_prompt(write, chosen, rejected, said, tie):
    found = problems(write({"chosen": chosen, "rejected": rejected, "tie": tie}))
    assert [problem for problem in found if "same text" not in problem] == [f"my.jsonl:1: {fault}" for fault in said]


def test_all_faults_are_told_together(write):
    """Nobody wants to mend a file of thousands of rows one run a row; the message stays short all the same."""
    path = write(*(row for row, _ in FAULTS), GOOD)
    expected = sum(len(said) for _, said in FAULTS)
    head = f"{expected} problems; nothing is used (rows without fault, in .usable: 1):\n"
    with pytest.raises(PreferenceError, match=f"^{re.escape(head)}") as raised:
        load_preferences(path)
    assert len(raised.value.problems) == expected
    assert raised.value.usable == [TEA]
    assert str(raised.value).endswith(f"… and {expected - 20} more (all are in .problems)")
    assert len(str(raised.value).splitlines()) == 22


def test_nothing_usable_is_not_offered(write):
    assert str(refused(write(b"{"))).startswith("1 problem; nothing is used:\n  my.jsonl:1: is not")


def test_long_names_of_columns_stay_in_a_line(write):
    (fault, *_) = problems(write({"a\nb" * 1000: 1, "margin": 3}))
    assert len(fault.splitlines()) == 1 and len(fault) < 300


def test_empty_file_is_said(write):
    assert problems(write(b"", b" ")) == ["my.jsonl: has no rows"]
    assert problems(write(name="my.jsonl.gz")) == ["my.jsonl.gz: has no rows"]


@pytest.mark.parametrize("name", ["my.jsonl", "my.jsonl.gz"])
def test_line_too_long_is_skipped_unread(write, name):
    """Protects: memory. What comes after such a line is read, and counted right."""
    size = 40 * 2**20
    path = write(GOOD, json.dumps(GOOD).encode().ljust(size, b" "), b"{", GOOD, name=name)
    tracemalloc.start()
    try:
        error = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.problems[0] == f"{name}:2: is 40.0 MB long; a line holds one preference, of at most 4 MB"
    assert [problem.split(": ")[0] for problem in error.problems] == [f"{name}:2", f"{name}:3"]
    assert error.usable == [TEA, TEA]
    assert peak < 0.6 * size


@pytest.mark.parametrize("end", [b"\n", b""])
def test_longest_line_is_read(write, end):
    line = json.dumps(GOOD).encode()
    assert load_preferences(write(line.ljust(MAX_LINE_BYTES), end=end)) == [TEA]
    assert len(problems(write(line.ljust(MAX_LINE_BYTES + 1), end=end))) == 1


# --- files that are damaged, misnamed or not there ----------------------------------------------------------


def test_damaged_gzip_says_how_far_it_was_read(write):
    """Cut off, or with a flipped byte in its checksum; what came before is offered."""
    path = write(*[GOOD | {"source": os.urandom(40).hex()} for _ in range(2000)], name="my.jsonl.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    error = refused(path)
    assert 0 < len(error.usable) < 2000
    assert error.problems == [
        f"my.jsonl.gz: cannot be read past line {len(error.usable)}: "
        "Compressed file ended before the end-of-stream marker was reached"
    ]
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    error = refused(path)
    assert len(error.usable) == 2000
    assert error.problems[0].startswith("my.jsonl.gz: cannot be read past line 2000: CRC check failed")
    path.write_bytes(whole[:1000] + bytes(1000) + whole[2000:])
    assert problems(path)[-1].startswith("my.jsonl.gz: cannot be read")


@pytest.mark.parametrize(
    ("written", "renamed", "fault"),
    [
        ("my.jsonl.gz", "my.jsonl", "is compressed with gzip: rename it to end in .jsonl.gz"),
        ("my.jsonl", "my.jsonl.gz", "cannot be read: Not a gzipped file (b'{\"')"),
        ("my.jsonl", "my.csv", "is no .jsonl or .jsonl.gz file: rename it if it holds one JSON object a line" + WANTED),
        (
            "my.jsonl.gz",
            "my.gz",
            "is no .jsonl or .jsonl.gz file: rename it if it holds one JSON object a line" + WANTED,
        ),
    ],
)
def test_wrong_ending_is_said(write, written, renamed, fault):
    path = write(GOOD, GOOD, name=written)
    assert problems(path.rename(path.with_name(renamed))) == [f"{renamed}: {fault}"]


def test_unreadable_file_is_said(write, monkeypatch):
    path = write(GOOD)

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert problems(path) == [f"my.jsonl: cannot be read: [Errno 13] Permission denied: '{path}'"]


@pytest.mark.parametrize("name", ["jason_vs_text", "no/such/file.jsonl", "my.jsonl", "no/file.jsonl", "no/file.jsonl.gz", "/no/such/folder"])  # fmt: skip
def test_missing_data_says_what_there_is(name):
    with pytest.raises(FileNotFoundError, match="there is no file .*; the workbook's own sets are: .*json_vs_text"):
        load_preferences(name)


def test_path_is_taken_as_it_is_written(write):
    """Only a bare name is that of one of the workbook's sets, without its ending."""
    with pytest.raises(FileNotFoundError, match=f"there is no file {write(GOOD).with_suffix('')};"):
        load_preferences(write(GOOD).with_suffix(""))


# --- the hub ------------------------------------------------------------------------------------------------


def test_rows_of_the_hub_are_checked_like_those_of_a_file(hub_folder, write):
    """What a row lacks, `datasets` fills with null."""
    write(GOOD | {"margin": 1.5}, GOOD | {"tie": True}).rename(hub_folder / "train.jsonl")
    assert [(p.ranks, p.margin) for p in load_preferences("owner/name")] == [((0, 1), 1.5), ((0, 0), None)]
    write(GOOD, GOOD | {"chosen": ""}).rename(hub_folder / "train.jsonl")
    error = refused("owner/name")
    assert (error.problems, error.usable) == (["owner/name[train] row 1: chosen: is empty"], [TEA])


def test_folder_is_read_wherever_it_is(hub_folder, write):
    write(GOOD).rename(hub_folder / "train.jsonl")
    assert load_preferences(hub_folder) == [TEA]


def test_folder_without_data_is_said(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"'{tmp_path}' is no file here, and .*: The directory at .* any data file"
    ):
        load_preferences(tmp_path)


def test_missing_split_names_those_there_are(hub_folder, write):
    write(GOOD).rename(hub_folder / "test.jsonl")
    with pytest.raises(
        FileNotFoundError, match=r"split 'train': Unknown split \"train\"\. Should be one of \['test'\]"
    ):
        load_preferences("owner/name")


def test_hub_that_answers_is_asked_for_the_data(monkeypatch):
    """And `datasets` is then left to reach the hub."""
    calls = []

    def load_dataset(name, split):
        calls.append((name, split, datasets.config.HF_HUB_OFFLINE))
        return datasets.Dataset.from_list([GOOD, GOOD | {"chosen": " "}])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, timeout: calls.append((name, timeout)))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    error = refused("owner/some-name_2.0", "test[:2]")
    assert error.problems == ["owner/some-name_2.0[test[:2]] row 1: chosen: is empty"]
    assert calls == [("owner/some-name_2.0", 5), ("owner/some-name_2.0", "test[:2]", False)]


OFFLINE = """
import sys, time, rmkit
start = time.monotonic()
print("begin", file=sys.stderr, flush=True)
try:
    rmkit.load_preferences("owner/name")
except FileNotFoundError as error:
    print("end", file=sys.stderr, flush=True)
    print(time.monotonic() - start, error)
"""


def test_hub_out_of_reach_is_said_soon_and_quietly(tmp_path):
    """A port that nobody listens to: `datasets` alone would try for 23 s, and print every try."""
    outside = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", OFFLINE], cwd=root, env=outside, capture_output=True, text=True)
    assert "begin\nend\n" in run.stderr
    seconds, said = run.stdout.split(maxsplit=1)
    assert float(seconds) < 10
    assert re.fullmatch(
        "'owner/name' is no file here, and `datasets` found no data set of that name with a split 'train': Couldn't reach .*"
        r"\. The hub: .*refused.*\. Load it once while this machine is online, or name a \.jsonl file\n",
        said,
    )


@pytest.fixture
def silent_hub(monkeypatch, tmp_path):
    """A hub that takes the call and says nothing, and an empty cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        yield tmp_path


def test_hub_that_says_nothing_is_not_waited_for(silent_hub):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="The hub: .*timed out.* Load it once while this machine is online"):
        load_preferences("owner/name")
    assert time.monotonic() - start < 10


def test_cache_is_read_where_the_hub_is_out_of_reach(monkeypatch, silent_hub, write):
    """The cache's layout is that of `datasets`, which a later version may change."""
    builder = Json(dataset_name="name", config_name="default", hash="abc", data_files={"train": [str(write(GOOD))]})
    builder.download_and_prepare()
    place = silent_hub / "owner___name" / "default" / "0.0.0" / "abc"
    place.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(place)
    monkeypatch.setattr("rmkit.rows.HUB_TIMEOUT", 0.1)
    assert load_preferences("owner/name") == [TEA]
    with pytest.raises(FileNotFoundError, match=r"Should be one of \['train'\]\. The hub: "):
        load_preferences("owner/name", split="test")
    assert not datasets.config.HF_HUB_OFFLINE


# --- preferences themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completions", "ranks"),
    [(("a",), (0,)), (("a", "b"), (0,)), (("a", "b"), (1, 0)), (("a", "b"), (1, 2)), (("a", "b", "c"), (0, 2, 3))],
)
def test_ranks_that_make_no_sense_are_refused(completions, ranks):
    with pytest.raises(ValueError, match="rank"):
        Preference("p", completions, ranks)


@pytest.mark.parametrize(
    "history", [[("user", "a")], (("tool", "a"),), (("user", None),), (("user",),), (["user", "a"],), ("user",), "user"]
)
def test_history_that_is_none_is_refused(history):
    with pytest.raises(ValueError, match="history is"):
        Preference("p", ("a", "b"), history=history)


def test_first_user_turn_is_the_group():
    """Dialogues that go on from one another open alike, and belong on one side of a split."""
    opening = (("system", "Be brief."), ("user", " What is\n TEA? "))
    assert Preference("p", ("a", "b"), history=opening).group == Preference("What is tea?", ("a", "b")).group
    assert Preference("p", ("a", "b"), history=opening[:1]).group == "p"
    assert Preference("p", ("a", "b"), group="drinks", history=opening).group == "drinks"


def test_messages_are_history_and_prompt():
    assert TEA.messages == [said("user", "What is tea?")]
    assert [tuple(message.values()) for message in CHAT.messages] == [*CHAT.history, ("user", CHAT.prompt)]


def test_prompt_is_its_own_group_however_it_is_spelt():
    """Else two spellings of one prompt could be on both sides of a split."""
    groups = {Preference(prompt, ("a", "b")).group for prompt in ("What is tea?", " What\n is  TEA? ", "what is tea?")}
    assert len(groups) == 1
    assert Preference("What is tea?", ("a", "b"), group="drinks").group == "drinks"


# --- splits -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def json_vs_text():
    return load_preferences("json_vs_text")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_is_exact_and_cuts_no_group(json_vs_text, seed):
    """400/100 with 20 of each domain, no topic on both sides, nothing lost or doubled, the file's order kept."""
    train, validation = split_preferences(json_vs_text, 0.2, seed)
    assert (len(train), len(validation)) == (400, 100)
    assert set(Counter(p.domain for p in validation).values()) == {20}
    assert not {p.group for p in train} & {p.group for p in validation}
    held_out = set(validation)
    assert train == [p for p in json_vs_text if p not in held_out]
    assert validation == [p for p in json_vs_text if p in held_out]


def test_split_is_the_seeds(json_vs_text):
    """The same seed splits alike, whatever the order of the rows; another seed holds out others."""

    def held_out(preferences, seed):
        return {p.group for p in split_preferences(preferences, 0.2, seed)[1]}

    assert held_out(json_vs_text, 7) == held_out(json_vs_text, 7) == held_out(json_vs_text[::-1], 7)
    assert held_out(json_vs_text, 7) != held_out(json_vs_text, 8)


def test_groups_of_unlike_size_come_near_the_share():
    """One group of 50 and fifty of 1: a fifth is 20 of the small ones, whatever the draw."""
    sizes = [50] + [1] * 50
    data = [Preference(f"{g}-{i}", ("a", "b"), group=str(g)) for g, size in enumerate(sizes) for i in range(size)]
    for seed in range(5):
        assert len(split_preferences(data, 0.2, seed)[1]) == 20


def test_domains_make_up_for_each_other():
    """Ten domains of one group each: none can give a fifth of itself, together they can."""
    data = [Preference(f"{d}-{i}", ("a", "b"), domain=d, group=d) for d in "abcdefghij" for i in range(6)]
    assert len(split_preferences(data, 0.2)[1]) == 12


def test_same_prompt_in_two_groups_is_refused():
    """Letter case and spaces do not hide it: the validation would hold a prompt that was trained on."""
    data = [Preference("What is tea?", ("a", "b"), group="x"), Preference("what  is TEA?", ("c", "d"), group="y")]
    with pytest.raises(ValueError, match="'what  is TEA\\?' is in two groups, 'x' and 'y': it could leak"):
        split_preferences(data, 0.5)


def test_last_turn_alone_is_no_prompt():
    """Many dialogues end in "yes"; two that say the same from the first turn on are the same prompt."""
    histories = [(("user", text), ("assistant", "Shall I go on?")) for text in ("Tea?", "Milk?", "tea?")]
    tea, milk, again = (Preference("Yes.", ("a", "b"), group=f"{i}", history=h) for i, h in enumerate(histories))
    assert [len(side) for side in split_preferences([tea, milk], 0.5)] == [1, 1]
    with pytest.raises(ValueError, match="the prompt 'Yes.' is in two groups, '0' and '2': it could leak"):
        split_preferences([tea, milk, again], 0.5)


@pytest.mark.parametrize("groups", [1, 2])
def test_too_few_groups_are_refused(groups):
    data = [Preference(f"prompt {i}", ("a", "b"), group=str(i % groups)) for i in range(10)]
    with pytest.raises(ValueError, match="10 preferences in too few groups to hold out 20%: one side would be empty"):
        split_preferences(data, 0.2)


@pytest.mark.parametrize("share", [0, 1, -0.1, 20])
def test_share_is_a_share(json_vs_text, share):
    with pytest.raises(ValueError, match=f"between 0 and 1: got {share}"):
        split_preferences(json_vs_text, share)
