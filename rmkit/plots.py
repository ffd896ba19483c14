"""Every figure of the workbook: one look, colours that differ in lightness too, baselines drawn in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe and Ito's palette, told apart by people who see red and green alike.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
LN2 = float(np.log(2))  # the Bradley–Terry loss of a model that cannot tell


def new_figure(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no pyplot state: returned from a cell, it shows once."""
    figure = Figure(figsize=(9 if panels > 1 else 6.5, 3.2), dpi=100, layout="constrained", facecolor="white")
    return figure, list(np.atleast_1d(figure.subplots(1, panels)))


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, named axes, a light grid, and no box around it."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)


def draw_estimates(axes: Axes, places: Sequence[float], found: Sequence, across: bool = False, **looks) -> None:
    """Points with their 95 % intervals: of Estimates or Accuracies, at these places of the x axis; across: of the y axis."""
    values = [one.value for one in found]
    arms = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
    looks = {"capsize": 3, "markersize": 5} | looks
    if across:
        axes.errorbar(values, places, xerr=arms, **looks)
    else:
        axes.errorbar(places, values, yerr=arms, **looks)


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with these numbers on it, written as they are."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def draw_loss(axes: Axes, losses: dict[str, Sequence[float]], title: str = "Loss") -> None:
    """Loss curves on a log scale, with the loss of a model that cannot tell drawn in."""
    for (name, values), colour, marker in zip(losses.items(), (BLUE, RED, GREEN, ORANGE, GREY), "os^Dv", strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, marker=marker, markersize=3, label=name)
    axes.axhline(LN2, color=GREY, linestyle=":", label="cannot tell: ln 2")
    axes.set_yscale("log")
    style(axes, title, "step", "Bradley–Terry loss (nats, log scale)")


def draw_accuracy(axes: Axes, validations: Sequence[dict], steps: Sequence[dict]) -> None:
    """Validation accuracy with its 95 % interval, the accuracy on each training batch, and chance."""
    taken, accuracy = [s["step"] for s in steps], [s["accuracy"] for s in steps]
    axes.plot(taken, accuracy, ".", color=GREY, label="training batch, before its step")
    value, low, high = (np.array([v[key] for v in validations]) for key in ("accuracy", "low", "high"))
    axes.errorbar(
        [v["step"] for v in validations], value, [value - low, high - value],
        color=BLUE, marker="o", capsize=3, label=f"validation, 95 % interval ({validations[0]['pairs']} pairs)",
    )  # fmt: skip
    axes.axhline(0.5, color=GREY, linestyle=":", label="chance")
    axes.set_ylim(-0.02, 1.05)
    style(axes, "Ranking accuracy", "step", "share of pairs ranked right")


def draw_rewards(axes: Axes, chosen: Sequence[float], rejected: Sequence[float], title: str) -> None:
    """Histograms of the rewards of chosen and rejected completions, on common bins."""
    bins = np.histogram_bin_edges([*chosen, *rejected], bins=24)
    axes.hist(chosen, bins, color=BLUE, alpha=0.75, label="chosen")
    axes.hist(rejected, bins, color=ORANGE, alpha=0.75, hatch="///", edgecolor="white", label="rejected")
    style(axes, title, "reward", "completions")


def draw_reliability(axes: Axes, tables: dict[str, pd.DataFrame], title: str = "Calibration") -> None:
    """Reliability curves, tables of `rmkit.calibration.reliability` by name, beside the 45° line of a calibrated model."""
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    looks = zip((BLUE, RED, GREEN, ORANGE), "os^D", ("-", "--", "-.", (0, (5, 1))), strict=True)
    for (name, table), (colour, marker, line) in zip(tables.items(), looks, strict=False):
        arms = [(table.found - table.low).clip(lower=0), (table.high - table.found).clip(lower=0)]
        axes.errorbar(
            table.said, table.found, arms,
            color=colour, marker=marker, markersize=4, linestyle=line, linewidth=1.2, capsize=2, label=name,
        )  # fmt: skip
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    style(axes, title, "probability that the model gives", "share that came true")
    _legend_below(axes)


def new_page(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A page of panels, row by row, that belongs to no pyplot state."""
    figure = Figure(figsize=(4.3 * columns, 3.7 * rows), dpi=100, layout="constrained", facecolor="white")
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def draw_shares(axes: Axes, table: pd.DataFrame, title: str, ceiling: float | None = None) -> None:
    """Accuracies with their intervals, one below the other: a table of `rmkit.metrics.accuracy_table`, by its index.

    Chance is drawn in; so is the ceiling, where one is known, and how often the longer one wins, where the table says.
    """
    height = np.arange(len(table))
    arms = [(table.accuracy - table.low).clip(lower=0), (table.high - table.accuracy).clip(lower=0)]
    axes.axvline(0.5, color=GREY, linestyle=":", label="chance")
    if ceiling is not None:
        axes.axvline(ceiling, color=GREEN, linestyle="--", label="ceiling")
    if "longer_wins" in table:
        axes.plot(table.longer_wins, height, "^", color=ORANGE, markersize=6, label="the longer wins")
    axes.errorbar(table.accuracy, height, xerr=arms, color=BLUE, fmt="o", capsize=3, label="the model")
    axes.set_yticks(height, [f"{_short(name)} ({n})" for name, n in zip(table.index, table.pairs, strict=True)])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(table) - 0.5, -0.5))  # the first one on top
    style(axes, title, "share ranked right, 95 % interval", "")
    _legend_below(axes)


def draw_differences(axes: Axes, difference: np.ndarray, title: str) -> None:
    """Histogram of the reward of the better completion minus that of the other; what is left of 0 is ranked wrong."""
    width = float(np.ptp([*difference, 0.0])) / 24 or 1.0
    bins = width * np.arange(np.floor(difference.min() / width), np.floor(difference.max() / width) + 2)  # 0 is an edge
    right, wrong = difference[difference >= 0], difference[difference < 0]
    axes.hist(right, bins, color=BLUE, alpha=0.75, label=f"right: {(right > 0).sum()}")
    axes.hist(wrong, bins, color=RED, alpha=0.75, hatch="///", edgecolor="white", label=f"wrong: {len(wrong)}")
    axes.axvline(0, color=GREY, linestyle=":", label=f"equal: {(right == 0).sum()}")
    style(axes, title, "reward of the better one − the other", "pairs")
    _legend_below(axes)


def draw_cumulative(axes: Axes, differences: dict[str, np.ndarray], title: str) -> None:
    """Of every set the share of pairs whose difference, better one − other, is smaller: at 0, the share ranked wrong."""
    colours, lines = (RED, BLUE, GREEN, ORANGE, GREY), ("--", "-", "-.", ":", (0, (5, 1)))
    for i, (name, difference) in enumerate(differences.items()):
        line = lines[(i + i // 5) % 5]  # from the sixth set on, a colour comes again with another line
        axes.ecdf(difference, color=colours[i % 5], linestyle=line, linewidth=1.6, label=_short(name))
    axes.axvline(0, color=GREY, linestyle=":")
    style(axes, title, "reward of the better one − the other", "share of pairs below")
    _legend_below(axes)


def draw_tokens(
    axes: Axes, tokens: Sequence[str], values: Sequence[float], title: str, most: float | None = None
) -> None:
    """Tokens in a row, each on its value's colour (blue above 0, orange below, white at 0) and over its value in figures.

    most: the value of the full colour; the largest of `values` unless given.
    """
    most = most or max(map(abs, values)) or 1.0
    colours = LinearSegmentedColormap.from_list("values", [ORANGE, "white", BLUE])
    widths = np.array([max(len(token), 4) + 1.2 for token in map(repr, tokens)], dtype=float)
    starts = np.cumsum(widths) - widths
    for token, value, start, width in zip(tokens, values, starts, widths, strict=True):
        colour = colours(0.5 + np.clip(value / most, -1, 1) / 2)
        axes.add_patch(Rectangle((start, 0), width, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        ink = "white" if abs(value) > 0.75 * most and value > 0 else "black"
        text = repr(token)[1:-1].replace("$", r"\$")
        axes.text(start + width / 2, 0.62, text, ha="center", va="center", fontsize=7, family="monospace", color=ink)
        axes.text(start + width / 2, 0.25, f"{value:+.1f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set(xlim=(0, max(widths.sum(), 90)), ylim=(0, 1))
    axes.set_title(title, loc="left", fontsize=9)
    axes.axis("off")


def _legend_below(axes: Axes) -> None:
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _short(name: str, most: int = 26) -> str:
    """A name as a label: on one line, and without mathematics."""
    name = " ".join(str(name).split())
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def plot_history(steps: Sequence[dict], validations: Sequence[dict], best_step: int) -> Figure:
    """The figure of a run of `fit`: loss on a log scale beside ranking accuracy; the line marks the weights that were kept."""
    figure, (left, right) = new_figure(2)
    draw_loss(left, {"training": [record["loss"] for record in steps]})
    checked = [record["step"] for record in validations]
    left.plot(
        checked, [record["loss"] for record in validations], color=RED, marker="s", linestyle="--", label="validation"
    )
    left.axvline(best_step, color=GREEN, alpha=0.5, label="kept")
    left.legend(fontsize=8, frameon=False)
    draw_accuracy(right, validations, steps)
    right.axvline(best_step, color=GREEN, alpha=0.5)
    return figure
