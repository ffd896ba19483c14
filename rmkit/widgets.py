"""Figures with something to drag."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import ipywidgets
from matplotlib.figure import Figure


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
        return {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.box.model_id,
            },
            "image/png": base64.b64encode(self.image.value).decode(),
            "text/plain": f"<figure with sliders: {', '.join(self.sliders)}>",
        }


def _slider(name: str, slider: ipywidgets.Widget | list) -> ipywidgets.Widget:
    if not isinstance(slider, ipywidgets.Widget):
        slider = ipywidgets.SelectionSlider(options=slider, value=slider[len(slider) // 2], continuous_update=False)
    slider.description = slider.description or name.replace("_", " ")
    slider.style.description_width = "initial"
    slider.layout.width = "min(32em, 100%)"
    return slider
