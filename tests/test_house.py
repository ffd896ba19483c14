"""The README tells the truth, and the two lists of dependencies agree."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest

from tests.notebook_tool import readme_picture

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_every_link_of_the_readme_leads_somewhere(target):
    assert (ROOT / target).exists()


def test_the_route_names_every_notebook():
    assert sorted(set(re.findall(r"\]\(notebooks/([^)]+\.ipynb)\)", README))) == NOTEBOOKS


def test_the_picture_is_the_one_stored_in_the_notebook():
    """`python -m tests.notebook_tool run notebooks/03_training.ipynb` renews both."""
    notebook = nbformat.read(ROOT / "notebooks" / "03_training.ipynb", as_version=4)
    assert (ROOT / "notebooks" / "images" / "03_training.png").read_bytes() == readme_picture(notebook)


def test_what_the_package_needs_is_pinned_and_every_pin_is_exact():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] not in "#-"]
    assert [line for line in lines if "==" not in line] == ["pip"]  # which cannot replace itself on Windows
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(needed) <= {line.split("==")[0] for line in lines}


def test_the_ci_runs_the_test_command_of_the_readme():
    assert "pytest --nbval notebooks tests" in README
    assert "pytest --nbval notebooks tests" in (ROOT / ".ci" / "run").read_text()


def test_the_speeds_that_the_readme_quotes_were_measured():
    """Beside TRL, in the order of the benchmarks' report: ratios rounded to two digits, and peaks of memory."""
    section = README.split("## How fast")[1].split("\n## ")[0]
    quoted = re.findall(r"\| ([\d.]+) \| ([\d.]+) \| ([\d.]+), ([\d.]+), ([\d.]+) GB \|$", section, re.MULTILINE)
    report = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    row = r"^\| (?:rmkit|TRL, .*?) \| [\d.e+]+ \| (?:([\d.]+) \(.*?\))? ?\| ([\d.]+) GB \|$"
    measured = re.findall(row, report, re.MULTILINE)  # (faster by, peak) of rmkit, TRL, TRL at its best, table by table
    tables = [measured[i : i + 3] for i in range(0, len(measured), 3)]
    expected = [
        [*(float(f"{float(ratio):.2g}") for ratio, _ in t[1:]), *(float(peak) for _, peak in t)] for t in tables
    ]
    assert len(expected) == 4 and [[float(n) for n in line] for line in quoted] == expected
