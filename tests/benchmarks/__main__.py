"""How fast rmkit is, beside TRL's RewardTrainer, a plain loop of transformers and this machine's matrix product.

    pip install -e '.[benchmarks]'                                      TRL, for what is compared with it
    python -m tests.benchmarks [HH_RLHF] [--only PART …] [--out FILE]   about an hour on two slow cores

HH_RLHF: a .jsonl(.gz) file of Anthropic's HH-RLHF, whose dialogues make long shared prompts; without it, pairs of the
workbook's own texts behind long prompts stand in. FILE: tests/benchmarks/RESULTS.md unless said otherwise.

Everything is CPU time of one thread. What is compared takes turns, a step each, in processes of its own, which also
gives each its own peak of memory. fp32, the same weights, tokens, pairs a step and trained parameters, AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
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

from tests.benchmarks.turns import BATCH, SEED, rmkit_steps, take_turns, trl_steps

PARTS = ["dialogues", "json", "frozen", "scoring", "growth"]
LONGEST = 512  # tokens a row: longer pairs are left out, as TRL does beyond its max_length


# --- data -------------------------------------------------------------------------------------------------------


def json_pairs(pairs: int) -> list:
    """Of json_vs_text: short prompts, rows of 41 tokens."""
    from rmkit import load_backbone, load_preferences
    from rmkit.batching import encode

    tokenizer = load_backbone("smollm2-135m").tokenizer
    return [encode(p, tokenizer) for p in load_preferences("json_vs_text")[:pairs]]


def dialogues(path: str | None, pairs: int) -> tuple[str, list]:
    """(what they are, encoded): of HH-RLHF, drawn at random; or the workbook's answers behind prompts of several answers."""
    from rmkit import load_backbone, load_preferences
    from rmkit.batching import encode
    from rmkit.preferences import PreferenceError

    tokenizer, rng = load_backbone("smollm2-135m").tokenizer, random.Random(SEED)
    if path:
        try:
            data = load_preferences(path)
        except PreferenceError as error:  # its text is not to be shown
            data = error.usable
        chosen, name = rng.sample(data, 2 * pairs), "HH-RLHF"
    else:
        own, name = load_preferences("json_vs_text"), "long prompts made of json_vs_text"
        chosen = [
            replace(p, prompt=" ".join([q.completions[1] for q in rng.sample(own, rng.randint(1, 12))] + [p.prompt]))
            for p in rng.sample(own, 2 * pairs)
        ]
    encoded = [encode(p, tokenizer) for p in chosen]
    return f"{name} of at most {LONGEST} tokens a row", [e for e in encoded if e.length <= LONGEST][:pairs]


def described(name: str, data: list) -> str:
    whole = sum(len(e.prompt) + len(c) for e in data for c in e.completions)
    prompt = sum(len(e.prompt) * len(e.completions) for e in data)
    return f"{len(data)} pairs of {name}, {whole / 2 / len(data):.0f} tokens a row, {prompt / whole:.0%} of them prompt"


# --- (a), (b), (d): training beside TRL ---------------------------------------------------------------------------

DOCUMENTED = {}  # what RewardConfig does unless it is told otherwise: gradient checkpointing, batches as they come
BY_LENGTH = {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
SETTINGS = {
    "as documented": DOCUMENTED,
    "no checkpointing": {"gradient_checkpointing": False},
    "no checkpointing, a pair at a time": {"gradient_checkpointing": False, "per_device": 1},
    "no checkpointing, by length, two at a time": {"gradient_checkpointing": False, "per_device": 2, **BY_LENGTH},
}


def best_setting(data: list) -> str:
    """Of TRL, beside its documented one: the one that took least CPU time in one epoch."""
    data = data[: 2 * BATCH]
    steps = -(-len(data) // BATCH)
    tried = {
        name: (trl_steps, {"data": data, "trainable": "all", "epochs": 1, **options})
        for name, options in SETTINGS.items()
        if options
    }
    seconds = {}
    for name, runner in tried.items():  # one after the other: five models at once are too much memory
        seconds[name] = sum(take_turns({name: runner}, steps)[name][0])
    table(
        f"TRL's settings, one epoch of {len(data)} pairs",
        ["setting", "pairs per CPU-second"],
        [[n, f"{len(data) / s:.3f}"] for n, s in seconds.items()],
    )
    return min(seconds, key=seconds.get)


def training(title: str, data: list, trainable: str, settings: Sequence[str], epochs: int, skip: int = 0) -> None:
    """Epochs of both; skip: epochs before them that do not count."""
    epochs, steps = epochs + skip, -(-len(data) // BATCH)
    shared = {"data": data, "trainable": trainable, "epochs": epochs}
    runners = {"rmkit": (rmkit_steps, shared)}
    runners |= {f"TRL, {name}": (trl_steps, shared | SETTINGS[name]) for name in settings}
    found = take_turns(runners, steps * epochs)
    totals = {
        name: [sum(seconds[e * steps : (e + 1) * steps]) for e in range(skip, epochs)]
        for name, (seconds, _) in found.items()
    }
    rows = []
    for name, (_, peak) in found.items():
        ratios = [a / b for a, b in zip(totals[name], totals["rmkit"], strict=True)]
        faster = "" if name == "rmkit" else ranged(ratios)
        rate = len(data) / statistics.median(totals[name])
        rows.append([name, f"{rate:.3g}", faster, f"{peak / 1e9:.1f} GB"])
    table(title, ["", "pairs per CPU-second", "rmkit is faster by", "peak memory"], rows)


def ranged(values: Sequence[float]) -> str:
    """The median; of several, with the least and the most."""
    median = f"{statistics.median(values):.3g}"
    return median if len(values) == 1 else f"{median} ({min(values):.3g} … {max(values):.3g})"


# --- (c): scoring ---------------------------------------------------------------------------------------------------


def timed(works: dict[str, Callable], rounds: int = 5) -> dict[str, list[float]]:
    """CPU seconds of each, in turns; the first round, which warms up, is not counted."""
    seconds = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if i:
                seconds[name].append(time.process_time() - began)
    return seconds


def random_preferences(pairs: int, prompt: int, completions: Sequence[int]) -> list:
    from rmkit import Encoded

    rng = random.Random(f"{pairs} {prompt} {completions}")

    def words(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1000, 49000) for _ in range(n))

    return [
        Encoded(words(prompt), tuple(map(words, completions)), tuple(range(len(completions)))) for _ in range(pairs)
    ]


def products(config, rows: int, width: int) -> Callable:
    """The matrix products of one forward pass over [rows, width] tokens, of the same shapes, and nothing else."""
    import torch

    h, f, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    kv = h // heads * config.num_key_value_heads
    shapes = [(h, h), (h, kv), (h, kv), (h, h), (h, f), (h, f), (f, h)]
    inputs = {n: torch.randn(rows * width, n) for n in (h, f)}
    weights = [torch.randn(b, a) for a, b in shapes]
    query, key = torch.randn(rows * heads, width, h // heads), torch.randn(rows * heads, h // heads, width)
    seen = torch.randn(rows * heads, width, width)

    def work() -> None:
        for _ in range(config.num_hidden_layers):
            for (a, _), weight in zip(shapes, weights, strict=True):
                torch.nn.functional.linear(inputs[a], weight)
            torch.bmm(query, key)
            torch.bmm(seen, key.mT)

    return work


def scoring() -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from rmkit import RewardModel, collate, load_backbone
    from rmkit.batching import in_parts
    from rmkit.smollm2 import smollm2_folder

    torch.set_num_threads(1)
    model = RewardModel(load_backbone("smollm2-135m"), trainable="head").eval()
    plain = AutoModelForSequenceClassification.from_pretrained(smollm2_folder(), num_labels=1, dtype=torch.float32)
    plain.config.pad_token_id = model.tokenizer.pad_token_id
    plain.eval()

    def padded(data: list) -> None:
        """Eight texts at a time, as they come, padded to the longest: what a short script does."""
        texts = [[*e.prompt, *c] for e in data for c in e.completions]
        with torch.no_grad():
            for i in range(0, len(texts), 8):
                rows = texts[i : i + 8]
                width = max(map(len, rows))
                ids = torch.tensor([row + [model.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
                plain(input_ids=ids, attention_mask=mask, use_cache=False)

    like = random_preferences(8, 64, (64, 64))  # 16 rows of 128: what shares nothing worth sharing
    micro = model.micro_batches(like)
    shapes = [model.lay_out([like[i] for i in m]).input_ids.shape for m in micro]
    matrix = [products(model.body.config, *shape) for shape in shapes]
    found = timed({
        "rmkit": lambda: model.rewards(like),
        "its matrix products alone": lambda: [work() for work in matrix],
        "plain": lambda: padded(like),
    })  # fmt: skip
    tokens = sum(a * b for a, b in shapes)
    median = {name: statistics.median(s) for name, s in found.items()}
    share = [a / b for a, b in zip(found["its matrix products alone"], found["rmkit"], strict=True)]
    table(
        f"Scoring: {len(like)} pairs of rows of like length, {tokens} tokens, in micro-batches of {[list(s) for s in shapes]}",
        ["", "tokens per CPU-second", "share of the matrix rate"],
        [
            ["rmkit", f"{tokens / median['rmkit']:.0f}", f"{statistics.median(share):.0%} ({min(share):.0%} … {max(share):.0%})"],
            ["plain transformers, 8 rows at a time", f"{tokens / median['plain']:.0f}", f"{median['its matrix products alone'] / median['plain']:.0%}"],
        ],
    )  # fmt: skip
    unlike = [e for n in (20, 60, 150, 300) for e in random_preferences(2, n // 2, (n // 2, n // 3))]
    random.Random(SEED).shuffle(unlike)
    found = timed({"rmkit": lambda: model.rewards(unlike), "plain": lambda: padded(unlike)}, rounds=3)
    ratio = [a / b for a, b in zip(found["plain"], found["rmkit"], strict=True)]
    rows = [["16 rows of 17 to 300 tokens, as they come, against plain transformers", ranged(ratio)]]
    (best_of,) = random_preferences(1, 200, [40] * 64)
    parts = [replace(best_of, completions=part, ranks=(0,) * 16) for part in in_parts(best_of.completions, 16)]
    simple = [replace(best_of, completions=(c,), ranks=(0,)) for c in best_of.completions]

    def apart() -> None:
        with torch.no_grad():
            for i in range(0, 64, 2):
                model(collate(simple[i : i + 2], 0))

    found = timed({"shared": lambda: model.rewards(parts), "apart": apart}, rounds=1)
    ratio = [a / b for a, b in zip(found["apart"], found["shared"], strict=True)]
    rows.append(["best of 64 answers of 40 tokens to a prompt of 200: a shared prompt against none", ranged(ratio)])
    table("Scoring, what the layout saves", ["", "faster by"], rows)


# --- (e): growth ------------------------------------------------------------------------------------------------------


def growth() -> None:
    """Scoring and a training step (forward, backward), by pairs, by length and by completions a prompt."""
    import torch

    from rmkit import RewardModel, bradley_terry, load_backbone

    torch.set_num_threads(1)
    model = RewardModel(load_backbone("smollm2-135m"))

    def backward(data: list) -> None:
        for micro in model.micro_batches(data):
            batch = model.batch([data[i] for i in micro])
            bradley_terry(model(batch), batch.ranks).sum().backward()
        model.zero_grad()

    cases = [(f"{n} pairs, rows of 64 tokens", random_preferences(n, 32, (32, 32))) for n in (2, 4, 8)]
    cases += [(f"2 pairs, rows of {n} tokens", random_preferences(2, n // 2, (n // 2, n // 2))) for n in (64, 128, 256)]
    cases += [
        (f"1 prompt of 128 tokens, {k} answers of 32", random_preferences(1, 128, [32] * k)) for k in (2, 4, 8, 16)
    ]
    rows = []
    for name, data in cases:
        found = timed({"scoring": lambda d=data: model.rewards(d), "training": lambda d=data: backward(d)}, rounds=1)
        tokens = sum(model.lay_out([e]).tokens for e in data)
        score, train = (statistics.median(found[n]) for n in ("scoring", "training"))
        rows.append(
            [
                name,
                tokens,
                f"{score:.2f}",
                f"{1000 * score / tokens:.2f}",
                f"{train:.2f}",
                f"{1000 * train / tokens:.2f}",
            ]
        )
    table(
        "How time grows", ["", "tokens computed", "scoring, CPU s", "ms a token", "forward and backward, CPU s", "ms a token"], rows
    )  # fmt: skip


# --- the report ---------------------------------------------------------------------------------------------------------

REPORT: list[str] = []


def say(text: str) -> None:
    REPORT.append(text)
    print(text, flush=True)


def table(title: str, head: list[str], rows: list[list]) -> None:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    say(f"\n**{title}**\n\n" + "\n".join(lines))


def machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    packages = []
    for package in ("torch", "transformers", "trl", "accelerate"):
        with contextlib.suppress(PackageNotFoundError):
            packages.append(f"{package} {version(package)}")
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, {', '.join(packages)}; {datetime.date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("hh_rlhf", nargs="?", help="a .jsonl or .jsonl.gz file of HH-RLHF")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--pairs", type=int, default=24, help="to train on")
    parser.add_argument("--epochs", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--out", default=str(Path(__file__).with_name("RESULTS.md")))
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    say(
        f"# Benchmarks\n\nCPU time of one thread, SmolLM2-135M in fp32, {BATCH} pairs a step. Written by `python -m "
        f"tests.benchmarks` on {machine()}. Medians, and in brackets the least and the most."
    )
    with tempfile.TemporaryDirectory() as cache:  # a store that is empty at first
        backbones = Path(cache) / "backbones"
        from rmkit import cache_folder, load_backbone

        load_backbone("smollm2-135m")
        backbones.symlink_to(cache_folder() / "backbones")
        os.environ["RMKIT_CACHE"] = cache
        sets = {
            "dialogues": lambda: dialogues(arguments.hh_rlhf, arguments.pairs),
            "json": lambda: ("json_vs_text", json_pairs(arguments.pairs)),
        }
        for name, data in (load() for part, load in sets.items() if part in arguments.only):
            title, settings = f"Training everything: {described(name, data)}", ["as documented", best_setting(data)]
            training(title, data, "all", settings, arguments.epochs)
        if "frozen" in arguments.only:
            data = json_pairs(32)
            for trainable in ("head", "last:2"):
                title = f"Epochs after the first, `{trainable}`: {described('json_vs_text', data)}"
                training(title, data, trainable, ["no checkpointing"], arguments.epochs, skip=1)
        for name, part in (("scoring", scoring), ("growth", growth)):
            if name in arguments.only:
                part()
    Path(arguments.out).write_text("\n".join(REPORT) + "\n", "utf-8")


if __name__ == "__main__":
    main()
