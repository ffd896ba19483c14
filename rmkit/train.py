"""`python -m rmkit.train --config FILE`: what a notebook does with `fit`, from a YAML file, in one process or in several.

    accelerate launch -m rmkit.train --config FILE                          every GPU of this machine
    accelerate launch --multi_gpu --num_processes 2 -m rmkit.train --config FILE  two processes; without a GPU, on the CPU
    accelerate launch --config_file rmkit/recipes/fsdp.yaml -m rmkit.train --config FILE
                        8 GPUs, each with a part of weights, gradients and moments: that file says what fits

The curve is that of one process, but for dropout, which each process draws for itself, and draws anew where a run goes on; a
checkpoint of one goes on in the other. Notebook 03 shows a file, field by field.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from accelerate import PartialState

from rmkit import losses
from rmkit.backbones import load_backbone
from rmkit.base import BaseRewardModel
from rmkit.checkpoints import CheckpointError
from rmkit.dpo import ImplicitRewardModel
from rmkit.model import RewardModel
from rmkit.preferences import Preference, load_preferences, split_preferences
from rmkit.smollm2 import BackboneUnavailable, first_line
from rmkit.training import History, NonFiniteLoss, TrainConfig, fit

KINDS = {"explicit": RewardModel, "implicit": ImplicitRewardModel}
LOSSES = {
    loss.__name__: loss
    for loss in (
        losses.bradley_terry, losses.classification, losses.label_smoothed, losses.hinge, losses.squared_error,
        losses.plackett_luce, losses.tie_as_half,
    )
}  # fmt: skip
HISTORY = "history.csv"
WAIT = timedelta(hours=3)  # of a process for the others


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a file asks for, checked.

    train, validation: as `load_preferences` takes them; validation may be a share of the training data instead.
    backbone: as `load_backbone` takes it. kind, model: which reward model, with what settings.
    checkpoint: a folder in which an interrupted run is found again. save: a folder for the model that comes out.
    """

    train: str
    validation: str | float
    backbone: str | None
    kind: str
    model: dict
    loss: str
    training: TrainConfig
    checkpoint: str | None
    save: str


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file. Raises ValueError with file, field and what the field wants; FileNotFoundError for no file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: give a YAML file, as notebook 03 shows one")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        what = getattr(error, "problem", None) or first_line(error)
        raise ValueError(f"{path}{where}: this is not YAML: {what}") from None

    def fields(value: object, name: str, allowed: Iterable[str], required: Iterable[str] = ()) -> dict:
        """Of a part of the file: no other field, and none missing."""
        where = f"{path}: {name}: " if name else f"{path}: "
        allowed = list(allowed)
        if not isinstance(value, dict):
            raise ValueError(f"{where}it holds fields, one of {', '.join(allowed)}: got {value!r:.80}")
        if unknown := [key for key in value if key not in allowed]:
            raise ValueError(f"{where}there is no field {unknown[0]!r}; there are {', '.join(allowed)}")
        if missing := [key for key in required if value.get(key) is None]:
            raise ValueError(f"{where}the field {missing[0]!r} is missing")
        return value

    def one_of(value: object, name: str, allowed: Iterable[str]) -> str:
        if value not in list(allowed):  # a YAML list is in no dict
            raise ValueError(f"{path}: {name} is one of {', '.join(allowed)}: got {value!r:.80}")
        return value

    everything = ("data", "backbone", "model", "loss", "training", "checkpoint", "save")
    content = fields(content, "", everything, ("data", "save"))
    data = fields(content["data"], "data", ("train", "validation"), ("train",))
    model = dict(fields(content.get("model") or {}, "model", ("kind", *_settings(RewardModel, ImplicitRewardModel))))
    kind = one_of(model.pop("kind", "explicit"), "model.kind", KINDS)
    fields(model, f"model, of kind {kind}", _settings(KINDS[kind]))
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    training = fields(content.get("training") or {}, "training", names)
    texts = [("data.train", data["train"]), *((name, content.get(name)) for name in ("backbone", "checkpoint", "save"))]
    for name, value in texts:
        if value is not None and not (isinstance(value, str) and value):
            raise ValueError(f"{path}: {name} is a text: got {value!r:.80}")
    validation = data.get("validation", 0.2)
    if not isinstance(validation, (str, float)):
        raise ValueError(f"{path}: data.validation is a share such as 0.2, or the name of data: got {validation!r:.80}")
    try:
        config = TrainConfig(**training)
    except (TypeError, ValueError) as error:
        hint = " (YAML reads 1e-5 as a text: write 1.0e-5)" if _numbers_as_text(training) else ""
        raise ValueError(f"{path}: training: {error}{hint}") from None
    return Recipe(
        data["train"], validation, content.get("backbone"), kind, model,
        one_of(content.get("loss", "bradley_terry"), "loss", LOSSES), config, content.get("checkpoint"), content["save"],
    )  # fmt: skip


def _settings(*kinds: Callable) -> list[str]:
    """Arguments of models that are no objects, and so can stand in a file."""
    names = [
        name for kind in kinds for name in inspect.signature(kind).parameters if name not in ("backbone", "reference")
    ]
    return list(dict.fromkeys(names))


def _numbers_as_text(training: dict) -> bool:
    return any(isinstance(value, str) for value in training.values())


def run(recipe: Recipe) -> tuple[BaseRewardModel, History]:
    """Train what the recipe asks for; the first process saves it, and its history beside it.

    Raises ValueError for a recipe that leaves to each of several processes what they must agree on, FileExistsError, before
    anything is trained, for a folder to save to that holds something else; and whatever `fit` and the data do.
    """
    # of several processes, each takes its own GPU here; one writes a checkpoint for longer than others would wait
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
    chosen = {"backbone": recipe.backbone, "model.trainable": recipe.model.get("trainable")}
    if state.num_processes > 1 and (missing := [name for name, value in chosen.items() if value is None]):
        raise ValueError(
            f"the field {missing[0]!r} is missing: each of {state.num_processes} processes would choose by the memory of its own GPU"
        )
    KINDS[recipe.kind].require_savable(recipe.save)
    train, validation = _data(recipe)
    backbone = load_backbone(recipe.backbone)
    torch.manual_seed(recipe.training.seed)
    model = KINDS[recipe.kind](backbone, **{"trainable": backbone.trainable} | recipe.model)
    history = fit(model, train, validation, recipe.training, LOSSES[recipe.loss], recipe.checkpoint)
    if state.is_main_process:
        folder = model.save(recipe.save)
        history.table().to_csv(folder / HISTORY)
    state.wait_for_everyone()
    return model, history


def _data(recipe: Recipe) -> tuple[list[Preference], list[Preference]]:
    if isinstance(recipe.validation, str):
        return load_preferences(recipe.train), load_preferences(recipe.validation)
    return split_preferences(load_preferences(recipe.train), recipe.validation, recipe.training.seed)


def main(arguments: list[str]) -> int:
    """Train; 1, and what is wrong, where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m rmkit.train", description="Train a reward model from a YAML file.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the recipe; notebook 03 shows one")
    path = parser.parse_args(arguments).config
    try:
        recipe = read_recipe(path)
        model, history = run(recipe)
    except (ValueError, OSError, MemoryError, BackboneUnavailable, CheckpointError, NonFiniteLoss) as error:
        print(f"rmkit.train: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(
            f"rmkit.train: {first_line(error)}: the plan of rmkit.memory was too bold here. Set training.micro_batch_tokens "
            "lower; with a checkpoint, the same command then goes on",
            file=sys.stderr,
        )
        return 1
    if PartialState().is_main_process:
        best = next(v for v in history.validations if v["step"] == history.best_step)
        print(history.table().dropna(subset="validation_loss").to_string(float_format="{:.4g}".format))
        print(
            f"stopped {history.stopped}; kept the weights of step {history.best_step}: ranking accuracy "
            f"{best['accuracy']:.3f} [{best['low']:.2f}, {best['high']:.2f}] on {best['pairs']} pairs\n"
            f"{model.trainable_parameters():,} parameters trained in {PartialState().num_processes} process(es), "
            f"{history.seconds:.0f} s, {history.peak_memory / 1e9:.1f} GB at most; saved in {recipe.save}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
