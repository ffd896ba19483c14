"""Protects: `python -m rmkit.train` does what its file says or says what is wrong in it, and several processes train what one does."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from accelerate import PartialState

from rmkit import ImplicitRewardModel, RewardModel, TrainConfig, fit, load_backbone, load_preferences, split_preferences
from rmkit.train import HISTORY, KINDS, LOSSES, main, read_recipe, run
from rmkit.training import Run
from tests import processes, sharded

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def content(tiny_folder, tmp_path):
    """What a whole file says."""
    return {
        "data": {"train": str(few_rows(tmp_path / "few.jsonl")), "validation": 0.25},
        "backbone": str(tiny_folder),
        "model": {"kind": "explicit", "trainable": "last:1", "max_length": 64},
        "loss": "label_smoothed",
        "training": {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 4, "eval_every": 2, "seed": 3},
        "checkpoint": str(tmp_path / "run"),
        "save": str(tmp_path / "model"),
    }


def few_rows(path, rows=24):
    lines = (ROOT / "data" / "json_vs_text.jsonl").read_text("utf-8").splitlines()
    path.write_text("\n".join(lines[:rows]), "utf-8")
    return path


def written(content, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
    return path


# --- one process ----------------------------------------------------------------------------------------------


def test_it_trains_what_fit_trains(content, tmp_path, capsys):
    assert main(["--config", str(written(content, tmp_path))]) == 0
    train, validation = split_preferences(load_preferences(content["data"]["train"]), 0.25, 3)
    torch.manual_seed(3)
    model = RewardModel(load_backbone(content["backbone"]), trainable="last:1", max_length=64)
    history = fit(model, train, validation, TrainConfig(**content["training"]), LOSSES["label_smoothed"])
    found = pd.read_csv(tmp_path / "model" / HISTORY).set_index("step")
    assert found.loss.dropna().tolist() == pytest.approx([step["loss"] for step in history.steps], abs=1e-6)
    loaded = RewardModel.load(tmp_path / "model")
    torch.testing.assert_close(loaded.rewards(validation), model.rewards(validation), rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().out
    assert f"kept the weights of step {history.best_step}" in said and "1 process" in said
    assert list((tmp_path / "run").glob("step-*")), "no checkpoint was kept"


def test_it_trains_a_policy_too(content, tmp_path):
    content |= {
        "model": {"kind": "implicit", "beta": 0.3, "trainable": "last:1"},
        "data": {"train": content["data"]["train"]},
    }
    model, history = run(read_recipe(written(content, tmp_path)))
    assert isinstance(model, ImplicitRewardModel) and model.beta == 0.3 and len(history.steps) == 4
    assert load_backbone(str(tmp_path / "model")).model


def test_validation_may_be_other_data(content, tmp_path):
    content["data"]["validation"] = str(few_rows(tmp_path / "others.jsonl", rows=40))
    with pytest.warns(UserWarning, match="on both sides"):
        _, history = run(read_recipe(written(content, tmp_path)))
    assert history.validations[0]["pairs"] == 40


def test_what_a_file_leaves_out(tiny_folder, tmp_path):
    recipe = read_recipe(written({"data": {"train": "json_vs_text"}, "save": "model"}, tmp_path))
    assert (recipe.validation, recipe.kind, recipe.loss, recipe.training) == (
        0.2,
        "explicit",
        "bradley_terry",
        TrainConfig(),
    )
    assert recipe.backbone is recipe.checkpoint is None


def test_every_field_of_the_config_can_stand_in_a_file(content, tmp_path):
    values = {field.name: field.default for field in fields(TrainConfig)}
    assert read_recipe(written(content | {"training": values}, tmp_path)).training == TrainConfig()


BAD = {
    "no YAML": ("data: [", ":1: this is not YAML"),
    "a list": ("- a", "it holds fields"),
    "a field too many": (lambda c: c | {"optimizer": "sgd"}, "there is no field 'optimizer'"),
    "a field of the model": (lambda c: c | {"model": {"depth": 3}}, "model: there is no field 'depth'"),
    "a field of another kind": (
        lambda c: c | {"model": {"beta": 0.1}},
        "model, of kind explicit: there is no field 'beta'",
    ),
    "a field of training": (lambda c: c | {"training": {"lr": 1}}, "training: there is no field 'lr'"),
    "a learning rate": (lambda c: c | {"training": {"learning_rate": 7}}, "training: TrainConfig.learning_rate is 7"),
    "a number as YAML reads it": (
        "data: {train: json_vs_text}\nsave: m\ntraining: {learning_rate: 1e-5}",
        "write 1.0e-5",
    ),
    "no data": (lambda c: {**c, "data": {}}, "data: the field 'train' is missing"),
    "nothing to save to": (lambda c: {k: v for k, v in c.items() if k != "save"}, "the field 'save' is missing"),
    "several kinds": (
        lambda c: c | {"model": {"kind": ["explicit"]}},
        "model.kind is one of explicit, implicit: got [",
    ),
    "several losses": (lambda c: c | {"loss": ["hinge"]}, "loss is one of bradley_terry"),
    "a kind": (lambda c: c | {"model": {"kind": "oracle"}}, "model.kind is one of explicit, implicit: got 'oracle'"),
    "a loss": (lambda c: c | {"loss": "mse"}, "loss is one of bradley_terry"),
    "a number for a text": (lambda c: c | {"checkpoint": 3}, "checkpoint is a text: got 3"),
    "a validation": (lambda c: c | {"data": {"train": "json_vs_text", "validation": 3}}, "data.validation is a share"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_in_a_file_is_said(content, tmp_path, capsys, name):
    change, message = BAD[name]
    path = written(change(content) if callable(change) else change, tmp_path)
    assert main(["--config", str(path)]) == 1
    said = capsys.readouterr().err
    assert str(path) in said and message in said and "Traceback" not in said
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "nowhere/none at all"}, "no backbone is called"),
        ({"data": {"train": "none.jsonl"}}, "none.jsonl"),
        ({"model": {"trainable": "most"}}, "trainable is 'head'"),
        ({"model": {"trainable": "head", "pooling": ["last"]}}, "pooling is one of"),
    ],
)
def test_what_only_a_run_can_find_is_said(content, tmp_path, capsys, change, message):
    assert main(["--config", str(written(content | change, tmp_path))]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_folder_that_is_taken_is_told_before_training(content, tmp_path, capsys, kind):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    assert main(["--config", str(written(content | {"model": {"kind": kind}}, tmp_path))]) == 1
    assert f"{tmp_path / 'model'} exists" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "it has trained"


@pytest.mark.parametrize("field", ["backbone", "model.trainable"])
def test_several_processes_choose_nothing_for_themselves(content, tmp_path, capsys, monkeypatch, field):
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)  # all instances are one
    content = content | ({"backbone": None} if field == "backbone" else {"model": {"kind": "explicit"}})
    assert main(["--config", str(written(content, tmp_path))]) == 1
    assert f"the field {field!r} is missing: each of 2 processes" in capsys.readouterr().err


def test_gpu_that_is_full_after_all(content, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Run, "go", full)
    assert main(["--config", str(written(content, tmp_path))]) == 1
    assert "Tried to allocate 2 GiB: the plan" in capsys.readouterr().err


def test_the_shipped_recipe_names_every_loss():
    (line,) = [
        line
        for line in (ROOT / "rmkit" / "recipes" / "json_vs_text.yaml").read_text("utf-8").splitlines()
        if line[:5] == "loss:"
    ]
    assert set(re.findall(r"\w+", line)) - {"loss", "or"} == set(LOSSES)


def test_no_file(capsys, tmp_path):
    assert main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "is no file" in capsys.readouterr().err
    assert set(KINDS) == {"explicit", "implicit"}


# --- several ----------------------------------------------------------------------------------------------------


def launched(*arguments, cwd, how=("--multi_gpu",)):
    """Two processes on the CPU, over gloo; the flag's name says GPU and means several processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *how,
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    return subprocess.run(
        [*command, "-m", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


def numbers(history):
    """(name, value) of all that a run measured, but its time."""
    return [
        (k, v) for record in [*history["steps"], *history["validations"]] for k, v in record.items() if k != "seconds"
    ]


def near(history):
    """What equals the numbers of the same run on other processes: to 1e-4; a gradient's norm, of another size than a loss, to 1 in 1,000."""
    within = {"grad_norm": {"rel": 1e-3}}
    return [(k, pytest.approx(v, nan_ok=True, **within.get(k, {"abs": 1e-4}))) for k, v in numbers(history)]


def recipes(content, tmp_path, ending):
    """Of a reward model and of a policy, saved under names of this ending."""
    paths = []
    for kind, model in (("explicit", {"trainable": "last:1"}), ("implicit", {"trainable": "all", "kind": "implicit"})):
        paths.append(tmp_path / f"{kind}-{ending}.yaml")
        changed = {"model": model, "save": str(tmp_path / f"{kind}-{ending}"), "checkpoint": None}
        paths[-1].write_text(yaml.safe_dump(content | changed), "utf-8")
    return paths


def test_two_processes_train_what_one_does(tiny_folder, tmp_path):
    """Curves to 1e-4, of everything that may train; an interrupted run goes on in one; one's infinite loss ends both."""
    done = launched("tests.processes", tiny_folder, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"found-{i}.json").read_text()) for i in range(2)]
    assert [f["processes"] for f in found] == [2, 2]
    for name, expected in processes.curves(str(tiny_folder)).items():
        for process in found:
            assert numbers(process["curves"][name]) == near(expected), name
    whole = asdict(processes.train(str(tiny_folder)))
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000004"]
    resumed = asdict(processes.train(str(tiny_folder), checkpoint=tmp_path / "run"))
    assert numbers(resumed) == near(whole)
    assert found[0]["error"] == found[1]["error"] and "the loss of the training preferences" in found[0]["error"]


def test_a_model_in_parts_trains_what_a_whole_one_does(tiny_folder, content, tmp_path):
    """FSDP2, by the file that 8 GPUs would be launched with: no process has more than half, and all that it writes is whole."""
    how = ("--config_file", ROOT / "rmkit" / "recipes" / "fsdp.yaml")
    sharded.interrupt(str(tiny_folder), tmp_path / "by one")
    several, one = (recipes(content, tmp_path, ending) for ending in ("parts", "whole"))
    done = launched("tests.sharded", tiny_folder, tmp_path, *several, cwd=tmp_path, how=map(str, how))
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"found-{i}.json").read_text()) for i in range(2)]
    for (first, whole), (second, _) in zip(*(f["parts"] for f in found), strict=True):
        assert first + second == whole and (second > 0 or whole == 64), (
            "only the head has a single row, which none can halve"
        )
    torch.manual_seed(0)
    model = RewardModel(load_backbone(tiny_folder))
    history = asdict(fit(model, *processes.data(), processes.CONFIG))
    for name, expected in (sharded.curves(str(tiny_folder)) | {"all": history}).items():
        for process in found:
            assert numbers(process["curves"][name]) == near(expected), name
    assert [path.name for path in (tmp_path / "by two").glob("step-*")] == ["step-00000004"]
    resumed = asdict(processes.train(str(tiny_folder), checkpoint=tmp_path / "by two"))
    finished = asdict(processes.train(str(tiny_folder), "last:1", checkpoint=tmp_path / "frozen"))  # it is the same run
    assert repr(numbers(finished)) == repr(numbers(found[0]["frozen"]))  # with nan, which equals nothing
    validation = processes.data()[1]
    for process in (*found, {"resumed": resumed, "rewards": model.rewards(validation).tolist()}):
        assert numbers(process["resumed"]) == near(history)
        torch.testing.assert_close(torch.tensor(process["rewards"]), model.rewards(validation), rtol=1e-3, atol=1e-3)
    for recipe in one:
        run(read_recipe(recipe))
    rewards = [RewardModel.load(tmp_path / f"explicit-{ending}").rewards(validation) for ending in ("parts", "whole")]
    torch.testing.assert_close(*rewards, rtol=1e-3, atol=1e-3)
    policies = [load_backbone(str(tmp_path / f"implicit-{ending}")).model.state_dict() for ending in ("parts", "whole")]
    for name, weight in policies[1].items():
        torch.testing.assert_close(policies[0][name], weight, rtol=1e-3, atol=1e-3)


def test_the_command_of_the_notebook(content, tmp_path):
    """As a learner types it, from the file to the saved model."""
    content["checkpoint"] = None
    done = launched("rmkit.train", "--config", written(content, tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 process" in done.stdout and done.stdout.count("kept the weights") == 1
    several = pd.read_csv(tmp_path / "model" / HISTORY)
    run(read_recipe(written(content | {"save": str(tmp_path / "other")}, tmp_path)))
    alone = pd.read_csv(tmp_path / "other" / HISTORY)
    assert several.loss.tolist() == pytest.approx(alone.loss.tolist(), abs=1e-4, nan_ok=True)
