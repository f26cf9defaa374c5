"""What a model card says about decisions: what alarms are worth, how many there are, and who is served worst."""

from collections.abc import Mapping, Sequence
from typing import Any

from hymate_training.evaluation.survival import HORIZON_ESTIMATES
from hymate_training.inference.conformal import ALL
from hymate_training.markdown import as_name
from hymate_training.publishing.card_text import interval_text, number_text, table
from hymate_training.publishing.privacy import is_small

SHOWN_LEVEL = 0.9
RATE_TITLES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "alarms_per_100_predictions": "alarms per 100 predictions",
}
BRACKETED = ("sensitivity", "ppv")  # the table is wide enough with the intervals of these
ALARM_TITLES = {
    "alarms_per_100_patient_days": "alarms per 100 patient-days",
    "share_of_alarms_true": "true alarms",
    "share_of_events_detected": "events detected",
    "median_lead_hours": "median lead time, hours",
}


def decisions(evaluation: Mapping[str, Any]) -> list[str]:
    """Paragraphs on rates and net benefit at each threshold, and on the alarms of a task that asks many times."""
    if not evaluation.get("thresholds"):
        return []
    curves = evaluation["net_benefit"]
    place = {threshold: at for at, threshold in enumerate(curves["thresholds"])}

    def worth(name: str, threshold: float) -> str:
        at = place[threshold]
        return _estimate(curves[name][at], curves["confidence_intervals"][name][at])

    # the first of several baselines is the one that was drawn beside the model
    baseline = as_name(next(iter(evaluation.get("baselines") or {}), "the baseline"))
    compared = {"model": "net benefit", "treat_all": "of an alarm at every prediction", "baseline": f"of {baseline}"}
    compared = {name: title for name, title in compared.items() if name in curves}
    rows = [
        [
            f"{row['threshold']:.3g}",
            *(
                _estimate(row[name], row["confidence_intervals"][name] if name in BRACKETED else None)
                for name in RATE_TITLES
            ),
            *(worth(name, row["threshold"]) for name in compared),
        ]
        for row in evaluation["thresholds"]
    ]
    paragraphs = [
        "With an alarm from each of these probabilities on:",
        table(["threshold", *RATE_TITLES.values(), *compared.values()], rows),
        "Net benefit counts true alarms per prediction, minus false ones at the odds of the threshold. To raise none "
        "is worth 0.",
    ]
    return paragraphs + _burden(evaluation.get("alarms"))


def _burden(alarms: Mapping[str, Any] | None) -> list[str]:
    if not alarms:
        return []
    rows = [
        [
            f"{row['threshold']:.3g}",
            *(_estimate(row[name], row["confidence_intervals"][name]) for name in ALARM_TITLES),
        ]
        for row in alarms["by_threshold"]
    ]
    lead = alarms["label_lead_hours"]
    until = "its first positive label" if lead is None else f"the event, {lead:g} hours after the first positive label"
    return [
        f"{as_name(alarms['rule'])} Over {alarms['patient_days']:,.0f} patient-days with {alarms['num_events']:,} "
        f"events; the lead time is from a record's first true alarm to {until}:",
        table(["threshold", *ALARM_TITLES.values()], rows),
    ]


def recalibration(evaluation: Mapping[str, Any]) -> str:
    """A sentence on the calibration intercept and slope; empty where neither is known."""
    found = evaluation.get("calibration") or {}
    parts = [
        f"calibration {name} {_estimate(found[name], found['confidence_intervals'][name])} ({ideal} is ideal)"
        for name, ideal in (("intercept", 0), ("slope", 1))
        if found.get(name) is not None
    ]
    return f"{', '.join(parts).capitalize()}." if parts else ""


def coverage(evaluation: Mapping[str, Any]) -> str:
    """A sentence on how often conformal sets or intervals hold the truth, or that this was not checked; empty where
    there are none."""
    sentences = []
    for taxonomy, parts in (evaluation.get("coverage") or {}).items():
        rows = [(part, row) for part, found in parts.items() for row in found if row["level"] == SHOWN_LEVEL]
        shown = ", ".join(
            f"{'all' if taxonomy == ALL else as_name(part)} {_estimate(row['coverage'], row['interval'])}"
            for part, row in rows
        )
        if shown:
            by = "" if taxonomy == ALL else f", chosen by {as_name(taxonomy)}"
            sentences.append(f"{shown}{by}")
    if not sentences and (levels := (evaluation.get("conformal") or {}).get("levels")):
        shown = ", ".join(f"{level:.0%}" for level in levels)
        return (
            f"The checkpoint holds thresholds of conformal sets or intervals for {shown} coverage, calibrated on this "
            "split. How many records of another split they cover was not checked."
        )
    if not sentences:
        return ""
    return (
        f"Share of conformal sets or intervals for {SHOWN_LEVEL:.0%} coverage that hold the truth: "
        f"{'; '.join(sentences)}."
    )


def horizon_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a time-to-event model is worth within each horizon."""
    titles = dict(zip(HORIZON_ESTIMATES, ("observed risk", "mean risk", "AUROC", "Brier score"), strict=True))
    shown = [
        [f"{row['hours']:g}", *(_estimate(row[name], row["confidence_intervals"][name]) for name in titles)]
        for row in rows
    ]
    return [
        "Within so many hours of the prediction, the observed risk (Kaplan-Meier) and the mean of those predicted:",
        table(["hours", *titles.values()], shown),
    ]


def worst_groups(evaluation: Mapping[str, Any]) -> str:
    """A line that names the group with the lowest AUROC and the column whose groups' odds are furthest apart."""
    sentences = []
    measured = [
        (group["metrics"]["auroc"], column, name, group)
        for column, groups in (evaluation.get("subgroups") or {}).items()
        for name, group in groups.items()
        if not is_small(group) and group["metrics"].get("auroc") is not None and not _too_few(evaluation, column, name)
    ]
    overall = evaluation["metrics"].get("auroc")
    if measured and overall is not None:
        auroc, column, name, group = min(measured, key=lambda found: found[0])
        shown = _estimate(auroc, group["confidence_intervals"].get("auroc"))
        sentences.append(
            f"**Worst group:** {as_name(column)} {as_name(name)}, AUROC {shown} in {group['num_records']:,} records "
            f"(all: {number_text(overall)})."
        )
    gaps = {
        column: found["gaps"]["equalized_odds"]
        for column, found in (evaluation.get("subgroup_gaps") or {}).items()
        if found["gaps"]["equalized_odds"] is not None
    }
    if gaps:
        column, gap = max(gaps.items(), key=lambda found: found[1]["value"])
        threshold = evaluation["subgroup_gaps"][column]["threshold"]
        sentences.append(
            f"With an alarm from {threshold:.3g} on, sensitivity or false positive rate differ most by "
            f"{as_name(column)}: by {_estimate(gap['value'], gap['interval'])}, lowest for {as_name(gap['lowest'])} "
            f"and highest for {as_name(gap['highest'])}."
        )
    return " ".join(sentences)


def _too_few(evaluation: Mapping[str, Any], column: str, name: str) -> bool:
    groups = evaluation.get("subgroup_gaps", {}).get(column, {}).get("groups", {})
    return bool(groups.get(name, {}).get("too_few"))


def _estimate(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return number_text(value) if interval is None else f"{number_text(value)} [{interval_text(interval)}]"
