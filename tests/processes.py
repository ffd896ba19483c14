"""What test_train.py launches in several processes at once: `accelerate launch … -m tests.processes BACKBONE FOLDER`.

Every process writes what it found to FOLDER, for the test to compare with what one process finds.
"""

import contextlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import torch
from accelerate import PartialState

from rmkit import NonFiniteLoss, RewardModel, TrainConfig, bradley_terry, fit, load_backbone, load_preferences
from rmkit.losses import RaoKupper
from rmkit.training import Run

CONFIG = TrainConfig(learning_rate=3e-3, batch_size=4, micro_batch_tokens=100, max_steps=8, eval_every=2, patience=None)
INTERRUPTED_AT = 5  # so that the last checkpoint is that of step 4


def data():
    """11 preferences, so that the last of three steps of 4 is a short one, and among them one of three answers."""
    rows = load_preferences("json_vs_text")
    train, validation = rows[:330:30], rows[400:470:10]
    train[3] = replace(train[3], completions=(*train[3].completions, "?"), ranks=(0, 1, 2))
    return train, validation


def train(backbone, trainable="all", loss=bradley_terry, checkpoint=None):
    torch.manual_seed(0)
    return fit(RewardModel(load_backbone(backbone), trainable=trainable), *data(), CONFIG, loss, checkpoint)


def curves(backbone):
    """What is trained in several processes and in one: a run each."""
    return {
        **{trainable: asdict(train(backbone, trainable)) for trainable in ("all", "lora", "head")},
        "a loss that trains": asdict(train(backbone, "last:1", RaoKupper(0.2))),
    }


def interrupt(backbone, checkpoint):
    """A run that leaves a checkpoint to go on from."""
    step = Run._train

    def interrupted(run, indices):
        if run.step == INTERRUPTED_AT:
            raise KeyboardInterrupt
        step(run, indices)

    with mock.patch.object(Run, "_train", interrupted), contextlib.suppress(KeyboardInterrupt):
        train(backbone, checkpoint=checkpoint)


def infinite_in_the_first(rewards, ranks):
    factor = float("inf") if rewards.requires_grad and rewards.any() and PartialState().is_main_process else 1.0
    return factor * bradley_terry(rewards, ranks)


def main(backbone, folder):
    state, folder = PartialState(cpu=True), Path(folder)
    found = {"processes": state.num_processes, "curves": curves(backbone)}
    interrupt(backbone, folder / "run")
    try:
        train(backbone, loss=infinite_in_the_first)
    except NonFiniteLoss as error:
        found["error"] = str(error)
    (folder / f"found-{state.process_index}.json").write_text(json.dumps(found))
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
