"""Execute and lint the notebooks.

    python -m tests.notebook_tool run notebooks/03_training.ipynb    execute in place, normalise, say the cost
    python -m tests.notebook_tool lint notebooks/*.ipynb             list what breaks nbval or a static page

Exit status 1: a cell failed (the file on disk is then left as it was), or lint found something.
"""

import argparse
import atexit
import base64
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import nbformat
from IPython.core.displayhook import DisplayHook
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CELL_TIMEOUT = 900  # seconds, as for nbval in pyproject.toml
MAX_BYTES = 1_000_000
MAX_LINES = 25
IGNORED = "nbval-ignore-output"
README_PICTURE = (
    "readme-picture"  # `run` keeps the picture of this cell in notebooks/images/, under the notebook's name
)
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
KEPT = ("tags", "jupyter", "slideshow")


def prepare_environment() -> None:
    """Set what kernels inherit: rmkit can be imported, figures are inline, no personal settings leak in."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.pop("MPLBACKEND", None)  # Agg in a shell would empty every figure cell
    os.environ["IPYTHONDIR"] = tempfile.mkdtemp(prefix="ipython-")  # no start-up files, no SVG figures
    atexit.register(shutil.rmtree, os.environ["IPYTHONDIR"], ignore_errors=True)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "PYDEVD_DISABLE_FILE_VALIDATION"):
        os.environ.setdefault(name, "1")


# --- run ----------------------------------------------------------------------------------------------------

# Asked of the kernel at the end. The peak counts kB on Linux and bytes on macOS.
COST = """
import json, resource, sys
own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({
    "cpu": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
    "peak": own.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}))
"""


def execute(nb: nbformat.NotebookNode, folder: Path) -> dict:
    """Run all cells in a fresh kernel of this interpreter.

    Returns wall seconds, CPU seconds and peak bytes of the kernel, and the seconds of each cell by its index.
    Raises CellExecutionError, CellTimeoutError or DeadKernelError at the first cell that fails.
    """
    client = NotebookClient(
        nb,
        kernel_name="python3",
        timeout=CELL_TIMEOUT,
        startup_timeout=300,
        coalesce_streams=True,  # else every print is an output of its own
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # else every kernel warns that its TCP is not encrypted
        resources={"metadata": {"path": str(folder)}},
    )
    client.km = client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs = []  # a stale kernelspec named python3 must not win
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    started, seconds = time.perf_counter(), {}
    with client.setup_kernel():
        for i, cell in enumerate(nb.cells):
            cell_started = time.perf_counter()
            client.execute_cell(cell, i, execution_count=client.code_cells_executed + 1)
            seconds[i] = time.perf_counter() - cell_started
        wall = time.perf_counter() - started
        nb.cells.append(nbformat.v4.new_code_cell(COST))
        client.execute_cell(nb.cells[-1], len(nb.cells) - 1, store_history=False)
        cost = json.loads(nb.cells.pop().outputs[0].text)
    return {"wall": wall, "cells": seconds, **cost}


def normalise(nb: nbformat.NotebookNode) -> None:
    """Drop what differs between two runs or two editors: widget state, dead progress bars, timestamps, folds.

    Figures are stored in 128 colours, a quarter of the bytes; pytest --nbval does not compare them.
    """
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        if IGNORED in cell.metadata.get("tags", []):
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    for i, output in enumerate(outputs):
        if WIDGET in output.get("data", {}):  # a random name for a state that is not stored
            output.data[WIDGET].model_id = f"{i:032x}"
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = base64.b64encode(
                few_colours(base64.b64decode(output.data["image/png"]))
            ).decode()
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})


def is_progress_bar(output: nbformat.NotebookNode) -> bool:
    data = output.get("data", {})
    return WIDGET in data and bool(re.search(r"\d+%\|", data.get("text/plain", "")))


def few_colours(png: bytes) -> bytes:
    """The picture in a palette of 128 colours."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def readme_picture(nb: nbformat.NotebookNode) -> bytes | None:
    """The picture of the cell that is tagged for the README, if there is one."""
    for cell in nb.cells:
        if README_PICTURE in cell.metadata.get("tags", []):
            return base64.b64decode(cell.outputs[0].data["image/png"])
    return None


def write(nb: nbformat.NotebookNode, path: Path) -> None:
    """Replace `path` in one step, keys in sorted order: a crash leaves the old file or the new one."""
    nbformat.validate(nb)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        nbformat.write(nb, new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def empty_cache(folder: Path) -> str:
    """A cache in this folder that has the language models and nothing else, for `RMKIT_CACHE`: no states, no guesses."""
    from rmkit import cache_folder  # not above: it takes seconds, and neither lint nor pytest's conftest needs it

    backbones = cache_folder() / "backbones"
    backbones.mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir()
    (folder / "cache" / "backbones").symlink_to(backbones.absolute())
    return str(folder / "cache")


def run(path: Path) -> None:
    """Execute the notebook in place, as on a machine that has run none, and print what it cost, with its five slowest cells.

    What it cost, and how fast this machine was just before, is stored for `python -m rmkit.doctor`.
    """
    from rmkit import doctor

    nb = nbformat.read(path, as_version=4)
    machine = {"device": doctor.device(), "speed_gflops": round(doctor.speed(doctor.device()), 1)}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, RMKIT_CACHE=empty_cache(Path(folder))):
        cost = execute(nb, path.resolve().parent)
    normalise(nb)
    spent = {"seconds": round(cost["wall"], 1), "cpu_seconds": round(cost["cpu"], 1)}
    nb.metadata["rmkit"] = machine | spent | {"peak_gb": round(cost["peak"] / 1e9, 2)}
    write(nb, path)
    if picture := readme_picture(nb):
        (ROOT / "notebooks" / "images" / f"{path.stem}.png").write_bytes(picture)
    print(f"{path}: {cost['wall']:.1f} s wall, {cost['cpu']:.1f} s CPU, {cost['peak'] / 1e9:.2f} GB peak")
    for i in sorted(cost["cells"], key=cost["cells"].get, reverse=True)[:5]:
        print(f"  {cost['cells'][i]:8.1f} s  {name(i + 1, nb.cells[i])}")


# --- lint ---------------------------------------------------------------------------------------------------

ANSI = re.compile(r"\x1b\[[0-9;]*m")
MACHINE = {
    "an absolute path": re.compile(r"(?<![\w.<])/(home|root|tmp|work|Users|var/folders)\b|\b[A-Z]:\\+Users\b"),
    "a memory address": re.compile(r"\b0x[0-9a-fA-F]{6,}\b"),
}
CLAIM = re.compile(r"^[^#\n]*(\bassert|\bclaim\()", re.MULTILINE)
LIVE = re.compile(r"\b(interact|interactive|interactive_output|clear_output|Output)\s*\(|@interact\b")
PROSE = re.compile(r"^\s*[^#\s]", re.MULTILINE)  # a line that is not a heading

RULES = []


def rule(check):
    """Register a check: it takes a notebook and yields one sentence for each fault."""
    RULES.append(check)
    return check


def lint(nb: nbformat.NotebookNode) -> list[str]:
    """All findings, each `rule: where: what`. An empty list is a clean notebook."""
    return [f"{check.__name__}: {finding}" for check in RULES for finding in check(nb)]


def name(number: int, cell: nbformat.NotebookNode) -> str:
    """A cell as a person finds it: its position in the notebook, from 1, and its first line."""
    return f"cell {number} `{cell.source.strip().partition(chr(10))[0][:50]}`"


def code_cells(nb: nbformat.NotebookNode) -> list[tuple[str, nbformat.NotebookNode]]:
    """(name, cell) of every code cell that is not empty."""
    cells = enumerate(nb.cells, 1)
    return [(name(i, cell), cell) for i, cell in cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def texts(cell: nbformat.NotebookNode) -> str:
    """Everything that a reader sees of a cell's outputs as text, tracebacks too, without colours."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts += [output.ename, output.evalue, *output.traceback]
        else:
            parts += [text for mime, text in output.data.items() if mime.startswith("text/")]
    return ANSI.sub("", "\n".join(parts))


@rule
def run_in_order(nb):
    for expected, (where, cell) in enumerate(code_cells(nb), 1):
        if cell.execution_count != expected:
            yield f"{where}: execution count {cell.execution_count}, expected {expected}"


@rule
def no_trailing_semicolon(nb):
    for where, cell in code_cells(nb):
        if DisplayHook.semicolon_at_end_of_expression(TransformerManager().transform_cell(cell.source)):
            yield f"{where}: ends in `;`, which hides the output in Lab but not in nbval"


@rule
def no_error(nb):
    for where, cell in code_cells(nb):
        if "raises-exception" not in tags(cell):
            for output in cell.outputs:
                if output.output_type == "error":
                    yield f"{where}: {output.ename} stored; tag the cell raises-exception if that is meant"


@rule
def no_stderr(nb):
    for where, cell in code_cells(nb):
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"{where}: something was written to stderr"


@rule
def no_trace_of_the_machine(nb):
    for where, cell in code_cells(nb):
        for what, pattern in MACHINE.items():
            if found := pattern.search(texts(cell)):
                yield f"{where}: {what} in the output: {found.group()}"


@rule
def no_widget_state(nb):
    if "widgets" in nb.metadata:
        yield "metadata.widgets is stored: static pages refuse it, and it is large"


@rule
def kernelspec(nb):
    if nb.metadata.get("kernelspec") != METADATA["kernelspec"]:
        yield f"kernelspec is not {METADATA['kernelspec']['name']} as `run` stores it"


@rule
def size(nb):
    if (stored := len(nbformat.writes(nb).encode())) > MAX_BYTES:
        yield f"{stored / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} MB"


@rule
def no_skip(nb):
    for where, cell in code_cells(nb):
        if "nbval-skip" in tags(cell):
            yield f"{where}: nbval-skip: a cell that is never run is never right"
        if re.search(r"^\s*#+\s*(NBVAL|PYTEST_VALIDATE)_", cell.source, re.MULTILINE):
            yield f"{where}: nbval's marker as a comment: use a tag, which lint sees"


@rule
def ignored_then_asserted(nb):
    cells = code_cells(nb)
    for i, (where, cell) in enumerate(cells):
        checked = [after for _, after in cells[i + 1 : i + 3] if IGNORED not in tags(after)]
        if IGNORED in tags(cell) and not any(CLAIM.search(after.source) for after in checked):
            yield f"{where}: its output is ignored, and neither of the next two code cells asserts anything"


@rule
def short_cells(nb):
    for where, cell in code_cells(nb):
        if (lines := len(cell.source.strip().splitlines())) > MAX_LINES:
            yield f"{where}: {lines} lines, at most {MAX_LINES}"


@rule
def no_live_output(nb):
    for where, cell in code_cells(nb):
        if found := LIVE.search(re.sub(r"#.*", "", cell.source)):
            yield f"{where}: {found.group()} fails strict nbval: use a slider figure or display_id"


@rule
def figure_described(nb):
    for i, cell in enumerate(nb.cells):
        data = [mime for output in cell.get("outputs", []) for mime in output.get("data", {})]
        after = nb.cells[i + 1] if i + 1 < len(nb.cells) else None
        described = after and after.cell_type == "markdown" and PROSE.search(after.source)
        if any(mime.startswith("image/") for mime in data) and not described:
            yield f"{name(i + 1, cell)}: no sentence under the figure for a person who cannot see it"


# --- command line -------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute and lint the notebooks.")
    parser.add_argument("action", choices=["run", "lint"])
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    prepare_environment()
    failed = False
    for path in options.paths:
        if options.action == "run":
            try:
                run(path)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                print(f"{path}: FAILED, left as it was\n{error}", file=sys.stderr)
                failed = True
                continue
        findings = lint(nbformat.read(path, as_version=4))
        failed |= options.action == "lint" and bool(findings)
        for finding in findings:
            print(f"{path}: {finding}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
