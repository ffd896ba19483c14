"""Exercises: the learner's function is used when it is right, the reference until then, and mistakes are named.

A notebook writes

    @exercise
    def bradley_terry_loss(chosen, rejected):
        raise NotImplementedError

and the exercise of that name, in one of the files beside this one, decides. An untouched stub falls back to the
reference. A wrong answer is compared with the known wrong answers, and the one that it agrees with is named.
"""

from __future__ import annotations

import copy
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

_HINTS_GIVEN: dict[str, int] = {}


@dataclass(frozen=True)
class Exercise:
    """One exercise: what is right, what is wrong and why, and how to find out.

    cases: argument tuples to try. mistakes: what to say → a function that makes that mistake. hints: from a nudge to all
    but the answer.
    probe: how to try a function on a case; by default it is called, and what it returns is compared.
    """

    reference: Callable
    cases: tuple[tuple, ...]
    mistakes: dict[str, Callable]
    hints: tuple[str, ...]
    reason: str  # why the solution is what it is
    probe: Callable[[Callable, tuple], Any] = lambda function, case: function(*case)


def exercise(function: Callable) -> Callable:
    """Check the function that is decorated; give back the one that the notebook goes on with."""
    name = function.__name__
    known = find(name)
    try:
        verdict = check(known, function)
    except NotImplementedError:
        print(f"○ {name}: not attempted yet, the reference goes on. hint('{name}') helps, solution('{name}') shows.")
        return known.reference
    print(f"✗ {name}: {verdict} The reference goes on." if verdict else f"✓ {name}: right. Yours is used from here on.")
    return known.reference if verdict else function


def check(known: Exercise, function: Callable) -> str | None:
    """What is wrong with `function`, in one sentence, or None. NotImplementedError passes through."""
    results, wanted = [], _results(known, known.reference)
    for case, want in zip(known.cases, wanted, strict=True):
        try:
            got = known.probe(function, copy.deepcopy(case))  # which a learner's function may change in place
        except NotImplementedError:
            raise
        except Exception as error:  # the learner's code may raise anything; a lesson answers with a sentence
            return f"it raised {type(error).__name__} ({error}) for {_show(case)}."
        if got is None:
            return "it returned nothing: is the `return` missing?"
        if isinstance(want, torch.Tensor) and want.requires_grad and not getattr(got, "requires_grad", False):
            return (
                "no gradient can flow through it: return the tensor itself, without .item(), .detach(), math or numpy."
            )
        results.append(got)
    if all(map(_same, results, wanted)):
        return None
    for message, mistake in known.mistakes.items():
        if all(map(_same, results, _results(known, mistake))):
            return message
    case, got, want = next((c, g, w) for c, g, w in zip(known.cases, results, wanted, strict=True) if not _same(g, w))
    return f"for {_show(case)} it should give {_show(want)}, and gave {_show(got)}."


def _results(known: Exercise, function: Callable) -> list:
    return [known.probe(function, copy.deepcopy(case)) for case in known.cases]


def hint(name: str) -> None:
    """Print the next step towards the answer: each call says more, and after the last it begins again."""
    hints = find(name).hints
    given = _HINTS_GIVEN.get(name, 0)
    print(f"hint {given + 1} of {len(hints)}: {hints[given]}")
    _HINTS_GIVEN[name] = (given + 1) % len(hints)


def solution(name: str) -> None:
    """Print the reference, and why it is right."""
    known = find(name)
    print(textwrap.dedent(inspect.getsource(known.reference)) + "\n" + known.reason)


def lessons() -> dict[str, ModuleType]:
    """The files with exercises and a quiz, by the number of their lesson."""
    # here, because they import Exercise from this file
    from rmkit.exercises import architecture, implicit, losses, overfitting, start, ties, training

    return {
        "00": start,
        "01": architecture,
        "02": losses,
        "03": training,
        "04": ties,
        "05": overfitting,
        "06": implicit,
    }


def find(name: str) -> Exercise:
    """The exercise of that name. Raises KeyError, with all names, where there is none."""
    known = {called: one for lesson in lessons().values() for called, one in lesson.EXERCISES.items()}
    if name not in known:
        raise KeyError(f"no exercise is called {name!r}: keep the name of the function, one of {', '.join(known)}")
    return known[name]


def _same(got: Any, want: Any) -> bool:
    if isinstance(got, str) or isinstance(want, str):
        return got is want or (type(got) is type(want) and got == want)
    try:
        got, want = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(want, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-4, atol=1e-9, equal_nan=True)


def _show(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(_show, value))
    if isinstance(value, torch.Tensor):
        return _show(value.item()) if value.ndim == 0 else f"[{_show(value.tolist())}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
