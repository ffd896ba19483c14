"""The table of all exercises, notebooks/EXERCISES.md, made from the notebooks and from what rmkit.exercises knows.

python -m tests.exercise_table   # writes it
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import nbformat

from rmkit.exercises import find
from tests.notebook_tool import ROOT

FILE = ROOT / "notebooks" / "EXERCISES.md"
HEADING = re.compile(r"^### Exercise (\d+) · (.+) \((easy|medium|hard), (\d+ minutes(?: or more)?)\)$", re.MULTILINE)
FUNCTION = re.compile(r"^@exercise\ndef (\w+)\(", re.MULTILINE)
OPENING = """# All exercises

Every exercise is a function to fill in. Left alone, the lesson goes on with a reference; filled in wrongly, it is compared
with the wrong answers that are known, and the mistake is named; filled in rightly, the lesson uses it. The open ones ask
for an experiment, and have no check. This page is written by `python -m tests.exercise_table`.

| lesson | exercise | difficulty | time | function | wrong answers known by name | hints |
| --- | --- | --- | --- | --- | --- | --- |
"""


def exercises(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, str, str, str, str | None]]:
    """(number, title, difficulty, time, function) of every exercise in a notebook; an open one has no function."""
    heading = None
    for cell in notebook.cells:
        if found := FUNCTION.search(cell.source) if cell.cell_type == "code" else None:
            if heading is None:
                raise ValueError(f"{found[1]} has no heading of the form '### Exercise 1 · title (easy, 5 minutes)'")
            yield *heading, found[1]
            heading = None
        for found in HEADING.finditer(cell.source) if cell.cell_type == "markdown" else ():
            if heading:
                yield *heading, None
            heading = found.groups()
    if heading:
        yield *heading, None


def table() -> str:
    """The page."""
    lines = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, title, difficulty, time, function in exercises(nbformat.read(path, as_version=4)):
            known = find(function) if function else None
            checked = f"`{function}` | {len(known.mistakes)} | {len(known.hints)}" if known else "open | | "
            lines.append(f"| [{path.stem[:2]}]({path.name}) | {number} · {title} | {difficulty} | {time} | {checked} |")
    return OPENING + "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
