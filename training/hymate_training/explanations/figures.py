"""Figures of a report's cohort page, of aggregates only, and what all figures of a report have in common.

Built with matplotlib's object-oriented interface, as those of plots.py. Intervals are 95% bootstrap intervals over
records throughout. Each figure is drawn twice, for a page and for a phone: on a narrow one panels stand below each
other, so that its letters are as large as the text around it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from hymate_training.evaluation.plots import BLUE, COLORS, GREY, ORANGE, lettering
from hymate_training.explanations.attribution import METHODS
from hymate_training.explanations.faithfulness import RANDOM

TEXT, SMALL = 10, 8.5
LINE = "#DADDE1"
TEXT_GREY = "#59636E"
METHOD_COLORS = {"attention": BLUE, "integrated_gradients": ORANGE, "occlusion": "#009E73", RANDOM: GREY}
METHOD_STYLES = {"attention": "-", "integrated_gradients": "--", "occlusion": "-.", RANDOM: ":"}
MARKERS = "oDs^vPX"
Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]  # means, lower and upper ends

WIDE, NARROW = 10.5, 3.8  # inches
MAP_VARIABLES = {False: 40, True: 14}  # by whether the figure is narrow


def spoken(name: str) -> str:
    """A method's or variable's name without underscores."""
    return METHODS.get(name, name.replace("_", " "))


def capitalized(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def dress(axes: Axes, title: str = "", x: str = "", y: str = "", grid: str = "both") -> None:
    """Titles, labels, a quiet frame and a grid."""
    axes.set_title(title, fontsize=TEXT + 1, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.tick_params(labelsize=TEXT, color=LINE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.grid(axis=grid, color="#ECEEF0", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def shares_figure(
    names: Sequence[str],
    panels: Mapping[str, Mapping[str, Estimate]],
    marked: Collection[str] = (),
    *,
    narrow: bool = False,
) -> Figure:
    """Mean shares of variables with intervals: one panel per method, one color and marker per group.

    `panels`: method -> group -> means and ends of the intervals, `(len(names),)` each. `marked` names carry a diamond.
    """
    groups = list(next(iter(panels.values())))
    height = max(3.2, 0.9 + len(names) * (0.27 + 0.05 * (len(groups) - 1)) + 0.3 * (len(groups) > 1))
    row = np.arange(len(names))
    if narrow:
        figure = new_figure(NARROW, (height + 0.2) * len(panels))
        all_axes = np.atleast_1d(figure.subplots(len(panels), 1))
    else:
        figure = new_figure(WIDE, height)
        all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        for axes in all_axes[1:]:
            axes.yaxis.set_visible(False)  # that of the first, whose labels would be made in vain
    for axes, (method, by_group) in zip(all_axes, panels.items(), strict=True):
        dress(axes, capitalized(spoken(method)), x="mean share", grid="x")
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
        axes.set_ylim(len(names) - 0.5, -0.5)
    if len(groups) > 1:
        _legend(figure, all_axes[0], narrow)
    return figure


def _legend(figure: Figure, axes: Axes, narrow: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = max(1, (42 if narrow else 110) // (longest + 6))
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), columns), fontsize=TEXT, frameon=False
    )


def curves_figure(summary: Mapping[str, Any], unit: str, scale: float, *, narrow: bool = False) -> Figure:
    """Deletion and insertion curves, as `faithfulness.summarize_curves` gives them; `unit` of `scale` predictions."""
    figure = new_figure(NARROW, 7.2) if narrow else new_figure(WIDE, 4.2)
    axes_pair = figure.subplots(2, 1, sharey=True) if narrow else figure.subplots(1, 2, sharey=True)
    for axes, kind, x in zip(
        axes_pair,
        ("deletion", "insertion"),
        ("events removed, most important first", "events handed over, most important first"),
        strict=True,
    ):
        dress(
            axes,
            capitalized(kind),
            x=x,
            y=f"movement of the prediction\n({lettering(unit)})" if kind == "deletion" or narrow else "",
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
    _legend(figure, axes_pair[0], narrow)
    return figure


def hours_figure(
    starts: Sequence[float], width: float, by_method: Mapping[str, Estimate], *, narrow: bool = False
) -> Figure:
    """Mean share of each window of hours, one line per method."""
    figure = new_figure(NARROW, 3.6) if narrow else new_figure(WIDE, 3.4)
    axes = figure.add_subplot()
    dress(axes, x="hours since the record's start", y="mean share of the window")
    middle = np.array(starts) + width / 2
    for method, (mean, low, high) in by_method.items():
        color = METHOD_COLORS[method]
        axes.fill_between(middle, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(middle, mean, METHOD_STYLES[method], marker="o", markersize=4, color=color, label=spoken(method))
    axes.set_xlim(starts[0], starts[-1] + width)
    axes.set_xticks([*starts, starts[-1] + width][:: max(1, len(starts) // (4 if narrow else 12))])
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, axes, narrow)
    return figure


def responses_figure(responses: pl.DataFrame, units: Mapping[str, str], *, narrow: bool = False) -> Figure:
    """Mean attribution of an event by its value, one panel per variable.

    `responses`: `variable`, `value` (median of the bin), `attribution`, `low`, `high`; one row per bin.
    """
    names = responses["variable"].unique(maintain_order=True).to_list()
    columns = 1 if narrow else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(NARROW if narrow else WIDE, (2.3 if narrow else 2.7) * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        found = responses.filter(pl.col("variable") == name)
        value, mean = found["value"].to_numpy(), found["attribution"].to_numpy()
        dress(axes, lettering(spoken(name)), x=lettering(units.get(name, "")))
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


def attention_map_figure(attentions: pl.DataFrame, *, narrow: bool = False) -> Figure:
    """Clustered heat map of `attribution.channel_attentions`: how much each variable attends to each other one, of
    those that most records hold."""
    seen = attentions.group_by("variable").agg(pl.col("records").max()).sort("records", "variable", descending=True)
    names = sorted(seen["variable"].head(MAP_VARIABLES[narrow]))
    position = {name: index for index, name in enumerate(names)}
    shown = attentions.filter(pl.col("variable").is_in(names) & pl.col("attended").is_in(names))
    matrix = np.ones((len(names), len(names)))
    at = [position[name] for name in shown["variable"]], [position[name] for name in shown["attended"]]
    matrix[at] = shown["ratio"].to_numpy()
    order = cluster_order(matrix)
    labels = [lettering(spoken(names[index])) for index in order]
    side = 2.6 + 0.2 * len(names)
    figure = new_figure(NARROW, 4.8) if narrow else new_figure(max(6.5, side + 1.6), max(5.0, side))
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
    bar = figure.colorbar(image, ax=axes, **({"location": "bottom", "aspect": 30} if narrow else {"shrink": 0.7}))
    ticks = np.arange(-np.floor(limit), np.floor(limit) + 1).tolist()
    bar.set_ticks(ticks, labels=[f"{2.0**tick:g}x" for tick in ticks])
    bar.set_label("times as much as an even spread", fontsize=TEXT)
    bar.outline.set_visible(False)
    return figure
