"""The pictures of a report's cohort page: each a figure with its text and its numbers as a table."""

import base64
import contextlib
import gc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.explanations import figures
from hymate_training.explanations.attribution import Explanation
from hymate_training.explanations.cohort import Cohort
from hymate_training.explanations.faithfulness import (
    RANDOM,
    mean_with_interval,
    means_with_intervals,
    variable_shares,
)
from hymate_training.explanations.figures import capitalized, spoken
from hymate_training.explanations.markup import percent, table_html

SHOWN_VARIABLES = 15
GROUPED_VARIABLES = 8
RESPONSE_VARIABLES = 6
RESPONSE_BINS = 6


@dataclass(frozen=True)
class Picture:
    """A figure, its text for those who do not see it, and its numbers: the first row is the head.

    `draw` makes the figure, with `narrow=True` for a phone.
    """

    name: str
    draw: Callable[..., Figure]
    text: str
    table: list[tuple]

    def html(self) -> Markup:
        """The HTML that shows the figure, drawn for wide and for narrow screens, and holds its numbers."""
        with collection_paused():
            return self._shown(self._drawn(self.draw(narrow=False), "svg"))

    def save(self, folder: Path) -> Markup:
        """Writes `{name}.png` and `{name}.svg` into `folder`; returns the HTML that shows the figure."""
        with collection_paused():
            figure = self.draw(narrow=False)
            drawn = {kind: self._drawn(figure, kind) for kind in ("svg", "png")}
            for kind, content in drawn.items():
                (folder / f"{self.name}.{kind}").write_bytes(content)
            return self._shown(drawn["svg"])

    def _shown(self, wide: bytes) -> Markup:
        narrow = self._drawn(self.draw(narrow=True), "svg")
        shown = (("wide", wide), ("narrow", narrow))
        images = [
            Markup('<img class="{}" src="{}" alt="{}">').format(name, _address(svg), self.text) for name, svg in shown
        ]
        table = table_html(self.table, "The figure's numbers", folded=True)
        return Markup("<figure>\n{}\n{}\n</figure>").format(Markup("\n").join(images), table)

    def _drawn(self, figure: Figure, kind: str) -> bytes:
        drawn = io.BytesIO()
        # without dates and random identifiers, so that the same numbers give the same files
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        with rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            if (engine := figure.get_layout_engine()) is not None:
                engine.execute(figure)  # once, not once per file
                figure.set_layout_engine(None)
            figure.savefig(drawn, format=kind, dpi=150, metadata=metadata)
        return drawn.getvalue()


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """For the while, no search for unused objects: a figure makes very many, and each search goes through those of all
    libraries that are loaded, too."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


# -------------------------------------------------------------------------------------------------------- cohort page


def cohort_pictures(
    cohort: Cohort,
    variables: Sequence[str],
    explanations: Mapping[str, Explanation],
    assessment: Mapping[str, Any],
    attentions: pl.DataFrame | None,
    seed: int,
) -> dict[str, Picture]:
    """The pictures of the cohort page by name; `attentions` as `attribution.channel_attentions` returns them."""
    shares = {method: variable_shares(explanation, variables) for method, explanation in explanations.items()}
    average = np.mean([found.mean(0) for found in shares.values()], axis=0)
    top = [index for index in np.argsort(-average, kind="stable")[:SHOWN_VARIABLES] if average[index] > 0]

    def estimates(rows: np.ndarray, columns: Sequence[int]) -> dict[str, figures.Estimate]:
        return {method: means_with_intervals(found[rows][:, columns], seed) for method, found in shares.items()}

    everyone = estimates(np.arange(len(cohort)), top)
    pictures: list[Picture | None] = [
        _variables_picture([variables[index] for index in top], everyone, cohort.drivers)
    ]
    groupings = {"outcome": cohort.outcomes, **cohort.subgroups}
    pictures += [
        _grouped_picture(column, groups, variables, top[:GROUPED_VARIABLES], estimates)
        for column, groups in groupings.items()
        if groups is not None
    ]
    pictures.append(_hours_picture(explanations, seed))
    if "integrated_gradients" in explanations:
        ranked = np.argsort(-shares["integrated_gradients"].mean(0), kind="stable")
        chosen = [variables[index] for index in ranked[: 3 * RESPONSE_VARIABLES]]
        responses = value_responses(explanations["integrated_gradients"], chosen, seed)
        pictures.append(_responses_picture(responses, cohort.units) if responses.height else None)
    pictures.append(_curves_picture(assessment))
    pictures.append(None if attentions is None else _map_picture(attentions))
    return {picture.name: picture for picture in pictures if picture is not None}


def _variables_picture(
    names: Sequence[str], everyone: Mapping[str, figures.Estimate], drivers: Sequence[str]
) -> Picture:
    return Picture(
        "variables",
        partial(figures.shares_figure, names, {method: {"all": found} for method, found in everyone.items()}, drivers),
        f"Mean share of the {len(names)} variables with the largest shares, by method. "
        + " ".join(
            f"{capitalized(spoken(method))}: "
            + ", ".join(f"{spoken(names[at])} {mean[at]:.1%}" for at in np.argsort(-mean, kind="stable")[:4])
            + "."
            for method, (mean, _, _) in everyone.items()
        ),
        [
            ("variable", *(f"{capitalized(spoken(method))}: mean share [95% interval]" for method in everyone)),
            *(
                (spoken(name), *(percent(*(end[at] for end in found)) for found in everyone.values()))
                for at, name in enumerate(names)
            ),
        ],
    )


def _grouped_picture(
    column: str,
    groups: np.ndarray,
    variables: Sequence[str],
    shown: Sequence[int],
    estimates: Callable[[np.ndarray, Sequence[int]], dict[str, figures.Estimate]],
) -> Picture | None:
    """Shares of the variables at the positions `shown` by group; None unless two groups are large enough."""
    groups = groups.astype(str)
    kept = {name: np.flatnonzero(groups == name) for name in sorted(set(groups))}
    kept = {name: rows for name, rows in kept.items() if len(rows) >= SMALLEST_GROUP}
    if len(kept) < 2:
        return None
    names = [variables[index] for index in shown]
    found = {f"{name} ({len(rows)})": estimates(rows, shown) for name, rows in kept.items()}
    methods = next(iter(found.values())).keys()
    panels = {method: {group: by_method[method] for group, by_method in found.items()} for method in methods}
    return Picture(
        f"by_{''.join(letter if letter.isalnum() else '_' for letter in column)}",
        partial(figures.shares_figure, names, panels),
        f"Mean shares of the {len(names)} leading variables by {spoken(column)} ({', '.join(found)} records), one "
        "panel per method. The table below holds every number.",
        [
            ("variable", "method", *(f"{group}: mean share [95% interval]" for group in found)),
            *(
                (spoken(name), spoken(method), *(percent(*(end[at] for end in by)) for by in panels[method].values()))
                for at, name in enumerate(names)
                for method in methods
            ),
        ],
    )


def _hours_picture(explanations: Mapping[str, Explanation], seed: int) -> Picture:
    width = max(float(explanation.hours["hours"].max()) for explanation in explanations.values())  # type: ignore[arg-type]
    found, starts = {}, np.zeros(0)
    for method, explanation in explanations.items():
        binned = (
            explanation.hours.with_columns(
                hour=(pl.col("hour") / width).floor() * width, attribution=pl.col("attribution").abs()
            )
            .group_by("record_id", "hour")
            .agg(pl.col("attribution").sum())
        )
        counts = binned.group_by("hour").len().filter(pl.col("len") >= SMALLEST_GROUP).sort("hour")
        starts = counts["hour"].to_numpy()
        row = {record_id: index for index, record_id in enumerate(explanation.records["record_id"])}
        column = {hour: index for index, hour in enumerate(starts)}
        binned = binned.filter(pl.col("hour").is_in(starts.tolist()))
        shares = np.zeros((len(row), len(starts)))
        at = [row[record_id] for record_id in binned["record_id"]], [column[hour] for hour in binned["hour"]]
        shares[at] = binned["attribution"].to_numpy()
        shares /= np.maximum(shares.sum(1, keepdims=True), np.finfo(float).tiny)
        found[method] = means_with_intervals(shares, seed)
    return Picture(
        "hours",
        partial(figures.hours_figure, starts.tolist(), width, found),
        f"Mean share of each {width:g} hours of the record, one line per method. "
        + " ".join(
            f"{capitalized(spoken(method))} is largest from hour {starts[int(mean.argmax())]:g} on ({mean.max():.1%})."
            for method, (mean, _, _) in found.items()
        ),
        [
            ("hours", *(f"{capitalized(spoken(method))}: mean share [95% interval]" for method in found)),
            *(
                (f"{start:g} to {start + width:g}", *(percent(*(end[at] for end in ends)) for ends in found.values()))
                for at, start in enumerate(starts)
            ),
        ],
    )


def value_responses(explanation: Explanation, names: Sequence[str], seed: int) -> pl.DataFrame:
    """Mean attribution of an event by its value, in bins of equal numbers of events; first over each record.

    Returns:
        `variable`, `value` (median of the bin), `records`, `attribution`, `low`, `high`, for the first
        `RESPONSE_VARIABLES` of `names` that have two bins with `SMALLEST_GROUP` records.
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        found = explanation.events.filter((pl.col("variable") == name) & pl.col("value").is_not_null())
        if len({row["variable"] for row in rows}) == RESPONSE_VARIABLES or not found.height:
            continue
        edges = np.unique(np.quantile(found["value"], np.linspace(0, 1, RESPONSE_BINS + 1)[1:-1]))
        bins = np.searchsorted(edges, found["value"].to_numpy(), side="right")
        of_name = []
        for index in range(len(edges) + 1):
            events = found.filter(pl.Series(bins == index))
            means = events.group_by("record_id", maintain_order=True).agg(pl.col("attribution").mean())
            if means.height >= SMALLEST_GROUP:
                result = mean_with_interval(means["attribution"].to_numpy(), seed)
                low, high = result["interval"]
                of_name.append(
                    {
                        "variable": name,
                        "value": float(events["value"].median()),  # type: ignore[arg-type]
                        "records": means.height,
                        "attribution": result["mean"],
                        "low": low,
                        "high": high,
                    }
                )
        rows += of_name if len(of_name) > 1 else []
    return pl.DataFrame(rows)


def _responses_picture(responses: pl.DataFrame, units: Mapping[str, str]) -> Picture:
    trends = []
    for (name,), found in responses.group_by("variable", maintain_order=True):
        direction = "rises" if found["attribution"][-1] > found["attribution"][0] else "falls"
        trends.append(f"{spoken(str(name))} {direction}")
    return Picture(
        "responses",
        partial(figures.responses_figure, responses, units),
        "Mean attribution of an event by integrated gradients against its value, one panel per variable. From the "
        f"lowest to the highest values the attribution of {', '.join(trends)}.",
        [
            ("variable", "value (median of the bin)", "records", "mean attribution [95% interval]"),
            *(
                (
                    f"{spoken(row['variable'])} {units.get(row['variable'], '')}".strip(),
                    row["value"],
                    row["records"],
                    f"{row['attribution']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]",
                )
                for row in responses.iter_rows(named=True)
            ),
        ],
    )


def _curves_picture(assessment: Mapping[str, Any]) -> Picture:
    summary, unit, scale = assessment["perturbation"], assessment["unit"], assessment["scale"]
    parts = []
    for kind in ("deletion", "insertion"):
        areas = (
            f"{spoken(name) if name != RANDOM else 'random order'} {scale * found['area']['mean']:.2f}"
            for name, found in summary[kind].items()
        )
        parts.append(f"Area under the {kind} curve, {unit}: {', '.join(areas)}.")
    return Picture(
        "curves",
        partial(figures.curves_figure, summary, unit, scale),
        "Deletion and insertion curves of each method against a random order. " + " ".join(parts),
        [
            ("events", "test", *(spoken(name) if name != RANDOM else "random order" for name in summary["deletion"])),
            *(
                (
                    f"{fraction:.0%}",
                    kind,
                    *(
                        f"{scale * c['mean'][at]:.2f} [{scale * c['low'][at]:.2f}, {scale * c['high'][at]:.2f}]"
                        for c in (found["curve"] for found in summary[kind].values())
                    ),
                )
                for kind in ("deletion", "insertion")
                for at, fraction in enumerate(summary["fractions"])
            ),
        ],
    )


def _map_picture(attentions: pl.DataFrame) -> Picture | None:
    shown = attentions.filter(pl.col("records") >= SMALLEST_GROUP)
    if shown.height < 2:
        return None
    strongest = shown.filter(pl.col("variable") != pl.col("attended")).sort(
        pl.col("ratio"), "variable", "attended", descending=[True, False, False]
    )
    return Picture(
        "attention_map",
        partial(figures.attention_map_figure, shown),
        "Heat map of the self-attention between variables, as multiples of an even spread, clustered. Strongest: "
        + ", ".join(
            f"{spoken(row['variable'])} to {spoken(row['attended'])} ({row['ratio']:.1f} times)"
            for row in strongest.head(5).iter_rows(named=True)
        )
        + ".",
        [
            ("attends", "is attended to", "times an even spread", "records"),
            *(
                (spoken(row["variable"]), spoken(row["attended"]), f"{row['ratio']:.2f}", row["records"])
                for row in strongest.head(60).iter_rows(named=True)
            ),
        ],
    )
