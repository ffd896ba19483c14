"""Every figure of the workbook: one look, colours that differ in lightness too, baselines drawn in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
