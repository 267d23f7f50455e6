"""Placing a label beside a point of a panel, clear of what is drawn there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]

#: Directions to try, the most usual first: right below, right above, left below, left above, below, above.
_DIRECTIONS = ((1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))

#: Distances to try, in points of 1/72 inch.
_DISTANCES = (14, 26, 42, 60)

#: Room around the text: the size of a marker, in points of 1/72 inch.
_CLEARANCE = 6.0


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
    label = ax.annotate(
        text,
        at,
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=8,
        color="#2B2B2B",
        linespacing=1.25,
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.9, "shrinkA": 1, "shrinkB": 6},
        zorder=6,
    )
    label.set_in_layout(False)
    extent = label.get_window_extent()  # the line has no length yet, so this is the text
    direction, distance = _best_place(ax, np.asarray(taken, dtype=np.float64), at, extent.width, extent.height)
    label.set(
        ha={1: "left", 0: "center", -1: "right"}[direction[0]],
        va={1: "bottom", -1: "top"}[direction[1]],
        position=(direction[0] * distance, direction[1] * distance),
    )


def _best_place(
    ax: Axes, taken: np.typing.NDArray[np.float64], at: Point, width: float, height: float
) -> tuple[tuple[int, int], float]:
    """Direction and distance (points) of the place with the fewest of ``taken`` in it.

    Args:
        ax: The panel.
        taken: Data coordinates ``[n, 2]``.
        at: Data coordinates.
        width: Of the text, pixels.
        height: Of the text, pixels.
    """
    pixels = ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    panel = ax.get_window_extent()
    places = np.asarray(ax.transData.transform(taken))
    x, y = ax.transData.transform(at)
    room = _CLEARANCE * pixels
    best, least = (_DIRECTIONS[0], float(_DISTANCES[0])), float("inf")
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            left = x + right * distance * pixels - width * (0.5 - 0.5 * right)
            bottom = y + up * distance * pixels - height * (0.5 - 0.5 * up)
            low, high = np.array([left, bottom]) - room, np.array([left + width, bottom + height]) + room
            outside = (low < [panel.x0, panel.y0]).any() or (high > [panel.x1, panel.y1]).any()
            covered = ((places > low) & (places < high)).all(axis=1).sum()
            cost = 100.0 * bool(outside) + float(covered) + 0.01 * distance
            if cost < least:
                best, least = ((right, up), float(distance)), cost
    return best
