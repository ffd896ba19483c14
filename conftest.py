"""Plain `pytest --nbval notebooks` works from any folder: pyproject.toml holds pytest's options, and the
kernels that nbval starts inherit the environment that is prepared here."""

import functools
import json
import os
from pathlib import Path

import psutil

from tests.notebook_tool import prepare_environment

MEMORY = 7e9  # bytes that a notebook may take at its highest, and some to spare
CORES = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()

prepare_environment()
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # each with its share of the cores: more would wait
    os.environ["OMP_NUM_THREADS"] = str(max(1, CORES // workers))


def pytest_xdist_auto_num_workers(config):
    """Two files at a time, where there are two cores and memory for both; a single file gets all cores.

    Half of a notebook's time is work that keeps one core busy, and the matrix products of the other half are as fast on
    one core for each of two notebooks as on two cores for one.
    """
    paths = [Path(argument.split("::")[0]) for argument in config.option.file_or_dir]
    if len(paths) == 1 and paths[0].is_file():
        return 0
    return 2 if CORES >= 2 and psutil.virtual_memory().available > 2 * MEMORY else 0


def pytest_collection_modifyitems(items):
    """The longest notebook first: begun last, it would leave one of two cores without work at the end."""
    longest = max((item.path for item in items), key=work, default=None)
    items.sort(key=lambda item: item.path != longest)


@functools.cache
def work(path):
    """What the notebook cost when it was stored, in GFLOP; of other files, 0."""
    if path.suffix != ".ipynb":
        return 0
    cost = json.loads(path.read_text("utf-8"))["metadata"].get("rmkit", {"seconds": 0, "speed_gflops": 0})
    return cost["seconds"] * cost["speed_gflops"]
