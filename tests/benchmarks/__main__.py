"""How fast rmkit is, beside TRL's RewardTrainer, a plain loop of transformers and this machine's matrix product.

    pip install -e '.[benchmarks]'                                      TRL, for what is compared with it
    python -m tests.benchmarks [HH_RLHF] [--only PART …]     about half an hour, or an hour and a half on a slow core

HH_RLHF: a .jsonl(.gz) file of Anthropic's HH-RLHF, whose dialogues make long shared prompts; without it, pairs of the
workbook's own texts behind long prompts stand in. The whole is written to tests/benchmarks/RESULTS.md, table by table.

Everything is CPU time of one thread. What is compared takes turns, a step each, in processes of its own, which also
gives each its own peak of memory. fp32, the same weights, tokens, pairs a step and trained parameters, AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from rmkit import RewardModel, bradley_terry, doctor, load_backbone, load_preferences
from rmkit.batching import encode
from rmkit.preferences import PreferenceError
from tests.benchmarks.scoring import (
    by_products,
    by_rmkit,
    by_transformers,
    random_preferences,
    repeating_its_prompt,
    rounds_of,
    scoring_model,
    sharing_its_prompt,
)
from tests.benchmarks.turns import BATCH, SEED, rmkit_steps, take_turns, trl_steps
from tests.notebook_tool import empty_cache

PARTS = ["dialogues", "json", "frozen", "scoring", "growth"]
ROUNDS = 3  # that count
LONGEST = 512  # tokens a row: longer pairs are left out, as TRL does beyond its max_length


# --- data -------------------------------------------------------------------------------------------------------


def json_pairs(pairs: int) -> list:
    """Of json_vs_text: short prompts, rows of 41 tokens."""
    tokenizer = load_backbone("smollm2-135m").tokenizer
    return [encode(p, tokenizer) for p in load_preferences("json_vs_text")[:pairs]]


def dialogues(path: str | None, pairs: int) -> tuple[str, list]:
    """(what they are, encoded): of HH-RLHF, drawn at random; or the workbook's answers behind prompts of several answers."""
    tokenizer, rng = load_backbone("smollm2-135m").tokenizer, random.Random(SEED)
    if path:
        try:
            data = load_preferences(path)
        except PreferenceError as error:  # its text is not to be shown
            data = error.usable
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
        chosen, name = rng.sample(data, 2 * pairs), f"HH-RLHF ({Path(path).name}, SHA-256 {digest}…)"
    else:
        own, name = load_preferences("json_vs_text"), "long prompts made of json_vs_text"
        chosen = [
            replace(p, prompt=" ".join([q.completions[1] for q in rng.sample(own, rng.randint(1, 12))] + [p.prompt]))
            for p in rng.sample(own, 2 * pairs)
        ]
    encoded = [encode(p, tokenizer) for p in chosen]
    return f"{name}, of at most {LONGEST} tokens a row", [e for e in encoded if e.length <= LONGEST][:pairs]


def described(name: str, data: list) -> str:
    whole = sum(len(e.prompt) + len(c) for e in data for c in e.completions)
    prompt = sum(len(e.prompt) * len(e.completions) for e in data)
    return f"{len(data)} pairs of {name}, {whole / 2 / len(data):.0f} tokens a row, {prompt / whole:.0%} of them prompt"


# --- (a), (b), (d): training beside TRL ---------------------------------------------------------------------------

PLAIN = {"gradient_checkpointing": False}
SETTINGS = {
    "as documented": {},  # what RewardConfig does unless it is told otherwise: gradient checkpointing, eight pairs as they come
    "no checkpointing": PLAIN,
    "no checkpointing, a pair at a time": PLAIN | {"per_device": 1},
    "no checkpointing, sorted by length, two at a time": PLAIN | {"per_device": 2, "by_length": True},
    "no checkpointing, sorted by length, four at a time": PLAIN | {"per_device": 4, "by_length": True},
    "no checkpointing, sorted by length": PLAIN | {"by_length": True},
}


def best_setting(name: str, data: list, trainable: str) -> str:
    """Of TRL, beside its documented one: the one that took least CPU time in one epoch."""
    steps = -(-len(data) // BATCH)
    shared = {"data": data, "trainable": trainable, "epochs": 1}
    seconds = {}
    for setting, options in SETTINGS.items():
        if options:  # one after the other: five models at once are too much memory
            seconds[setting] = sum(take_turns({setting: (trl_steps, shared | options)}, steps)[setting][0])
    table(
        f"TRL's settings, `{trainable}`: one epoch of the {len(data)} pairs of {name}",
        ["setting", "pairs per CPU-second"],
        [[setting, f"{len(data) / s:.3g}"] for setting, s in seconds.items()],
    )
    return min(seconds, key=seconds.get)


def training(name: str, data: list, trainable: str, epochs: int, skip: int = 0) -> None:
    """Epochs of both over the same pairs; skip: epochs before them that do not count."""
    steps = -(-len(data) // BATCH)
    shared = {"data": data, "trainable": trainable, "epochs": epochs + skip}
    runners = {"rmkit": (rmkit_steps, shared)}
    for setting in ("as documented", best_setting(name, data, trainable)):
        runners[f"TRL, {setting}"] = (trl_steps, shared | SETTINGS[setting])
    found = take_turns(runners, steps * (epochs + skip))
    totals = {
        name: [sum(seconds[e * steps : (e + 1) * steps]) for e in range(skip, epochs + skip)]
        for name, (seconds, _) in found.items()
    }
    rows = []
    for runner, (_, peak) in found.items():
        ratios = [a / b for a, b in zip(totals[runner], totals["rmkit"], strict=True)]
        faster = "" if runner == "rmkit" else ranged(ratios)
        rows.append([runner, f"{len(data) / statistics.median(totals[runner]):.3g}", faster, f"{peak / 1e9:.1f} GB"])
    which = f"epochs 2 to {epochs + 1}" if skip else f"{epochs} epochs"
    table(
        f"Training `{trainable}`, {which}: {described(name, data)}",
        ["", "pairs per CPU-second", "rmkit is faster by", "peak memory"],
        rows,
    )


def ranged(values: Sequence[float], form: str = ".3g") -> str:
    """The median, with the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} … {max(values):{form}})"


# --- (c), (d): scoring ----------------------------------------------------------------------------------------------


def in_rounds(works: dict[str, tuple[Callable, dict]]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds of each round of each, in turns, and peaks of memory; the first round, which warms up, is left out."""
    runners = {
        name: (rounds_of, {"make": make, "rounds": ROUNDS + 1, **arguments})
        for name, (make, arguments) in works.items()
    }
    found = take_turns(runners, ROUNDS + 1)
    return {name: seconds[1:] for name, (seconds, _) in found.items()}, {
        name: peak for name, (_, peak) in found.items()
    }


def ratios(seconds: dict[str, list[float]], one: str, other: str, form: str = ".3g") -> str:
    return ranged([a / b for a, b in zip(seconds[one], seconds[other], strict=True)], form)


def scoring() -> None:
    like, model = random_preferences(8, 8, (120, 120)), scoring_model()  # prompts so short that no row is shared
    micro = model.micro_batches(like)
    ours = [tuple(model.lay_out([like[i] for i in m]).input_ids.shape) for m in micro]
    theirs = [(8, 128)] * 2
    tokens = 16 * 128
    assert sum(a * b for a, b in ours) == tokens == sum(a * b for a, b in theirs)
    seconds, peaks = in_rounds({
        "rmkit": (by_rmkit, {"data": like}),
        "plain transformers": (by_transformers, {"data": like}),
        "products of rmkit": (by_products, {"shapes": ours}),
        "products of plain transformers": (by_products, {"shapes": theirs}),
    })  # fmt: skip
    table(
        f"Scoring 16 texts of 128 tokens, none of which is padding or shared: {ROUNDS} rounds",
        ["", "batches", "tokens per CPU-second", "share of the rate of its matrix products alone", "peak memory"],
        [
            [name, f"{len(shapes)} of {shapes[0][0]} × {shapes[0][1]}", f"{tokens / statistics.median(seconds[name]):.0f}",
             ratios(seconds, f"products of {name}", name, ".0%"), f"{peaks[name] / 1e9:.1f} GB"]
            for name, shapes in (("rmkit", ours), ("plain transformers", theirs))
        ],
    )  # fmt: skip
    unlike = [e for n in (20, 60, 150, 300) for e in random_preferences(2, n // 2, (n // 2, n // 3))]
    random.Random(SEED).shuffle(unlike)
    best_of = {"data": random_preferences(1, 200, (40,) * 64)}
    rows = []
    for title, fast, slow in (
        ("16 texts of 17 to 300 tokens, as they come, against plain transformers", (by_rmkit, {"data": unlike}), (by_transformers, {"data": unlike})),
        ("best of 64 answers of 40 tokens to a prompt of 200: a shared prompt against none", (sharing_its_prompt, best_of), (repeating_its_prompt, best_of)),
    ):  # fmt: skip
        seconds, peaks = in_rounds({"fast": fast, "slow": slow})
        memory = " and ".join(f"{peaks[name] / 1e9:.1f}" for name in ("fast", "slow"))
        rows.append([title, ratios(seconds, "slow", "fast"), f"{memory} GB"])
    table(f"Scoring, what the layout saves: {ROUNDS} rounds", ["", "faster by", "peak memory, with and without"], rows)


# --- (e): growth ------------------------------------------------------------------------------------------------------


def growth() -> None:
    """Scoring and a training step (forward, backward): by pairs, length, completions a prompt, tokens at a time."""
    model = RewardModel(load_backbone("smollm2-135m"))

    def seconds(work: Callable[[], object]) -> list[float]:
        taken = []
        for _ in range(ROUNDS + 1):
            began = time.process_time()
            work()
            taken.append(time.process_time() - began)
        return taken[1:]  # the first one warms up

    def backward(data: list, budget: int | None) -> None:
        for micro in model.micro_batches(data, budget):
            batch = model.batch([data[i] for i in micro])
            bradley_terry(model(batch), batch.ranks).sum().backward()
        model.zero_grad()

    cases = [(f"{n} pairs, rows of 64 tokens", random_preferences(n, 32, (32, 32)), None) for n in (2, 4, 8)]
    cases += [
        (f"2 pairs, rows of {n} tokens", random_preferences(2, n // 2, (n // 2, n // 2)), None) for n in (64, 128, 256)
    ]
    cases += [
        (f"1 prompt of 128 tokens, {k} answers of 32", random_preferences(1, 128, (32,) * k), None)
        for k in (2, 4, 8, 16)
    ]
    many = random_preferences(16, 8, (56, 56))
    cases += [(f"16 pairs, rows of 64 tokens, {n} at a time", many, n) for n in (128, 256, 512, 1024, 2048)]
    rows = []
    for name, data, budget in cases:
        tokens = sum(model.lay_out([e]).tokens for e in data)
        taken = seconds(lambda d=data, b=budget: model.rewards(d, b)), seconds(lambda d=data, b=budget: backward(d, b))
        cells = [(f"{statistics.median(t):.2f}", ranged([1000 * s / tokens for s in t])) for t in taken]
        rows.append([name, tokens, *cells[0], *cells[1]])
    table(
        f"How time grows: {ROUNDS} rounds",
        ["", "tokens computed", "scoring, CPU s", "ms a token", "forward and backward, CPU s", "ms a token"],
        rows,
    )


# --- the report ---------------------------------------------------------------------------------------------------------

OUT: list[Path] = []  # where the report is written, as it grows


def say(text: str) -> None:
    print(text, flush=True)
    for path in OUT:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def table(title: str, head: list[str], rows: list[list]) -> None:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    say(f"\n**{title}**\n\n" + "\n".join(lines))


def machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "trl", "accelerate"))
    speed = f"{doctor.speed('cpu'):.0f} GFLOP/s a core"
    return f"{name}, {os.cpu_count()} cores, {speed}; Python {platform.python_version()}, {packages}; {datetime.date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("hh_rlhf", nargs="?", help="a .jsonl or .jsonl.gz file of HH-RLHF")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="and write no report")
    parser.add_argument("--pairs", type=int, default=24, help="to train on")
    parser.add_argument("--epochs", type=int, default=3, help="of which the median is taken")
    arguments = parser.parse_args()
    try:
        version("trl")
    except PackageNotFoundError:
        raise SystemExit("TRL is what rmkit is compared with: pip install -e '.[benchmarks]'") from None
    if not arguments.only:
        OUT.append(Path(__file__).with_name("RESULTS.md"))
        OUT[0].write_text("", "utf-8")
    parts = arguments.only or PARTS
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    say(
        f"# Benchmarks\n\nCPU time of one thread, SmolLM2-135M in fp32, {BATCH} pairs a step. Written by `python -m "
        f"tests.benchmarks` on {machine()}. Medians, and in brackets the least and the most, of rounds or epochs over the same "
        "data: they say how steady the machine was, not what other data would give. TRL is shown as its documentation sets "
        "it up, and in the best of the settings that were tried."
    )
    with tempfile.TemporaryDirectory() as folder:  # a store that is empty at first
        os.environ["RMKIT_CACHE"] = empty_cache(Path(folder))
        if "dialogues" in parts:
            training(*dialogues(arguments.hh_rlhf, arguments.pairs), "all", arguments.epochs)
        if "json" in parts:
            training("json_vs_text", json_pairs(arguments.pairs), "all", arguments.epochs)
        if "frozen" in parts:
            for trainable in ("head", "last:2"):
                training("json_vs_text", json_pairs(32), trainable, arguments.epochs, skip=1)
        if "scoring" in parts:
            scoring()
        if "growth" in parts:
            growth()


if __name__ == "__main__":
    main()
