"""Protects: every lesson runs from top to bottom on whatever backbone RMKIT_BACKBONE names; its verdicts may differ.

And with every exercise solved, as with none (which is how the notebooks are stored, and how nbval runs them).
"""

import inspect

import nbformat
import pytest

from rmkit.exercises import find
from tests import notebook_tool
from tests.exercise_table import FUNCTION

NOTEBOOKS = sorted((notebook_tool.ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks yet")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_raises_on_a_tiny_backbone_with_every_exercise_solved(path, tiny_folder, tmp_path, monkeypatch):
    """In a folder and with a cache of its own, so that neither the repository nor the developer's guesses change."""
    monkeypatch.setenv("RMKIT_CACHE", notebook_tool.empty_cache(tmp_path))  # a lesson may name SmolLM2 itself
    monkeypatch.setenv("RMKIT_BACKBONE", str(tiny_folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "notebooks").mkdir()
    nb = nbformat.read(path, as_version=4)
    solved = solve(nb)
    notebook_tool.execute(nb, tmp_path / "notebooks")  # raises at the first cell that does
    shown = "".join(notebook_tool.texts(cell) for _, cell in notebook_tool.code_cells(nb))
    assert f"{tiny_folder.name}: " in shown, "the lesson ran on another backbone"
    for name in solved:
        assert f"✓ {name}: right. Yours is used from here on." in shown


def solve(nb: nbformat.NotebookNode) -> list[str]:
    """Write the reference into the cell of every exercise, and give back their names."""
    solved = []
    for _, cell in notebook_tool.code_cells(nb):
        if found := FUNCTION.search(cell.source):
            cell.source = cell.source[: found.start()] + "@exercise\n" + inspect.getsource(find(found[1]).reference)
            solved.append(found[1])
    return solved
