"""The pages of an explanation report: self-contained HTML, each figure with its text and its numbers as a table."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from hymate_training.explanations import figures
from hymate_training.explanations.attribution import Explanation, Trajectory
from hymate_training.explanations.faithfulness import (
    RANDOM,
    against_random,
    mean_with_interval,
    means_with_intervals,
    variable_shares,
)
from hymate_training.explanations.figures import MOVERS_SHOWN, TIMELINE_VARIABLES, capitalized, spoken
from hymate_training.publishing.cards import SMALLEST_GROUP
from modeling_hymate import Events

SHOWN_VARIABLES = 15
GROUPED_VARIABLES = 8
RESPONSE_VARIABLES = 6
RESPONSE_BINS = 6


@dataclass(frozen=True)
class Cohort:
    """The records that are explained, and what is known of them.

    Attributes:
        events: up to each record's prediction time, one prediction a record.
        title: data set and task, as the heading names them.
        outcomes: outcome of each record by name, `(records,)`; None where it is not known.
        subgroups: column -> subgroup of each record, `(records,)`.
        units: variable -> unit.
        drivers: variables that drive the outcome, where it was simulated.
        account: what the report says of the data: `source`, `task`, `split`, and the like.
    """

    events: Events
    title: str
    outcomes: np.ndarray | None = None
    subgroups: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    drivers: tuple[str, ...] = ()
    account: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A figure, its text for those who do not see it, and its numbers: the first row is the head."""

    name: str
    figure: Figure
    text: str
    table: list[tuple]

    def save(self, folder: Path) -> Markup:
        """Writes `{name}.png` and `{name}.svg` into `folder`; returns the HTML that shows the figure."""
        # without dates and random identifiers, so that the same figures give the same files
        with rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            if (engine := self.figure.get_layout_engine()) is not None:
                engine.execute(self.figure)  # once, not once a file
                self.figure.set_layout_engine("none")
            drawn = io.BytesIO()
            self.figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        self.figure.savefig(folder / f"{self.name}.png", dpi=150, metadata={"Software": None})
        (folder / f"{self.name}.svg").write_bytes(drawn.getvalue())
        source = f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"
        return Markup('<figure>\n<img src="{}" alt="{}">\n{}\n</figure>').format(
            source, self.text, table_html(self.table, "The figure's numbers", folded=True)
        )


def table_html(rows: Sequence[tuple], caption: str, folded: bool = False) -> Markup:
    """A table that can be reached and scrolled by keyboard; numbers stand to the right."""
    head = "".join(f'<th scope="col">{html.escape(str(cell))}</th>' for cell in rows[0])
    body = []
    for row in rows[1:]:
        first = f'<th scope="row">{html.escape(str(row[0]))}</th>'
        cells = "".join(f"<td{_alignment(cell)}>{html.escape(_shown(cell))}</td>" for cell in row[1:])
        body.append(f"<tr>{first}{cells}</tr>")
    caption = html.escape(caption)
    table = (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    if folded:
        table = f"<details><summary>{caption} as a table</summary>{table}</details>"
    return Markup(table)  # every cell was escaped above


def _alignment(cell: Any) -> str:
    return "" if isinstance(cell, str) and not cell[:1].isdigit() and cell[:1] not in "+-" else ' class="number"'


def _shown(cell: Any) -> str:
    if cell is None:
        return "none"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def percent(mean: float, low: float | None = None, high: float | None = None) -> str:
    """A share, with its interval where one is given."""
    return f"{mean:.1%}" if low is None or high is None else f"{mean:.1%} [{low:.1%}, {high:.1%}]"


def estimate(found: Mapping[str, Any], scale: float = 1.0, digits: int = 2, sign: bool = False) -> str:
    """`mean_with_interval` as text."""
    if found["mean"] is None:
        return "not defined"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    text = form.format(scale * found["mean"])
    if found["interval"] is None:
        return text
    return f"{text} [{', '.join(form.format(scale * end) for end in found['interval'])}]"


# -------------------------------------------------------------------------------------------------------- cohort page


def cohort_pictures(
    cohort: Cohort,
    variables: Sequence[str],
    explanations: Mapping[str, Explanation],
    assessment: Mapping[str, Any],
    attentions: pl.DataFrame | None,
    seed: int,
) -> dict[str, Picture]:
    """The figures of the cohort page by name; `attentions` as `attribution.channel_attentions` returns them."""
    shares = {method: variable_shares(explanation, variables) for method, explanation in explanations.items()}
    average = np.mean([found.mean(0) for found in shares.values()], axis=0)
    top = [index for index in np.argsort(-average, kind="stable")[:SHOWN_VARIABLES] if average[index] > 0]

    def estimates(rows: np.ndarray, columns: Sequence[int]) -> dict[str, figures.Estimate]:
        return {method: means_with_intervals(found[rows][:, columns], seed) for method, found in shares.items()}

    everyone = estimates(np.arange(len(cohort.events)), top)
    names = [variables[index] for index in top]
    pictures = [
        Picture(
            "variables",
            figures.shares_figure(
                names, {method: {"all": found} for method, found in everyone.items()}, cohort.drivers
            ),
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
    ]
    groupings = {"outcome": cohort.outcomes, **cohort.subgroups}
    for column, groups in groupings.items():
        picture = None if groups is None else _grouped_picture(column, groups, variables, top, estimates)
        if picture is not None:
            pictures.append(picture)
    pictures.append(_hours_picture(explanations, seed))
    if "integrated_gradients" in explanations:
        ranked = np.argsort(-shares["integrated_gradients"].mean(0), kind="stable")
        chosen = [variables[index] for index in ranked[: 3 * RESPONSE_VARIABLES]]
        responses = value_responses(explanations["integrated_gradients"], chosen, seed)
        if responses.height:
            pictures.append(_responses_picture(responses, cohort.units))
    pictures.append(_curves_picture(assessment))
    if attentions is not None and (picture := _map_picture(attentions)) is not None:
        pictures.append(picture)
    return {picture.name: picture for picture in pictures}


def _grouped_picture(column: str, groups: np.ndarray, variables, top, estimates) -> Picture | None:
    groups = groups.astype(str)
    kept = {name: np.flatnonzero(groups == name) for name in sorted(set(groups))}
    kept = {name: rows for name, rows in kept.items() if len(rows) >= SMALLEST_GROUP}
    if len(kept) < 2:
        return None
    shown = top[:GROUPED_VARIABLES]
    names = [variables[index] for index in shown]
    found = {f"{name} ({len(rows)})": estimates(rows, shown) for name, rows in kept.items()}
    methods = next(iter(found.values())).keys()
    panels = {method: {group: by_method[method] for group, by_method in found.items()} for method in methods}
    return Picture(
        f"by_{''.join(letter if letter.isalnum() else '_' for letter in column)}",
        figures.shares_figure(names, panels),
        f"Mean shares of the {len(names)} leading variables by {spoken(column)} ({', '.join(found)} records), a panel "
        "a method. The table below holds every number.",
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
        figures.hours_figure(starts.tolist(), width, found),
        f"Mean share of each {width:g} hours of the record, a line a method. "
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
        figures.responses_figure(responses, units),
        "Mean attribution of an event by integrated gradients against its value, a panel a variable. From the lowest "
        f"to the highest values the attribution of {', '.join(trends)}.",
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
        figures.curves_figure(summary, unit, scale),
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
        figures.attention_map_figure(shown),
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


def findings(assessment: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the deletion and insertion tests say of each method, in words: `method`, `verdict`, `ranking`, `areas`."""
    summary, scale = assessment["perturbation"], assessment["scale"]
    words = []
    for method in assessment["verdicts"]:
        outcomes = {kind: against_random(summary, method, kind) for kind in ("deletion", "insertion")}
        if len(set(outcomes.values())) == 1:
            ranking = f"ranks events {outcomes['deletion']} than a random order in both tests"
        else:
            ranking = (
                f"ranks events {outcomes['deletion']} than a random order in the deletion test, "
                f"{outcomes['insertion']} in the insertion test"
            )
        deletion, insertion = (
            estimate(summary[kind][method]["over_random"], scale, sign=True) for kind in ("deletion", "insertion")
        )
        words.append(
            {
                "method": capitalized(spoken(method)),
                "verdict": assessment["verdicts"][method],
                "ranking": ranking,
                "areas": f"Area over that of a random order, {assessment['unit']}: {deletion} for deletion, "
                f"{insertion} for insertion (95% intervals).",
            }
        )
    return words


def cohort_tables(assessment: Mapping[str, Any]) -> dict[str, Markup]:
    """The tables of the faithfulness figures."""
    summary, scale = assessment["perturbation"], assessment["scale"]
    areas: list[tuple] = [("order", "deletion", "over random", "insertion", "over random")]
    for name in summary["deletion"]:
        row = [capitalized(spoken(name)) if name != RANDOM else "Random"]
        for kind in ("deletion", "insertion"):
            found = summary[kind][name]
            row += [estimate(found["area"], scale)]
            row += ["" if name == RANDOM else estimate(found["over_random"], scale, sign=True)]
        areas.append(tuple(row))
    tables = {
        "areas": table_html(areas, f"Areas under the curves, {assessment['unit']} [95% interval]"),
        "agreement": table_html(
            [
                ("methods", "events", "variables"),
                *(
                    (
                        " and ".join(spoken(method) for method in pair["methods"]),
                        estimate(pair["events"]),
                        estimate(pair["variables"]),
                    )
                    for pair in assessment["agreement"]
                ),
            ],
            "Rank correlation between methods [95% interval]",
        ),
        "randomized": table_html(
            [
                ("method", "events", "variables"),
                *(
                    (capitalized(spoken(method)), estimate(found["events"]), estimate(found["variables"]))
                    for method, found in assessment["randomized_weights"].items()
                ),
            ],
            "Rank correlation with the explanations of a model with random weights [95% interval]",
        ),
    }
    if assessment["drivers"]:
        chance = next(iter(assessment["drivers"].values()))["precision_by_chance"]
        k = next(iter(assessment["drivers"].values()))["k"]
        tables["drivers"] = table_html(
            [
                (
                    "method",
                    "places of the drivers",
                    f"among the first {k}",
                    f"record by record (by chance {chance:.2f})",
                ),
                *(
                    (
                        capitalized(spoken(method)),
                        ", ".join(f"{spoken(name)} {place}" for name, place in found["ranks"].items()),
                        f"{found['precision_at_k']:.2f}",
                        estimate(found["precision_at_k_by_record"]),
                    )
                    for method, found in assessment["drivers"].items()
                ),
            ],
            f"True drivers by mean share: places, and precision at {k} [95% interval]",
        )
    return tables


# ------------------------------------------------------------------------------------------------------- patient pages


def patient_pictures(
    explanations: Mapping[str, Explanation],
    trajectory: Trajectory,
    units: Mapping[str, str],
    probability: bool,
) -> dict[str, Picture]:
    """The figures of one record's page by name."""
    predictions = trajectory.predictions["prediction"].to_numpy()
    label = next(iter(explanations.values())).label
    pictures = [
        Picture(
            "trajectory",
            figures.trajectory_figure(trajectory, label, probability),
            f"The prediction ({spoken(label)}) at successive times: from {predictions[0]:.3g} to "
            f"{predictions[-1]:.3g}, lowest {predictions.min():.3g}, highest {predictions.max():.3g}.",
            [("hour", "prediction"), *((f"{row[1]:.2f}", row[2]) for row in trajectory.predictions.iter_rows())],
        )
    ]
    for method, explanation in explanations.items():
        ranked = explanation.variables.sort(
            pl.col("attribution").abs(), "variable", descending=[True, False]
        ).with_columns(total=pl.col("attribution"))
        leading = ", ".join(
            f"{spoken(row['variable'])} {row['attribution']:{'+.2f' if explanation.signed else '.1%'}}"
            for row in ranked.head(5).iter_rows(named=True)
        )
        pictures.append(
            Picture(
                f"timeline_{method}",
                figures.timeline_figure(explanation, units),
                f"Values over time of the {min(ranked.height, TIMELINE_VARIABLES)} variables with the largest "
                f"attributions by {spoken(method)}, events shaded by their attribution. Largest: {leading}.",
                [
                    ("variable", "unit", "events", "attribution"),
                    *(
                        (spoken(row["variable"]), units.get(row["variable"], ""), row["events"], row["attribution"])
                        for row in ranked.iter_rows(named=True)
                    ),
                ],
            )
        )
    return {picture.name: picture for picture in pictures}


def patient_tables(
    explanations: Mapping[str, Explanation], trajectory: Trajectory, probability: bool
) -> dict[str, Markup]:
    """The tables of one record's page: the events that moved the prediction most, and all events."""
    movers = [
        (
            str(number),
            f"{row['time']:.2f}",
            spoken(row["variable"]),
            row["value"],
            f"{'▲' if row['change'] > 0 else '▼'} {(100 if probability else 1) * row['change']:+.2f}",
        )
        for number, row in enumerate(trajectory.movers.head(MOVERS_SHOWN).iter_rows(named=True), start=1)
    ]
    frames = [explanation.events for explanation in explanations.values()]
    columns = [frame["attribution"].to_list() for frame in frames]
    events = [
        (f"{row['time']:.2f}", spoken(row["variable"]), row["value"], *attributions)
        for row, *attributions in zip(frames[0].iter_rows(named=True), *columns, strict=True)
    ]
    return {
        "movers": table_html(
            [
                (
                    "number",
                    "hour",
                    "variable",
                    "value",
                    f"change of the prediction{' in percentage points' if probability else ''}",
                ),
                *movers,
            ],
            "Events that moved the prediction most when they arrived",
        ),
        "events": table_html(
            [("hour", "variable", "value", *(capitalized(spoken(method)) for method in explanations)), *events],
            "All events and their attributions",
            folded=True,
        ),
    }


def render(template: str, **context: Any) -> str:
    """A page from one of the package's templates."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
