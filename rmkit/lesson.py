"""What every notebook opens with, and the furniture of a lesson: predictions and claims."""

from __future__ import annotations

import json
import math

import datasets
import huggingface_hub
import pandas as pd
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


def predict(name: str, question: str, guess: float | None = None, probability: float | None = None) -> None:
    """Keep the learner's guess under `name`, in a small file of the cache folder, until `outcome` asks for it.

    guess: a number; or probability: how sure the learner is, from 0 to 1, that the answer will be yes.
    """
    said, what = (guess, "guess") if probability is None else (probability, "probability")
    if said is None:
        print(
            f"? {question}\n  No guess yet: write a number in place of None and run the cell again. A wrong guess teaches more than none."
        )
        return
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not math.isfinite(said):
        print(f"? {question}\n  The {what} is a number: got {said!r}.")
    elif what == "probability" and not 0 <= said <= 1:
        print(f"? {question}\n  The probability is a number from 0 to 1: got {said!r}.")
    else:
        _keep(name, {"question": question, what: said})
        print(f"? {question}\n  Noted: {said:g}.")


def outcome(name: str, measured: float | bool) -> None:
    """Say what the learner had guessed under `name`, and what was measured: a number, or whether the answer is yes."""
    known = _predictions().get(name, {})
    if "probability" in known:
        print(f"You said {known['probability']:.0%}; the answer is {'yes' if measured else 'no'}.")
    else:
        said = f"You guessed {known['guess']:g}" if "guess" in known else "You made no guess"
        shown = ("yes" if measured else "no") if isinstance(measured, bool) else f"{measured:.3g}"
        print(f"{said}; measured: {shown}.")
    if known:
        _keep(name, known | {"measured": float(measured)})


def predictions() -> pd.DataFrame:
    """The learner's guesses beside what was measured, one row a question, and what they say of the learner.

    Of a probability p the Brier score, (p − answer)²: 0 for being sure and right, 1 for being sure and wrong, 0.25 for
    saying ½ to everything (Brier 1950). Of a number how many times too large or too small it was.
    """
    rows = [
        {
            "question": known["question"],
            "said": known.get("probability", known.get("guess")),
            "measured": known.get("measured", math.nan),
            "Brier score": (known["probability"] - known["measured"]) ** 2
            if known.keys() >= {"probability", "measured"}
            else math.nan,
            "times off": _times_off(known["guess"], known["measured"])
            if known.keys() >= {"guess", "measured"}
            else math.nan,
        }
        for _, known in sorted(_predictions().items())
    ]
    table = pd.DataFrame(rows, columns=["question", "said", "measured", "Brier score", "times off"])
    scores = table["Brier score"].dropna()
    if len(scores):
        print(
            f"Your Brier score: {scores.mean():.2f} on {len(scores)} questions; saying 50 % to all of them gets 0.25."
        )
    else:
        print("No question with a probability has been answered yet.")
    return table


def _times_off(guess: float, measured: float) -> float:
    """Of two numbers of one sign, the larger over the smaller."""
    return max(guess / measured, measured / guess) if guess * measured > 0 else math.nan


def claim(text: str, holds: bool) -> None:
    """Print a claim of the lesson with its verdict. `pytest --nbval` holds the verdict against the stored one."""
    print(f"{text}: {bool(holds)}")


def _keep(name: str, known: dict) -> None:
    path = cache_folder() / "predictions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_predictions() | {name: known}, indent=1))


def _predictions() -> dict[str, dict]:
    """What is in the file: question, guess or probability, and what was measured, by name. Nothing where it is damaged."""
    try:
        known = json.loads((cache_folder() / "predictions.json").read_text())
        return {name: one for name, one in known.items() if isinstance(one["question"], str)}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}
