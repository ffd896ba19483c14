"""Answers whose quality is known: graded by a published rubric (data/README.md; notebooks 01 to 06)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from rmkit.preferences import DATA, Preference, PreferenceError
from rmkit.rows import file_rows, kind

# What a point on each criterion of the rubric is worth. A criterion has 0, 1 or 2 points: all of them make 10.
WEIGHTS = {"correct": 2.5, "relevant": 0.75, "complete": 0.75, "clear": 0.5, "civil": 0.5}
SPILLOVER = "advice"  # the domain that no model is trained on


@dataclass(frozen=True)
class GradedAnswer:
    """text; grades: 0, 1 or 2 for each criterion of WEIGHTS; reason: for each criterion below 2, what cost the points."""

    text: str
    grades: dict[str, int]
    reason: dict[str, str]

    @property
    def utility(self) -> float:
        """Σ weight · grade, 0 to 10 in steps of 0.25, which floats hold exactly: equal quality is an exact tie."""
        return sum(weight * self.grades[criterion] for criterion, weight in WEIGHTS.items())


@dataclass(frozen=True)
class GradedPrompt:
    """A prompt and its graded answers. domain, group: as in `Preference`; kind: what sort of request it is."""

    prompt: str
    answers: tuple[GradedAnswer, ...]
    domain: str
    kind: str
    group: str

    @property
    def ranked(self) -> tuple[GradedAnswer, ...]:
        """The answers, best first; equal ones as they stand in the file."""
        return tuple(sorted(self.answers, key=lambda answer: -answer.utility))

    @property
    def preference(self) -> Preference:
        """The answers ranked by utility: what an annotator who never errs would say, ties included."""
        ordered = self.ranked
        levels = sorted({answer.utility for answer in ordered}, reverse=True)
        return Preference(
            self.prompt,
            tuple(answer.text for answer in ordered),
            tuple(levels.index(answer.utility) for answer in ordered),
            domain=self.domain,
            group=self.group,
        )


@dataclass(frozen=True)
class GradedPair:
    """Two answers to one prompt, to be compared."""

    prompt: GradedPrompt
    first: GradedAnswer
    second: GradedAnswer


def load_graded_answers(path: str | Path = DATA / "graded_answers.jsonl") -> list[GradedPrompt]:
    """The graded answers of the workbook, or of a file in the same form: `prompt`, `domain`, `kind`, `group`, `answers`.

    An answer has `text`, `grades`, `utility`, `reason`. Raises FileNotFoundError; PreferenceError with every row that
    does not keep the rubric, the others in `.usable`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    usable, problems = [], []
    for where, row in file_rows(path):
        faults = [row] if isinstance(row, str) else list(_faults(row))
        problems += [f"{where}: {fault}" for fault in faults]
        if not faults:
            usable.append(_prompt(row))
    if problems or not usable:
        raise PreferenceError(problems or [f"{path.name}: has no rows"], usable)
    return usable


def graded_pairs(prompts: Sequence[GradedPrompt]) -> list[GradedPair]:
    """All pairs of answers to the same prompt, K·(K−1)/2 a prompt, in the order of the file, which says nothing."""
    return [GradedPair(prompt, *pair) for prompt in prompts for pair in combinations(prompt.answers, 2)]


def ignoring(prompts: Sequence[GradedPrompt], criterion: str) -> list[GradedPrompt]:
    """The prompts as they look to someone who does not check `criterion`: every answer has one point of its two.

    Judged by an annotator, they are the judgements of one who is in a hurry. Raises ValueError for another criterion.
    """
    if criterion not in WEIGHTS:
        raise ValueError(f"criterion is one of {', '.join(WEIGHTS)}: got {criterion!r}")
    return [replace(p, answers=tuple(replace(a, grades=a.grades | {criterion: 1}) for a in p.answers)) for p in prompts]


def utilities(prompts: Sequence[GradedPrompt]) -> torch.Tensor:
    """The known quality [N, K] of every answer, best first, as in `preference`. All prompts have K answers."""
    return torch.tensor([[answer.utility for answer in prompt.ranked] for prompt in prompts])


def rewards_of(judged: Sequence[Preference], prompts: Sequence[GradedPrompt], rewards: torch.Tensor) -> torch.Tensor:
    """The rewards [..., M, 2] of judged pairs, in the order of their judgement, out of those of all answers.

    judged: M pairs of answers to the prompts, as `Annotator.judge` gives them; rewards [..., N, K] of the answers of N
    prompts, best first, as a model gives them for `[p.preference for p in prompts]`. Raises KeyError for an answer that
    is not among them.
    """
    place = {(p.prompt, a.text): (n, k) for n, p in enumerate(prompts) for k, a in enumerate(p.ranked)}
    rows, columns = torch.tensor([[place[j.prompt, text] for text in j.completions] for j in judged]).unbind(-1)
    return rewards[..., rows, columns]


def paraphrased(prompts: Sequence[GradedPrompt], path: str | Path = DATA / "paraphrases.jsonl") -> list[GradedPrompt]:
    """Two more of every prompt that has paraphrases: its first rewording with the answers as they are, its second with varied ones.

    They keep grades, domain and group: augmentation stays on the original's side of a split. Raises FileNotFoundError;
    PreferenceError for rows without `prompt`, two `rewordings` and a `variation` for each answer.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    rows, augmented, problems = {}, [], []
    for where, row in file_rows(path):
        if isinstance(row, str) or not isinstance(row.get("prompt"), str):
            problems.append(f"{where}: {row if isinstance(row, str) else 'prompt: is no text'}")
        else:
            rows[row["prompt"]] = where, row
    for prompt in prompts:
        if prompt.prompt not in rows:
            continue
        where, row = rows[prompt.prompt]
        wanted = {"rewordings": 2, "variations": len(prompt.answers)}
        if wrong := [name for name, number in wanted.items() if not _are_texts(row.get(name), number)]:
            problems.append(f"{where}: {wrong[0]}: is no list of {wanted[wrong[0]]} texts")
            continue
        first, second = row["rewordings"]
        pairs = zip(prompt.answers, row["variations"], strict=True)
        varied = tuple(replace(answer, text=text) for answer, text in pairs)
        augmented += [replace(prompt, prompt=first), replace(prompt, prompt=second, answers=varied)]
    if problems:
        raise PreferenceError(problems)
    return augmented


def _are_texts(value: object, number: int) -> bool:
    return isinstance(value, list) and len(value) == number and all(isinstance(v, str) and v.strip() for v in value)


def _prompt(row: dict) -> GradedPrompt:
    answers = tuple(GradedAnswer(a["text"], a["grades"], a["reason"]) for a in row["answers"])
    return GradedPrompt(row["prompt"], answers, row["domain"], row["kind"], row["group"])


def _faults(row: dict):
    """What keeps a row from being used, one line each, with its field."""
    for field in ("prompt", "domain", "kind", "group"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            yield f"{field}: is {kind(row.get(field))}, not a text" if row.get(field) != "" else f"{field}: is empty"
    answers = row.get("answers")
    if not isinstance(answers, list) or len(answers) < 2:
        yield "answers: is no list of two or more"
        return
    for i, answer in enumerate(answers):
        place = f"answers[{i}]"
        if not isinstance(answer, dict):
            yield f"{place}: is {kind(answer)}, not an object"
            continue
        if not isinstance(answer.get("text"), str) or not answer["text"].strip():
            yield f"{place}.text: is no text"
        grades, reason = answer.get("grades"), answer.get("reason")
        if not isinstance(grades, dict) or grades.keys() != WEIGHTS.keys():
            yield f"{place}.grades: wants a grade for each of {', '.join(WEIGHTS)}, and no other"
            continue
        if wrong := [c for c, grade in grades.items() if type(grade) is not int or grade not in (0, 1, 2)]:
            yield f"{place}.grades.{wrong[0]}: is {grades[wrong[0]]!r:.40}, not 0, 1 or 2"
            continue
        lost = {criterion for criterion, grade in grades.items() if grade < 2}
        if not isinstance(reason, dict) or reason.keys() != lost:
            yield f"{place}.reason: wants one for each criterion below 2 ({', '.join(sorted(lost)) or 'none'}), and no other"
            continue
        utility = GradedAnswer("", grades, {}).utility
        if answer.get("utility") != utility:
            yield f"{place}.utility: is {answer.get('utility')!r:.40}, but the grades make {utility}"
