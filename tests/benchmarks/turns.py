"""Runners that take turns: each is a process of its own that does one training step when it is told to, and times it."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing as mp
import resource
import sys
import tempfile
import time
from collections.abc import Callable

BATCH, SEED = 8, 0


def rmkit_steps(go: Callable, report: Callable, data: list, trainable: str, epochs: int) -> None:
    """`fit`'s own step on encoded pairs."""
    import torch

    from rmkit import RewardModel, TrainConfig, bradley_terry, computed_once, load_backbone
    from rmkit.training import Run, draw_batches

    torch.manual_seed(SEED)
    model = RewardModel(load_backbone("smollm2-135m"), trainable=trainable)
    config = TrainConfig(batch_size=BATCH, epochs=epochs)
    run = Run(model, data, data[:1], config, bradley_terry)
    with computed_once(model, data):
        run._validate(None)  # as `fit` does before its first step: it keeps a copy of the best weights
        for indices in itertools.islice(draw_batches(len(data), config), run.total):
            go()
            began = time.process_time()
            run._train(indices)
            report(time.process_time() - began)


def classifier() -> tuple:
    """transformers' own model with one score, in fp32; and its padding, which is not its end of turn: as rmkit chooses it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rmkit.backbones import separate_pad_token
    from rmkit.smollm2 import smollm2_folder

    model = AutoModelForSequenceClassification.from_pretrained(smollm2_folder(), num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    model.generation_config = None  # it generates nothing
    separate_pad_token(tokenizer, model)
    return model, tokenizer


def trl_steps(
    go: Callable, report: Callable, data: list, trainable: str, epochs: int, per_device: int = BATCH,
    by_length: bool = False, **options
) -> None:  # fmt: skip
    """RewardTrainer's step on the same tokens.

    by_length: all pairs sorted, which is better for TRL than what its `group_by_length` comes to on any data set: that
    sorts 50 batches at a time, and of few pairs one batch at a time.
    """
    if by_length:
        data, options = sorted(data, key=lambda e: e.length), options | {"train_sampling_strategy": "sequential"}
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RewardConfig, RewardTrainer

    from rmkit.base import set_trainable

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            go()
            self.began = time.process_time()

        def on_step_end(self, *_, **__):
            report(time.process_time() - self.began)

    model, tokenizer = classifier()
    set_trainable(model.model, trainable)
    rows = {"chosen_ids": [[*e.prompt, *e.completions[0]] for e in data]}
    rows |= {"rejected_ids": [[*e.prompt, *e.completions[1]] for e in data]}
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            folder, per_device_train_batch_size=per_device, gradient_accumulation_steps=BATCH // per_device,
            num_train_epochs=epochs, max_length=None, bf16=False, use_cpu=True, report_to="none", save_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False, seed=SEED, **options,
        )  # fmt: skip
        RewardTrainer(
            model, config, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer, callbacks=[Turns()]
        ).train()


def _in_turns(runner: Callable, pipe: mp.connection.Connection, arguments: dict) -> None:
    """The life of such a process: it says ready, and then does what it is told, one step at a time."""
    import torch

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        runner(lambda: (pipe.send("ready"), pipe.recv()), pipe.send, **arguments)
    pipe.send(("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))  # of Linux: kB


def take_turns(runners: dict[str, tuple[Callable, dict]], steps: int) -> dict[str, tuple[list[float], float]]:
    """By name: the CPU seconds of every step, and the peak memory in bytes. One step of each, then the next of each."""
    context, pipes, seconds, peaks = mp.get_context("spawn"), {}, {name: [] for name in runners}, {}
    processes = []
    for name, (runner, arguments) in runners.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=_in_turns, args=(runner, theirs, arguments), daemon=True))
        processes[-1].start()
        theirs.close()
    for _ in range(steps):
        for name, pipe in pipes.items():
            try:
                assert pipe.recv() == "ready"
                pipe.send("go")
                seconds[name].append(pipe.recv())
            except EOFError:
                for process in processes:
                    process.kill()
                raise SystemExit(f"{name} ended before its time: what it said is above") from None
            print(f"    {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    for name, pipe in pipes.items():
        peaks[name] = pipe.recv()[1]
    for process in processes:
        process.join()
    return {name: (seconds[name], peaks[name]) for name in runners}
