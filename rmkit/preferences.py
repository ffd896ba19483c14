"""Preferences: one prompt, two or more completions, a judgement (notebooks 00 and 03)."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import datasets

from rmkit.smollm2 import first_line

DATA = Path(__file__).resolve().parent.parent / "data"
SHOWN_PROBLEMS = 20


class PreferenceError(ValueError):
    """Rows that cannot be used; `problems` has one line for each, with file, line and field."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        rows = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        more = (
            [f"… and {len(problems) - SHOWN_PROBLEMS} more (all are in .problems)"]
            if len(problems) > SHOWN_PROBLEMS
            else []
        )
        super().__init__("\n  ".join([f"{rows}; nothing was loaded:", *problems[:SHOWN_PROBLEMS], *more]))


@dataclass(frozen=True)
class Preference:
    """One prompt, K ≥ 2 completions, best first, and how they were judged.

    ranks: K integers from 0, never falling; equal numbers are a tie. A pair that prefers the first
    completion has ranks (0, 1), a tied pair (0, 0).
    margin: by how much the first was called better than the second, where the annotator said so.
    domain: what a split is stratified by, and a report is broken down by.
    group: what a split never cuts; the prompt itself unless the data says otherwise.
    """

    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[int, ...] = (0, 1)
    margin: float | None = None
    domain: str = ""
    group: str = ""

    def __post_init__(self):
        if len(self.completions) < 2 or len(self.completions) != len(self.ranks):
            raise ValueError(
                f"a preference wants two or more completions, each with its rank: got {self.completions} and {self.ranks}"
            )
        if self.ranks[0] != 0 or any(b - a not in (0, 1) for a, b in pairwise(self.ranks)):
            raise ValueError(f"ranks start at 0 and rise by 0 or 1, best completion first: got {self.ranks}")
        if not self.group:
            object.__setattr__(self, "group", _same_prompt(self.prompt))

    @property
    def chosen(self) -> str:
        return self.completions[0]

    @property
    def rejected(self) -> str:
        return self.completions[-1]

    @property
    def is_tie(self) -> bool:
        """Whether nothing is preferred to anything."""
        return self.ranks[-1] == 0


def load_preferences(name_or_path: str | Path, split: str = "train") -> list[Preference]:
    """Load and check preferences: one of the workbook's sets, a JSONL file, or a data set on the hub.

    name_or_path: the name of a file in data/ (`"json_vs_text"`), a path, or a hub id (`"owner/name"`),
    of which `split` is taken. Columns: `prompt`, `chosen`, `rejected`, and where there is something to say
    `tie` (true or false), `margin` (a number), `domain`, `group`; others are ignored.
    Raises PreferenceError with every faulty row, FileNotFoundError where there is no such data.
    """
    path = Path(name_or_path)
    if not path.suffix and len(path.parts) == 1:
        path = DATA / f"{name_or_path}.jsonl"
    if path.is_file():
        rows = _jsonl_rows(path)
    elif path.suffix == ".jsonl" or len(path.parts) != 2 or path.is_absolute():
        known = ", ".join(sorted(file.stem for file in DATA.glob("*.jsonl")))
        raise FileNotFoundError(f"there is no file {path}; the workbook's own sets are: {known}")
    else:
        rows = _hub_rows(str(name_or_path), split)
    preferences, problems = [], []
    for where, row in rows:
        faults = [row] if isinstance(row, str) else _faults(row)
        problems += [f"{where}: {fault}" for fault in faults]
        if not faults:
            preferences.append(_preference(row))
    if not preferences and not problems:
        problems.append(f"{path.name}: has no rows")
    if problems:
        raise PreferenceError(problems)
    return preferences


def split_preferences(
    preferences: Sequence[Preference], validation: float = 0.2, seed: int = 0
) -> tuple[list[Preference], list[Preference]]:
    """Split into (train, validation), by group within each domain, the same way for the same seed.

    A group, and with it a prompt, is never on both sides; every domain gives as near to the share
    `validation` of its preferences as its groups allow, and makes up for the domains before it. Raises ValueError where a side would be empty.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation is a share of the data, between 0 and 1: got {validation}")
    group_of, domain_of = {}, {}  # of a prompt, of a group
    domains: dict[str, dict[str, list[Preference]]] = defaultdict(lambda: defaultdict(list))
    for preference in preferences:
        prompt, group = _same_prompt(preference.prompt), preference.group
        if group_of.setdefault(prompt, group) != group:
            raise ValueError(
                f"the prompt {preference.prompt!r} is in two groups, {group_of[prompt]!r} and {group!r}: it could leak"
            )
        domains[domain_of.setdefault(group, preference.domain)][group].append(preference)
    rng = random.Random(seed)
    held_out: set[str] = set()
    owed = 0.0  # what a domain could not give, because its groups are too large, the next ones give
    for _, groups in sorted(domains.items()):
        wanted, taken = validation * sum(map(len, groups.values())) + owed, 0
        for group in rng.sample(sorted(groups), len(groups)):
            if abs(taken + len(groups[group]) - wanted) < abs(taken - wanted):
                held_out.add(group)
                taken += len(groups[group])
        owed = wanted - taken
    sides = [p for p in preferences if p.group not in held_out], [p for p in preferences if p.group in held_out]
    if not all(sides):
        raise ValueError(
            f"{len(preferences)} preferences in too few groups to hold out {validation:.0%}: one side would be empty"
        )
    return sides


def _same_prompt(prompt: str) -> str:
    """What two spellings of one prompt have in common."""
    return " ".join(prompt.split()).casefold()


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict | str]]:
    """(file:line, row), or (file:line, what is wrong with the line). `datasets` does not tell the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield where, f"is not UTF-8 (byte {error.start + 1} of the line)"
            except ValueError as error:
                yield where, f"is not one JSON object: {error}"
            else:
                yield where, row if isinstance(row, dict) else f"is not a JSON object but {_kind(row)}"


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, dict]]:
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise FileNotFoundError(
            f"{name!r} is no file here, and the hub gave no data set of that name and split {split!r}: {first_line(error)}"
        ) from None
    return ((f"{name}[{split}] row {i}", row) for i, row in enumerate(table))


def _faults(row: dict) -> list[str]:
    faults = []
    for field in ("prompt", "chosen", "rejected"):
        if field not in row:
            faults.append(f"{field}: is missing")
        elif not isinstance(row[field], str):
            faults.append(f"{field}: is {_kind(row[field])}, not text")
        elif not row[field].strip():
            faults.append(f"{field}: is empty")
        elif any("\ud800" <= character <= "\udfff" for character in row[field]):
            faults.append(f"{field}: holds half of a surrogate pair, which no tokenizer reads")
    for field in ("domain", "group"):
        if row.get(field) is not None and not isinstance(row[field], str):
            faults.append(f"{field}: is {_kind(row[field])}, not text")
    if row.get("tie") is not None and not isinstance(row["tie"], bool):
        faults.append(f"tie: is {_kind(row['tie'])}, not true or false")
    margin = row.get("margin")
    if margin is not None and (
        isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < float("inf")
    ):
        faults.append(f"margin: is {margin!r}, not a number from 0 up")
    if not faults and row["chosen"] == row["rejected"]:
        faults.append("chosen and rejected: are the same text, so there is nothing to learn from them")
    return faults


def _preference(row: dict) -> Preference:
    return Preference(
        prompt=row["prompt"],
        completions=(row["chosen"], row["rejected"]),
        ranks=(0, 0) if row.get("tie") else (0, 1),
        margin=row.get("margin"),
        domain=row.get("domain") or "",
        group=row.get("group") or "",
    )


def _kind(value: object) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
