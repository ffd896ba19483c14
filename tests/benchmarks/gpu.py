"""What training costs on a CUDA GPU: `python -m tests.benchmarks.gpu [--out FILE] [--seconds N] [--smoke]`.

Prints a markdown report, row by row, and writes it to FILE as well. A row that fails says why, and the next one follows;
after N seconds (540) the rest are skipped. TinyLlama-1.1B's architecture has random weights here, and texts are random
tokens: speed and memory do not depend on what they say. Frozen layers are computed in every step, where a row does not
say that they are read from the store (`rmkit.trunk`), as `fit` reads them. --smoke runs the same code on the CPU, in miniature.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import gc
import importlib.metadata
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import psutil
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

import rmkit
from rmkit.batching import PADDING, Batch, Encoded
from rmkit.memory import PeakMemory
from rmkit.training import Run
from tests.notebook_tool import empty_cache
from tests.tiny import make_tiny_backbone

ROW_SECONDS = 12  # after which no further step of a row is timed
SMALL_CARD_BYTES = 15e9  # of 16 GB, what the driver leaves for tensors
SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2: no random text has them
TWO_WORDS = Encoded((3,), ((4,), (5,)), (0, 1))
COLUMNS = ("tokens in memory", "tokens/s", "pairs/s", "TFLOP/s", "MFU", "peak GB")
TINYLLAMA = LlamaConfig(
    vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
    num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=False,
    pad_token_id=0, num_labels=1,
)  # fmt: skip
MINIATURE = LlamaConfig(
    vocab_size=200, hidden_size=64, intermediate_size=172, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, num_labels=1,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One step's pairs: a prompt and two completions of so many tokens, at least and at most."""

    pairs: int
    prompt: int
    shortest: int
    longest: int

    def __str__(self) -> str:
        longest = f" to {self.longest}" if self.longest > self.shortest else ""
        return f"{self.pairs} pairs, {self.prompt} + 2 × {self.shortest}{longest}"

    def draw(self, vocabulary: int) -> list[Encoded]:
        rng = random.Random(0)

        def ids(length: int) -> tuple[int, ...]:
            return tuple(rng.randrange(len(SPECIAL), vocabulary) for _ in range(length))

        lengths = [[rng.randint(self.shortest, self.longest) for _ in range(2)] for _ in range(self.pairs)]
        return [Encoded(ids(self.prompt), (ids(a), ids(b)), (0, 1)) for a, b in lengths]


@dataclass(frozen=True)
class Setting:
    """What is measured: on a GPU, or in a smoke test instead."""

    device: str
    config: LlamaConfig
    rows: Shape
    dialogues: Shape  # whose completions share a row with their prompt
    others: tuple[Shape, ...]
    budgets: tuple[int, ...]  # tokens in memory at a time
    small_budgets: tuple[int, ...]  # of these, a small card gets the largest that fits
    trl_pairs: int  # in memory at a time
    warm_up: int  # steps before any is timed
    steps: int  # timed, of a row
    side: int  # of the matrices whose product is timed
    curve: int  # steps

    @property
    def is_smoke(self) -> bool:
        return self.device == "cpu"


GPU = Setting(
    device="cuda", config=TINYLLAMA, rows=Shape(32, 64, 448, 448), dialogues=Shape(32, 400, 100, 100),
    others=(Shape(64, 32, 224, 224), Shape(64, 32, 32, 480)), budgets=(4096, 8192, 16384, 32768),
    small_budgets=(8192, 4096, 2048, 1024), trl_pairs=8, warm_up=3, steps=10, side=8192, curve=12,
)  # fmt: skip
SMOKE = Setting(
    device="cpu", config=MINIATURE, rows=Shape(8, 4, 12, 12), dialogues=Shape(8, 40, 4, 4),
    others=(Shape(8, 4, 4, 12),), budgets=(64, 512),
    small_budgets=(128,), trl_pairs=4, warm_up=1, steps=2, side=128, curve=2,
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Of one row: the median step's seconds, and what it did."""

    seconds: float
    pairs: int
    tokens: int
    flops: float
    memory: int  # bytes, at most
    budget: int  # tokens in memory at a time, padding counted, at most
    checkpointing: bool

    def cells(self, rate: float | None) -> list[str]:
        """rate: of matrix products alone, FLOP/s; MFU is the share of it that was reached."""
        budget = f"{self.budget:,}" + ", layers twice" * self.checkpointing
        tokens, pairs, speed = (count / self.seconds for count in (self.tokens, self.pairs, self.flops))
        share = f"{speed / rate:.1%}" if rate else ""
        return [budget, f"{tokens:,.0f}", f"{pairs:,.1f}", f"{speed / 1e12:.3g}", share, f"{self.memory / 1e9:.1f}"]


class Written:
    """The report, printed as it grows and written to a file; a row that fails or comes too late says so."""

    def __init__(self, out: Path | None, until: float):
        self.out, self.until, self.measured, self.columns = out, until, 0, 0
        if out:
            out.write_text("")

    @property
    def is_late(self) -> bool:
        return time.time() > self.until

    def say(self, text: str) -> None:
        print(text, flush=True)
        if self.out:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def table(self, title: str, *columns: str) -> None:
        self.columns = len(columns)
        self.say(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")

    def row(self, names: Sequence[object], cells: Callable, measure: Callable, *arguments) -> object:
        """What `measure` gives, of which `cells` makes a row's; None where it fails."""
        found = None
        if self.is_late:
            shown = ["skipped: the time is over"]
        else:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # whatever a trainer says
                    found = measure(*arguments)
                shown, self.measured = cells(found), self.measured + 1
            except Exception as error:  # whatever it is, the other rows are worth having
                shown = [f"{type(error).__name__}: {' '.join(str(error).split()):.120}".replace("|", "/")]
        release()
        shown = [*(str(name).removeprefix("torch.") for name in names), *shown]
        self.say(f"| {' | '.join(shown + [''] * (self.columns - len(shown)))} |")
        return found


def release() -> None:
    """Free the memory of what is no longer used, and let the next trainer choose its own precision."""
    gc.collect()
    with contextlib.suppress(RuntimeError):  # of a GPU that a row has broken: the report is still to be ended
        torch.cuda.empty_cache()
    AcceleratorState._reset_state(reset_partial_state=True)  # which all Accelerators of a process share


def now(setting: Setting) -> float:
    """Seconds, when all that was begun is done."""
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object], setting: Setting) -> float:
    """Seconds of the median call, of as many after the warm-up as the time of a row allows."""
    for _ in range(setting.warm_up):
        work()
    seconds = []
    while len(seconds) < setting.steps and sum(seconds) < ROW_SECONDS:
        began = now(setting)
        work()
        seconds.append(now(setting) - began)
    return statistics.median(seconds)


def matrix_rate(setting: Setting, dtype: torch.dtype) -> float:
    """FLOP/s of large square matrix products, ten at a time: more is not to be had from this card."""
    a, b = (torch.randn(setting.side, setting.side, device=setting.device).to(dtype) for _ in range(2))
    return 10 * 2 * setting.side**3 / timed(lambda: [a @ b for _ in range(10)], setting)


def random_backbone(setting: Setting, autocast: torch.dtype | None, kind: type = LlamaForCausalLM) -> rmkit.Backbone:
    words = models.WordLevel({token: i for i, token in enumerate(SPECIAL)}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(  # of a pad token, and an end: nothing more is asked of it
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = kind(copy.deepcopy(setting.config))
    return rmkit.Backbone("random weights", model, tokenizer, autocast=autocast)


def flops(model: rmkit.RewardModel, batches: Sequence[Batch]) -> float:
    """Floating point operations that the passes forward and back over these batches need, in the layers of the body.

    A matrix of P parameters takes 2 P for every token on the way forward; on the way back 2 P where what enters it has a
    gradient, and 2 P where it trains itself. So frozen matrices have no gradient of their own, and layers below the first
    that trains no way back. Attention takes 4 H for every token that a token sees, itself included (H: all heads
    together), and twice that on the way back.

    Padding is no token, a prompt that completions share in a row counts once, and nothing counts that is computed a
    second time, by gradient checkpointing or in an attention kernel. Left out: the embedding, norms, the head, the optimizer.
    """
    matrices = attention = 0
    heads = model.body.config.num_attention_heads * model.body.config.head_dim

    def of_matrix(matrix: nn.Linear, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        nonlocal matrices
        matrices += 2 * matrix.weight.numel() * (1 + inputs[0].requires_grad + matrix.weight.requires_grad)

    def of_attention(_: nn.Module, __: tuple, found: tuple[torch.Tensor, ...]) -> None:
        nonlocal attention
        attention += 4 * heads * (3 if found[0].requires_grad else 1)

    linear = [module for module in model.body.layers.modules() if isinstance(module, nn.Linear)]  # LoRA's included
    hooks = [matrix.register_forward_hook(of_matrix) for matrix in linear]
    hooks += [layer.self_attn.register_forward_hook(of_attention) for layer in model.body.layers]
    model(model.collate([TWO_WORDS]))  # of what has a gradient, any pair tells as much as the whole step
    for hook in hooks:
        hook.remove()
    # a token's position is the number of tokens that it sees before itself, in a shared row too
    seen = sum(int((batch.position_ids + 1)[batch.segment != PADDING].sum()) for batch in batches)
    return float(matrices * sum(batch.tokens for batch in batches) + attention * seen)


def train(
    setting: Setting, trainable: str, shape: Shape, budget: int | None, autocast: torch.dtype = torch.bfloat16,
    stored: bool = False,
) -> Figures:  # fmt: skip
    """Steps as `rmkit.fit` takes them, of one shape's pairs over and over. budget: None for what it chooses itself.

    stored: what frozen layers give is read from the disk, as in every epoch but the first.
    """
    backbone = random_backbone(setting, autocast)  # with its language-model head, which a notebook holds as well
    model = rmkit.RewardModel(backbone, trainable=trainable)
    encoded = shape.draw(setting.config.vocab_size)
    config = rmkit.TrainConfig(batch_size=shape.pairs, micro_batch_tokens=budget, max_steps=1000)
    run = Run(model, encoded, encoded[:1], config, rmkit.bradley_terry)
    plan = run.plan
    micro = model.micro_batches(encoded, plan.micro_batch_tokens)
    needed = flops(model, [model.lay_out([encoded[i] for i in indices]) for indices in micro])
    if plan.checkpointing:
        model.body.activation_checkpointing_enable({"use_reentrant": False})
    records = []
    store = rmkit.computed_once(model, encoded) if stored else contextlib.nullcontext()
    with store, PeakMemory(model.device) as memory:
        seconds = timed(lambda: records.append(run._take_step(list(range(shape.pairs)))), setting)
    did = (seconds, shape.pairs, records[-1]["tokens"], needed, memory.peak)
    return Figures(*did, plan.micro_batch_tokens, plan.checkpointing)


def attention(setting: Setting, shape: Shape) -> list[str]:
    """The names of torch's attention operations in a pass forward over a pair of this shape."""
    model = rmkit.RewardModel(random_backbone(setting, torch.bfloat16))
    batch = model.lay_out(shape.draw(setting.config.vocab_size)[:1])
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(batch)
    names = {event.key for event in profile.key_averages()}
    return sorted(name.removeprefix("aten::_") for name in names if name.startswith("aten::_scaled_dot_product"))


def train_small(setting: Setting, trainable: str, autocast: torch.dtype, budgets: Sequence[int | None]) -> Figures:
    """With the memory of a card of 16 GB, since the rest of this one is filled; with the first budget that fits."""
    filled = 0 if setting.is_smoke else max(0, int(torch.cuda.mem_get_info()[0] - SMALL_CARD_BYTES))
    filling = torch.empty(filled, dtype=torch.uint8, device=setting.device)
    for budget in budgets:
        with contextlib.suppress(torch.OutOfMemoryError):
            found = train(setting, trainable, setting.rows, budget, autocast)
            return replace(found, memory=found.memory - filling.numel())
        release()
    raise MemoryError("it does not fit")


class Clock(TrainerCallback):
    """Seconds of every step of a Trainer."""

    def __init__(self, setting: Setting):
        self.setting, self.seconds, self.began = setting, [], 0.0

    def on_step_begin(self, *_, **__) -> None:
        self.began = now(self.setting)

    def on_step_end(self, args, state, control, **_) -> None:
        self.seconds.append(now(self.setting) - self.began)
        if sum(self.seconds[self.setting.warm_up :]) > ROW_SECONDS:
            control.should_training_stop = True


def train_with_trl(setting: Setting, trainable: str, shape: Shape, checkpointing: bool) -> Figures:
    """TRL's RewardTrainer on the same pairs, in bf16 as is its default; the same parameters train."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    backbone = random_backbone(setting, torch.bfloat16, LlamaForSequenceClassification)
    encoded = shape.draw(setting.config.vocab_size)
    ours = rmkit.RewardModel(backbone, trainable=trainable)  # to count with, and to freeze: it has the same body
    batches = [ours.collate(encoded[i : i + setting.trl_pairs]) for i in range(0, shape.pairs, setting.trl_pairs)]
    needed, tokens = flops(ours, batches), sum(batch.tokens for batch in batches)
    steps, clock = setting.warm_up + setting.steps, Clock(setting)
    chosen, rejected = ([list(e.prompt + e.completions[k]) for e in encoded] for k in range(2))
    data = Dataset.from_dict({"chosen_ids": chosen * steps, "rejected_ids": rejected * steps})
    with tempfile.TemporaryDirectory() as folder, PeakMemory(ours.device) as memory:
        config = RewardConfig(
            folder, per_device_train_batch_size=setting.trl_pairs, max_steps=steps, learning_rate=1e-5, bf16=True,
            gradient_accumulation_steps=shape.pairs // setting.trl_pairs, gradient_checkpointing=checkpointing,
            use_cpu=setting.is_smoke, save_strategy="no", report_to="none",
        )  # fmt: skip
        RewardTrainer(
            backbone.model, config, train_dataset=data, processing_class=backbone.tokenizer, callbacks=[clock]
        ).train()
    seconds, budget = statistics.median(clock.seconds[setting.warm_up :]), batches[0].input_ids.numel()
    return Figures(seconds, shape.pairs, tokens, needed, memory.peak, budget, checkpointing)


def losses(setting: Setting) -> tuple[list[float], str, float]:
    """Of the run of notebook 03: the loss at each step, the accuracy on held-out pairs, seconds."""
    train_pairs, validation = rmkit.split_preferences(rmkit.load_preferences("json_vs_text"), validation=0.2, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        backbone = rmkit.load_backbone(str(make_tiny_backbone(folder)) if setting.is_smoke else "smollm2-135m")
    torch.manual_seed(0)
    config = rmkit.TrainConfig(learning_rate=1e-5, batch_size=8, max_steps=setting.curve)
    history = rmkit.fit(rmkit.RewardModel(backbone, trainable="all"), train_pairs, validation[:100], config)
    last = history.validations[-1]
    return [step["loss"] for step in history.steps], f"{last['accuracy']:.1%} of {last['pairs']}", history.seconds


def version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} not installed"


def header(report: Written, setting: Setting) -> dict[torch.dtype, float | None]:
    """What it ran on; the rates of its matrix products."""
    card = "The CPU"
    if not setting.is_smoke:
        card = f"{torch.cuda.get_device_name(0)}, {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB"
    versions = map(version, ("torch", "transformers", "accelerate", "peft", "rmkit", "trl"))
    report.say(f"# Training on a GPU\n\n{card}; {datetime.date.today()}; {', '.join(versions)}.")
    if setting.is_smoke:
        report.say("\n**A smoke test of the script, in miniature on the CPU: its numbers mean nothing.**")
    report.table(f"Matrix products of {setting.side} × {setting.side}", "dtype", "TFLOP/s")
    dtypes = (torch.bfloat16, torch.float16)
    return {d: report.row([d], lambda rate: [f"{rate / 1e12:.3g}"], matrix_rate, setting, d) for d in dtypes}


def main() -> int:
    """Print the report; 2 without a GPU, 1 where no row could be measured. A row that failed says so in its place."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the report, beside printing it")
    parser.add_argument("--seconds", type=float, default=540, metavar="N", help="after which no row is begun")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, in miniature: does the script work?")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        print("This measures a CUDA GPU, and there is none; --smoke tries the script on a CPU.", file=sys.stderr)
        return 2
    began = max(psutil.Process().create_time(), time.time() - 60)  # or later, where the machine's clock was set since
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, RMKIT_CACHE=empty_cache(Path(folder))):
        return measured(options, began)


def measured(options: argparse.Namespace, began: float) -> int:
    """The whole report, table by table."""
    report = Written(options.out, began + options.seconds)
    setting = SMOKE if options.smoke else GPU
    rates = header(report, setting)
    cells = partial(Figures.cells, rate=rates[torch.bfloat16])

    report.table("TinyLlama-1.1B, autocast in bf16", "trainable", "a step", *COLUMNS)
    rows = [("all", setting.rows, budget) for budget in setting.budgets]
    rows += [("all", shape, None) for shape in (setting.dialogues, *setting.others)]
    shapes = (setting.rows, setting.dialogues, setting.others[0])
    rows += [(trainable, shape, None) for trainable in ("lora", "last:2") for shape in shapes]
    for trainable, shape, budget in rows:
        report.row([trainable, shape], cells, train, setting, trainable, shape, budget)
    report.say(
        "\nA step: its pairs, and the tokens of a prompt and of each completion. Random weights: speed and memory do not "
        "depend on them. Seconds are those of the median step, with all that `fit` does in one; what is frozen is computed "
        "in every step. MFU: of the bf16 rate above, and of the operations that a step needs, no matter what was computed "
        "(`flops` in this script). Peak GB: of tensors, those of the unused language-model head among them."
    )

    report.table("What rmkit leaves out on a CPU: does it pay here?", "trainable", "a step", "", *COLUMNS)
    with mock.patch.object(rmkit.RewardModel, "may_share", False):
        report.row(
            ["all", setting.dialogues, "prompts not shared"], cells, train, setting, "all", setting.dialogues, None
        )
    for stored in (True, False):
        how = "frozen layers from the store" if stored else "frozen layers computed"
        measure = partial(train, stored=stored)
        report.row(["last:2", setting.rows, how], cells, measure, setting, "last:2", setting.rows, None)
    report.say(
        "\nTheir twins without the saving stand in the first table, or beside them. Where frozen layers are read, they count as "
        "computed: compare pairs/s."
    )

    report.table("Which attention torch chose", "rows", "operations")
    for shape, rows in ((setting.rows, "a completion each"), (setting.dialogues, "shared, with a mask")):
        report.row([rows], lambda names: [", ".join(names)], attention, setting, shape)

    report.table("TinyLlama-1.1B in the memory of a 16 GB card", "trainable", "autocast", *COLUMNS)
    for trainable in ("last:2", "lora"):
        for dtype, rate in rates.items():
            measure = ([trainable, dtype], partial(Figures.cells, rate=rate), train_small, setting, trainable, dtype)
            if not report.row(*measure, (None,)) and not report.is_late:
                report.row(*measure, setting.small_budgets)
    report.say(
        f"\nSteps of {setting.rows}. All of the card but {SMALL_CARD_BYTES / 1e9:.0f} GB was filled, which hold the gaps between "
        "tensors too. rmkit chose the tokens in memory; where a second row follows, that did not fit, and the largest of "
        f"{', '.join(f'{b:,}' for b in setting.small_budgets)} does. The speed is this card's: none is claimed for another."
    )

    report.table("Against TRL's RewardTrainer", "trainer", "trainable", "a step", *COLUMNS)
    compared = [("all", setting.rows), ("all", setting.dialogues), ("lora", setting.rows), ("last:2", setting.rows)]
    for trainable, shape in compared:
        prompts = 1 if shape == setting.dialogues else 2  # of a pair, as rmkit lays it out
        budget = setting.trl_pairs * (prompts * shape.prompt + 2 * shape.longest)
        report.row(["rmkit", trainable, shape], cells, train, setting, trainable, shape, budget)
        for name, checkpointing in (("TRL, its defaults", True), ("TRL, no gradient checkpointing", False)):
            report.row([name, trainable, shape], cells, train_with_trl, setting, trainable, shape, checkpointing)
    report.say(
        f"\nWith {setting.trl_pairs} pairs in memory at a time; what is frozen is computed in every step by both. TRL computes a "
        "prompt anew for each of its completions, so compare pairs/s. rmkit's seconds include laying out the batches, TRL's do not."
    )

    report.table("The run of notebook 03: json_vs_text", "backbone", "losses", "right, held out", "seconds")
    name = "a tiny one" if setting.is_smoke else "SmolLM2-135M"
    report.row([name], lambda f: [" ".join(f"{x:.3f}" for x in f[0]), f[1], f"{f[2]:.1f}"], losses, setting)
    return 0 if report.measured else 1


if __name__ == "__main__":
    sys.exit(main())
