"""Training a reward model: the loop of notebook 03, with what a real run needs around it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
import psutil
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from rmkit.batching import Encoded, ranks_tensor
from rmkit.losses import bradley_terry
from rmkit.metrics import pairwise_accuracy
from rmkit.model import RewardModel
from rmkit.plots import plot_history
from rmkit.preferences import Preference

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


REMEDY = "Try, in this order: a learning rate ten times lower; a longer warm-up; a smaller max_grad_norm; and read these rows."


class NonFiniteLoss(RuntimeError):
    """The loss, its gradient or a held-out reward is no longer a number. A step that failed has not touched the weights."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The comments give the range that published recipes use; ValueError outside what can work."""

    learning_rate: float = 1e-5  # 5e-6 … 5e-5 for a whole model, 1e-4 … 1e-3 for LoRA, up to 1e-2 for a head alone
    batch_size: int = 8  # preferences a step; 32 … 128 where there is data and memory for it
    micro_batch_size: int = 8  # preferences at a time in memory; the gradient does not depend on it
    epochs: int = 1  # 1 … 3
    max_steps: int | None = None  # train for so many steps, whatever `epochs` says
    warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises from 0: 0.05 … 0.1
    weight_decay: float = 0.01  # 0.01 … 0.1, on matrices only
    max_grad_norm: float = 1.0
    eval_every: int | None = None  # steps between validations, 500 … 1000 on large data; None: once an epoch
    patience: int | None = (
        3  # stop after so many validations without a better accuracy (its loss may still fall): 2 … 3; None: never
    )
    seed: int = 0

    def __post_init__(self):
        def check(name: str, holds: bool, wanted: str):
            if not holds:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)!r}; it wants {wanted}")

        for name in ("learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm"):
            check(name, isinstance(getattr(self, name), (int, float)), "a number")
        check("learning_rate", 0 < self.learning_rate < 1, "a number between 0 and 1, such as 1e-5")
        for name in ("batch_size", "micro_batch_size", "epochs"):
            check(name, _is_count(getattr(self, name)), "a whole number from 1 up")
        for name in ("max_steps", "eval_every", "patience"):
            check(
                name, getattr(self, name) is None or _is_count(getattr(self, name)), "a whole number from 1 up, or None"
            )
        check("warmup_ratio", 0 <= self.warmup_ratio <= 1, "a share of the steps, from 0 to 1")
        check("weight_decay", 0 <= self.weight_decay < 1, "a number from 0 to 1, such as 0.01")
        check("max_grad_norm", self.max_grad_norm > 0, "a positive number; float('inf') does not clip")
        check("seed", isinstance(self.seed, int) and self.seed >= 0, "a whole number from 0 up")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass
class History:
    """What happened in `fit`: one record a step, one a validation, why it ended, and what it took."""

    steps: list[dict] = field(
        default_factory=list
    )  # step, epoch, loss (nats), accuracy, learning_rate, grad_norm, tokens, seconds
    validations: list[dict] = field(default_factory=list)  # step, loss (nats), accuracy, low, high, pairs
    best_step: int = 0
    stopped: str = ""
    seconds: float = 0.0  # training steps only, without validation
    peak_memory: int = 0  # bytes: of the process on a CPU, of tensors on a GPU

    def table(self) -> pd.DataFrame:
        """One row a step; the columns that begin in `validation_` are filled where there was one."""
        steps = pd.DataFrame(self.steps).set_index("step")
        validations = pd.DataFrame(self.validations).set_index("step").add_prefix("validation_")
        return steps.join(validations, how="outer")

    def plot(self):
        """The figure of the run: loss on a log scale, accuracy on training and validation pairs."""
        return plot_history(self.steps, self.validations, self.best_step)


def fit(
    model: RewardModel,
    train: Sequence[Preference],
    validation: Sequence[Preference],
    config: TrainConfig = TrainConfig(),
    loss: Loss = bradley_terry,
) -> History:
    """Train `model` in place, and leave it as it was at its best validation.

    Best is the highest ranking accuracy and, of equals, the lowest loss. The model is measured before the
    first step, every `eval_every` steps and at the end. A step draws its preferences at random and works
    through them in micro-batches of like length whose gradients add up: exactly the whole batch's gradient.
    Raises ValueError for data that the loss cannot use, NonFiniteLoss when training breaks down.
    """
    if not train or not validation:
        raise ValueError(
            f"fit wants preferences on both sides: got {len(train)} to train on, {len(validation)} to validate with"
        )
    for side in (train, validation):
        ranks = ranks_tensor(side)
        loss(torch.zeros(ranks.shape), ranks)  # complains of ties now, not in an hour
    train_encoded, validation_encoded = model.encode(train), model.encode(validation)
    steps_an_epoch = math.ceil(len(train) / config.batch_size)
    total = config.max_steps or steps_an_epoch * config.epochs
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    if accelerator.num_processes > 1:
        raise NotImplementedError("fit trains in one process; start it without `accelerate launch`")
    model, optimizer = accelerator.prepare(model, make_optimizer(model, config))
    batches = draw_batches(len(train), config)
    history, best = History(), _Best(config.patience)
    with _PeakMemory(model.device) as memory, tqdm(total=total, desc="training", unit="step", mininterval=1) as bar:
        for step in range(total + 1):
            if step % (config.eval_every or steps_an_epoch) == 0 or step == total:
                record = validate(model, validation_encoded, loss, config.micro_batch_size, step)
                history.validations.append({"step": step, **record})
                if best.is_enough(step, record, model) or step == total:
                    break
            rate = config.learning_rate * learning_rate_factor(step, total, config.warmup_ratio)
            for group in optimizer.param_groups:
                group["lr"] = rate
            record = _train_step(model, optimizer, accelerator, train_encoded, next(batches), loss, config, step + 1)
            history.steps.append(
                {"step": step + 1, "epoch": step // steps_an_epoch + 1, "learning_rate": rate, **record}
            )
            history.seconds += record["seconds"]
            bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
            bar.update()
    history.stopped = f"at the last step, {total}" if step == total else f"early, at step {step} of {total}"
    history.best_step, history.peak_memory = best.step, memory.peak
    best.restore(model)
    return history


def make_optimizer(model: RewardModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW on what is trainable, with weight decay on matrices and none on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)


def learning_rate_factor(step: int, total: int, warmup_ratio: float) -> float:
    """Share of the learning rate at `step` (from 0): a straight line up over the warm-up, then down to 0 after the end."""
    warmup = round(warmup_ratio * total)
    return min((step + 1) / (warmup + 1), (total - step) / (total - warmup) if total > warmup else 1.0)


def draw_batches(n: int, config: TrainConfig) -> Iterator[list[int]]:
    """Without end: the indices of one step's preferences, every one once an epoch, in an order of the seed."""
    rng = random.Random(config.seed)
    while True:
        order = rng.sample(range(n), n)
        yield from (order[i : i + config.batch_size] for i in range(0, n, config.batch_size))


@torch.no_grad()
def validate(model: RewardModel, encoded: Sequence[Encoded], loss: Loss, batch_size: int, step: int = 0) -> dict:
    """Loss (nats, mean over preferences) and ranking accuracy with its 95 % interval.

    Raises NonFiniteLoss where a reward is not a number, which the weights after `step` are to blame for.
    """
    ranks, rewards = ranks_tensor(encoded), model.rewards(encoded, batch_size)
    if not torch.isfinite(rewards).all():
        bad = (~torch.isfinite(rewards)).any(1).nonzero().flatten().tolist()
        raise NonFiniteLoss(
            f"after step {step}, the rewards of the validation preferences {bad} are not finite. {REMEDY}"
        )
    accuracy = pairwise_accuracy(rewards, ranks)
    mean = loss(rewards, ranks).mean().item()
    return {
        "loss": mean,
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "pairs": accuracy.pairs,
    }


def _train_step(model, optimizer, accelerator, encoded, indices, loss, config, step) -> dict:
    model.train()
    began, total_loss, tokens, scored = time.perf_counter(), 0.0, 0, []
    by_length = sorted(indices, key=lambda i: encoded[i].length)
    for start in range(0, len(by_length), config.micro_batch_size):
        micro = by_length[start : start + config.micro_batch_size]
        batch = model.collate([encoded[i] for i in micro])
        rewards = model(batch)
        losses = loss(rewards, batch.ranks)
        if not torch.isfinite(losses).all():
            optimizer.zero_grad()
            bad = [micro[i] for i in (~torch.isfinite(losses)).nonzero().flatten().tolist()]
            raise NonFiniteLoss(_advice("loss", step, bad, optimizer))
        accelerator.backward(losses.sum() / len(indices))
        total_loss += losses.sum().item() / len(indices)
        tokens += batch.tokens
        scored.append((rewards.detach(), batch.ranks))
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(accelerator.clip_grad_norm_(trainable, config.max_grad_norm))
    if not math.isfinite(norm):
        optimizer.zero_grad()
        raise NonFiniteLoss(_advice("gradient", step, indices, optimizer))
    optimizer.step()
    optimizer.zero_grad()
    accuracy = _batch_accuracy(scored)
    seconds = time.perf_counter() - began
    return {"loss": total_loss, "accuracy": accuracy, "grad_norm": norm, "tokens": tokens, "seconds": seconds}


def _batch_accuracy(scored: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Share of the step's pairs ranked right; nan where all of them are ties, which some losses learn from."""
    parts = [pairwise_accuracy(rewards, ranks) for rewards, ranks in scored if (ranks > 0).any()]
    return sum(p.value * p.pairs for p in parts) / sum(p.pairs for p in parts) if parts else math.nan


def _advice(what: str, step: int, rows: list[int], optimizer) -> str:
    return (
        f"step {step}: the {what} of the training preferences {sorted(rows)} is not a finite number, at learning rate "
        f"{optimizer.param_groups[0]['lr']:.1e}. The weights are those after step {step - 1}. {REMEDY}"
    )


class _Best:
    """Keeps the best trainable weights seen at a validation, and knows when to stop waiting for better."""

    def __init__(self, patience: int | None):
        self.patience, self.waited, self.key, self.step, self.weights = patience, 0, (-1.0, 0.0), 0, {}

    def is_enough(self, step: int, record: dict, model: RewardModel) -> bool:
        """Take note of a validation; true when `patience` of them in a row had no better accuracy."""
        key = (record["accuracy"], -record["loss"])
        self.waited = 0 if key[0] > self.key[0] else self.waited + 1
        if key > self.key:
            self.key, self.step = key, step
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:  # into the same memory every time: a second copy of a large model is dear
                    self.weights.setdefault(name, torch.empty_like(parameter, device="cpu")).copy_(parameter.detach())
        return self.patience is not None and self.waited >= self.patience

    def restore(self, model: RewardModel) -> None:
        model.load_state_dict(self.weights, strict=False)
        model.eval()


class _PeakMemory:
    """The highest memory inside a `with`, in bytes: of this process on a CPU (asked 20 times a second), of tensors on a GPU."""

    def __init__(self, device: torch.device):
        self.device, self.peak, self._done = device, 0, threading.Event()

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            gc.collect()
            with contextlib.suppress(
                OSError, AttributeError, TypeError
            ):  # glibc keeps what was freed: give it back, or it counts
                ctypes.CDLL(None).malloc_trim(0)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self):
        process, done = psutil.Process(), False
        while not done:
            self.peak = max(self.peak, process.memory_info().rss)
            done = self._done.wait(0.05)

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._thread.join()
