"""Protects: a mistake ends in a sentence that says what was wrong and where, in a class that rmkit promises."""

import re

import pytest

from tests.bad_inputs import CASES, TABLE, line, run

PROMISED = {
    "PreferenceError", "ValueError", "TypeError", "FileNotFoundError", "FileExistsError", "BackboneUnavailable",
    "CheckpointError", "NonFiniteLoss", "NotImplementedError", "UserWarning",
}  # fmt: skip
RAW = r"NoneType|\btensor\b|KeyError|Traceback|has no attribute|not subscriptable|not iterable|not callable|state_dict|torch\."


@pytest.fixture(scope="module")
def table():
    return TABLE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("case", CASES, ids=[f"{case.area}: {case.done}" for case in CASES])
def test_bad_input_is_told_as_the_table_says(case, tiny_folder, table):
    """`python -m tests.bad_inputs` writes the table anew, where the words were changed on purpose."""
    name, message = run(case, tiny_folder.resolve())
    assert name in PROMISED, f"{name}: {message}"
    assert not [part for part in case.names if part not in message], message
    assert not re.search(RAW, message), message
    assert line(case, (name, message)) in table


def test_the_table_has_a_line_for_every_case_and_no_other(table):
    rows = [row for row in table if row.startswith("| ") and not row.startswith(("| what was done", "| ---"))]
    assert len(rows) == len(CASES) >= 60
    assert len({(case.area, case.done) for case in CASES}) == len(CASES)
    assert all(case.names for case in CASES)
