"""Protects: what a run will take is known before it begins, what fits is made to fit, and neither changes what is learned."""

import gc

import psutil
import pytest
import torch

from rmkit import (
    ImplicitRewardModel,
    NonFiniteLoss,
    RewardModel,
    TrainConfig,
    bradley_terry,
    fit,
    load_backbone,
    load_preferences,
    training,
)
from rmkit import memory as memory_module
from rmkit.base import MICRO_BATCH_TOKENS
from rmkit.memory import bytes_a_token, fixed_bytes, plan_memory
from rmkit.training import Run

CONFIG = TrainConfig(learning_rate=3e-3, batch_size=8, max_steps=4, eval_every=4, patience=None)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data():
    rows = load_preferences("json_vs_text")
    return rows[:200:10], rows[400:500:10]


@pytest.fixture
def make_model(tiny_folder):
    def make(kind=RewardModel, **settings):
        torch.manual_seed(0)
        return kind(load_backbone(str(tiny_folder)), **settings)

    return make


def kept_by_torch(model, batch):
    """Bytes that autograd holds after a forward pass, by walking what it has stored: another road than the hooks."""
    seen, kept = set(), {}

    def walk(node):
        if node is None or node in seen:
            return
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(tensor, torch.Tensor):
                        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        for after, _ in node.next_functions:
            walk(after)

    hidden = model.hidden_states(batch)
    walk(hidden.grad_fn)
    return sum(kept.values())


@pytest.mark.parametrize("trainable", ["all", "lora", "last:1"])
def test_bytes_a_token_are_those_that_autograd_holds(make_model, data, trainable):
    """On real pairs: twice as many pairs keep so much more. Within a tenth."""
    model = make_model(trainable=trainable).eval()
    encoded = model.encode(data[0])
    few, many = (model.lay_out(encoded[:n]) for n in (4, 16))
    expected = (kept_by_torch(model, many) - kept_by_torch(model, few)) / (
        many.input_ids.numel() - few.input_ids.numel()
    )
    assert bytes_a_token(model) == pytest.approx(expected, rel=0.1)


def test_bytes_of_what_trains(make_model):
    model = make_model(trainable="last:1")
    trained = model.trainable_parameters()
    assert fixed_bytes(model) == 16 * trained  # gradient, two moments, the best weights
    model.autocast = torch.bfloat16
    assert fixed_bytes(model) > 16 * trained
    assert bytes_a_token(make_model(trainable="head")) == 0


def test_bytes_of_a_model_in_parts(make_model, data):
    """A part of everything instead of the whole, and what is gathered: two of the four layers and what is outside of them."""
    model = make_model()
    trained = model.trainable_parameters()
    layer = sum(p.numel() for p in model.body.layers[0].parameters())
    kept = 4 * trained  # on a CPU, the best weights
    assert fixed_bytes(model, 8) == 16 * trained / 8 + kept - 4 * trained + 8 * (trained - 2 * layer)
    needed = [plan_memory(model, model.encode(data[0]), None, parts).bytes_needed for parts in (1, 8)]
    assert needed[1] - needed[0] == pytest.approx(fixed_bytes(model, 8) - fixed_bytes(model))


def test_nothing_is_changed_by_looking(make_model, data):
    model = make_model(dropout=0.5).train()
    state = torch.get_rng_state()
    plan_memory(model, model.encode(data[0]), None)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(p.grad is None for p in model.parameters())


def test_looking_leaves_nothing_behind(make_model, data):
    """A graph that holds one of its own outputs is never freed, and the weights with it."""

    def bytes_of_tensors():
        gc.collect()
        storages = {t.untyped_storage().data_ptr(): t for t in gc.get_objects() if isinstance(t, torch.Tensor)}
        return sum(t.untyped_storage().nbytes() for t in storages.values())

    before = bytes_of_tensors()
    model = make_model()
    plan_memory(model, model.encode(data[0]), None)
    del model
    assert bytes_of_tensors() <= before + 1000


def test_plan_where_there_is_room(make_model, data):
    model = make_model()
    plan = plan_memory(model, model.encode(data[0]), None)
    assert plan.micro_batch_tokens == MICRO_BATCH_TOKENS["cpu"] and not plan.checkpointing
    assert fixed_bytes(model) < plan.bytes_needed < plan.bytes_free
    assert plan_memory(model, model.encode(data[0]), 77).micro_batch_tokens == 77


@pytest.fixture
def short_of_memory(monkeypatch, make_model, data):
    """A function that leaves room for the fixed part and so many of these tokens, computed once each."""

    def leave(tokens, kind=RewardModel):
        model = make_model(kind)
        needed = fixed_bytes(model) + tokens * bytes_a_token(model.eval())
        monkeypatch.setattr(memory_module, "free_bytes", lambda device: needed / memory_module.ROOM)

    return leave


def test_smaller_micro_batches_before_layers_twice(make_model, data, short_of_memory, monkeypatch):
    monkeypatch.setattr(memory_module, "ENOUGH_TOKENS", 100)
    model = make_model()
    encoded = model.encode(data[0])
    short_of_memory(300)
    plan = plan_memory(model, encoded, None)
    assert 290 <= plan.micro_batch_tokens <= 300 and not plan.checkpointing
    short_of_memory(60)
    plan = plan_memory(model, encoded, None)
    assert plan.checkpointing and plan.micro_batch_tokens > 60


@pytest.mark.parametrize("kind", [RewardModel, ImplicitRewardModel])
def test_layers_computed_twice_learn_the_same(make_model, data, short_of_memory, monkeypatch, kind):
    """And really are computed twice: a layer is called once more for every micro-batch."""
    monkeypatch.setattr(memory_module, "ENOUGH_TOKENS", 100)
    runs, calls = [], []
    for tokens in (10**6, 60):
        short_of_memory(tokens, kind)
        model = make_model(kind)
        counted = 0

        def count(*_, **__):
            nonlocal counted
            counted += torch.is_grad_enabled()

        model.body.layers[0].self_attn.register_forward_hook(count)
        runs.append([step["loss"] for step in fit(model, *data, CONFIG).steps])
        calls.append(counted)
        assert not any(getattr(layer, "gradient_checkpointing", False) for layer in model.body.layers)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)
    assert calls[1] >= 2 * calls[0] > 0


def test_what_cannot_fit_is_said_with_what_to_change(make_model, data, short_of_memory, monkeypatch):
    model = make_model()
    short_of_memory(-(10**6))
    with pytest.warns(
        UserWarning, match="takes about .* GB beside the weights.*'last:2'.*max_length.*smaller backbone"
    ):
        plan_memory(model, model.encode(data[0]), None)


def test_weights_that_leave_no_room_to_measure_are_said_too(make_model, data, monkeypatch):
    def none_left(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory_module, "bytes_a_token", none_left)
    model = make_model()
    with pytest.warns(UserWarning, match="and more than there is for the longest preference .* smaller backbone"):
        plan_memory(model, model.encode(data[0]), None)


def test_free_memory_is_the_machines(make_model, monkeypatch):
    available = psutil.virtual_memory().available
    assert memory_module.free_bytes(torch.device("cpu")) == pytest.approx(available, rel=0.2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # and is shared
    assert memory_module.free_bytes(torch.device("cpu")) == pytest.approx(available / 4, rel=0.2)


# --- fp16 -------------------------------------------------------------------------------------------------------


def test_fp16_learns_what_fp32_does(make_model, data):
    """With its loss scaled: the gradients of a small loss would vanish otherwise."""
    runs = []
    for dtype in (None, torch.float16):
        model = make_model()
        model.autocast = dtype
        runs.append([step["loss"] for step in fit(model, *data, CONFIG).steps])
    assert runs[0] == pytest.approx(runs[1], abs=0.02) and runs[0] != runs[1]


def test_gradient_that_is_too_large_for_fp16_is_computed_again(make_model, data, monkeypatch):
    """With a smaller scale, on the same preferences, and the step is the one that it would have been."""
    model = make_model()
    model.autocast = torch.float16
    expected = fit(model, *data, CONFIG)
    began, scales = Run.__init__, []

    def with_a_large_scale(run, *arguments):
        began(run, *arguments)
        run.loss_scale = 2.0**120
        scales.append(run)

    monkeypatch.setattr(Run, "__init__", with_a_large_scale)
    model = make_model()
    model.autocast = torch.float16
    history = fit(model, *data, CONFIG)
    assert scales[0].loss_scale < 2.0**120
    assert [s["loss"] for s in history.steps] == pytest.approx([s["loss"] for s in expected.steps], abs=0.02)
    assert len(history.steps) == len(expected.steps)


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_gradient_that_no_scale_makes_finite_ends_the_run(make_model, data, autocast):
    """A finite loss whose gradient is none: the root of 0. With fp16 it is computed again, but not for ever."""

    def loss(rewards, ranks):
        return bradley_terry(rewards, ranks) + (0 * rewards).sum(1).abs().sqrt()

    model = make_model()
    model.autocast = autocast
    with pytest.raises(NonFiniteLoss, match="step 1: the gradient of the training preferences"):
        fit(model, *data, CONFIG, loss)


def test_scale_of_fp16_grows_again(make_model, data, monkeypatch):
    scales, take = [], Run._take_step

    def noted(run, indices):
        if run.step == 0:
            run.loss_scale = 1.0  # as after many gradients that were too large
        record = take(run, indices)
        scales.append(run.loss_scale)
        return record

    monkeypatch.setattr(Run, "_take_step", noted)
    monkeypatch.setattr(training, "GROW_EVERY", 2)  # where it is too large, a step is lost each time
    model = make_model()
    model.autocast = torch.float16
    fit(model, *data, CONFIG)
    assert scales == [1, 2, 2, 4]
    model = make_model()
    scales.clear()
    fit(model, *data, CONFIG)
    assert scales == [1, 1, 1, 1], "fp32 needs none"
