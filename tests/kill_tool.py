"""A run of `fit` in a process of its own, killed at random moments and started again until it is finished.

What tests/test_checkpoints.py does to a tiny backbone, tests/benchmarks/kills.py does to SmolLM2. The processes are
forked from one that has imported everything, so that a start costs what the model's weights cost, and not a minute.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rmkit import RewardModel, TrainConfig, fit, load_backbone, load_preferences, split_preferences
from rmkit.checkpoints import WRITING

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.kill_tool"])
LOOK = 0.002  # seconds between two looks at the folder


@dataclass(frozen=True)
class Job:
    """One run: what is trained, on which rows of json_vs_text, and where it leaves its checkpoints and its result."""

    backbone: str
    settings: dict
    config: TrainConfig
    rows: tuple[slice, slice]  # of the training and of the validation side
    result: Path
    folder: Path | None = None  # of the checkpoints
    cache: Path | None = None  # RMKIT_CACHE, where it is not the usual one
    seed: int = 0

    def make_model(self) -> RewardModel:
        torch.manual_seed(self.seed)
        return RewardModel(load_backbone(self.backbone), **self.settings)

    def data(self) -> list[list]:
        sides = split_preferences(load_preferences("json_vs_text"))
        return [side[rows] for side, rows in zip(sides, self.rows, strict=True)]

    def train(self) -> None:
        """In a process of its own: write the history and all weights to `result` when it is finished."""
        if self.cache:
            os.environ["RMKIT_CACHE"] = str(self.cache)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(1)
        sys.stderr = open(self.result.with_suffix(".log"), "a")
        model = self.make_model()
        history = fit(model, *self.data(), self.config, checkpoint=self.folder)
        torch.save({"history": asdict(history), "weights": model.state_dict()}, self.result)

    def outcome(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """(history, weights) of a finished run."""
        result = torch.load(self.result)
        return without_time(result["history"]), result["weights"]


def without_time(history: dict) -> dict:
    """A history less what two equal runs differ in."""
    steps = [{name: value for name, value in step.items() if name != "seconds"} for step in history["steps"]]
    other = ("seconds", "peak_memory")
    rest = {name: value for name, value in history.items() if name not in other}
    return json.loads(json.dumps(rest | {"steps": steps}))


def in_a_process(target, *arguments) -> int:
    """Exit status of a function in a process of its own; minus the number of the signal that killed it."""
    process = FORKS.Process(target=target, args=arguments, daemon=True)
    process.start()
    process.join()
    return process.exitcode


@dataclass(frozen=True)
class Kill:
    """One kill: when, what it left, and from which step the process had gone on."""

    seconds: float  # since the start of the process
    resumed: int | None  # the step of the checkpoint that it found; None where there was none yet
    kept: int | None  # and of the one that it left
    writing: bool  # a checkpoint was being written, or the one before was being deleted

    @property
    def where(self) -> str:
        if self.writing:
            return "while writing"
        if self.kept is None:
            return "before the first checkpoint"
        return "while training" if self.kept != self.resumed else "while starting, or in its first step"


def kill_again_and_again(job: Job, kills: int, seed: int) -> Iterator[Kill]:
    """Start the run, kill it at a random moment, `kills` times; then let it finish.

    A moment is drawn as a number of new checkpoints, 0 to 3, and a share of the time that one takes, or, once in
    four, a moment of the next write. It ends early, with fewer kills, where the run was finished before.
    """
    moments, start, pace = random.Random(seed), 0.3, 0.1  # seconds to the first checkpoint, from one to the next
    for number in range(kills):
        before, process, began = (
            list(job.folder.glob("*-*")),
            FORKS.Process(target=job.train, daemon=True),
            time.monotonic(),
        )
        process.start()
        early = number < min(2, kills // 2)  # so that some hit before the first checkpoint
        wanted = 0 if early else moments.randrange(4)
        seen, marks = last_step(job.folder), [time.monotonic()]
        while len(marks) <= wanted and process.is_alive():
            if (now := last_step(job.folder)) != seen:
                seen = now
                marks.append(time.monotonic())
            time.sleep(LOOK)
        if wanted:
            start = marks[1] - marks[0]
        if wanted > 1:
            pace = (marks[-1] - marks[1]) / (wanted - 1)
        if wanted and moments.random() < 0.25:
            while process.is_alive() and not set(job.folder.glob(f"{WRITING}*")) - set(before):
                time.sleep(LOOK)
            process.join(moments.random() * pace / 10)
        else:
            process.join(moments.random() * (pace if wanted else start))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        left = set(job.folder.glob("*-*")) - set(before)
        writing = any(path.name.startswith(WRITING) for path in left) or len(list(job.folder.glob("step-*"))) > 1
        yield Kill(time.monotonic() - began, last_step(before), last_step(job.folder), writing)
    status = in_a_process(job.train)
    assert status == 0, job.result.with_suffix(".log").read_text()


def last_step(found: Path | list[Path]) -> int | None:
    """Step of the last checkpoint of a folder, or of the paths in it; None where there is none."""
    paths = found.glob("step-*") if isinstance(found, Path) else found
    return max((int(path.name[5:]) for path in paths if path.name.startswith("step-")), default=None)
