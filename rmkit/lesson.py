"""What every notebook opens with, and the furniture of a lesson: predictions and claims."""

from __future__ import annotations

import json

import datasets
import huggingface_hub
from accelerate.utils import set_seed

from rmkit.backbones import Backbone, load_backbone
from rmkit.smollm2 import cache_folder


def start(seed: int = 0) -> Backbone:
    """Seed everything, silence the libraries' progress bars, load the backbone, and say in one line which it is."""
    set_seed(seed)
    huggingface_hub.utils.disable_progress_bars()
    datasets.disable_progress_bars()
    backbone = load_backbone()
    print(backbone)
    return backbone


def predict(name: str, question: str, guess: float | None = None) -> None:
    """Keep the learner's guess under `name`, in a small file of the cache folder, until `outcome` asks for it."""
    if guess is None:
        print(
            f"? {question}\n  No guess yet: write a number after `guess=` and run the cell again. A wrong guess teaches more than none."
        )
        return
    if isinstance(guess, bool) or not isinstance(guess, (int, float)):
        print(f"? {question}\n  The guess is a number: got {guess!r}.")
        return
    path = cache_folder() / "predictions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_guesses() | {name: guess}, indent=1))
    print(f"? {question}\n  Noted: {guess:g}.")


def outcome(name: str, measured: float) -> None:
    """Say what the learner had guessed under `name`, and what was measured."""
    guess = _guesses().get(name)
    said = "You made no guess" if guess is None else f"You guessed {guess:g}"
    print(f"{said}; measured: {measured:.3g}.")


def claim(text: str, holds: bool) -> None:
    """Print a claim of the lesson with its verdict. `pytest --nbval` holds the verdict against the stored one."""
    print(f"{text}: {bool(holds)}")


def _guesses() -> dict[str, float]:
    try:
        guesses = json.loads((cache_folder() / "predictions.json").read_text())
    except (OSError, ValueError):
        return {}
    return guesses if isinstance(guesses, dict) else {}
