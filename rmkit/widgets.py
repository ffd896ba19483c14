"""Figures with something to drag."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable

import ipywidgets
from matplotlib.figure import Figure

from rmkit.base import BaseRewardModel


def live(box: ipywidgets.Widget) -> dict:
    """The part of a display's MIME bundle that shows a widget where a kernel runs; beside it belongs what shows elsewhere."""
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    return {"application/vnd.jupyter.widget-view+json": view}


class SliderFigure:
    """Sliders above a figure that is drawn anew whenever one of them moves.

    draw: called as `draw(figure, **values)` with an empty matplotlib Figure and the value of every slider.
    sliders: an ipywidgets slider for each keyword, or a list of values to step through.
    Where nothing runs (a page on the web, a notebook just opened) the last drawing shows as an image.
    """

    def __init__(self, draw: Callable[..., None], figsize: tuple[float, float] = (9, 3.2), **sliders):
        self.draw, self.figsize = draw, figsize
        self.sliders = {name: _slider(name, slider) for name, slider in sliders.items()}
        self.image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", align_self="flex-start"))
        for slider in self.sliders.values():
            slider.observe(lambda _: self.redraw(), "value")
        self.redraw()
        padding = ipywidgets.Layout(padding="0 0 0 12px")  # else Lab cuts the first letter of a label
        self.box = ipywidgets.VBox([*self.sliders.values(), self.image], layout=padding)

    def redraw(self) -> None:
        figure = Figure(figsize=self.figsize, dpi=100, layout="constrained")
        self.draw(figure, **{name: slider.value for name, slider in self.sliders.items()})
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        self.image.value = png.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return live(self.box) | {
            "image/png": base64.b64encode(self.image.value).decode(),
            "text/plain": f"<figure with sliders: {', '.join(self.sliders)}>",
        }


class Playground:
    """A prompt and two answers to type, and what a reward model makes of them: rewards, probability, reward by token.

    It is computed anew when a field is left. Where nothing runs the last result shows. What is typed is shown as it is:
    no markup in it works.
    """

    def __init__(self, model: BaseRewardModel, prompt: str, first: str, second: str):
        self.model = model
        self.fields = {
            name: ipywidgets.Textarea(
                value=text, description=name, continuous_update=False, rows=2 + (name != "prompt"),
                layout=ipywidgets.Layout(width="min(48em, 100%)"),
            )
            for name, text in (("prompt", prompt), ("first", first), ("second", second))
        }  # fmt: skip
        self.result = ipywidgets.HTML()
        for field in self.fields.values():
            field.observe(lambda _: self.score(), "value")
        self.score()
        padding = ipywidgets.Layout(padding="0 0 0 12px")
        self.box = ipywidgets.VBox([*self.fields.values(), self.result], layout=padding)

    def score(self) -> None:
        prompt, *answers = (field.value for field in self.fields.values())
        if not all(text.strip() for text in (prompt, *answers)):
            self.result.value = "<p>Type a prompt and two answers.</p>"
            return
        try:
            grown = [self.model.token_rewards(prompt, answer) for answer in answers]
        except ValueError as error:  # text that no reward model reads
            self.result.value = f"<p>{html.escape(str(error))}</p>"
            return
        first, second = (tokens[-1][1] for tokens in grown)
        probability = 1 / (1 + math.exp(min(second - first, 700)))
        rows = [
            f"<p><b>{name}: {tokens[-1][1]:+.2f}</b>, as the answer grows:<br>{_tokens(tokens)}</p>"
            for name, tokens in zip(("first", "second"), grown, strict=True)
        ]
        self.result.value = "".join(rows) + f"<p><b>P(first preferred) = {probability:.3f}</b></p>"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        typed = [f"<p>{name}: <code>{html.escape(field.value)}</code></p>" for name, field in self.fields.items()]
        return live(self.box) | {
            "text/html": "".join(typed) + self.result.value,
            "text/plain": "<playground: a prompt and two answers>",
        }


def _tokens(tokens: list[tuple[str, float]]) -> str:
    """Each token over its reward, in `code`, where no page looks for formulas."""
    cells = [
        f'<span style="display:inline-block;text-align:center;margin-right:2px">'
        f'<code style="white-space:pre">{html.escape(text)}</code><br><small>{reward:+.1f}</small></span>'
        for text, reward in tokens
    ]
    return "".join(cells)


def _slider(name: str, slider: ipywidgets.Widget | list) -> ipywidgets.Widget:
    if not isinstance(slider, ipywidgets.Widget):
        slider = ipywidgets.SelectionSlider(options=slider, value=slider[len(slider) // 2], continuous_update=False)
    slider.description = slider.description or name.replace("_", " ")
    slider.style.description_width = "initial"
    slider.layout.width = "min(32em, 100%)"
    return slider
