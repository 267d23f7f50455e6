"""Placing a label beside a point of a panel, clear of the other points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

Point = tuple[float, float]

#: Directions to try, the most usual first: right below, right above, left below, left above, below, above.
_DIRECTIONS = ((1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))

#: Distances to try, in points of 1/72 inch.
_DISTANCES = (14, 26, 42, 60)

#: Room around the text: the size of a marker, in pixels of the figure.
_CLEARANCE = 8


def place_label(ax: Axes, taken: Sequence[Point], at: Point, text: str, color: str) -> None:
    """Writes ``text`` near ``at`` where it covers the least and stays inside the panel.

    The layout of the figure must be final: widths are measured on it.

    Args:
        ax: The panel.
        taken: What should not be covered: markers, and points along lines; in data coordinates.
        at: The point to label, in data coordinates.
        text: The label.
        color: Of the line to the point.
    """
    from matplotlib.text import Text

    panel = ax.get_window_extent()
    places = np.asarray(ax.transData.transform(np.asarray(taken, dtype=np.float64)))
    best: Annotation | None = None
    least = float("inf")
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            label = ax.annotate(
                text,
                at,
                xytext=(right * distance, up * distance),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[right],
                va={1: "bottom", -1: "top"}[up],
                fontsize=8,
                color="#2B2B2B",
                linespacing=1.25,
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.9, "shrinkA": 1, "shrinkB": 6},
                zorder=6,
            )
            label.set_in_layout(False)
            label.get_window_extent()  # moves the text to its place; the box with the line is of no use
            box = Text.get_window_extent(label).padded(_CLEARANCE)
            outside = box.x0 < panel.x0 or box.x1 > panel.x1 or box.y0 < panel.y0 or box.y1 > panel.y1
            covered = (
                (places[:, 0] > box.x0) & (places[:, 0] < box.x1) & (places[:, 1] > box.y0) & (places[:, 1] < box.y1)
            )
            cost = 100.0 * outside + float(covered.sum()) + 0.01 * distance
            if cost < least:
                if best is not None:
                    best.remove()
                best, least = label, cost
            else:
                label.remove()
