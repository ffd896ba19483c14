"""Protects: `fit(..., checkpoint=folder)` is written whole or not at all, and goes on to the very curve it would have had.

Real processes that are really killed, real signals, a real limit on the size of files. With one thread the curves and
the weights are equal bit by bit, so equality is what is asked for.
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from rmkit import (
    CheckpointError,
    NonFiniteLoss,
    RewardModel,
    TrainConfig,
    bradley_terry,
    fit,
    load_backbone,
    load_preferences,
)
from rmkit.checkpoints import STATE, TENSORS, WRITING, Checkpoints, _digest, _seal, restore, snapshot
from rmkit.losses import Davidson, RaoKupper, tie_as_half
from rmkit.training import Run
from rmkit.trunk import Trunk

resource = pytest.importorskip("resource", reason="kills and limits are those of POSIX")

from tests.kill_tool import FORKS, Job, in_a_process, kill_again_and_again, last_step, without_time  # noqa: E402

FORKS.set_forkserver_preload(["tests.kill_tool", "tests.test_checkpoints"])
# 11 to train on, so that the last of three batches of 4 is a short one; the validations fall into epochs, not at their ends
CONFIG = TrainConfig(learning_rate=3e-3, batch_size=4, micro_batch_tokens=180, max_steps=8, eval_every=2, patience=None)
ROWS = (slice(0, 330, 30), slice(0, 70, 10))
DIED = 77


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A store of frozen states of its own for every test, and no real one in reach."""
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RMKIT_TRUNK_GB", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def job(tiny_folder, tmp_path, cache):
    """A short run of head and last layer, with a head that drops at random."""
    settings = {"trainable": "last:1", "dropout": 0.3}
    return Job(str(tiny_folder), settings, CONFIG, ROWS, tmp_path / "killed.pt", tmp_path / "run", cache)


@pytest.fixture(scope="module")
def curves(tiny_folder, tmp_path_factory):
    """What a run comes to that was never killed and wrote no checkpoint: computed once for all that ask for the same."""
    folder, known = tmp_path_factory.mktemp("uninterrupted"), {}

    def of(job):
        key = str((job.settings, job.config, job.rows))
        if key not in known:
            alone = replace(job, folder=None, result=folder / f"{len(known)}.pt", cache=folder / "cache")
            assert in_a_process(alone.train) == 0
            known[key] = alone.outcome()
        return known[key]

    return of


def run(job, loss=bradley_terry, seed=0, model=None, **config):
    """The job in this process: (history, weights)."""
    model = model or replace(job, seed=seed).make_model()
    history = fit(model, *job.data(), replace(job.config, **config), loss, checkpoint=job.folder)
    return history, model.state_dict()


def assert_same(found, expected):
    history, weights = found
    assert (history if isinstance(history, dict) else without_time(asdict(history))) == expected[0]
    assert weights.keys() == expected[1].keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected[1][name]), name


def assert_tidy(folder, step):
    """One checkpoint, that of `step`, and nothing half-written beside it."""
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == [f"step-{step:08d}"]


# --- killed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trainable", "kills"), [("last:2", 20), ("all", 4), ("lora", 4)])
def test_killed_again_and_again(job, curves, capsys, trainable, kills):
    """At random moments of starting, training and writing: as if it had never happened."""
    config = replace(CONFIG, learning_rate=1e-3, eval_every=1, max_steps=3 * kills)
    job = replace(job, settings={"trainable": trainable, "dropout": 0.3}, config=config)
    expected = curves(job)
    losses = [step["loss"] for step in expected[0]["steps"]]
    assert len(set(losses)) == len(losses) == config.max_steps
    killed = list(kill_again_and_again(job, kills, seed=0))
    where = Counter(kill.where for kill in killed)
    with capsys.disabled():
        print(f"\n{trainable}: {dict(where)}, {sum(kill.seconds for kill in killed):.0f} s")
    assert len(killed) == kills, "the run was finished before it was killed that often"
    assert where["while training"] + where["while writing"] >= kills // 2
    if kills >= 20:
        assert where["before the first checkpoint"] and where["while writing"] >= 3
    assert_same(job.outcome(), expected)
    assert_tidy(job.folder, config.max_steps)


class SaveUnder:
    """`Checkpoints.save`, with something done to the process during its `number`-th call."""

    def __init__(self, number, before, after=lambda: None):
        self.number, self.before, self.after = number, before, after

    def __enter__(self):
        real, calls = Checkpoints.save, 0

        def save(checkpoints, *arguments):
            nonlocal calls
            calls += 1
            if calls == self.number:
                self.before()
            try:
                real(checkpoints, *arguments)
            finally:
                if calls == self.number:
                    self.after()

        Checkpoints.save = save  # of a process that trains once

    def __exit__(self, *_):
        pass


def die_at_operation(job, number, point):
    """Die at the point-th thing that the number-th save asks of the file system; 0: only count them."""
    done, counting = [], False

    def hook(event, arguments):
        mine = counting and threading.current_thread() is threading.main_thread()  # not what watches the memory
        if mine and (event == "open" or event.startswith(("os.", "shutil.", "tempfile."))):
            done.append(event)
            if len(done) == point:
                os._exit(DIED)

    def count(on):
        nonlocal counting
        counting = on

    sys.addaudithook(hook)
    with SaveUnder(number, partial(count, True), partial(count, False)):
        job.train()
    job.result.with_suffix(".operations").write_text(json.dumps(done))


@pytest.mark.parametrize("number", [2, 5], ids=["save 2 of 5", "the last save"])
def test_dead_at_any_operation_of_a_save(job, curves, number):
    """Whichever it is, the folder holds the last checkpoint or the new one, and the run goes on from it."""
    counted = replace(job, folder=job.folder.with_name("counted"))
    assert in_a_process(die_at_operation, counted, number, 0) == 0
    operations = json.loads(job.result.with_suffix(".operations").read_text())
    assert {"tempfile.mkdtemp", "open", "os.rename", "os.remove", "shutil.rmtree"} <= set(operations)
    renamed, kept = operations.index("os.rename") + 1, {}  # an operation is not done when it is announced
    for point in range(1 if number == 2 else renamed, len(operations) + 1):
        here = replace(job, folder=job.folder / str(point))
        assert in_a_process(die_at_operation, here, number, point) == DIED, operations[point - 1]
        kept[point] = last_step(here.folder)
        assert_same(run(here), curves(job))
        assert_tidy(here.folder, job.config.max_steps)
    before, new = (number - 2) * job.config.eval_every, (number - 1) * job.config.eval_every
    assert kept == {point: before if point <= renamed else new for point in kept}
    assert set(kept.values()) == {before, new}


def die_in_the_tensors(job, number, size):
    """Die, as the system would have it, when a file grows beyond `size` bytes during the number-th save."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with SaveUnder(number, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))):
        job.train()


@pytest.mark.parametrize("size", [0, 100_000])
def test_dead_in_the_middle_of_a_file(job, curves, size):
    assert in_a_process(die_in_the_tensors, job, 3, size) == -signal.SIGXFSZ
    (half,) = [path for path in job.folder.glob(f"{WRITING}*/**/*") if path.is_file()]
    assert half.stat().st_size <= size
    assert last_step(job.folder) == 2
    assert_same(run(job), curves(job))
    assert_tidy(job.folder, job.config.max_steps)


# --- gone on ------------------------------------------------------------------------------------------------


def at_call(number=None, happens=None):
    """bradley_terry, in whose number-th call with a gradient (two make a step of CONFIG) something happens."""
    calls = 0

    def loss(rewards, ranks):
        nonlocal calls
        values = bradley_terry(rewards, ranks)
        trains = rewards.grad_fn is not None  # as the first look that fit takes at the loss does not
        calls += trains
        return happens(values) if trains and calls == number else values

    return loss


def ctrl_c(_):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("call", "step"), [(1, 0), (6, 2), (10, 4), (16, 6)])
def test_interrupted_by_hand_and_called_again(job, curves, call, step):
    """In a notebook: the same call on the same model, with half a step's gradient left in it, and the folder is free."""
    model = job.make_model()
    with pytest.raises(KeyboardInterrupt):
        run(job, at_call(call, ctrl_c), model=model)
    assert_tidy(job.folder, step)
    assert_same(run(job, at_call(), model=model), curves(job))


def test_model_that_began_otherwise_goes_on_to_the_same_curve(job, curves):
    """Another random head and another random state at the start: what the checkpoint holds is what counts."""
    with pytest.raises(KeyboardInterrupt):
        run(job, at_call(10, ctrl_c))
    assert_same(run(job, at_call(), seed=99), curves(job))


def run_down(job, loss, seed=0, **config):
    """A run whose validation wants the opposite of what is trained: the more it learns, the worse. Best is step 0."""
    model, (train, validation) = replace(job, seed=seed).make_model(), job.data()
    validation = [replace(p, completions=p.completions[::-1]) for p in validation]
    config = replace(job.config, eval_every=1, **config)
    return fit(model, train, validation, config, loss, checkpoint=job.folder), model.state_dict()


def never_to_train(rewards, ranks):
    assert rewards.grad_fn is None, "only the first look that fit takes at the loss"
    return bradley_terry(rewards, ranks)


@pytest.mark.parametrize(("patience", "stopped"), [(None, "at the last step, 8"), (3, "early, at step 3 of 8")])
def test_finished_run_comes_back_at_once(job, monkeypatch, patience, stopped):
    """Without a step, a validation, or a look into the frozen layers, and with its best weights."""
    first, weights = run_down(job, bradley_terry, patience=patience)
    assert (first.best_step, first.stopped) == (0, stopped)
    monkeypatch.setenv("RMKIT_CACHE", str(job.cache / "empty"))
    monkeypatch.setattr(Trunk, "_compute", None)
    monkeypatch.setattr(never_to_train, "__qualname__", bradley_terry.__qualname__)
    again, restored = run_down(job, never_to_train, seed=99, patience=patience)
    assert_same((again, restored), (without_time(asdict(first)), weights))
    assert (again.steps, again.seconds) == (first.steps, first.seconds)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_patience_and_the_best_weights_go_on(job, step):
    """The best are of a step before the checkpoint; 0, 1 or 2 validations were waited for better ones."""
    history, weights = run_down(replace(job, folder=None), at_call(), patience=3)
    assert (history.best_step, history.stopped) == (0, "early, at step 3 of 8")
    with pytest.raises(KeyboardInterrupt):
        run_down(job, at_call(2 * step, ctrl_c), patience=3)
    assert_tidy(job.folder, step - 1)
    assert_same(run_down(job, at_call(), seed=99, patience=3), (without_time(asdict(history)), weights))


def test_table_and_plot_of_a_run_that_was_interrupted(job):
    with pytest.raises(KeyboardInterrupt):
        run(job, at_call(10, ctrl_c))
    resumed = run(job, at_call())[0]
    whole = run(replace(job, folder=None), at_call())[0]
    tables = [history.table().drop(columns="seconds") for history in (resumed, whole)]
    pd.testing.assert_frame_equal(*tables)
    assert list(resumed.table().index) == list(range(9))
    assert resumed.seconds == pytest.approx(sum(step["seconds"] for step in resumed.steps))
    assert isinstance(resumed.plot(), Figure)


def test_micro_batches_may_change(job):
    """Where memory was too short, half of it at a time is the remedy; the curve is that of the other size."""
    job = replace(job, settings={"trainable": "last:1"})  # dropout draws once a micro-batch
    whole = run(replace(job, folder=None), at_call())[0]
    with pytest.raises(KeyboardInterrupt):
        run(job, at_call(10, ctrl_c))
    resumed = run(job, at_call(), micro_batch_tokens=1)[0]
    for mine, theirs in zip(resumed.steps, whole.steps, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


OTHER = {
    "learning_rate": 1e-3, "batch_size": 5, "epochs": 2, "max_steps": 9, "warmup_ratio": 0.2, "weight_decay": 0.1,
    "max_grad_norm": 2.0, "eval_every": 3, "patience": 1, "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize("what", [*OTHER, "pooling", "head", "dropout", "trainable", "max_length", "backbone", "loss"])
def test_another_run_is_refused_by_name_and_both_values(job, what, monkeypatch):
    model, data, loss = job.make_model(), job.data(), bradley_terry
    made_of = Run(model, *map(model.encode, data), job.config, loss).made_of()
    write(job, made_of)
    if what in OTHER:
        before, after = getattr(CONFIG, what), OTHER[what]
    elif what == "loss":
        before, after, loss = "bradley_terry", "at_call.<locals>.loss", at_call()
    elif what == "backbone":
        before, after = model.backbone_name, "another"
        model.backbone_name = after
    else:
        before = model.settings[what]
        after = {"pooling": "mean", "head": "mlp", "dropout": 0.1, "trainable": "last:2", "max_length": 400}[what]
        model = replace(job, settings=job.settings | {what: after}).make_model()
    with pytest.raises(CheckpointError) as refused:
        fit(model, *data, replace(CONFIG, **({what: after} if what in OTHER else {})), loss, checkpoint=job.folder)
    said = str(refused.value)
    assert str(job.folder) in said and f"{what}: {before!r} there, {after!r} now" in said and "another folder" in said
    assert_tidy(job.folder, 0)
    assert run(job)[0].steps, "the right run no longer goes on"


def write(job, made_of=None):
    """The checkpoint of a run that has just begun; returns its folder."""
    model = job.make_model()
    began = Run(model, *map(model.encode, job.data()), job.config, bradley_terry)
    with Checkpoints(job.folder, made_of or began.made_of()) as checkpoints:
        began._validate(checkpoints)
    return job.folder / "step-00000000"


def test_every_setting_of_the_run_is_tried():
    assert set(OTHER) == {field.name for field in fields(TrainConfig)} - {"micro_batch_tokens"}
    assert all(value != getattr(CONFIG, name) for name, value in OTHER.items())


@pytest.mark.parametrize("what", ["training preferences", "validation preferences", "frozen weights"])
def test_other_data_and_other_frozen_weights_are_refused(job, what):
    """A single judgement turned round; a single weight of thousands changed a little."""
    write(job)
    model, data = job.make_model(), job.data()
    if what == "frozen weights":
        with torch.no_grad():
            model.body.layers[0].mlp.up_proj.weight[0, 0] += 1e-6
    else:
        side = data[what.startswith("validation")]
        side[3] = replace(side[3], completions=side[3].completions[::-1])
    with pytest.raises(CheckpointError, match=rf"{what}: '\w{{32}}' there, '\w{{32}}' now"):
        fit(model, *data, CONFIG, checkpoint=job.folder)


def test_all_that_differs_is_named(job):
    write(job)
    with pytest.raises(CheckpointError, match=r"seed: 0 there, 5 now; dropout: 0.3 there, 0.2 now"):
        run(replace(job, settings=job.settings | {"dropout": 0.2}, config=replace(CONFIG, seed=5)))


def test_loss_with_its_settings_is_the_same_in_the_next_process(job):
    """Where Python prints an address, which is another one there; but another setting is another loss."""

    def with_margin(rewards, ranks, margin):
        return bradley_terry(rewards - margin * ranks, ranks)

    model, losses = job.make_model(), [partial(with_margin, margin=margin) for margin in (1, 1, 2)]
    data = model.encode(job.data()[0])
    first, same, other = (Run(model, data, data, CONFIG, loss).made_of()["loss"] for loss in losses)
    assert first == same != other


# --- with a loss that trains --------------------------------------------------------------------------------


def run_with_ties(job, loss, seed=0, interrupted=None):
    """(history, weights) of a run in which every third judgement is a tie; Ctrl-C in one call of the loss."""
    model, (train, validation) = replace(job, seed=seed).make_model(), job.data()
    train = [replace(p, ranks=(0, 0)) if i % 3 == 0 else p for i, p in enumerate(train)]
    if interrupted:
        calls = iter(range(1, 100))

        def look(_, given):
            if given[0].grad_fn and next(calls) == interrupted:
                ctrl_c(None)

        loss.register_forward_pre_hook(look)
    history = fit(model, train, validation, replace(job.config, learning_rate=1e-3), loss, checkpoint=job.folder)
    return history, model.state_dict()


@pytest.fixture(scope="module")
def tied(tiny_folder, tmp_path_factory):
    """(history, weights, loss) of a run with ties that was never interrupted."""
    folder, loss = tmp_path_factory.mktemp("tied"), RaoKupper(0.3)
    job = Job(str(tiny_folder), {"trainable": "last:1", "dropout": 0.3}, CONFIG, ROWS, folder / "killed.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMKIT_CACHE", str(folder / "cache"))
        history, weights = run_with_ties(job, loss)
    return without_time(asdict(history)), weights, loss


@pytest.mark.parametrize(("call", "step"), [(1, 0), (6, 2), (16, 6)])
def test_tie_rate_goes_on_with_the_weights(job, tied, call, step):
    """Another tie rate and another head at the start: what the checkpoint holds is what counts, bit by bit."""
    *expected, whole = tied
    with pytest.raises(KeyboardInterrupt):
        run_with_ties(job, RaoKupper(0.3), interrupted=call)
    assert_tidy(job.folder, step)
    resumed = RaoKupper(0.8)
    assert_same(run_with_ties(job, resumed, seed=99), expected)
    assert torch.equal(resumed.logit, whole.logit) and whole.tie_rate != pytest.approx(0.3, abs=1e-3)
    again = RaoKupper(0.1)
    found = run_with_ties(job, again, seed=5)  # a finished run, which comes back at once
    assert_same(found, expected)
    assert torch.equal(again.logit, whole.logit)


def test_best_tie_rate_of_an_earlier_step_comes_back(job):
    """The best validation is the first; the checkpoint is of a later step, and holds both tie rates."""
    first, again = RaoKupper(0.3), RaoKupper(0.8)
    history, weights = run_down(job, first)
    assert history.best_step == 0 and first.tie_rate == pytest.approx(0.3)
    with Checkpoints(job.folder, {}) as checkpoints:
        _, tensors = checkpoints.load()
    assert tensors["weights/loss.logit"] != tensors["best/loss.logit"] == first.logit
    assert_same(run_down(job, again, seed=99), (without_time(asdict(history)), weights))
    assert torch.equal(again.logit, first.logit)


def test_loss_of_another_class_is_another_run(job):
    """A tie rate that trains makes no other run; one that is fixed is a setting of the loss."""
    fixed = [RaoKupper(rate).requires_grad_(False) for rate in (0.3, 0.5)]
    with pytest.raises(KeyboardInterrupt):
        run_with_ties(job, RaoKupper(0.3), interrupted=10)
    for loss, name in (
        (Davidson(0.3), "Davidson"),
        (tie_as_half, "tie_as_half"),
        (fixed[0], "RaoKupper(tie_rate=0.3)"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(f"loss: 'RaoKupper' there, '{name}' now")):
            run_with_ties(job, loss)
    job = replace(job, folder=job.folder / "fixed")
    run_with_ties(job, fixed[0])
    with pytest.raises(
        CheckpointError, match=re.escape("loss: 'RaoKupper(tie_rate=0.3)' there, 'RaoKupper(tie_rate=0.5)' now")
    ):
        run_with_ties(job, fixed[1])


# --- failures -----------------------------------------------------------------------------------------------


@contextmanager
def nobody():
    """As root, who may write anywhere: not being root for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("what", ["is a file", "below a file", "in a device", "not to be written to"])
def test_folder_that_cannot_be_used_is_said_before_anything_is_trained(job, what):
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"
        if what == "in a device":
            folder = Path("/dev/null/run")
        elif what == "not to be written to":
            folder.mkdir(mode=0o555)
            Path(work).chmod(0o755)
        else:
            folder.write_text("mine")
        folder = folder / "run" if what == "below a file" else folder
        model, data = job.make_model(), job.data()
        with nobody(), pytest.raises(CheckpointError) as raised:
            fit(model, *data, CONFIG, checkpoint=folder)
        said = str(raised.value)
        assert said.startswith(f"checkpoints cannot be written to {folder}: ") and said.endswith("give another folder")
        assert re.search("exists|Not a directory|Permission denied", said)


def hold(folder, ready):
    with Checkpoints(folder, {}):
        ready.send(os.getpid())
        signal.pause()


def test_folder_of_another_run_is_refused_while_that_one_lives(job):
    here, there = FORKS.Pipe()
    holder = FORKS.Process(
        target=hold, args=(job.folder, there), daemon=True
    )  # which a failure here does not leave alive
    holder.start()
    assert here.recv() == holder.pid
    for _ in range(2):  # being refused must not free what the other one holds
        with pytest.raises(CheckpointError, match=f"another run is writing its checkpoints to {job.folder}: give each"):
            run(job)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert run(job)[0].stopped == "at the last step, 8"


def test_two_runs_of_one_process_in_one_folder(job):
    with Checkpoints(job.folder, {}):
        with pytest.raises(CheckpointError, match="another run is writing its checkpoints"):
            run(job)
    assert run(job)[0].stopped == "at the last step, 8"


def train_on_a_full_disk(job, number, size):
    """No file grows beyond `size` bytes during the number-th save. What is warned of goes beside the result."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    infinite = resource.RLIM_INFINITY
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SaveUnder(number, partial(limit, (size, infinite)), partial(limit, (infinite, infinite))):
            job.train()
    said = [str(warning.message) for warning in caught if "checkpoint" in str(warning.message)]
    job.result.with_suffix(".warnings").write_text(json.dumps(said))


@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize(
    ("number", "kept"), [(1, "there is none before it"), (3, "that of step 2 is kept"), (5, "that of step 6 is kept")]
)
def test_full_disk_is_warned_of_and_the_training_goes_on(job, curves, number, kept, size):
    """At the first, a middle and the last checkpoint, by which then the run goes on once more."""
    assert in_a_process(train_on_a_full_disk, job, number, size) == 0
    step = (number - 1) * CONFIG.eval_every
    (said,) = json.loads(job.result.with_suffix(".warnings").read_text())
    assert said.startswith(f"the checkpoint of step {step} could not be written to {job.folder} (")
    assert "File too large" in said and kept in said
    assert said.endswith("The run ends here" if number == 5 else "tries again at the next validation")
    assert_same(job.outcome(), curves(job))
    assert_tidy(job.folder, 6 if number == 5 else 8)
    assert_same(run(job), curves(job))
    assert_tidy(job.folder, 8)


def rewrite(path, change):
    """Change what a checkpoint holds as another version of rmkit might have written it: whole, and under its digests."""
    state = json.loads((path.parent / STATE).read_text())
    state.pop("seal")
    if path.name == STATE:
        change(state)
    else:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)
        state["digest"] = _digest(path)
    (path.parent / STATE).write_text(json.dumps({"seal": _seal(state), **state}))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "tensors cut in half": (TENSORS, lambda path: os.truncate(path, path.stat().st_size // 2)),
    "tensors empty": (TENSORS, lambda path: os.truncate(path, 0)),
    "one bit of the tensors": (TENSORS, flip),
    "tensors missing": (TENSORS, os.remove),
    "a weight missing": (TENSORS, lambda path: rewrite(path, lambda t: t.pop("weights/head.weight"))),
    "a moment missing": (TENSORS, lambda path: rewrite(path, lambda t: t.pop("optimizer/0/exp_avg"))),
    "random state missing": (TENSORS, lambda path: rewrite(path, lambda t: t.pop("random/cpu"))),
    "a weight of another name": (TENSORS, lambda path: rewrite(path, lambda t: t.update({"weights/neck": t.pop("weights/head.weight")}))),
    "a weight of another shape": (TENSORS, lambda path: rewrite(path, lambda t: t.update({"weights/head.weight": torch.zeros(1, 3)}))),
    "all moments missing": (TENSORS, lambda path: rewrite(path, lambda t: [t.pop(name) for name in list(t) if name.startswith("optimizer/")])),
    "a digit of the state": (STATE, lambda path: path.write_text(path.read_text().replace('"step": 4,', '"step": 6,'))),
    "state cut": (STATE, lambda path: os.truncate(path, 20)),
    "state garbage": (STATE, lambda path: path.write_bytes(b"\xff\x00{")),
    "state a list": (STATE, lambda path: path.write_text("[]")),
    "state missing": (STATE, os.remove),
    **{f"no {key}": (STATE, lambda path, key=key: rewrite(path, lambda s: s.pop(key))) for key in ("run", "step", "history", "best")},
    "no key of the best": (STATE, lambda path: rewrite(path, lambda s: s["best"].pop("key"))),
    "no steps": (STATE, lambda path: rewrite(path, lambda s: s["history"].pop("steps"))),
}  # fmt: skip


@pytest.fixture(scope="module")
def half_way(tiny_folder, tmp_path_factory):
    """The folder of a run that was interrupted after its checkpoint of step 4, to copy."""
    folder = tmp_path_factory.mktemp("half way")
    job = Job(str(tiny_folder), {"trainable": "head", "dropout": 0.3}, CONFIG, ROWS, folder / "result", folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMKIT_TRUNK_GB", "0")
        with pytest.raises(KeyboardInterrupt):
            run(job, at_call(10, ctrl_c))
    return job.folder


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_checkpoint_is_named(job, half_way, what):
    """And is left where it is, for its owner to look at; with a sound copy of it the run goes on."""
    job = replace(job, settings={"trainable": "head", "dropout": 0.3})
    shutil.copytree(half_way, job.folder)
    name, damage = DAMAGE[what]
    damage(job.folder / "step-00000004" / name)
    for _ in range(2):
        with pytest.raises(CheckpointError) as raised:
            run(job, at_call())
        said = str(raised.value)
        assert str(job.folder / "step-00000004") in said and name in said and "delete it" in said
    shutil.rmtree(job.folder / "step-00000004")
    shutil.copytree(half_way, job.folder, dirs_exist_ok=True)
    assert len(run(job, at_call())[0].steps) == 8


@pytest.mark.parametrize(("call", "failed"), [(10, "step 5: the loss"), (16, "step 8: the loss")])
def test_what_diverges_keeps_its_history_and_its_last_good_checkpoint(job, curves, call, failed):
    with pytest.raises(NonFiniteLoss, match=failed) as raised:
        run(job, at_call(call, lambda values: values * float("nan")))
    history, step = raised.value.history, call // 2 - 1
    assert [record["step"] for record in history.steps] == list(range(1, step + 1))
    assert [record["step"] for record in history.validations] == list(range(0, step + 1, 2))
    assert len(history.table()) == step + 1
    assert_tidy(job.folder, step // 2 * 2)
    assert_same(run(job, at_call(), seed=99), curves(job))


# --- all that changes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["last:1", "lora"])
def test_snapshot_and_restore_are_exact(job, trainable):
    """Weights, the best ones of an earlier step, moments with their counts, history, patience, random state."""
    job = replace(job, settings={"trainable": trainable, "dropout": 0.3}, config=replace(CONFIG, max_steps=5))
    first, other = (replace(job, seed=seed).make_model() for seed in (0, 99))
    runs = [Run(model, *map(model.encode, job.data()), job.config, bradley_terry) for model in (first, other)]
    was, becomes = runs
    was.go(None)
    was.best.step, was.best.waited = 2, 1
    was.best.weights = {name: weight + 1 for name, weight in was.best.weights.items()}
    state, random = was.optimizer.state_dict()["state"], torch.get_rng_state()
    with Checkpoints(job.folder, {}) as checkpoints:
        checkpoints.save(5, *snapshot(was))
        torch.rand(3)
        restore(becomes, *checkpoints.load())
    assert torch.equal(torch.get_rng_state(), random)
    restored = becomes.optimizer.state_dict()["state"]
    assert restored.keys() == state.keys() and len(state) > 1
    for i, moments in state.items():
        assert moments.keys() == restored[i].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert moments["step"] == 5
        for name, moment in moments.items():
            assert torch.equal(moment, restored[i][name]) and moment.dtype == restored[i][name].dtype
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
    assert becomes.best.weights.keys() == was.best.weights.keys()
    assert all(torch.equal(weight, becomes.best.weights[name]) for name, weight in was.best.weights.items())
    assert (becomes.step, becomes.history) == (was.step, was.history)
    assert (becomes.best.step, becomes.best.waited, tuple(becomes.best.key)) == (2, 1, was.best.key)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what a process has mapped")
def test_a_run_that_goes_on_does_not_live_in_the_file_it_came_from(job):
    """Which is deleted under it: on a network's disk that is a crash, and on any other its room is not given back."""
    with pytest.raises(KeyboardInterrupt):
        run(job, at_call(10, ctrl_c))
    mapped = []

    def look(values):
        mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if str(job.folder) in line)
        return values

    run(job, at_call(2, look))
    assert not mapped


def test_models_of_one_name_are_told_apart_by_their_weights(tmp_path, tiny_folder):
    """With everything trained no weight is frozen, and two folders may have the same name."""
    other = tmp_path / "other" / tiny_folder.name
    shutil.copytree(tiny_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: weight + 1e-3 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    data = load_preferences("json_vs_text")
    config = TrainConfig(max_steps=1)
    fit(RewardModel(load_backbone(str(tiny_folder))), data[:8], data[8:12], config, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match="revision"):
        fit(RewardModel(load_backbone(str(other))), data[:8], data[8:12], config, checkpoint=tmp_path / "run")


def test_two_saved_models_of_one_backbone_are_told_apart(tmp_path, tiny_folder):
    data, config = load_preferences("json_vs_text"), TrainConfig(max_steps=1)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folders.append(RewardModel(load_backbone(str(tiny_folder))).save(tmp_path / f"model {seed}"))
    first, again = (
        fit(RewardModel.load(folders[0]), data[:8], data[8:12], config, checkpoint=tmp_path / "run") for _ in range(2)
    )
    assert again.steps == first.steps
    with pytest.raises(CheckpointError, match="rewards when loaded"):
        fit(RewardModel.load(folders[1]), data[:8], data[8:12], config, checkpoint=tmp_path / "run")


def test_what_else_is_in_the_folder_is_left_alone(job, curves):
    """A user's own things, of whatever name, and a copy that was put beside a checkpoint."""
    for name in ("writing-samples", "step-by-step", "step-00000004.bak"):
        (job.folder / name).mkdir(parents=True)
        (job.folder / name / "mine").write_text("of a year")
    with pytest.raises(KeyboardInterrupt):
        run(job, at_call(10, ctrl_c))
    assert_same(run(job, at_call(), seed=99), curves(job))
    for name in ("writing-samples", "step-by-step", "step-00000004.bak"):
        assert (job.folder / name / "mine").read_text() == "of a year"


def test_losses_of_one_name_are_told_apart_by_what_they_give(tmp_path, tiny_folder):
    def with_margin(margin):
        def loss(rewards, ranks):
            return bradley_terry(rewards - margin * ranks, ranks)

        return loss

    data, config = load_preferences("json_vs_text"), TrainConfig(max_steps=1)
    backbone = str(tiny_folder)
    fit(RewardModel(load_backbone(backbone)), data[:8], data[8:12], config, with_margin(0), tmp_path / "run")
    with pytest.raises(CheckpointError, match="losses of a sample"):
        fit(RewardModel(load_backbone(backbone)), data[:8], data[8:12], config, with_margin(1), tmp_path / "run")
