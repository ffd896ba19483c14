"""Rows of preference data from a file or the hub, each with its place, and what is wrong with those that cannot be read."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import datasets
import huggingface_hub
from datasets.exceptions import DatasetGenerationError

from rmkit.smollm2 import first_line

MAX_LINE_BYTES = 4 * 2**20  # what is longer is no preference but a damaged file, and could fill the memory
HUB_TIMEOUT = 5  # seconds
WANTED = (
    ". Every line is to be one JSON object, in UTF-8, as pandas' to_json(path, orient='records', lines=True) writes it"
)


def file_rows(path: Path) -> Iterator[tuple[str, dict | str]]:
    """(file:line, row), or (file:line, what is wrong with the line). `datasets` does not tell the line."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        yield path.name, "is no .jsonl or .jsonl.gz file: rename it if it holds one JSON object a line" + WANTED
        return
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1 and line.startswith(b"\x1f\x8b"):
                    yield path.name, "is compressed with gzip: rename it to end in .jsonl.gz"
                    return
                if line.strip():
                    row = _parsed(line, file)
                    yield f"{path.name}:{number}", row + WANTED if number == 1 and isinstance(row, str) else row
    except (OSError, EOFError, zlib.error) as error:
        yield path.name, f"cannot be read{f' past line {number}' * (number > 0)}: {first_line(error)}"


def _parsed(line: bytes, file: BinaryIO) -> dict | str:
    """The object that a line holds, or what is wrong with the line. The rest of one that is too long is skipped."""
    size = len(line)
    if size > MAX_LINE_BYTES and not line.endswith(b"\n"):
        while not line.endswith(b"\n") and (line := file.readline(2**16)):
            size += len(line)
        return f"is {size / 2**20:.1f} MB long; a line holds one preference, of at most {MAX_LINE_BYTES >> 20} MB"
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start + 1} of the line)"
    except json.JSONDecodeError as error:
        return f"is not one JSON object: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        return f"is not one JSON object: {error}"
    return row if isinstance(row, dict) else f"is not a JSON object but {kind(row)}"


def hub_rows(name: str, split: str) -> Iterator[tuple[str, dict | str]]:
    """(place, row) of a data set on the hub or in a folder, or (place, what is wrong) where `datasets` cannot read it.

    Raises FileNotFoundError where it finds none.
    """
    if not isinstance(split, str):  # None would give a table for each
        raise ValueError(f"split is the name of one, such as 'train': got {split!r}")
    offline, advice = datasets.config.HF_HUB_OFFLINE, ""
    try:
        if not Path(name).is_dir():  # where nobody answers, `datasets` would try for half a minute and print every try
            huggingface_hub.HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # no network, a proxy, a hub that is down, a data set that is closed or not there
        advice = f". The hub: {first_line(error)}. Load it once while this machine is online, or name a .jsonl file"
        datasets.config.HF_HUB_OFFLINE = True
    try:
        table = datasets.load_dataset(name, split=split)
    except DatasetGenerationError as error:
        return iter([(f"{name}[{split}]", f"`datasets` cannot read it: {first_line(error.__cause__ or error)}")])
    except Exception as error:
        missing = f"{name!r} is no file here, and `datasets` found no data set of that name with a split {split!r}"
        raise FileNotFoundError(f"{missing}: {first_line(error).rstrip('.')}{advice}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return ((f"{name}[{split}] row {i}", row) for i, row in enumerate(table))


def kind(value: object) -> str:
    """What a value of JSON is, in a word or two."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
