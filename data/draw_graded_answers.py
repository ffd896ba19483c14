"""Draws the page that shows the graded answers to a reader: GRADED_ANSWERS.md and its figures.

python data/draw_graded_answers.py           # write both
python data/draw_graded_answers.py --check   # compare the page's text only
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from rmkit import Annotator, ceilings, graded_pairs, load_graded_answers
from rmkit.graded import WEIGHTS, GradedPrompt, utilities
from rmkit.plots import BLUE, GREEN, GREY, ORANGE, RED, new_figure, style

HERE = Path(__file__).resolve().parent
PAGE, IMAGES = HERE / "GRADED_ANSWERS.md", HERE / "images"
DOMAINS = {"coding": BLUE, "writing": ORANGE, "question_answering": GREEN, "advice": RED}
NAMES = [domain.replace("_", " ") for domain in DOMAINS]
MARKS = dict(zip(DOMAINS, "os^D", strict=True))
EXAMPLES = ("running totals", "late invoice", "VAT", "seasons", "first human in space", "investment scam")


def draw_utilities(prompts: list[GradedPrompt]) -> Figure:
    """How good the answers are, by domain; and how the points of each criterion are spread."""
    figure, (left, right) = new_figure(2)
    values = [[a.utility for p in prompts if p.domain == domain for a in p.answers] for domain in DOMAINS]
    left.hist(values, range(12), stacked=True, color=DOMAINS.values(), label=NAMES, edgecolor="white")
    style(left, "Utility of the answers", "utility (bins of one point)", "answers")
    start = np.zeros(len(WEIGHTS))
    for grade, colour, hatch in ((0, "#333333", "///"), (1, "#8C8C8C", ".."), (2, "#D0D0D0", "")):
        counts = [sum(a.grades[c] == grade for p in prompts for a in p.answers) for c in WEIGHTS]
        right.barh(
            list(WEIGHTS), counts, left=start, color=colour, hatch=hatch, edgecolor="white", label=f"grade {grade}"
        )
        start += counts
    right.invert_yaxis()
    style(right, "Grades by criterion", "answers", "")
    right.set_xlim(0, 1.35 * start.max())
    return figure


def draw_lengths(prompts: list[GradedPrompt], adversarial: list[dict]) -> Figure:
    """Length says nothing of the quality of a graded answer; what it says of adversarial pairs depends on their kind."""
    figure, (left, right) = new_figure(2)
    rng = np.random.default_rng(0)
    for domain, colour in DOMAINS.items():
        points = [(len(a.text), a.utility) for p in prompts if p.domain == domain for a in p.answers]
        x, y = np.array(points).T
        jitter = rng.uniform(-0.1, 0.1, len(y))
        left.plot(x, y + jitter, MARKS[domain], color=colour, markersize=3, alpha=0.5, label=domain.replace("_", " "))
    style(left, "Length and utility of 800 answers", "characters", "utility")
    left.set_ylim(-2.4, 10.6)
    left.set_yticks(range(0, 11, 2))
    left.legend(fontsize=7, frameon=False, loc="lower center", ncols=2)
    kinds = _by_kind(adversarial)
    for place, (_, rows) in enumerate(kinds):
        extra = [len(row["rejected"]) - len(row["chosen"]) for row in rows]
        right.plot(extra, place + rng.uniform(-0.2, 0.2, len(extra)), "o", color=BLUE, markersize=4, alpha=0.6)
    right.axvline(0, color=GREY, linestyle=":")
    right.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind, _ in kinds])
    right.invert_yaxis()
    style(right, "How much longer is the bad answer?", "characters, bad minus good", "")
    return figure


def draw_annotators(prompts: list[GradedPrompt]) -> Figure:
    """What simulated annotators say of two answers, and the accuracy that noise leaves to the best possible model."""
    figure, (left, right) = new_figure(2)
    pairs = graded_pairs(prompts)
    difference = np.array([pair.first.utility - pair.second.utility for pair in pairs])
    order = np.argsort(difference)
    for name, annotator, colour, line in (
        ("temperature 2", Annotator(), BLUE, "-"),
        ("the same with 20 % flips", Annotator(flips=0.2), RED, "--"),
        ("the same with 30 % ties", Annotator(tie_model="rao_kupper", tie_rate=0.3), GREEN, ":"),
    ):
        left.plot(difference[order], annotator.probabilities(pairs)[order, 0], line, color=colour, label=name)
    left.axhline(0.5, color=GREY, linewidth=0.5)
    style(left, "What annotators say", "utility of the first minus the second", "P(first is called better)")
    temperatures = np.geomspace(0.0625, 16, 25)
    for name, flips, colour, mark in (("no flips", 0.0, BLUE, "o"), ("20 % flips", 0.2, RED, "s")):
        accuracy = [ceilings(Annotator(t, flips=flips).probabilities(pairs)).accuracy for t in temperatures]
        right.plot(temperatures, accuracy, color=colour, marker=mark, markersize=3, label=name)
    right.set_xscale("log", base=2)
    right.axhline(0.5, color=GREY, linestyle=":", label="chance")
    style(
        right,
        "The best possible accuracy",
        "temperature: points of utility that make one nat",
        "ceiling on their judgements",
    )
    return figure


FIGURES = ("graded_utilities.png", "graded_lengths.png", "graded_annotators.png")


def captions(prompts: list[GradedPrompt], adversarial: list[dict]) -> list[str]:
    """A sentence for each figure that says what is in it to someone who cannot see it."""
    quality = utilities(prompts)
    perfect = [(utilities([p for p in prompts if p.domain == d]) == 10).double().mean() for d in DOMAINS]
    lost = {c: np.mean([a.grades[c] < 2 for p in prompts for a in p.answers]) for c in WEIGHTS}
    most, least = max(lost, key=lost.get), min(lost, key=lost.get)
    longer = {
        kind: np.mean([len(r["rejected"]) > len(r["chosen"]) for r in rows]) for kind, rows in _by_kind(adversarial)
    }
    by_share = sorted(longer, key=longer.get, reverse=True)
    return [
        f"Left: utilities run from {quality.min():g} to {quality.max():g}; {(quality == 10).double().mean():.0%} of the answers are "
        f"without fault, {min(perfect):.0%} to {max(perfect):.0%} by domain. Right: points are lost most often for `{most}` "
        f"({lost[most]:.0%} of the answers), least often for `{least}` ({lost[least]:.0%}).",
        f"Left: a cloud without slope (rank correlation {_correlation(prompts):+.2f}). The longest answers are all code. Right: the bad answer "
        "is the longer one, right of the line, in "
        + ", ".join(f"{longer[kind]:.0%} of {kind.replace('_', ' ')}" for kind in by_share[:3])
        + f", and in {longer[by_share[-1]]:.0%} to {longer[by_share[3]]:.0%} of the pairs of the other kinds.",
        "Left: the larger the difference in utility, the surer the judgement; flips keep it between 20 and 80 %, and ties take most where "
        "answers are alike. Right: the noisier the annotators, the lower the accuracy that the best possible model reaches on what they say; "
        "even with hardly any noise it is below 1, since pairs of equal utility are then judged by chance.",
    ]


def _correlation(prompts: list[GradedPrompt]) -> float:
    characters = [len(a.text) for p in prompts for a in p.ranked]
    return stats.spearmanr(characters, utilities(prompts).flatten()).statistic


def _by_kind(adversarial: list[dict]) -> list[tuple[str, list[dict]]]:
    kinds = dict.fromkeys(row["domain"] for row in adversarial)
    return [(kind, [row for row in adversarial if row["domain"] == kind]) for kind in kinds]


def page(prompts: list[GradedPrompt], adversarial: list[dict]) -> str:
    """The text of the page: figures with captions, tables, examples."""
    parts = [
        "# What is in the graded answers",
        "A look at `graded_answers.jsonl` and `adversarial.jsonl`, drawn by `draw_graded_answers.py`. [The datasheet](README.md#graded_answersjsonl) "
        "says how they were made, and holds the rubric.",
    ]
    for name, caption in zip(FIGURES, captions(prompts, adversarial), strict=True):
        parts += [f"![{caption}](images/{name})", f"*{caption}*"]
    parts += [
        "## Sizes",
        _markdown(sizes(prompts)),
        "## Examples",
        "Grades are given as correct, relevant, complete, clear, civil.",
    ]
    for group in EXAMPLES:
        parts += [_example(prompt) for prompt in prompts if prompt.group == group][:1]
    parts += ["## One adversarial pair of each kind"]
    for kind, (row, *_) in _by_kind(adversarial):
        parts.append(f"**{kind.replace('_', ' ').capitalize()}.** {_inline(row['prompt'])}")
        parts.append(f"- good: {_inline(row['chosen'])}\n- bad: {_inline(row['rejected'])}\n- why: {row['reason']}")
    return "\n\n".join(parts) + "\n"


def sizes(prompts: list[GradedPrompt]) -> pd.DataFrame:
    """Of every domain and of all: prompts, words an answer, utility, ties, and what length tells."""
    table = {}
    for domain in (*DOMAINS, "all"):
        part = [p for p in prompts if domain in (p.domain, "all")]
        quality = utilities(part).numpy()
        words = [len(a.text.split()) for p in part for a in p.answers]
        first, second = np.array(list(combinations(range(4), 2))).T
        gap = quality[:, first] - quality[:, second]
        row = {
            "prompts": f"{len(part)}",
            "words (mean, range)": f"{np.mean(words):.0f}, {min(words)}–{max(words)}",
            "utility (mean, s.d.)": f"{quality.mean():.1f}, {quality.std():.1f}",
            "tied pairs": f"{(gap == 0).mean():.0%}",
        }
        for unit, size in (("characters", len), ("words", lambda text: len(text.split()))):
            length = np.array([[size(a.text) for a in p.ranked] for p in part])
            longer = np.sign(gap * (length[:, first] - length[:, second]))[gap != 0]
            pairs = [(a, b) for a, b in zip(length, quality, strict=True) if np.ptp(a) and np.ptp(b)]
            row |= {
                f"longer wins, {unit}": f"{(longer + 1).mean() / 2:.0%}",
                f"rank correlation, {unit}": f"{stats.spearmanr(length.ravel(), quality.ravel()).statistic:+.2f}",
                "inside prompts"
                + " " * (unit == "words"): f"{np.mean([stats.spearmanr(a, b).statistic for a, b in pairs]):+.2f}",
            }
        table[domain] = row
    return pd.DataFrame.from_dict(table, orient="index")


def _markdown(table: pd.DataFrame) -> str:
    lines = [
        ["", *table.columns],
        ["---"] * (len(table.columns) + 1),
        *([name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inline(text: str) -> str:
    """A text on one line, as code where markdown would read marks in it."""
    return f"`` {' ⏎ '.join(text.splitlines())} ``"


def _example(prompt: GradedPrompt) -> str:
    lines = [f"**{prompt.domain.replace('_', ' ').capitalize()}, {prompt.kind}.** {_inline(prompt.prompt)}\n"]
    lines += ["| utility | grades | answer | points lost |", "| --- | --- | --- | --- |"]
    for answer in sorted(prompt.answers, key=lambda a: -a.utility):
        lost = "; ".join(f"{criterion}: {reason}" for criterion, reason in answer.reason.items())
        cells = (f"{answer.utility:g}", " ".join(str(answer.grades[c]) for c in WEIGHTS), _inline(answer.text), lost)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write or compare."""
    if arguments not in ([], ["--check"]):
        print("usage: python data/draw_graded_answers.py [--check]", file=sys.stderr)
        return 2
    prompts = load_graded_answers()
    adversarial = [json.loads(line) for line in (HERE / "adversarial.jsonl").read_text("utf-8").splitlines()]
    text = page(prompts, adversarial)
    if arguments:
        same = PAGE.is_file() and PAGE.read_text("utf-8") == text
        print(f"{PAGE.name}: {'up to date' if same else 'differs from the data: run this script without --check'}")
        return 0 if same else 1
    PAGE.write_text(text, "utf-8")
    IMAGES.mkdir(exist_ok=True)
    figures = (draw_utilities(prompts), draw_lengths(prompts, adversarial), draw_annotators(prompts))
    for name, figure in zip(FIGURES, figures, strict=True):
        figure.savefig(IMAGES / name, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
