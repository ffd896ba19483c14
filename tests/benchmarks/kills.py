"""Kills a training of SmolLM2-135M at random moments and compares its curve with that of a run that was left alone.

python -m tests.benchmarks.kills [kills]   # 20 unless told; each costs its start, some ten seconds on two cores

The same on a tiny backbone, in a minute: tests/test_checkpoints.py. A line a kill: how long the process lived, where
it was hit, the step that it had gone on from and the one that it left. At the end, the largest difference of a loss.
"""

import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rmkit import TrainConfig
from rmkit.checkpoints import WRITING
from tests.kill_tool import Job, in_a_process, kill_again_and_again

ROWS = (slice(0, 320, 8), slice(0, 40, 5))


def compare(found: tuple[dict, dict], expected: tuple[dict, dict]) -> dict[str, float]:
    """Largest differences: of a training loss and a validation loss (nats), and of a weight."""
    (history, weights), (other, others) = found, expected
    return {
        name: max(abs(mine["loss"] - theirs["loss"]) for mine, theirs in zip(history[name], other[name], strict=True))
        for name in ("steps", "validations")
    } | {"weights": max((weight - others[name]).abs().max().item() for name, weight in weights.items())}


def main(kills: int = 20) -> int:
    """Print the kills and the comparison; 1 where the two runs are not equal."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        config = TrainConfig(learning_rate=1e-4, batch_size=4, max_steps=3 * kills, eval_every=1, patience=None)
        settings = {"trainable": "last:2", "dropout": 0.1}
        job = Job("smollm2-135m", settings, config, ROWS, folder / "killed.pt", folder / "checkpoints")
        alone, began = replace(job, folder=None, result=folder / "alone.pt"), time.monotonic()
        assert in_a_process(alone.train) == 0, alone.result.with_suffix(".log").read_text()
        print(f"left alone: {config.max_steps} steps, {time.monotonic() - began:.0f} s", flush=True)
        where, began = Counter(), time.monotonic()
        for number, kill in enumerate(kill_again_and_again(job, kills, seed=0), start=1):
            print(
                f"kill {number} after {kill.seconds:.1f} s, {kill.where}: "
                f"went on from step {kill.resumed}, left step {kill.kept}",
                flush=True,
            )
            where[kill.where] += 1
        print(f"killed {where.total()} times and finished: {dict(where)}, {time.monotonic() - began:.0f} s")
        found, expected = job.outcome(), alone.outcome()
        left = sorted(path.name for path in chain(job.folder.glob(f"{WRITING}*"), job.folder.glob("step-*")))
    print(
        "largest difference:", ", ".join(f"{value:.1e} in {name}" for name, value in compare(found, expected).items())
    )
    print(f"left in the folder: {', '.join(left)}")
    equal = found[0] == expected[0] and not compare(found, expected)["weights"]
    print("the curve and the weights are equal bit by bit" if equal else "NOT equal bit by bit")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
