"""Training a reward model: the loop of notebook 03, with what a real run needs around it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn
from tqdm.auto import tqdm

from rmkit.base import BaseRewardModel, share
from rmkit.batching import PADDING, Encoded, ranks_tensor
from rmkit.checkpoints import CheckpointError, Checkpoints, fill, fingerprint, keeps, snapshot, whole
from rmkit.losses import bradley_terry
from rmkit.memory import MemoryPlan, PeakMemory, plan_memory
from rmkit.metrics import pairwise_accuracy
from rmkit.plots import plot_history
from rmkit.preferences import Preference, on_both_sides, require_preferences
from rmkit.trunk import computed_once

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GROW_EVERY = 100  # steps, after which fp16's scale is tried twice as large: one that is too large costs the step anew
LOSS_LEARNING_RATE = 0.05  # of a loss's own parameters: a number or two, in nats, whatever rate suits a body's weights

REMEDY = "Try, in this order: a learning rate ten times lower; a longer warm-up; a smaller max_grad_norm; and read these rows."


class NonFiniteLoss(RuntimeError):
    """The loss, its gradient or a held-out reward is no longer a number. A step that failed has not touched the weights.

    `history` is that of the run up to there.
    """

    history: History | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The comments give the range that published recipes use; ValueError outside what can work."""

    learning_rate: float = 1e-5  # 5e-6 … 5e-5 for a whole model, 1e-4 … 1e-3 for LoRA, up to 1e-2 for a head alone
    batch_size: int = 8  # preferences a step; 32 … 128 where there is data and memory for it
    micro_batch_tokens: int | None = None  # in memory at a time; None: what suits the device. The gradient is the same
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

        for name, value in list(vars(self).items()):
            if isinstance(value, np.generic):  # of a sweep
                object.__setattr__(self, name, value.item())
        for name in ("learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm"):
            check(name, isinstance(getattr(self, name), (int, float)), "a number")
        check("learning_rate", 0 < self.learning_rate < 1, "a number between 0 and 1, such as 1e-5")
        for name in ("batch_size", "epochs"):
            check(name, _is_count(getattr(self, name)), "a whole number from 1 up")
        for name in ("micro_batch_tokens", "max_steps", "eval_every", "patience"):
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
    )  # step, epoch, loss (nats), accuracy, learning_rate, grad_norm, tokens (a shared prompt once), seconds
    validations: list[dict] = field(default_factory=list)  # step, loss (nats), accuracy, low, high, pairs
    best_step: int = 0
    stopped: str = ""
    seconds: float = 0.0  # training steps only, without validation
    peak_memory: int = 0  # bytes: of the process on a CPU, of tensors on a GPU

    def table(self) -> pd.DataFrame:
        """One row a step; the columns that begin in `validation_` are filled where there was one."""
        steps, validations = (
            pd.DataFrame(records, columns=None if records else ["step"]).set_index("step")
            for records in (self.steps, self.validations)
        )
        validations = validations.add_prefix("validation_")
        return steps.join(validations, how="outer")

    def plot(self):
        """The figure of the run: loss on a log scale, accuracy on training and validation pairs."""
        return plot_history(self.steps, self.validations, self.best_step)


def fit(
    model: BaseRewardModel,
    train: Sequence[Preference],
    validation: Sequence[Preference],
    config: TrainConfig = TrainConfig(),
    loss: Loss = bradley_terry,
    checkpoint: str | Path | None = None,
) -> History:
    """Train `model` in place, and leave it as it was at its best validation.

    Best is the highest ranking accuracy and, of equals, the lowest loss. The model is measured before the
    first step, every `eval_every` steps and at the end. A step draws its preferences at random and works
    through them in micro-batches of like length whose gradients add up: exactly the whole batch's gradient.
    What frozen layers give is computed once (`rmkit.trunk`; not with FSDP). Where memory is short, layers are computed twice
    (`rmkit.memory`). Under `accelerate launch`, processes share every step's micro-batches (`rmkit.train`), and with FSDP the
    weights, too: until `fit` is done, or raises NonFiniteLoss, the model that was passed is then empty.
    loss: one of `rmkit.losses`, or a function as they are. One that is a module with parameters, such as `RaoKupper`,
        trains with the model, in place.
    checkpoint: a folder. The run is kept there at every validation, and the same call goes on from what it finds
        there, to the curve that it would have had; a run that was finished comes back at once. A head that was drawn
        otherwise makes no other run: seeds want a folder each.
    Raises ValueError for data that the loss cannot use, or a loss that cannot be used, PreferenceError for preferences
    that cannot be encoded, NonFiniteLoss, which carries the history so far, when training breaks down, CheckpointError
    for a folder that cannot be used, MemoryError for what cannot fit on the GPU. Warns of a group that is on both sides.
    """
    for argument, wanted, name in ((model, BaseRewardModel, "RewardModel"), (config, TrainConfig, "TrainConfig")):
        if not isinstance(argument, wanted):
            raise TypeError(f"fit wants a {name} there: got {type(argument).__name__}")
    if checkpoint is not None and not (isinstance(checkpoint, (str, Path)) and str(checkpoint)):
        raise TypeError(f"checkpoint is a folder, or None to keep nothing: got {checkpoint!r:.80}")
    for side, preferences in (("training", train), ("validation", validation)):
        require_preferences(preferences)
        if not preferences:
            raise ValueError(
                f"fit wants preferences on both sides: got {len(train)} to train on, {len(validation)} to validate with"
            )
        _try_loss(loss, side, ranks_tensor(preferences))
    if all(p.is_tie for p in validation):
        raise ValueError(
            "all validation preferences are ties, and no accuracy tells which weights are best: validate with some that "
            "were told apart"
        )
    if both := on_both_sides(train, validation):
        warnings.warn(
            f"{len(both)} of {len(validation)} validation preferences have their prompt or group on both sides "
            f"({validation[both[0]].group!r} for one): they will look better than they are. split_preferences keeps them apart",
            stacklevel=2,
        )
    encoded = (model.encode(train, "training preference"), model.encode(validation, "validation preference"))
    run = Run(model, *encoded, config, loss)
    with contextlib.ExitStack() as during:
        checkpoints = None
        if checkpoint:
            checkpoints = Checkpoints(checkpoint, run.made_of(), run.accelerator.is_main_process)
            run.resume(during.enter_context(checkpoints))
        # in parts, a process would gather layers for texts that only it has not seen, and wait for ever
        if not run.sharded:
            during.enter_context(computed_once(model, run.train + run.validation))
        memory = during.enter_context(PeakMemory(model.device))
        if run.plan.checkpointing:
            run.model.body.activation_checkpointing_enable({"use_reentrant": False})
            during.callback(run.model.body.activation_checkpointing_disable)
        try:
            run.go(checkpoints)
        except NonFiniteLoss as error:
            error.history = run.history
            run.give_back()
            raise
    run.history.peak_memory = max(run.history.peak_memory, memory.peak)
    fill(run.trained, run.best.weights)
    run.give_back()
    model.eval()
    return run.history


def _try_loss(loss: Loss, side: str, ranks: torch.Tensor) -> None:
    """Complain of a loss that cannot be trained with now, not in an hour."""
    rewards = torch.zeros(ranks.shape, requires_grad=True)
    try:
        losses = loss(rewards, ranks)
    except ValueError as error:
        raise ValueError(f"the loss cannot use the {side} preferences: {error}") from None
    if not isinstance(losses, torch.Tensor) or losses.shape != ranks.shape[:1] or not losses.requires_grad:
        got = f"{list(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(
            f"the loss wants to be a tensor of one number a preference, {list(ranks.shape[:1])}, with a gradient to the "
            f"rewards: got {got}. Leave the mean to fit, which weighs micro-batches of unlike size"
        )


class Run:
    """One run of `fit`: what it is made of, and all that changes while it goes on."""

    def __init__(
        self, model: BaseRewardModel, train: list[Encoded], validation: list[Encoded], config: TrainConfig, loss: Loss
    ):
        self.train, self.validation, self.config, self.loss = train, validation, config, loss
        self.steps_an_epoch = math.ceil(len(train) / config.batch_size)
        self.total = config.max_steps or self.steps_an_epoch * config.epochs
        if isinstance(loss, nn.Module):
            loss.to(model.device)
        # the model is where it was loaded to, and knows its own precision
        # of several processes, each would else keep every gradient twice
        as_counted = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self.accelerator = Accelerator(device_placement=False, mixed_precision="no", kwargs_handlers=[as_counted])
        self.sharded = self.accelerator.is_fsdp2
        if self.accelerator.distributed_type == DistributedType.FSDP and not self.sharded:
            raise ValueError("of FSDP, only fsdp_version 2 is understood: launch with rmkit/recipes/fsdp.yaml")
        processes = self.accelerator.num_processes if self.sharded else 1
        self.given, self.model = model, _copy(model) if self.sharded else model
        self.plan = self._agreed(plan_memory(model, [*train, *validation], config.micro_batch_tokens, processes))
        # fp16 knows no number below 6e-8: gradients on their way back through the body are kept above. Powers of two change
        # nothing but rounding, so a checkpoint does without
        self.loss_scale = self.largest_scale = 2.0**14 if model.autocast is torch.float16 else 1.0
        # of several processes, `replica` adds their gradients up; `model` is what it has inside. FSDP puts others in the
        # place of its parameters, in the optimizer that it is shown, too, which may hold none of a loss
        self.replica, _ = self.accelerator.prepare(self.model, make_optimizer(trained_parameters(self.model), config))
        self.trained = trained_parameters(self.model, loss)
        self.optimizer = make_optimizer(self.trained, config)
        if self.sharded:
            if model.settings.get("reference_free") is False:  # what the reference thinks wants the model whole
                everything = [*train, *validation]
                for micro in model.micro_batches(everything, self.plan.micro_batch_tokens):
                    model.batch([everything[i] for i in micro])
            for parameter in trained_parameters(model).values():
                parameter.data = torch.empty(0, device=parameter.device)  # its memory, until `give_back`
        self.optimizer.zero_grad()  # of half a step, where an earlier run was interrupted
        self.step, self.history, self.best = 0, History(), _Best(config.patience)

    @property
    def is_over(self) -> bool:
        """Whether there is no step left to do, as of the last validation."""
        return self.best.is_enough or self.step == self.total

    def give_back(self) -> None:
        """Where the run trained in parts, the model that `fit` was given has its weights again: whole, in every process."""
        if self.sharded:
            for name, parameter in trained_parameters(self.given).items():
                parameter.data = whole(self.trained[name].detach())

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the last checkpoint, if there is one. Raises CheckpointError where processes do not find the same."""
        self.accelerator.wait_for_everyone()  # the one that writes may still be tidying the folder
        steps = self.accelerator.gather(torch.tensor([checkpoints.last_step], device=self.model.device)).tolist()
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the processes of this run find checkpoints of the steps {steps} in {checkpoints.folder}: give a folder "
                "on a disk that all of them see"
            )
        checkpoints.resume(self)

    def go(self, checkpoints: Checkpoints | None) -> None:
        """From the step that the run is at to its end."""
        batches = itertools.islice(draw_batches(len(self.train), self.config), self.step, None)
        every = self.config.eval_every or self.steps_an_epoch
        quiet = not self.accelerator.is_main_process
        with tqdm(
            total=self.total, initial=self.step, desc="training", unit="step", mininterval=1, disable=quiet
        ) as bar:
            while True:
                if self.step % every == 0 or self.step == self.total:
                    if not self.history.validations or self.history.validations[-1]["step"] < self.step:
                        self._validate(checkpoints)
                    if self.is_over:
                        break
                self._train(next(batches))
                bar.set_postfix(loss=f"{self.history.steps[-1]['loss']:.3f}", refresh=False)
                bar.update()
        finished = self.step == self.total
        self.history.stopped = (
            f"at the last step, {self.step}" if finished else f"early, at step {self.step} of {self.total}"
        )
        self.history.best_step = self.best.step

    def _validate(self, checkpoints: Checkpoints | None) -> None:
        tokens = self.plan.micro_batch_tokens
        record = validate(self.model, self.validation, self.loss, tokens, self.step, self.accelerator)
        self.history.validations.append({"step": self.step, **record})
        self.best.note(self.step, record, self.trained)
        found = snapshot(self) if checkpoints else ()
        if checkpoints and checkpoints.writes:
            try:
                checkpoints.save(self.step, *found)
            except CheckpointError as error:
                then = (
                    "The run ends here" if self.is_over else "Training goes on, and tries again at the next validation"
                )
                warnings.warn(f"{error}. {then}", stacklevel=4)

    def _train(self, indices: list[int]) -> None:
        factor = learning_rate_factor(self.step, self.total, self.config.warmup_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        began = time.perf_counter()
        record = self._take_step(indices)
        record["seconds"] = time.perf_counter() - began
        epoch = self.step // self.steps_an_epoch + 1
        self.step += 1
        self.history.steps.append(
            {"step": self.step, "epoch": epoch, "learning_rate": self.config.learning_rate * factor, **record}
        )
        self.history.seconds += record["seconds"]

    def _take_step(self, indices: list[int]) -> dict:
        """Of a step: loss, accuracy, gradient norm and tokens."""
        encoded = [self.train[i] for i in indices]
        ranks = ranks_tensor(encoded)
        while True:
            losses, rewards, tokens = self._add_gradients(encoded, ranks)
            if not losses.isfinite().all():
                self._give_up("loss", [indices[i] for i in (~losses.isfinite()).nonzero().flatten().tolist()])
            norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), self.config.max_grad_norm)
            norm = float(whole(norm))
            if math.isfinite(norm):
                break
            if self.loss_scale == 1:
                self._give_up("gradient", indices)
            self.loss_scale = max(self.loss_scale / 16, 1.0)  # too large for fp16: the same step again
            self.optimizer.zero_grad()
        if (self.step + 1) % GROW_EVERY == 0:
            self.loss_scale = min(2 * self.loss_scale, self.largest_scale)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # nan where all are ties, which some losses learn from
        accuracy = pairwise_accuracy(rewards, ranks).value if (ranks > 0).any() else math.nan
        return {"loss": losses.mean().item(), "accuracy": accuracy, "grad_norm": norm, "tokens": int(tokens)}

    def _add_gradients(self, encoded: list[Encoded], ranks: torch.Tensor) -> list[torch.Tensor]:
        """Losses [B] and rewards [B, K] of a step, and its tokens. Each process computes its share of the micro-batches."""
        device = self.model.device  # where they stay to the end of the step: a copy would wait for what computes there
        losses, rewards = torch.zeros(len(encoded), device=device), torch.zeros(ranks.shape, device=device)
        tokens = torch.tensor(0, device=device)
        self.model.train()
        shares = share(self.model, encoded, self.plan.micro_batch_tokens, self.accelerator)
        for n, (micro, counts) in enumerate(shares, start=1):
            batch = self.model.batch([encoded[i] for i in micro])
            adds_up = n == len(shares) or self.sharded  # gradients that wait would be whole ones
            with contextlib.nullcontext() if adds_up else self.accelerator.no_sync(self.replica):
                found = self.replica(batch)
                of_each = self.loss(found, batch.ranks)
                # processes: the gradient is their mean, and the loss of a step the mean over its preferences
                weight = self.loss_scale * self.accelerator.num_processes * counts / len(encoded)
                self.accelerator.backward(weight * of_each.sum())
            if counts:
                losses[micro] = of_each.detach().float()
                rewards[micro, : found.shape[1]] = found.detach()
                tokens += (batch.segment != PADDING).sum()
        if self.accelerator.num_processes > 1:
            losses, rewards, tokens = self._of_all_processes(losses, rewards, tokens)
        if self.loss_scale != 1:
            for parameter in self.trained.values():
                if parameter.grad is not None:
                    parameter.grad /= self.loss_scale
        return [losses.cpu(), rewards.cpu(), tokens.cpu()]

    def _agreed(self, plan: MemoryPlan) -> MemoryPlan:
        """The plan of the process that has least room: all must cut the same micro-batches."""
        plans = torch.tensor([[plan.micro_batch_tokens, -int(plan.checkpointing)]], device=self.model.device)
        tokens, checkpointing = self.accelerator.gather(plans).amin(0).tolist()
        return replace(plan, micro_batch_tokens=tokens, checkpointing=bool(checkpointing))

    def _of_all_processes(self, *found: torch.Tensor) -> list[torch.Tensor]:
        """The sums over all processes, each of which has zeros where another computed; and of the gradients of a loss that trains."""
        for name, parameter in self.trained.items():
            if name.startswith("loss."):  # it is in no replica
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return [self.accelerator.reduce(tensor) for tensor in found]

    def _give_up(self, what: str, rows: list[int]) -> None:
        self.optimizer.zero_grad()
        raise NonFiniteLoss(
            f"step {self.step + 1}: the {what} of the training preferences {sorted(rows)} is not a finite number, at "
            f"learning rate {self.optimizer.param_groups[0]['lr']:.1e}. The weights are those after step {self.step}. {REMEDY}"
        )

    def made_of(self) -> dict:
        """What must be the same for a checkpoint to go on. Micro-batches may differ: the gradient does not depend on them."""
        config = asdict(self.config)
        config.pop("micro_batch_tokens")
        frozen = {name: p for name, p in self.given.named_parameters() if not p.requires_grad}  # whole, with FSDP, too
        return {
            **config,
            **self.model.settings,
            **self.model.identity(),
            "backbone": self.model.backbone_name,
            "revision": self.model.revision,
            "rewards when loaded": self.model.rewards_when_loaded,
            **self._made_of_loss(),
            "training preferences": fingerprint(self.train),
            "validation preferences": fingerprint(self.validation),
            "frozen weights": fingerprint(frozen),
        }

    def _made_of_loss(self) -> dict:
        if any(name.startswith("loss.") for name in self.trained):  # its values change with training, as weights do
            return {"loss": type(self.loss).__qualname__}
        kinds = ranks_tensor([e for _, e in sorted({e.ranks: e for e in self.train}.items())])  # of judgement
        sample = torch.linspace(-2, 2, kinds.numel()).view(kinds.shape)
        with torch.no_grad():
            losses = self.loss(sample.to(self.model.device), kinds.to(self.model.device))
        return {
            "loss": getattr(self.loss, "__qualname__", re.sub(r" at 0x\w+", "", repr(self.loss))),  # a partial, say
            "losses of a sample": [f"{value:.5g}" for value in losses.tolist()],  # two of one name may differ
        }


def _copy(model: BaseRewardModel) -> BaseRewardModel:
    """Modules of its own with the same parameters: FSDP changes modules for good, and these are not the caller's."""
    own = [value for name, value in vars(model).items() if name not in vars(nn.Module())]
    twin = copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), *own)})
    twin.trunk = None
    return twin


def trained_parameters(model: BaseRewardModel, loss: Loss = bradley_terry) -> dict[str, nn.Parameter]:
    """What trains, by name: of the model, and of a loss that has parameters of its own (under `loss.`)."""
    of_loss = loss.named_parameters(prefix="loss") if isinstance(loss, nn.Module) else ()
    return {name: p for name, p in (*model.named_parameters(), *of_loss) if p.requires_grad}


def make_optimizer(trained: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW on `trained_parameters`: weight decay on the model's matrices, none on norms and biases; `peak`: the learning rate."""
    own = [p for name, p in trained.items() if name.startswith("loss.")]
    weights = [p for name, p in trained.items() if not name.startswith("loss.")]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        {"params": own, "weight_decay": 0.0, "lr": LOSS_LEARNING_RATE},
    ]
    groups = [g | {"peak": g.get("lr", config.learning_rate)} for g in groups if g["params"]]
    # fused: a third of the time on a CPU, and on a GPU no working copies of the moments
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


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
def validate(
    model: BaseRewardModel,
    encoded: Sequence[Encoded],
    loss: Loss,
    micro_batch_tokens: int | None = None,
    step: int = 0,
    accelerator: Accelerator | None = None,
) -> dict:
    """Loss (nats, mean over preferences) and ranking accuracy with its 95 % interval.

    Raises NonFiniteLoss where a reward is not a number, which the weights after `step` are to blame for.
    """
    ranks, rewards = ranks_tensor(encoded), model.rewards(encoded, micro_batch_tokens, accelerator)
    if not torch.isfinite(rewards).all():
        bad = (~torch.isfinite(rewards)).any(1).nonzero().flatten().tolist()
        raise NonFiniteLoss(
            f"after step {step}, the rewards of the validation preferences {bad} are not finite. {REMEDY}"
        )
    accuracy = pairwise_accuracy(rewards, ranks)
    mean = loss(rewards.to(model.device), ranks.to(model.device)).mean().item()
    return {
        "loss": mean,
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "pairs": accuracy.pairs,
    }


class _Best:
    """Keeps the best trainable weights seen at a validation, and knows when to stop waiting for better."""

    def __init__(self, patience: int | None):
        self.patience, self.waited, self.key, self.step, self.weights = patience, 0, (-1.0, 0.0), 0, {}

    @property
    def is_enough(self) -> bool:
        """Whether `patience` validations in a row had no better accuracy."""
        return self.patience is not None and self.waited >= self.patience

    def note(self, step: int, record: dict, trained: dict[str, nn.Parameter]) -> None:
        """Take note of a validation, and of the weights if it is the best so far."""
        key = (record["accuracy"], -record["loss"])
        self.waited = 0 if key[0] > self.key[0] else self.waited + 1
        if key > tuple(self.key):
            self.key, self.step = key, step
            for name, parameter in trained.items():  # into the same memory every time: a copy of a large model is dear
                weight = whole(parameter.detach())
                if keeps(parameter):
                    self.weights.setdefault(name, torch.empty_like(weight, device="cpu")).copy_(weight)
