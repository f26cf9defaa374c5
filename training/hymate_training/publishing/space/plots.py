"""What plots of an answer over time have in common: that of a Space and that of `hymate explain`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke

RAISES, LOWERS = "#D55E00", "#0072B2"
LETTERS = {RAISES: "#9A3F00", LOWERS: "#004F80"}  # dark enough for letters
LEAST_SHOWN = 0.02  # where the axis of a probability ends at least
WIDTH, HEIGHT, ABOVE = 22, 12, 8  # points


def number_events(axes: Axes, times: np.ndarray, answers: np.ndarray, changes: Sequence[float], size: float) -> None:
    """Marks events by dots, with numbers from 1 on and an arrow each. The limits of the axes must be set.

    Args:
        axes: of the plot.
        times: at which they arrived, `(events,)`.
        answers: at these times, `(events,)`.
        changes: by how much each moved it, `(events,)`.
        size: of the letters.
    """
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # so that it is known where things are
    points = axes.transData.transform(np.column_stack([times, answers])) * 72 / axes.figure.dpi
    heights = raised(points)
    for number, (time, answer, change, height) in enumerate(zip(times, answers, changes, heights, strict=True), 1):
        color = RAISES if change > 0 else LOWERS
        axes.plot(time, answer, "o", color=color, markersize=5, zorder=3)
        axes.annotate(
            f"{number}{'▲' if change > 0 else '▼'}",
            (time, answer),
            xytext=(0, height),
            textcoords="offset points",
            ha="center",
            fontsize=size,
            color=LETTERS[color],
            path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],
        )


def raised(points: np.ndarray) -> list[float]:
    """How far above its point each number stands, so that none covers another; `(n, 2)`, all in points.

    Those that come first stand lowest.
    """
    placed: list[tuple[float, float]] = []
    for x, y in points.tolist():
        height = y + ABOVE
        for other in sorted(other for at, other in placed if abs(at - x) < WIDTH):
            if abs(other - height) < HEIGHT:
                height = other + HEIGHT
        placed.append((x, height))
    return [height - y for (_, y), (_, height) in zip(points.tolist(), placed, strict=True)]
