"""What test_train.py launches to train in parts: `accelerate launch --config_file … -m tests.sharded BACKBONE FOLDER RECIPE …`.

accelerate shards over GPUs alone, so it is told here that these processes have some; all else is FSDP2 as on GPUs, over gloo.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from rmkit import RewardModel, fit, load_backbone, training
from rmkit.losses import RaoKupper
from rmkit.train import read_recipe, run
from rmkit.training import Run
from tests.processes import CONFIG, data, interrupt, train


def curves(backbone):
    """What is trained in parts and by one process, beside a whole model: a run each."""
    plan = training.plan_memory
    with mock.patch.object(training, "plan_memory", lambda *a: replace(plan(*a), checkpointing=True)):
        twice = asdict(train(backbone))
    return {
        "last:1": asdict(train(backbone, "last:1")),
        "layers computed twice": twice,
        "a loss that trains": asdict(train(backbone, "last:1", RaoKupper(0.2))),
    }


def main(backbone, folder, *recipes):
    state, folder = PartialState(cpu=True), Path(folder)
    state.distributed_type = DistributedType.MULTI_GPU
    prepared, parts = Run.__init__, []

    def noted(run, *arguments):
        prepared(run, *arguments)
        parts.append([(p.to_local().numel(), p.numel()) for p in run.trained.values() if run.sharded])

    with mock.patch.object(Run, "__init__", noted):
        torch.manual_seed(0)
        model = RewardModel(load_backbone(backbone))
        found = {"curves": {"all": asdict(fit(model, *data(), CONFIG))}, "parts": parts[0]}
    found["curves"] |= curves(backbone)
    found["rewards"] = model.rewards(data()[1]).tolist()

    found["resumed"] = asdict(train(backbone, checkpoint=folder / "by one"))
    interrupt(backbone, folder / "by two")
    found["frozen"] = asdict(train(backbone, "last:1", checkpoint=folder / "frozen"))
    for recipe in recipes:
        run(read_recipe(recipe))
    (folder / f"found-{state.process_index}.json").write_text(json.dumps(found))
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
