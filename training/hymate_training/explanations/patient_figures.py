"""Figures of a page about one record: its prediction over time, and the values that it rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from hymate_training.evaluation.plots import BLUE, GREY, lettering
from hymate_training.explanations.attribution import Explanation
from hymate_training.explanations.figures import NARROW, SMALL, TEXT, TEXT_GREY, WIDE, dress, new_figure, spoken
from hymate_training.explanations.trajectory import Trajectory
from hymate_training.publishing.space.plots import LEAST_SHOWN, number_events

GRAYED = "#F0F1F3"
MOVERS_SHOWN = 6
TIMELINE_VARIABLES = 6
DAYS_FROM = 96  # hours from which on an axis counts days
HOURS = "hours since the record's start"


def trajectory_figure(
    trajectory: Trajectory,
    label: str,
    probability: bool,
    *,
    intervals: np.ndarray | None = None,
    base_rate: float | None = None,
    x: str = HOURS,
    narrow: bool = False,
) -> Figure:
    """One record: the prediction while events arrive, with its interval.

    Args:
        trajectory: of the one record. Where the model was not trained to answer, the figure is grayed and the line
            dashed. Numbers mark the events that moved the prediction most when they arrived.
        label: name of the output.
        probability: whether that is a probability.
        intervals: ends of an interval for each prediction, `(times, 2)`, NaN where there is none.
        base_rate: drawn as a line.
        x: what the axis of time is called.
        narrow: for a phone.
    """
    figure = new_figure(NARROW, 3.0) if narrow else new_figure(WIDE, 2.9)
    axes = figure.add_subplot()
    name = lettering(spoken(label))
    dress(axes, x=x, y=f"probability of\n{name}" if probability else f"predicted\n{name}")
    predictions = trajectory.predictions
    times, values = predictions["time"].to_numpy(), predictions["prediction"].to_numpy()
    trained = predictions["trained"].to_numpy()
    end = max(float(times.max()), 1.0)
    if intervals is not None:
        _draw_intervals(axes, times, values, trained, intervals)
    if not trained.all():
        _gray_untrained(axes, times, trained)
        axes.step(times, values, where="post", color=GREY, linewidth=1.2, linestyle="--")
    if base_rate is not None:
        axes.axhline(base_rate, color=TEXT_GREY, linewidth=1, linestyle=":")
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        text: dict[str, Any] = {"fontsize": SMALL, "color": TEXT_GREY, "va": "center"}
        axes.annotate("base\nrate", (1, base_rate), xytext=(4, 0), **place, **text)  # beside all that is drawn
    # a step belongs to the time at which it begins
    shown = np.where(trained | np.concatenate([[False], trained[:-1]]), values, np.nan)
    axes.step(times, shown, where="post", color=BLUE, linewidth=1.8)
    axes.plot(times[trained][-1:], values[trained][-1:], "o", color=BLUE, markersize=5)
    if probability:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        ends = values if intervals is None else np.concatenate([values, intervals[trained].ravel()])
        axes.set_ylim(0, min(1.05, max(LEAST_SHOWN, 1.25 * float(np.nanmax(ends)))))
    axes.set_xlim(0, end * 1.01)
    movers = shown_movers(trajectory)
    at = np.searchsorted(times, movers["time"].to_numpy() - 1e-6)
    number_events(axes, times[at], values[at], movers["change"].to_list(), TEXT)
    return figure


def risk_figure(
    curve: pl.DataFrame, observed: Mapping[float, tuple[float, Sequence[float] | None]], *, narrow: bool = False
) -> Figure:
    """One record: the risk by any time after the question, beside that of the validation records.

    Args:
        curve: as `risk_curve` returns it.
        observed: hours -> the risk that was observed by then, and the ends of its interval.
        narrow: for a phone.
    """
    figure = new_figure(NARROW, 3.0) if narrow else new_figure(WIDE, 2.9)
    axes = figure.add_subplot()
    last = float(curve["hours"].max())  # type: ignore[arg-type]
    per, unit = (24, "days") if last >= DAYS_FROM else (1, "hours")
    dress(axes, x=f"{unit} after the question", y="risk by then")
    axes.plot(curve["hours"] / per, curve["risk"], color=BLUE, linewidth=1.8, label="this record")
    if observed:
        hours = np.array(list(observed)) / per
        axes.plot(hours, [risk for risk, _ in observed.values()], "o:", color=GREY, markersize=4, label="observed")
        for at, (_, ends) in zip(hours, observed.values(), strict=True):
            if ends is not None:
                axes.vlines(at, ends[0], ends[1], color=GREY, linewidth=1)
        axes.legend(loc="upper left", fontsize=SMALL, frameon=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(0, last / per * 1.01)
    axes.set_ylim(0, max(LEAST_SHOWN, axes.get_ylim()[1]))
    return figure


def _draw_intervals(
    axes: Axes, times: np.ndarray, values: np.ndarray, trained: np.ndarray, intervals: np.ndarray
) -> None:
    low, high = np.where(trained[:, None], intervals, np.nan).T
    axes.fill_between(times, low, high, step="post", color=BLUE, alpha=0.15, linewidth=0)
    if trained.any() and np.isfinite(low[last := int(np.flatnonzero(trained)[-1])]):
        axes.vlines(times[last], low[last], high[last], color=BLUE, linewidth=4, alpha=0.4)


def _gray_untrained(axes: Axes, times: np.ndarray, trained: np.ndarray) -> None:
    ends = np.append(times[1:], times[-1])
    for start, end, is_trained in zip(times, ends, trained, strict=True):
        if not is_trained:
            axes.axvspan(start, end, color=GRAYED, linewidth=0, zorder=0)
    if not trained[0]:
        axes.axvspan(0, times[0], color=GRAYED, linewidth=0, zorder=0)


def shown_movers(trajectory: Trajectory) -> pl.DataFrame:
    """The events that are numbered: those that moved the prediction most, at times at which the model was trained.

    At the end of a record alone there is no earlier prediction that they could have moved.
    """
    trained = trajectory.predictions.filter("trained")["time"]
    if len(trained) < 2:
        return trajectory.movers.clear()
    times = trajectory.predictions["time"].to_numpy()
    arrived = times[np.searchsorted(times, trajectory.movers["time"].to_numpy() - 1e-6)]
    return trajectory.movers.filter(pl.Series(np.isin(arrived, trained.to_numpy()))).head(MOVERS_SHOWN)


def timeline_figure(
    explanation: Explanation, units: Mapping[str, str], *, x: str = HOURS, narrow: bool = False
) -> Figure:
    """One record: the values of its most important variables over time, events colored by their attribution."""
    events = explanation.events
    sizes = events.group_by("variable").agg(pl.col("attribution").abs().sum())
    names = sizes.sort("attribution", "variable", descending=[True, False])["variable"].head(TIMELINE_VARIABLES)
    limit = max(float(events["attribution"].abs().max()), 1e-12)  # type: ignore[arg-type]
    norm, cmap = TwoSlopeNorm(0, -limit, limit), colormaps["RdBu_r"]
    figure = new_figure(NARROW, 1.9 + 0.85 * len(names)) if narrow else new_figure(WIDE, 0.8 + 0.56 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=True):
        _draw_values(axes, events.filter(pl.col("variable") == name), cmap, norm, limit)
        title = [lettering(spoken(name)), lettering(units.get(name, ""))]
        if narrow:
            axes.set_title(" ".join(title).strip(), fontsize=SMALL, loc="left", pad=2)
        else:
            axes.set_ylabel("\n".join(title).strip(), rotation=0, ha="right", va="center", fontsize=SMALL)
    panels[-1].set_xlabel(x, fontsize=TEXT)
    panels[-1].set_xlim(0, max(float(events["time"].max()), 1.0) * 1.01)  # type: ignore[arg-type]
    side: dict[str, Any] = {"location": "bottom"} if narrow else {}
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=panels, aspect=25, **side)
    bar.set_ticks([-limit, 0, limit], labels=["lowers", "no effect", "raises"])
    bar.ax.tick_params(labelsize=SMALL, length=0)
    return figure


def _draw_values(axes: Axes, events: pl.DataFrame, cmap: Any, norm: Normalize, limit: float) -> None:
    dress(axes, grid="x")
    has_value = events["value"].is_not_null().any()
    values = events["value"].fill_null(0.0).to_numpy() if has_value else np.zeros(events.height)
    attributions = events["attribution"].to_numpy()
    axes.plot(events["time"], values, color="#C3C8CE", linewidth=1, zorder=1)
    axes.scatter(
        events["time"],
        values,
        c=attributions,
        cmap=cmap,
        norm=norm,
        s=14 + 50 * np.abs(attributions) / limit,
        edgecolors=TEXT_GREY,
        linewidths=0.5,
        zorder=2,
        clip_on=False,
    )
    axes.margins(y=0.25)
    axes.tick_params(labelsize=SMALL)
    axes.yaxis.set_major_locator(_two_ticks(values if has_value else ()))
    axes.spines["bottom"].set_visible(False)


def _two_ticks(values: Sequence[float] | np.ndarray) -> FixedLocator:
    return FixedLocator(sorted({float(np.min(values)), float(np.max(values))}) if len(values) else [])
