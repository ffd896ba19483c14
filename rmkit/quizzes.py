"""Quizzes in which every choice is explained, on a page that runs and on one that does not."""

from __future__ import annotations

import html
import random
from dataclasses import dataclass

import ipywidgets

from rmkit.exercises import lessons
from rmkit.widgets import live


@dataclass(frozen=True)
class Question:
    """A question, the right choice, the wrong ones, and for each what there is to say to whoever takes it."""

    text: str
    right: tuple[str, str]
    wrong: tuple[tuple[str, str], ...]


class Quiz:
    """Questions to answer by clicking or by arrow keys; what is right, and why, shows at once.

    name: by which the choices are shuffled, the same way on every machine; over a quiz, the right one is at every
    place about equally often. Where nothing runs, the choices are folded texts that open on their explanation.
    """

    def __init__(self, name: str, questions: list[Question]):
        self.name, self.questions = name, questions
        self.choices = _arranged(name, questions)
        self.box = ipywidgets.VBox(
            [widget for number, question in enumerate(questions) for widget in self._ask(number, question)],
            layout=ipywidgets.Layout(padding="0 0 0 12px"),
        )

    def _ask(self, number: int, question: Question) -> list[ipywidgets.Widget]:
        choices = self.choices[number]
        options = ipywidgets.RadioButtons(
            options=[text for text, _ in choices], value=None, layout=ipywidgets.Layout(width="100%")
        )
        verdict = ipywidgets.HTML()

        def answer(_: dict) -> None:
            taken = choices[options.index]
            mark = "✓ Right." if taken == question.right else "✗"
            verdict.value = f"<p>{mark} {html.escape(taken[1])}</p>"

        options.observe(answer, "index")
        return [ipywidgets.HTML(f"<b>{number + 1}. {html.escape(question.text)}</b>"), options, verdict]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return live(self.box) | {
            "text/html": self._page(),
            "text/plain": f"<quiz of {len(self.questions)} questions>",
        }

    def _page(self) -> str:
        parts = []
        for number, (question, choices) in enumerate(zip(self.questions, self.choices, strict=True), start=1):
            parts.append(f"<p><b>{number}. {html.escape(question.text)}</b></p>")
            for choice in choices:
                mark = "Right. " if choice == question.right else "No. "
                text, why = map(html.escape, choice)
                parts.append(f"<details><summary>{text}</summary>{mark}{why}</details>")
        return "\n".join(parts)


def quiz(name: str) -> Quiz:
    """The quiz of a lesson, by its number: `quiz("03")`. Raises KeyError where there is none."""
    known = lessons()
    if name not in known:
        raise KeyError(f"there is no quiz {name!r}: {', '.join(known)}")
    return Quiz(name, known[name].QUIZ)


def _arranged(name: str, questions: list[Question]) -> list[list[tuple[str, str]]]:
    """The choices of each question in their order. The places of the right ones are dealt like cards, so that none is rare."""
    rng = random.Random(name)
    most = max(1 + len(question.wrong) for question in questions)
    deck: list[int] = []
    arranged = []
    for question in questions:
        if not deck:
            deck = rng.sample(range(most), most)
        choices = rng.sample(question.wrong, len(question.wrong))
        choices.insert(min(deck.pop(), len(choices)), question.right)
        arranged.append(choices)
    return arranged
