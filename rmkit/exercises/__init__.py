"""Exercises: the learner's function is used when it is right, the reference until then, and mistakes are named.

A notebook writes

    @exercise
    def bradley_terry_loss(chosen, rejected):
        raise NotImplementedError

and the exercise of that name, in one of the files beside this one, decides. An untouched stub falls back to the
reference. A wrong answer is compared with the known wrong answers, and the one that it agrees with is named.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Exercise:
    """reference: the right function; cases: argument tuples to try; mistakes: what to say → a function that makes it."""

    reference: Callable
    cases: tuple[tuple, ...]
    mistakes: dict[str, Callable]
    hint: str
    reason: str  # why the solution is what it is


def exercise(function: Callable) -> Callable:
    """Check the function that is decorated; give back the one that the notebook goes on with."""
    name = function.__name__
    known = _find(name)
    try:
        verdict = check(known, function)
    except NotImplementedError:
        print(f"○ {name}: not attempted yet, the reference goes on. hint('{name}') helps, solution('{name}') shows.")
        return known.reference
    print(f"✗ {name}: {verdict} The reference goes on." if verdict else f"✓ {name}: right. Yours is used from here on.")
    return known.reference if verdict else function


def check(known: Exercise, function: Callable) -> str | None:
    """What is wrong with `function`, in one sentence, or None. NotImplementedError passes through."""
    results = []
    for case in known.cases:
        try:
            results.append(function(*case))
        except NotImplementedError:
            raise
        except Exception as error:  # the learner's code may raise anything; a lesson answers with a sentence
            return f"it raised {type(error).__name__} ({error}) for {_show(case)}."
    wanted = [known.reference(*case) for case in known.cases]
    if all(map(_same, results, wanted)):
        return None
    for message, mistake in known.mistakes.items():
        if all(map(_same, results, [mistake(*case) for case in known.cases])):
            return message
    case, got, want = next((c, g, w) for c, g, w in zip(known.cases, results, wanted, strict=True) if not _same(g, w))
    return f"for {_show(case)} it should give {_show(want)}, and gave {_show(got)}."


def hint(name: str) -> None:
    """Print a first step towards the answer."""
    print(_find(name).hint)


def solution(name: str) -> None:
    """Print the reference, and why it is right."""
    known = _find(name)
    print(textwrap.dedent(inspect.getsource(known.reference)) + "\n" + known.reason)


def _find(name: str) -> Exercise:
    from rmkit.exercises import start, training  # here: they import Exercise from this file

    known = start.EXERCISES | training.EXERCISES
    if name not in known:
        raise KeyError(f"no exercise is called {name!r}: keep the name of the function, one of {', '.join(known)}")
    return known[name]


def _same(got: Any, want: Any) -> bool:
    try:
        got, want = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(want, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-4, atol=1e-6, equal_nan=True)


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_show, value))
    if isinstance(value, torch.Tensor):
        return str([round(v, 4) for v in value.flatten().tolist()] if value.ndim == 1 else value.tolist())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
