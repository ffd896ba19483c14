"""In a real JupyterLab: run-all ends without an error, every slider moves its figure, every quiz answers.

Asked for by RMKIT_BROWSER_TESTS=1, since the notebooks train models for minutes; RMKIT_SCREENSHOTS=FOLDER
keeps a picture of every slider after its move.
"""

import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.lab_driver import SLIDERS, answer_quizzes, lab, missing, move_slider, run_all, type_in_playgrounds
from tests.notebook_tool import METADATA, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

ASKED = os.environ.get("RMKIT_BROWSER_TESTS") == "1"
REASON = missing() if ASKED else "browser tests take minutes: set RMKIT_BROWSER_TESTS=1"
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

SHOW = """
import io
import ipywidgets
from matplotlib.figure import Figure

def show(start, height=lambda value: value, live=True):
    def draw(change=None):
        figure, file = Figure(figsize=(3, 2)), io.BytesIO()
        figure.subplots().bar([0, 1], [9, height(slider.value)])
        figure.savefig(file, metadata={"Title": str(slider.value)})  # new bytes, even if the picture is the same
        image.value = file.getvalue()

    slider, image = ipywidgets.IntSlider(start, 0, 9, description="height"), ipywidgets.Image()
    draw()
    if live:
        slider.observe(draw, "value")
    return ipywidgets.VBox([slider, image])
"""


@pytest.fixture(scope="class")
def scratch_page(tmp_path_factory):
    """A Lab with small notebooks: a slider that works, stands still or draws the same; a cell that raises."""
    folder = tmp_path_factory.mktemp("scratch")
    notebooks = {
        "works": [SHOW, "show(3)", "show(9)", "1 + 1"],
        "stands_still": [SHOW, "show(3, live=False)"],
        "draws_the_same": [SHOW, "show(3, height=lambda value: 4)"],
        "raises": ["import time\ntime.sleep(2)", "raise ValueError('planted')", "2 + 2"],
    }
    for name, sources in notebooks.items():
        cells = [new_code_cell(text, execution_count=1) for text in sources]  # as if it had been run before
        nbformat.write(new_notebook(cells=cells, metadata=METADATA), folder / f"{name}.ipynb")
    with lab(folder) as page:
        yield page


class TestDriver:
    """The driver itself, in one Lab."""

    def test_moves_sliders(self, scratch_page):
        run_all(scratch_page, "works.ipynb")
        handles = scratch_page.locator(SLIDERS).all()
        assert [move_slider(scratch_page, handle) for handle in handles] == [("3.0", "4.0"), ("9.0", "8.0")]

    @pytest.mark.parametrize(
        ("name", "finding"), [("stands_still", "no new figure"), ("draws_the_same", "looks like the old one")]
    )
    def test_notices_a_slider_that_does_nothing(self, scratch_page, name, finding):
        run_all(scratch_page, f"{name}.ipynb")
        with pytest.raises(AssertionError, match=finding):
            move_slider(scratch_page, scratch_page.locator(SLIDERS).first, seconds=5)

    @pytest.mark.parametrize(("name", "finding"), [("raises", "planted"), ("absent", "there is no absent")])
    def test_notices_a_run_that_fails(self, scratch_page, name, finding):
        with pytest.raises(AssertionError, match=finding):
            run_all(scratch_page, f"{name}.ipynb")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_slider_moves_its_figure_and_every_quiz_answers(path):
    name, playgrounds = path.stem, path.read_text(encoding="utf-8").count("rmkit.Playground(")
    with lab(ROOT / "notebooks") as page:
        run_all(page, path.name)
        handles = page.locator(SLIDERS).all()
        assert handles, "a lesson has something to drag"
        for i, handle in enumerate(handles):
            move_slider(page, handle)
            if folder := os.environ.get("RMKIT_SCREENSHOTS"):
                page.screenshot(path=Path(folder) / f"{name}-{i}.png")
        assert type_in_playgrounds(page) == playgrounds
        assert answer_quizzes(page) >= 3, "a lesson ends with a quiz"
        if folder := os.environ.get("RMKIT_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}-quiz.png")
