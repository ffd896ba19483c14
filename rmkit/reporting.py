"""The checklist of notebook 05 for any model and data: what was measured, what stands beside it, what it means."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from rmkit import plots
from rmkit.base import BaseRewardModel
from rmkit.calibration import reliability
from rmkit.findings import HELD_OUT, TRAINING, ScoredSet, bins_for, findings, named_sets, right_shares, score_sets
from rmkit.metrics import accuracy_table, share_interval
from rmkit.preferences import Preference, on_both_sides

MISTAKES, EXCERPT = 5, 600  # pairs that are shown, and characters of a text of theirs on the page

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 78rem; margin: 1.5rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
h2 {{ font-size: 1.15rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.35rem 0.6rem; text-align: left; vertical-align: top; }}
thead th, .findings td:nth-child(-n+3), .mistakes td:nth-child(n+4) {{ white-space: nowrap; }}
.mistakes td:nth-child(-n+3) {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
main {{ overflow-x: auto; }}
img {{ max-width: 100%; height: auto; }}
@media print {{ body {{ margin: 0; max-width: none; font-size: 11px; }} tr, img {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


@dataclass(frozen=True, repr=False)
class Report:
    """What `report` found. In a notebook it shows itself; `save` writes it as a page.

    heading: the model and the numbers of preferences. table: one row a finding; columns measured, low, high (the 95 %
    interval, nan where there is none), beside (what to compare with), reading. figure: six panels; captions: what each
    of them shows, in words. surest_mistakes: of the held-out pairs ranked wrong, those with the largest difference: prompt (its last
    turn), chosen, rejected, domain, difference (reward of the chosen one − that of the rejected one, so below 0).
    """

    heading: str
    table: pd.DataFrame
    figure: Figure
    captions: list[str]
    surest_mistakes: pd.DataFrame
    held_out: int

    def __repr__(self) -> str:
        return f"<report on {self.held_out} held-out preferences>"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/html": self._body(), "text/plain": repr(self)}

    def save(self, path: str | Path) -> Path:
        """Write one HTML page that needs nothing else, whole or not at all; a file that is there is replaced.

        Raises FileNotFoundError where its folder does not exist, IsADirectoryError where it is a folder itself.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to save the report in: make it, or name another")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: name the file, such as {path / 'report.html'}")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as work:
            page = Path(work) / path.name
            page.write_text(PAGE.format(title=html.escape(self.heading), body=self._body()), "utf-8")
            os.replace(page, path)
        return path

    def _body(self) -> str:
        png = io.BytesIO()
        self.figure.savefig(png, format="png", metadata={"Software": None})
        image = base64.b64encode(png.getvalue()).decode()
        measured = self.table.measured.map("{:.3f}".format).replace("nan", "none")
        if "leaks" in measured:
            measured["leaks"] = f"{self.table.measured['leaks']:.0f}"
        shown = pd.DataFrame(
            {
                "measured": measured,
                "95 % interval": [
                    "" if math.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}" for row in self.table.itertuples()
                ],
                "compare with": self.table.beside,
                "what it means here": self.table.reading,
            }
        )
        mistakes = self.surest_mistakes.assign(difference=self.surest_mistakes.difference.map("{:+.2f}".format))
        mistakes[["prompt", "chosen", "rejected"]] = mistakes[["prompt", "chosen", "rejected"]].map(_excerpt)
        parts = [
            f"<h1>{html.escape(self.heading)}</h1>",
            _table(shown, "findings"),
            f'<p><img src="data:image/png;base64,{image}" alt="Six panels, which the list below describes"></p>',
            "<ol>" + "".join(f"<li>{html.escape(line)}</li>" for line in self.captions) + "</ol>",
            "<h2>The surest mistakes</h2>",
            _table(mistakes, "mistakes", index=False) if len(mistakes) else "<p>No held-out pair is ranked wrong.</p>",
        ]
        # a page with MathJax leaves what is between two dollars of such a part as it is
        return '<div class="tex2jax_ignore mathjax_ignore">\n' + "\n".join(parts) + "\n</div>"


def report(
    model: BaseRewardModel,
    held_out: Sequence[Preference],
    train: Sequence[Preference] = (),
    elsewhere: Mapping[str, Sequence[Preference]] | None = None,
    ceiling: float | None = None,
) -> Report:
    """What to know of a reward model before it is used: one table, one page of figures, its surest mistakes.

    held_out: preferences that the model was not trained on; train: those that it was. elsewhere: by name, preferences of
    other kinds: another domain, an adversarial set. ceiling: the accuracy of the best possible model on what these
    annotators say (`rmkit.ceilings`), 0.5 to 1. Pairs and rankings; ties are left out. Intervals are by group.

    The rows, each left out where there is nothing to measure it on, and the rule of its reading:

    training accuracy: the interval against chance and the ceiling, and the value against 0.99.
    held-out accuracy, and that of each set elsewhere: the interval against chance and the ceiling, and the interval of
        the paired difference against length alone: "the longer wins" or "the shorter wins", whichever is right more often.
    training minus held-out: the model overfits where the interval lies above 0.
    weakest domain, of those with 20 pairs or more: weaker than chance makes the weakest of so many where no more than one
        in twenty shuffles of the domains, group by group, has its weakest as low.
    held-out minus each set elsewhere: the interval against 0; what lies above is shift or difficulty, not overfitting.
    NLL: the interval against ln 2; beside it, on half of the groups, what a temperature fitted on the other half makes.
    calibration error: against the 95th percentile of what chance makes of a calibrated model.
    best temperature: the interval against 1, and whether the temperature of half of the groups lowers the NLL of the
        others. nan where there is none, since no pair is ranked wrong, or the rewards are wrong on the whole.
    pairs above 99 %: of those that the model is so sure of, the interval of the share ranked wrong against 1 %.
    longer preferred, minus judged: the share of pairs in which the longer one, in characters, has the higher reward, minus
        the share in which it was judged better; the interval against 0, and the value against that of ranking at random.
    leaks: held-out preferences whose prompt or group is among those trained on; any is one too many.

    Raises TypeError and ValueError for arguments that are none of this, a set in which no pair was told apart, and rewards
    that are not finite; PreferenceError for what cannot be encoded. The model stays as it was.
    """
    sets = named_sets(model, held_out, train, elsewhere, ceiling)
    scored = score_sets(model, sets)
    held, trained = scored.pop(HELD_OUT), scored.pop(TRAINING, None)
    rows, temperature = findings(held, trained, scored.values(), ceiling, on_both_sides(train, held_out), len(held_out))
    table = pd.DataFrame(rows, columns=["what", "measured", "low", "high", "beside", "reading"]).set_index("what")
    figure, captions = _page([trained] * bool(trained) + [held, *scored.values()], held, ceiling, temperature)
    counts = ", ".join(f"{len(preferences)} {name}" for name, preferences in sets.items())
    heading = f"Report on {model.backbone_name}, trainable {model.settings['trainable']!r}: {counts} preferences"
    return Report(heading, table.round(4), figure, captions, _surest_mistakes(held), len(held_out))


# --- the page -----------------------------------------------------------------------------------------------


def _page(
    sets: list[ScoredSet], held: ScoredSet, ceiling: float | None, temperature: float
) -> tuple[Figure, list[str]]:
    """The six panels, and what they show in words."""
    figure, (overall, parts, calibrated, differences, spread, length) = plots.new_page(2, 3)
    accuracies = pd.DataFrame([one.accuracy for one in sets]).astype({"pairs": int})
    plots.draw_shares(overall, accuracies, "Accuracy", ceiling)
    if len(set(held.domains)) > 1:
        by, table = "domain", accuracy_table(held.rewards, held.preferences, by=held.domains).drop("all")
        table = table.sort_values("accuracy").head(12)
    else:
        by, table = "how sure the model is", _by_certainty(held)
    plots.draw_shares(parts, table, f"Held-out accuracy by {by}", ceiling)
    curves = {"as it is": reliability(held.rewards, held.ranks, held.groups, bins_for(held))}
    if not math.isnan(temperature):
        curves[f"divided by {temperature:.2g}"] = reliability(
            held.rewards / temperature, held.ranks, held.groups, bins_for(held)
        )
    plots.draw_reliability(calibrated, curves)
    plots.draw_differences(differences, held.difference, "Held-out differences")
    if len(sets) > 1:
        plots.draw_cumulative(spread, {one.name: one.difference for one in sets}, "Differences of every set, cumulated")
        fifth = "Cumulated differences: a curve reads at 0 the share of pairs ranked wrong."
    else:
        chosen, rejected = (held.rewards[kind].tolist() for kind in (held.ranks == 0, held.ranks > 0))
        plots.draw_rewards(spread, chosen, rejected, "Rewards of held-out pairs")
        fifth = f"Rewards: the chosen ones have {np.mean(chosen):.2f} on average, the rejected {np.mean(rejected):.2f}."
    by_length = _by_length(held)
    plots.draw_shares(length, by_length, "Held-out accuracy: the better one is …")
    shares = ", ".join(f"{one.name} {one.accuracy.accuracy:.2f}" for one in sets)
    captions = [
        f"Accuracy: {shares}.",
        f"By {by}: {_spelled(table)}.",
        "Calibration: where the model says more than one half, points above the dotted line are right more often than it says. "
        "The temperature is that of these very pairs, which flatters its curve a little.",
        f"Differences: of {len(held.difference)} held-out pairs, {(held.difference < 0).sum()} lie left of 0, ranked wrong.",
        fifth,
        f"Length in characters, of the better one: {_spelled(by_length)}. A model that likes length rises from first to last.",
    ]
    return figure, captions


def _spelled(table: pd.DataFrame) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in table.accuracy.items())


def _by_certainty(held: ScoredSet) -> pd.DataFrame:
    """Accuracy in the quarters of pairs by how far apart their rewards are."""
    size = np.abs(held.difference)
    place = np.searchsorted(np.quantile(size, [0.25, 0.5, 0.75]), size)
    sure = stats.logistic.cdf(size)
    names = {
        b: "{:.3g}% to {:.3g}% sure".format(*(100 * end(sure[place == b]) for end in (np.min, np.max)))
        for b in np.unique(place)
    }
    return _by_place(held, place, names)


def _by_length(held: ScoredSet) -> pd.DataFrame:
    """Accuracy in five classes of pairs, from those whose better one is much shorter to those where it is much longer."""
    near, far = (round(q) for q in np.quantile(np.abs(held.longer), [1 / 3, 2 / 3]))
    place = np.sign(held.longer) * np.searchsorted([near, far], np.abs(held.longer))
    names = {
        -2: f"over {far} shorter", -1: f"{near} to {far} shorter", 0: f"within {near} characters",
        1: f"{near} to {far} longer", 2: f"over {far} longer",
    }  # fmt: skip
    return _by_place(held, place, names)


def _by_place(held: ScoredSet, place: np.ndarray, names: Mapping[int, str]) -> pd.DataFrame:
    right, rows = right_shares(held.difference), []
    for b in np.unique(place):
        here = place == b
        rows.append((names[b], here.sum(), right[here].mean(), *share_interval(held.owners[here], right[here])))
    return pd.DataFrame(rows, columns=["part", "pairs", "accuracy", "low", "high"]).set_index("part")


def _surest_mistakes(held: ScoredSet) -> pd.DataFrame:
    rows = []
    for m in np.argsort(held.difference, kind="stable")[:MISTAKES]:
        if held.difference[m] < 0:
            n, better, other = held.pairs[m]
            p = held.preferences[n]
            rows.append((p.prompt, p.completions[better], p.completions[other], p.domain, held.difference[m]))
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected", "domain", "difference"])


def _table(table: pd.DataFrame, name: str, index: bool = True) -> str:
    """As HTML, every text escaped and whole."""
    as_it_is = dict.fromkeys(table.columns, str)  # without which pandas cuts a text, and writes its line breaks as \\n
    return table.rename_axis(None).to_html(
        classes=name, index=index, border=0, justify="left", escape=True, formatters=as_it_is
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
