"""Protects: what is read is what the file says, every fault is named with its place, and no split leaks."""

import json
from collections import Counter

import datasets
import pytest

from rmkit import Preference, PreferenceError, load_preferences, split_preferences

GOOD = {"prompt": "What is tea?", "chosen": "A drink.", "rejected": "No idea."}


@pytest.fixture
def write(tmp_path):
    """A function that writes rows (objects, or lines as they are) to a JSONL file."""

    def write(*rows, end=b"\n", start=b""):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / "my.jsonl").write_bytes(start + b"".join(line + end for line in lines))
        return tmp_path / "my.jsonl"

    return write


def problems(path):
    with pytest.raises(PreferenceError) as raised:
        load_preferences(path)
    return raised.value.problems


# --- what is read -------------------------------------------------------------------------------------------


def test_the_workbooks_own_set_by_name():
    preferences = load_preferences("json_vs_text")
    assert len(preferences) == 500
    first = preferences[0]
    assert first.prompt == "What should I know about PostgreSQL?"
    assert first.chosen.startswith("[[") and first.rejected.startswith("What kind")
    assert (first.ranks, first.margin, first.domain, first.group) == ((0, 1), None, "technology", "PostgreSQL")


def test_columns_that_say_more_are_kept(write):
    """Tie, margin, domain, group; null is as good as nothing; other columns are no fault."""
    more = {"tie": True, "margin": 0, "domain": "drinks", "group": "tea", "source": ["me"]}
    nothing = dict.fromkeys(["tie", "margin", "domain", "group"])
    tie, pair = load_preferences(write(GOOD | more, GOOD | nothing | {"margin": 2.5}))
    assert tie == Preference("What is tea?", ("A drink.", "No idea."), (0, 0), 0, "drinks", "tea")
    assert tie.is_tie and not pair.is_tie
    assert pair == Preference("What is tea?", ("A drink.", "No idea."), (0, 1), 2.5)


@pytest.mark.parametrize(
    ("start", "end"), [(b"", b"\n"), (b"\xef\xbb\xbf", b"\n"), (b"", b"\r\n"), (b"\n  \n", b"\n\n")],
    ids=["plain", "BOM", "CRLF", "blank lines"],
)  # fmt: skip
def test_text_comes_back_as_written(write, start, end):
    """U+2028 and U+0085 break lines for Python's splitlines, not for JSONL; spaces at the ends are content."""
    text = " a\u2028b\u0085c\r\n\td 🎉 漢字 שלום "
    row = json.dumps(GOOD | {"chosen": text}, ensure_ascii=False).encode()
    assert [p.chosen for p in load_preferences(write(row, row, start=start, end=end))] == [text, text]


def test_last_line_needs_no_line_break(write):
    assert len(load_preferences(write(GOOD, end=b""))) == 1


# --- what is refused ----------------------------------------------------------------------------------------

FAULTS = [  # (a row, what is said of it after file and line)
    ({k: GOOD[k] for k in ("prompt", "chosen")}, ["rejected: is missing"]),
    (GOOD | {"prompt": None}, ["prompt: is null, not text"]),
    (GOOD | {"chosen": 7}, ["chosen: is a number, not text"]),
    (GOOD | {"chosen": [{"role": "user", "content": "Hi"}]}, ["chosen: is a list, not text"]),
    (GOOD | {"rejected": " \n"}, ["rejected: is empty"]),
    (GOOD | {"rejected": "\ud83d"}, ["rejected: holds half of a surrogate pair, which no tokenizer reads"]),
    (GOOD | {"rejected": "A drink."}, ["chosen and rejected: are the same text, so there is nothing to learn from them"]),
    (GOOD | {"tie": "no"}, ["tie: is text, not true or false"]),
    (GOOD | {"tie": 0}, ["tie: is a number, not true or false"]),
    (GOOD | {"margin": -1}, ["margin: is -1, not a number from 0 up"]),
    (GOOD | {"margin": "3"}, ["margin: is '3', not a number from 0 up"]),
    (GOOD | {"margin": True}, ["margin: is True, not a number from 0 up"]),
    (GOOD | {"margin": float("nan")}, ["margin: is nan, not a number from 0 up"]),
    (GOOD | {"margin": float("inf")}, ["margin: is inf, not a number from 0 up"]),
    (GOOD | {"domain": 0}, ["domain: is a number, not text"]),
    (GOOD | {"group": ["a"]}, ["group: is a list, not text"]),
    ({"chosen": 1, "rejected": ""}, ["prompt: is missing", "chosen: is a number, not text", "rejected: is empty"]),
    (b'{"prompt": "a", ', ["is not one JSON object: Expecting property name enclosed in double quotes"]),
    (b'{"prompt": "a"} {}', ["is not one JSON object: Extra data"]),
    (b'["a", "b"]', ["is not a JSON object but a list"]),
    (b'"text"', ["is not a JSON object but text"]),
    (b'{"prompt": "\xff"}', ["is not UTF-8 (byte 13 of the line)"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), FAULTS, ids=[said[0] for _, said in FAULTS])
def test_fault_is_named_with_file_line_and_field(write, row, said):
    found = problems(write(GOOD, b"", row, GOOD))
    assert len(found) == len(said)
    for problem, expected in zip(found, said, strict=True):
        assert problem.startswith(f"my.jsonl:3: {expected}")


def test_all_faults_are_told_together(write):
    """Nobody wants to mend a file of thousands of rows one run a row; the message stays short all the same."""
    path = write(*(row for row, _ in FAULTS), GOOD)
    expected = sum(len(said) for _, said in FAULTS)
    with pytest.raises(PreferenceError, match=f"^{expected} problems; nothing was loaded:\n") as raised:
        load_preferences(path)
    assert len(raised.value.problems) == expected
    assert str(raised.value).endswith(f"… and {expected - 20} more (all are in .problems)")
    assert len(str(raised.value).splitlines()) == 22


def test_empty_file_is_said(write):
    assert problems(write(b"", b" ")) == ["my.jsonl: has no rows"]


@pytest.mark.parametrize("name", ["jason_vs_text", "no/such/file.jsonl", "my.jsonl", "/no/such/folder"])
def test_missing_data_says_what_there_is(name):
    with pytest.raises(FileNotFoundError, match="there is no file .*; the workbook's own sets are: .*json_vs_text"):
        load_preferences(name)


def test_hub_set_out_of_reach_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'owner/name' is no file here, and the hub gave .* split 'test': ."):
        load_preferences("owner/name", split="test")


def test_rows_of_the_hub_are_checked_like_those_of_a_file(monkeypatch, tmp_path, write):
    """`datasets` reads a folder `owner/name` as it would read it off the hub; what a row lacks, it fills with null."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(GOOD | {"margin": 1.5}, GOOD | {"tie": True}).rename(folder / "train.jsonl")
    assert [(p.ranks, p.margin) for p in load_preferences("owner/name")] == [((0, 1), 1.5), ((0, 0), None)]
    write(GOOD, GOOD | {"chosen": ""}).rename(folder / "train.jsonl")
    assert problems("owner/name") == ["owner/name[train] row 1: chosen: is empty"]


# --- preferences themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completions", "ranks"),
    [(("a",), (0,)), (("a", "b"), (0,)), (("a", "b"), (1, 0)), (("a", "b"), (1, 2)), (("a", "b", "c"), (0, 2, 3))],
)
def test_ranks_that_make_no_sense_are_refused(completions, ranks):
    with pytest.raises(ValueError, match="rank"):
        Preference("p", completions, ranks)


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


@pytest.mark.parametrize("groups", [1, 2])
def test_too_few_groups_are_refused(groups):
    data = [Preference(f"prompt {i}", ("a", "b"), group=str(i % groups)) for i in range(10)]
    with pytest.raises(ValueError, match="10 preferences in too few groups to hold out 20%: one side would be empty"):
        split_preferences(data, 0.2)


@pytest.mark.parametrize("share", [0, 1, -0.1, 20])
def test_share_is_a_share(json_vs_text, share):
    with pytest.raises(ValueError, match=f"between 0 and 1: got {share}"):
        split_preferences(json_vs_text, share)
