"""The notebooks as stored are fit to be read and to pass strict nbval; and every lint rule can fail."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rmkit import doctor
from tests import notebook_tool

NOTEBOOKS = sorted((notebook_tool.ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook_says_what_it_cost(path):
    """The doctor makes minutes of it, and the longest is tested first."""
    assert nbformat.read(path, as_version=4).metadata["rmkit"]["seconds"] > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook_is_clean(path):
    assert notebook_tool.lint(nbformat.read(path, as_version=4)) == []


def code(source: str, *outputs, tag: str = ""):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": [tag]} if tag else {})


def picture():
    return new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480>"})


def clean() -> nbformat.NotebookNode:
    """A notebook that breaks no rule, with one cell of every kind that a rule looks at."""
    error = new_output("error", ename="ValueError", evalue="no pairs", traceback=["\x1b[31mno pairs\x1b[0m"])
    training = new_output("stream", name="stdout", text="loss 0.61\n")
    cells = [
        new_markdown_cell("# A lesson"),
        code("%matplotlib inline\nimport torch"),
        code("plt.plot(x)\nplt.show()  # not a `;`", picture()),
        new_markdown_cell("The curve falls from left to right."),
        code("fit(model)", training, tag="nbval-ignore-output"),
        code("model"),
        code("assert loss < 0.69\nloss.dtype", new_output("execute_result", {"text/plain": "torch.float32"})),
        code("fit([])", error, tag="raises-exception"),
        code("   "),
    ]
    for count, cell in enumerate([cell for cell in cells if "execution_count" in cell][:-1], 1):
        cell.execution_count = count
    return new_notebook(cells=cells, metadata=copy.deepcopy(notebook_tool.METADATA))


def prints(text: str, stream: str = "stdout"):
    return lambda nb: nb.cells[5].outputs.append(new_output("stream", name=stream, text=text))


def shows(**data: str):
    return lambda nb: nb.cells[5].outputs.append(new_output("display_data", data))


def source(cell: int, text: str):
    return lambda nb: nb.cells[cell].update(source=text)


def tag(cell: int, *names: str):
    return lambda nb: nb.cells[cell].metadata.update(tags=list(names))


FAULTS = [  # (the rule that must fire, what is done to the clean notebook)
    ("run_in_order", lambda nb: nb.cells[4].update(execution_count=None)),
    ("run_in_order", lambda nb: nb.cells[4].update(execution_count=17)),
    ("no_trailing_semicolon", source(2, "plt.plot(x);")),
    ("no_trailing_semicolon", source(2, "%matplotlib inline\nplt.plot(x);  # quiet\n")),
    ("no_error", tag(7)),
    ("no_stderr", prints("a warning", stream="stderr")),
    ("no_stderr", lambda nb: nb.cells[4].outputs.append(new_output("stream", name="stderr", text="x"))),
    ("no_trace_of_the_machine", prints("saved to /home/ada/model\n")),
    ("no_trace_of_the_machine", prints("\x1b[32m/Users/ada/model\x1b[0m")),
    ("no_trace_of_the_machine", prints(r"C:\Users\ada\model")),
    ("no_trace_of_the_machine", shows(**{"text/html": "<td>/tmp/model</td>"})),
    ("no_trace_of_the_machine", shows(**{"text/plain": "<function loss at 0x7f3a5c1b2d40>"})),
    ("no_trace_of_the_machine", lambda nb: nb.cells[7].outputs[0].traceback.append("File /root/fit.py")),
    ("no_widget_state", lambda nb: nb.metadata.update(widgets={"state": {}})),
    ("kernelspec", lambda nb: nb.metadata.kernelspec.update(name="workbook-venv")),
    ("kernelspec", lambda nb: nb.metadata.pop("kernelspec")),
    ("size", prints("x" * notebook_tool.MAX_BYTES)),
    ("no_skip", tag(5, "nbval-skip")),
    ("no_skip", source(5, "# NBVAL_IGNORE_OUTPUT\nmodel")),
    ("ignored_then_asserted", source(6, "# assert loss < 0.69\nloss.dtype")),
    ("ignored_then_asserted", tag(6, "nbval-ignore-output")),
    ("ignored_then_asserted", lambda nb: nb.cells.insert(5, code("1", tag="nbval-ignore-output"))),
    ("short_cells", source(5, "\n".join(["x = 1"] * (notebook_tool.MAX_LINES + 1)))),
    ("no_live_output", source(5, "interact(draw, n=(0, 9))")),
    ("no_live_output", source(5, "@interact\ndef draw(n=3): ...")),
    ("no_live_output", source(5, "out = widgets.Output()")),
    ("no_live_output", source(5, "clear_output(wait=True)")),
    ("figure_described", source(3, "## The next section\n")),
    ("figure_described", lambda nb: nb.cells.pop(3)),
    ("figure_described", lambda nb: nb.cells[8].update(outputs=[picture()])),
]


def test_clean_notebook_has_no_findings():
    assert notebook_tool.lint(clean()) == []


def test_every_rule_has_a_planted_fault():
    assert {name for name, _ in FAULTS} == {rule.__name__ for rule in notebook_tool.RULES}


@pytest.mark.parametrize(("name", "plant"), FAULTS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FAULTS)])
def test_rule_fires(name, plant):
    nb = clean()
    plant(nb)
    count = 0
    for cell in nb.cells:  # a cell that a fault put in or took out is not a fault of order
        if name != "run_in_order" and cell.cell_type == "code" and cell.source.strip():
            cell.execution_count = count = count + 1
    findings = notebook_tool.lint(nb)
    assert findings, "the planted fault was not found"
    assert {finding.partition(":")[0] for finding in findings} == {name}


def stored(path: Path, *sources: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(text) for text in sources]), path)
    return path


def test_run_stores_a_notebook_that_passes_lint(tmp_path, capsys):
    path = stored(tmp_path / "nb.ipynb", "print('a')\nprint('b')", "import ipywidgets\nipywidgets.IntSlider()")
    notebook_tool.run(path)
    nb = nbformat.read(path, as_version=4)
    assert notebook_tool.lint(nb) == []
    cost = nb.metadata.pop("rmkit")  # what rmkit.doctor makes minutes of
    assert set(cost) == {"device", "speed_gflops", "seconds", "cpu_seconds", "peak_gb"} and cost["device"] == "cpu"
    assert min(cost["speed_gflops"], cost["seconds"], cost["cpu_seconds"], cost["peak_gb"]) > 0
    assert doctor.minutes(path) == ("nb (under 1 min)", None)
    assert nb.metadata == notebook_tool.METADATA
    assert [output.text for output in nb.cells[0].outputs] == ["a\nb\n"]
    assert len(nb.cells) == 2, "the cell that measures the cost was stored"
    assert nb.cells[1].outputs[0].data[notebook_tool.WIDGET].model_id == f"{1:032x}", "differs at every run"
    assert "s wall" in capsys.readouterr().out


def test_run_begins_with_an_empty_cache_and_leaves_ours_alone(tmp_path, monkeypatch):
    """What a learner's machine has read stays there, and does not come into a notebook that is stored as run on a new one."""
    ours = tmp_path / "ours"
    (ours / "trunk" / "model").mkdir(parents=True)
    (ours / "trunk" / "model" / "entry").write_text("read")
    (ours / "predictions.json").write_text("{}")
    (ours / "backbones").mkdir()
    monkeypatch.setenv("RMKIT_CACHE", str(ours))
    path = stored(tmp_path / "nb.ipynb", "import rmkit\nsorted(p.name for p in rmkit.cache_folder().iterdir())")
    notebook_tool.run(path)
    assert nbformat.read(path, as_version=4).cells[0].outputs[0].data["text/plain"] == "['backbones']"
    assert (ours / "trunk" / "model" / "entry").read_text() == "read" and (ours / "predictions.json").is_file()


def test_run_that_fails_leaves_the_old_file(tmp_path):
    path = stored(tmp_path / "nb.ipynb", "1 + 1", "raise ValueError('planted')")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="planted"):
        notebook_tool.run(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["nb.ipynb"]
