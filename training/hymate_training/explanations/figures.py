"""Figures of an explanation report; cohort figures hold aggregates only.

Built with matplotlib's object-oriented interface, as those of plots.py. Intervals are 95% bootstrap intervals over
records throughout.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from hymate_training.evaluation.plots import BLUE, COLORS, GREY, ORANGE, lettering
from hymate_training.explanations.attribution import METHODS, UNSIGNED, Explanation
from hymate_training.explanations.faithfulness import RANDOM
from hymate_training.explanations.trajectory import Trajectory

TEXT, SMALL = 10, 8.5
LINE = "#DADDE1"
TEXT_GREY = "#59636E"
METHOD_COLORS = {"attention": BLUE, "integrated_gradients": ORANGE, "occlusion": "#009E73", RANDOM: GREY}
METHOD_STYLES = {"attention": "-", "integrated_gradients": "--", "occlusion": "-.", RANDOM: ":"}
MARKERS = "oDs^vPX"
Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]  # means, lower and upper ends

MOVERS_SHOWN = 8
TIMELINE_VARIABLES = 14
MAP_VARIABLES = 40


def spoken(name: str) -> str:
    """A method's or variable's name without underscores."""
    return METHODS.get(name, name.replace("_", " "))


def capitalized(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _dress(axes: Axes, title: str = "", x: str = "", y: str = "", grid: str = "both"):
    axes.set_title(title, fontsize=TEXT + 1, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.tick_params(labelsize=TEXT, color=LINE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.grid(axis=grid, color="#ECEEF0", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def shares_figure(
    names: Sequence[str], panels: Mapping[str, Mapping[str, Estimate]], marked: Collection[str] = ()
) -> Figure:
    """Mean shares of variables with intervals: one panel per method, one color and marker per group.

    `panels`: method -> group -> means and ends of the intervals, `(len(names),)` each. `marked` names carry a diamond.
    """
    groups = list(next(iter(panels.values())))
    height = max(3.2, 0.9 + len(names) * (0.27 + 0.05 * (len(groups) - 1)) + 0.3 * (len(groups) > 1))
    figure = _figure(10.5, height)
    row = np.arange(len(names))
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (method, by_group) in zip(all_axes, panels.items(), strict=True):
        _dress(axes, capitalized(spoken(method)), x="mean share", grid="x")
        for at in row[1::2]:
            axes.axhspan(at - 0.5, at + 0.5, color="#F4F6F8", zorder=0)
        for index, (group, (mean, low, high)) in enumerate(by_group.items()):
            color = METHOD_COLORS[method] if len(groups) == 1 else COLORS[index % len(COLORS)]
            offset = min(0.2, 0.72 / len(groups)) * (index - (len(groups) - 1) / 2)
            if len(groups) == 1:
                axes.barh(row, mean, height=0.62, color=color, alpha=0.28)
            axes.errorbar(
                mean,
                row + offset,
                xerr=(np.maximum(mean - low, 0), np.maximum(high - mean, 0)),
                fmt=MARKERS[index % len(MARKERS)],
                color=color,
                markersize=4.5,
                elinewidth=1.4,
                label=lettering(spoken(group)),
            )
        axes.set_xlim(0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_yticks(row, [lettering(spoken(name)) + (" ◆" if name in marked else "") for name in names])
    all_axes[0].set_ylim(len(names) - 0.5, -0.5)
    if len(groups) > 1:
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(len(groups), 6), fontsize=TEXT, frameon=False
        )
    return figure


def curves_figure(summary: Mapping[str, Any], unit: str, scale: float) -> Figure:
    """Deletion and insertion curves, as `faithfulness.summarize_curves` gives them; `unit` of `scale` predictions."""
    figure = _figure(10.5, 4.2)
    axes_pair = figure.subplots(1, 2, sharey=True)
    for axes, kind, x in zip(
        axes_pair,
        ("deletion", "insertion"),
        ("events removed, most important first", "events handed over, most important first"),
        strict=True,
    ):
        _dress(
            axes,
            capitalized(kind),
            x=x,
            y=f"movement of the prediction\n({lettering(unit)})" if kind == "deletion" else "",
        )
        for name, found in summary[kind].items():
            curve = {key: scale * np.array(values) for key, values in found["curve"].items()}
            color = METHOD_COLORS[name]
            axes.fill_between(summary["fractions"], curve["low"], curve["high"], color=color, alpha=0.13, linewidth=0)
            axes.plot(
                summary["fractions"],
                curve["mean"],
                METHOD_STYLES[name],
                color=color,
                linewidth=2,
                label=spoken(name) if name != RANDOM else "random order",
            )
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(0, 1)
    handles, labels = axes_pair[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=TEXT, frameon=False)
    return figure


def hours_figure(starts: Sequence[float], width: float, by_method: Mapping[str, Estimate]) -> Figure:
    """Mean share of each window of hours, one line per method."""
    figure = _figure(10.5, 3.4)
    axes = figure.add_subplot()
    _dress(axes, x="hours since the record's start", y="mean share of the window")
    middle = np.array(starts) + width / 2
    for method, (mean, low, high) in by_method.items():
        color = METHOD_COLORS[method]
        axes.fill_between(middle, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(middle, mean, METHOD_STYLES[method], marker="o", markersize=4, color=color, label=spoken(method))
    axes.set_xlim(starts[0], starts[-1] + width)
    axes.set_xticks([*starts, starts[-1] + width][:: max(1, len(starts) // 12)])
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside upper center", fontsize=TEXT, frameon=False, ncols=len(by_method))
    return figure


def responses_figure(responses: pl.DataFrame, units: Mapping[str, str]) -> Figure:
    """Mean attribution of an event by its value, one panel per variable.

    `responses`: `variable`, `value` (median of the bin), `attribution`, `low`, `high`; one row per bin.
    """
    names = responses["variable"].unique(maintain_order=True).to_list()
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(10.5, 2.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        found = responses.filter(pl.col("variable") == name)
        value, mean = found["value"].to_numpy(), found["attribution"].to_numpy()
        _dress(axes, lettering(spoken(name)), x=lettering(units.get(name, "")))
        axes.axhline(0, color=GREY, linewidth=1)
        axes.fill_between(value, found["low"], found["high"], color=ORANGE, alpha=0.15, linewidth=0)
        axes.plot(value, mean, "o-", color=ORANGE, markersize=5)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supylabel("mean attribution of an event", fontsize=TEXT)
    return figure


def cluster_order(matrix: np.ndarray) -> np.ndarray:
    """Order that puts rows and columns of a square matrix together that look alike (average linkage)."""
    if len(matrix) < 3:
        return np.arange(len(matrix))
    profile = np.concatenate([matrix, matrix.T], axis=1)
    distances = np.sqrt(np.square(profile[:, None] - profile[None]).sum(-1))
    np.fill_diagonal(distances, 0)
    condensed = squareform(distances, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def attention_map_figure(attentions: pl.DataFrame) -> Figure:
    """Clustered heat map of `attribution.channel_attentions`: how much each variable attends to each other one."""
    seen = attentions.group_by("variable").agg(pl.col("records").max()).sort("records", "variable", descending=True)
    names = sorted(seen["variable"].head(MAP_VARIABLES))
    position = {name: index for index, name in enumerate(names)}
    shown = attentions.filter(pl.col("variable").is_in(names) & pl.col("attended").is_in(names))
    matrix = np.ones((len(names), len(names)))
    at = [position[name] for name in shown["variable"]], [position[name] for name in shown["attended"]]
    matrix[at] = shown["ratio"].to_numpy()
    order = cluster_order(matrix)
    labels = [lettering(spoken(names[index])) for index in order]
    side = 2.6 + 0.2 * len(names)
    figure = _figure(max(6.5, side + 1.6), max(5.0, side))
    axes = figure.add_subplot()
    logarithms = np.log2(np.maximum(matrix[np.ix_(order, order)], 1e-3))
    limit = max(0.5, float(np.quantile(np.abs(logarithms), 0.99)))
    image = axes.imshow(logarithms, cmap="PuOr_r", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=SMALL)
    axes.set_yticks(range(len(labels)), labels, fontsize=SMALL)
    axes.set_xlabel("is attended to", fontsize=TEXT)
    axes.set_ylabel("attends", fontsize=TEXT)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    ticks = np.arange(-np.floor(limit), np.floor(limit) + 1).tolist()
    bar.set_ticks(ticks, labels=[f"{2.0**tick:g}x" for tick in ticks])
    bar.set_label("times as much as an even spread", fontsize=TEXT)
    bar.outline.set_visible(False)
    return figure


def timeline_figure(explanation: Explanation, units: Mapping[str, str]) -> Figure:
    """One record: the values of its most important variables over time, events shaded by their attribution."""
    sizes = explanation.variables.with_columns(pl.col("attribution").abs())
    names = sizes.sort("attribution", "variable", descending=[True, False])["variable"].head(TIMELINE_VARIABLES)
    events = explanation.events
    limit = max(float(events["attribution"].abs().max()), 1e-12)  # type: ignore[arg-type]
    if explanation.method in UNSIGNED:
        norm: Normalize = Normalize(0, limit)
        cmap = colormaps["Blues"]
    else:
        norm, cmap = TwoSlopeNorm(0, -limit, limit), colormaps["RdBu_r"]
    figure = _figure(10.5, 0.9 + 0.72 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=True):
        found = events.filter(pl.col("variable") == name)
        _dress(axes, grid="x")
        has_value = found["value"].is_not_null().any()
        value = found["value"].fill_null(0.0).to_numpy() if has_value else np.zeros(found.height)
        attribution = found["attribution"].to_numpy()
        axes.plot(found["time"], value, color="#C3C8CE", linewidth=1, zorder=1)
        axes.scatter(
            found["time"],
            value,
            c=attribution,
            cmap=cmap,
            norm=norm,
            s=16 + 60 * np.abs(attribution) / limit,
            edgecolors=TEXT_GREY,
            linewidths=0.5,
            zorder=2,
            clip_on=False,
        )
        axes.set_ylabel(
            f"{lettering(spoken(name))}\n{lettering(units.get(name, ''))}".strip(),
            rotation=0,
            ha="right",
            va="center",
            fontsize=SMALL,
        )
        axes.margins(y=0.25)
        axes.tick_params(labelsize=SMALL)
        axes.yaxis.set_major_locator(_two_ticks(value) if has_value else _two_ticks(np.zeros(0)))
        axes.spines["bottom"].set_visible(False)
    panels[-1].set_xlabel("hours since the record's start", fontsize=TEXT)
    panels[-1].set_xlim(0, max(float(events["time"].max()), 1.0) * 1.01)  # type: ignore[arg-type]
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=panels, shrink=min(1.0, 3.2 / len(names) + 0.2), aspect=25)
    bar.set_label(
        "share of the attention"
        if explanation.method in UNSIGNED
        else f"attribution: raises (+), lowers (-) {lettering(spoken(explanation.label))}",
        fontsize=TEXT,
    )
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _two_ticks(values: np.ndarray) -> FixedLocator:
    return FixedLocator(sorted({float(values.min()), float(values.max())}) if len(values) else [])


def trajectory_figure(trajectory: Trajectory, label: str, probability: bool) -> Figure:
    """One record: the prediction while events arrive, gray and dashed where the model was not trained to answer, with
    numbers at the events that moved it most."""
    figure = _figure(10.5, 3.6)
    axes = figure.add_subplot()
    predictions = trajectory.predictions
    _dress(
        axes,
        x="hours since the record's start",
        y=f"predicted probability of\n{lettering(spoken(label))}"
        if probability
        else f"predicted {lettering(spoken(label))}",
    )
    times, values = predictions["time"].to_numpy(), predictions["prediction"].to_numpy()
    trained = predictions["trained"].to_numpy()
    if not trained.all():
        axes.step(times, values, where="post", color=GREY, linewidth=1.2, linestyle="--")
    # a step belongs to the time at which it begins
    shown = np.where(trained | np.concatenate([[False], trained[:-1]]), values, np.nan)
    axes.step(times, shown, where="post", color=BLUE, linewidth=1.8)
    axes.plot(times[trained][-1:], values[trained][-1:], "o", color=BLUE, markersize=4)
    placed: dict[float, int] = {}
    for number, mover in enumerate(trajectory.movers.head(MOVERS_SHOWN).iter_rows(named=True), start=1):
        at = int(np.searchsorted(times, mover["time"] - 1e-6))
        stacked = placed.get(at, 0)
        placed[at] = stacked + 1
        raises = mover["change"] > 0
        color = GREY if not trained[at] else ORANGE if raises else BLUE
        axes.plot(times[at], values[at], "o", color=color, markersize=5, zorder=3)
        axes.annotate(
            f"{number}{'▲' if raises else '▼'}",
            (times[at], values[at]),
            xytext=(0, 8 + 12 * stacked),
            textcoords="offset points",
            ha="center",
            fontsize=TEXT,
            color=TEXT_GREY if not trained[at] else "#9A3F00" if raises else "#004F80",
        )
    if probability:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        top = float(values.max())
        axes.set_ylim(0, min(1.05, max(0.1, 1.3 * top)))
    axes.set_xlim(0, max(float(times.max()), 1.0) * 1.01)
    return figure
