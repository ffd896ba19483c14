"""Checkpoints of a training run: written whole or not at all, and read back to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from rmkit.batching import Encoded

if TYPE_CHECKING:
    from rmkit.training import Run

STATE = "state.json"
TENSORS = "tensors.safetensors"
STEP = re.compile(r"step-\d{8}")
WRITING = ".rmkit-writing-"  # how the folder begins in which a checkpoint is written: nobody else's


class CheckpointError(RuntimeError):
    """A checkpoint folder that cannot be used, or holds another run; the message says what to do."""


class Checkpoints:
    """The checkpoint of one run in one folder, `step-N`, replaced by the next one when that is safely on disk.

    run: what the run is made of (config, data, model …), as JSON values under names; a checkpoint goes on with no other.
    writes: of several processes of one run, one writes; the others only read.
    Raises CheckpointError where the folder cannot be written to, or another run is writing to it.
    """

    def __init__(self, folder: str | Path, run: dict, writes: bool = True):
        self.folder, self.run, self.writes = Path(folder), json.loads(json.dumps(run)), writes
        self._lock = filelock.FileLock(self.folder / ".lock")
        if not writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            for abandoned in self.folder.glob(f"{WRITING}*"):  # by a run that was killed
                shutil.rmtree(abandoned, ignore_errors=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except filelock.Timeout:
            raise CheckpointError(
                f"another run is writing its checkpoints to {self.folder}: give each its own"
            ) from None
        except OSError as error:
            self._lock.release()
            raise CheckpointError(
                f"checkpoints cannot be written to {self.folder}: {error}; give another folder"
            ) from None

    @property
    def last_step(self) -> int:
        """Of the last checkpoint; -1 where there is none yet."""
        return int(self._steps()[-1].name[5:]) if self._steps() else -1

    def resume(self, run: Run) -> None:
        """Put a run that has just begun where the last checkpoint was taken; leave it as it is where there is none.

        Raises CheckpointError for a checkpoint that is damaged, and for one of another run, by what differs.
        """
        if found := self.load():
            with self._damage(f"{STATE} or {TENSORS}"):
                restore(run, *found)

    def load(self) -> tuple[dict, dict[str, torch.Tensor]] | None:
        """(state, tensors) of the last checkpoint, or None where there is none yet. Raises as `resume`."""
        if not self._steps():
            return None
        last = self._steps()[-1]
        with self._damage(STATE):
            state = json.loads((last / STATE).read_text("utf-8"))
            if state.pop("seal") != _seal(state):
                raise ValueError("its text is not what was written")
            run, digest = dict(state.pop("run")), state.pop("digest")
        if differ := [
            f"{name}: {run.get(name)!r} there, {now!r} now" for name, now in self.run.items() if run.get(name) != now
        ]:
            raise CheckpointError(
                f"{self.folder} holds a checkpoint of another run ({'; '.join(differ)}): give another folder, or delete this one"
            )
        with self._damage(TENSORS):
            if _digest(last / TENSORS) != digest:
                raise ValueError("its bytes are not those that were written")
            # copies, since safetensors maps the file, which the next checkpoint deletes
            tensors = {name: tensor.clone() for name, tensor in load_file(last / TENSORS).items()}
        self._forget_all_but_the_last()
        return state, tensors

    def save(self, step: int, state: dict, tensors: dict[str, torch.Tensor]) -> None:
        """Write the checkpoint of `step`, then delete the one before. Raises CheckpointError, and keeps that one, where it cannot."""
        try:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=WRITING) as work:
                new = Path(work) / "new"
                new.mkdir()
                save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, new / TENSORS)
                state = {"run": self.run, "digest": _digest(new / TENSORS), **state}
                (new / STATE).write_text(json.dumps({"seal": _seal(state), **state}), "utf-8")
                for path in (new / TENSORS, new / STATE, new):
                    _to_disk(path)
                new.rename(self.folder / f"step-{step:08d}")
            _to_disk(self.folder)
        except (OSError, SafetensorError) as error:
            kept = "there is none before it" if self.last_step < 0 else f"that of step {self.last_step} is kept"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({error}); {kept}"
            ) from None
        self._forget_all_but_the_last()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name))

    def _forget_all_but_the_last(self) -> None:
        for old in self._steps()[:-1] if self.writes else ():
            shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        """Within it, whatever a file of the last checkpoint makes fail is the file's fault, and said to be."""
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(
                f"{name} of the checkpoint {self._steps()[-1]} is damaged, or was written by another version of rmkit ({what}). "
                "Bring back a sound copy of that folder, or delete it to go on from the checkpoint before, "
                "or from the beginning where there is none"
            ) from None


def snapshot(run: Run) -> tuple[dict, dict[str, torch.Tensor]]:
    """(state, tensors): all that changes while a run of `fit` goes on. All processes take part; the tensors are whole, and
    where they were in parts, on the CPU of the main process alone."""
    model, best = run.model, run.best
    tensors = {f"weights/{name}": p for name, p in run.trained.items()}
    for i, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{name}": moment for name, moment in moments.items()}
    if run.sharded:  # one by one: a GPU has no room for all
        gathered = ((name, keeps(tensor), whole(tensor.detach())) for name, tensor in tensors.items())
        tensors = {name: tensor.cpu() for name, is_kept, tensor in gathered if is_kept}
    if best.step < run.step:
        tensors |= {f"best/{name}": weight for name, weight in best.weights.items()}
    tensors["random/cpu"] = torch.get_rng_state()  # dropout draws from it
    if model.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(model.device)
    best = {"key": best.key, "step": best.step, "waited": best.waited}
    return {"step": run.step, "history": asdict(run.history), "best": best}, tensors


def restore(run: Run, state: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Make a run that has just begun the one that `snapshot` was taken of.

    Raises ValueError, and changes nothing, where the tensors are not those that this run trains.
    """
    parts, moments = defaultdict(dict), defaultdict(dict)
    for name, tensor in sorted(tensors.items()):  # in which order safetensors read them differs between processes
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    for name, tensor in parts["optimizer"].items():
        i, _, moment = name.partition("/")
        moments[int(i)][moment] = tensor
    trained = {name: p.shape for name, p in run.trained.items()}
    for weights in (parts["weights"], parts["best"] or parts["weights"]):
        if {name: weight.shape for name, weight in weights.items()} != trained:
            raise ValueError("its weights are not those that this model trains")
    wanted = len(trained) if state["step"] else 0
    if len(moments) != wanted or any(m.keys() != {"step", "exp_avg", "exp_avg_sq"} for m in moments.values()):
        raise ValueError(f"it has not the moments of the {wanted} tensors that AdamW trained")
    random, history, best = parts["random"]["cpu"], state["history"], state["best"]
    history = {name: history[name] for name in asdict(run.history)}
    best = {name: best[name] for name in ("key", "step", "waited")}
    run.step = state["step"]
    vars(run.history).update(history)
    vars(run.best).update(best)
    run.best.weights = {name: w for name, w in (parts["best"] or parts["weights"]).items() if keeps(run.trained[name])}
    fill(run.trained, parts["weights"])  # of what trains: all that is frozen stays
    ordered = [p for group in run.optimizer.param_groups for p in group["params"]]
    moments = {
        i: {name: moment if name == "step" else as_part(moment, ordered[i]) for name, moment in of_one.items()}
        for i, of_one in moments.items()
    }
    run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": moments})
    torch.set_rng_state(random)
    if run.model.device.type == "cuda" and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], run.model.device)


def fill(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    """Give each parameter the value of its name; one in parts, what the main process has for it."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(as_part(values.get(name), parameter))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered where FSDP has given each process a part: all must ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def keeps(tensor: torch.Tensor) -> bool:
    """Whether this process is one to keep the whole of a tensor: of one that is in parts, the main process alone."""
    return not isinstance(tensor, DTensor) or tensor.device_mesh.get_rank() == 0


def as_part(value: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    """`value` as it is, or where FSDP has given each process a part of `parameter`, such a part of the main process's value."""
    if not isinstance(parameter, DTensor):
        return value
    like = {"dtype": parameter.dtype, "device": parameter.device}
    value = torch.empty(parameter.shape, **like) if value is None else value.to(**like)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def fingerprint(what: dict[str, torch.Tensor] | Sequence[Encoded]) -> str:
    """A hash of tensors with their names, or of the tokens and judgements of preferences."""
    digest = hashlib.sha256()
    if isinstance(what, dict):
        for name, tensor in sorted(what.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    else:
        digest.update(json.dumps([(e.prompt, e.completions, e.ranks) for e in what]).encode())
    return digest.hexdigest()[:32]


def _seal(state: dict) -> str:
    """Of a state as JSON writes it, before and after a file."""
    return hashlib.blake2b(json.dumps(state).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _to_disk(path: Path) -> None:
    """Past the operating system's cache, so that a power cut finds it written. Windows cannot do it for a folder."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes what it may write
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
