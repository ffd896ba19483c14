"""Protects: every lesson runs from top to bottom on whatever backbone RMKIT_BACKBONE names; its verdicts may differ."""

import nbformat
import pytest

from rmkit import cache_folder
from tests import notebook_tool

NOTEBOOKS = sorted((notebook_tool.ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks yet")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_raises_on_a_tiny_backbone(path, tiny_folder, tmp_path, monkeypatch):
    """In a folder and with a cache of its own, so that neither the repository nor the developer's guesses change."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "backbones").symlink_to(cache_folder() / "backbones")  # a lesson may name SmolLM2 itself
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RMKIT_BACKBONE", str(tiny_folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "notebooks").mkdir()
    nb = nbformat.read(path, as_version=4)
    notebook_tool.execute(nb, tmp_path / "notebooks")  # raises at the first cell that does
    shown = "".join(notebook_tool.texts(cell) for _, cell in notebook_tool.code_cells(nb))
    assert f"{tiny_folder.name}: " in shown, "the lesson ran on another backbone"
