"""`hymate explain`: what a model's predictions rest on, whether the explanations hold, and an HTML report of both."""

import argparse
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hymate_training.data.examples import ExampleDataset, check_static_columns, load_task
from hymate_training.data.prepared_folder import read_info, split_fingerprint
from hymate_training.data.schema import DatasetInfo, TaskInfo
from hymate_training.evaluation.evaluation import check_task, subgroup_columns
from hymate_training.explanations.attribution import (
    BATCH_SIZE,
    METHODS,
    Explainer,
    Explanation,
    channel_attentions,
    explain,
    risk_trajectory,
)
from hymate_training.explanations.faithfulness import (
    LEVEL,
    NUM_RESAMPLES,
    RANDOM_RANKINGS,
    agreement,
    driver_precision,
    mean_with_interval,
    perturbation_curves,
    randomization_check,
    summarize_curves,
    variable_shares,
    verdict,
)
from hymate_training.explanations.figures import spoken
from hymate_training.explanations.report import (
    Cohort,
    cohort_pictures,
    cohort_tables,
    findings,
    patient_pictures,
    patient_tables,
    render,
)
from hymate_training.files import replace_folder
from hymate_training.fitting.loop import write_json
from hymate_training.inference.prediction import CHECKPOINT_HELP, load_checkpoint, parse_files
from hymate_training.publishing.cards import FAITHFULNESS_FILE, SMALLEST_GROUP, write_model_card
from modeling_hymate import Events, HyMaTEFeatureExtractor

EXPLANATION_FILE = "explanation.json"
NUM_RECORDS = 200
PACKAGES = ("hymate", "torch", "captum")
TIMELINE_TEXTS = {
    "attention": "The darker and larger a point, the larger its share of the model's attention. Shares sum to one.",
    "integrated_gradients": "Red points raise the score, blue ones lower it, against events that say nothing of what "
    "was measured.",
    "occlusion": "Red points raise the score, blue ones lower it: it falls, or rises, by so much when they are "
    "removed. A variable's events within the same hours are removed together and share the effect.",
}


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="prepared folder; needs --task")
    source.add_argument("--events", type=Path, help="CSV or Parquet: record_id, time (hours), variable, value")
    parser.add_argument("--task", help="task of the prepared folder")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--static", type=Path, help="CSV or Parquet: record_id and the static columns, for --events")
    parser.add_argument("--output", type=Path, required=True, help="folder of the report")
    parser.add_argument("--label", help="which output to explain, where the model has several")
    parser.add_argument(
        "--num-records", type=int, default=NUM_RECORDS, help=f"records of the cohort, drawn (default: {NUM_RECORDS})"
    )
    parser.add_argument(
        "--record-id", nargs="+", default=[], metavar="ID", help="also write pages about these single records"
    )
    parser.add_argument(
        "--window-hours", type=float, default=6.0, help="width of the windows that occlusion removes (default: 6)"
    )
    parser.add_argument(
        "--card", action="store_true", help="also say in the checkpoint's model card whether explanations are faithful"
    )
    parser.add_argument(
        "--max-events", type=int, help="keep the latest events of longer records (default: as in training)"
    )
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"default: {BATCH_SIZE}")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn records, random orders and resamples")


def run(args: argparse.Namespace) -> str:
    """Writes the report; returns the findings and where it lies."""
    if args.num_records < 1:
        raise ValueError(f"--num-records must be at least 1, got {args.num_records}")
    if args.data is not None and args.task is None:
        raise ValueError("--data needs --task")
    if args.output.exists() and any(args.output.iterdir()) and not (args.output / EXPLANATION_FILE).is_file():
        raise ValueError(f"{args.output} holds something else than a report: name a folder that is new or empty")
    if args.card and not args.checkpoint.is_dir():
        raise ValueError(f"--card writes into the checkpoint, but {args.checkpoint} is no folder")
    model, extractor = load_checkpoint(args.checkpoint)
    explainer = Explainer(model, extractor, args.label, args.batch_size)
    load = cohort_of_events if args.data is None else cohort_of_data
    everyone = load(args, explainer)
    known = {record_id: row for row, record_id in enumerate(everyone.events.record_ids)}
    absent = [record_id for record_id in args.record_id if record_id not in known]
    if absent:
        raise ValueError(
            f"--record-id: {absent[0]!r} is not among the {len(known)} records that have events to explain"
        )
    patients = take(everyone, np.array([known[record_id] for record_id in dict.fromkeys(args.record_id)], dtype=int))
    cohort = take(everyone, drawn_records(len(known), args.num_records, args.seed))
    if not args.record_id and len(cohort.events) < SMALLEST_GROUP:
        raise ValueError(
            f"a report on fewer than {SMALLEST_GROUP} records could tell about a single one, and these are "
            f"{len(cohort.events)}: name the records that may be shown with --record-id"
        )
    if args.card and len(cohort.events) < SMALLEST_GROUP:
        raise ValueError(f"--card needs at least {SMALLEST_GROUP} records, got {len(cohort.events)}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    incoming = args.output.with_name(f".{args.output.name}.incoming-{os.getpid()}")
    try:
        (incoming / "figures").mkdir(parents=True)
        assessment = write_cohort(incoming, cohort, list(patients.events.record_ids), explainer, args)
        write_patients(incoming / "patients", patients, explainer, assessment, args)
        replace_folder(incoming, args.output)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    found = findings(assessment) if assessment else []
    if args.card:
        told = {"title": cohort.title, "num_records": len(cohort.events), "findings": found}
        write_json(args.checkpoint / FAITHFULNESS_FILE, told)
        write_model_card(args.checkpoint)
    words = [f"{each['method']} {each['ranking']}. {each['areas']}" for each in found]
    return "\n".join([*words, str(args.output / "index.html")])


# --------------------------------------------------------------------------------------------------------------- data


def cohort_of_data(args: argparse.Namespace, explainer: Explainer) -> Cohort:
    """The records of a task's split, each up to its prediction time; where it has several, up to a drawn one."""
    info = read_info(args.data)
    task = info.task(args.task)
    check_task(explainer.model, task)
    check_static_columns(args.data, explainer.extractor)
    dataset = load_task(args.data, args.task, args.split, explainer.extractor.variables)
    shuffled = np.random.default_rng(args.seed).permutation(len(dataset))
    chosen = np.sort(shuffled[np.unique(dataset.rows[shuffled], return_index=True)[1]])
    rows = dataset.rows[chosen]
    events = dataset.events.take(rows)
    events = events.select(events.times <= np.repeat(dataset.prediction_times[chosen], events.lengths))
    # subgroups of a column are made over the whole split, so that they do not depend on what is drawn
    subgroups = {name: column[chosen] for name, column in subgroup_columns(dataset).items()}
    cohort = Cohort(
        events=events,
        title=f"{task.name.replace('_', ' ')}, {args.split} split of {info.source}",
        outcomes=outcome_names(task, dataset.labels[chosen], explainer.label),
        subgroups=subgroups,
        units=dict(info.extra.get("units", {})),
        drivers=true_drivers(info, task.name, explainer.label),
        account={
            "Data": info.source,
            "Task": task.description,
            "Split": f"{args.split} (fingerprint {split_fingerprint(args.data, task.name, args.split)})",
        },
    )
    return with_events(cohort, explainer.extractor, args.max_events)


def cohort_of_events(args: argparse.Namespace, explainer: Explainer) -> Cohort:
    """The records of a file of events."""
    events, _ = parse_files(explainer.extractor, args.events, args.static)
    dataset = ExampleDataset(events, np.arange(len(events)), np.full(len(events), np.inf))
    cohort = Cohort(events, args.events.name, subgroups=subgroup_columns(dataset), account={"Data": args.events.name})
    return with_events(cohort, explainer.extractor, args.max_events)


def with_events(cohort: Cohort, extractor: HyMaTEFeatureExtractor, max_events: int | None) -> Cohort:
    """The records that have events, shortened to the latest; says in the account how many were left out."""
    events = extractor.shorten(cohort.events, max_events)
    kept = np.flatnonzero(events.lengths)
    if not len(kept):
        raise ValueError("no record has events before its prediction time")
    left_out = len(events) - len(kept)
    account = cohort.account | ({"Left out": f"{left_out:,} records without events"} if left_out else {})
    return take(Cohort(**{**vars(cohort), "events": events, "account": account}), kept)


def take(cohort: Cohort, rows: np.ndarray) -> Cohort:
    """The records at these positions."""
    return Cohort(
        **{
            **vars(cohort),
            "events": cohort.events.take(rows),
            "outcomes": None if cohort.outcomes is None else cohort.outcomes[rows],
            "subgroups": {name: column[rows] for name, column in cohort.subgroups.items()},
        }
    )


def drawn_records(available: int, wanted: int, seed: int) -> np.ndarray:
    """Positions of the cohort's records, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(available)[:wanted])


def outcome_names(task: TaskInfo, labels: np.ndarray, label: str) -> np.ndarray:
    """Outcome of each record in words; numbers are split at their median."""
    if task.problem_type == "regression":
        middle = float(np.median(labels))
        return np.where(labels > middle, f"above {middle:g}", f"up to {middle:g}").astype(object)
    if task.problem_type == "multilabel":
        return np.where(labels[:, task.label_names.index(label)] > 0, label, f"no {label}").astype(object)
    return np.array(task.label_names, dtype=object)[labels]


def true_drivers(info: DatasetInfo, task: str, label: str) -> tuple[str, ...]:
    """Variables that drive the label of a simulated task, or any of the task's outputs where none has its name."""
    drivers = info.extra.get("drivers", {}).get(task, [])
    own = [driver for driver in drivers if driver["output"] == label] or drivers
    return tuple(dict.fromkeys(driver["variable"] for driver in own))


# -------------------------------------------------------------------------------------------------------------- pages


def explain_all(
    explainer: Explainer, events: Events, args: argparse.Namespace, progress: bool
) -> dict[str, Explanation]:
    """Explanations by every method."""
    return {
        method: explain(
            explainer.model,
            explainer.extractor,
            events,
            method=method,
            label=explainer.label,
            window_hours=args.window_hours,
            batch_size=explainer.batch_size,
            progress=progress,
        )
        for method in METHODS
    }


def assess(
    explainer: Explainer, cohort: Cohort, explanations: dict[str, Explanation], args: argparse.Namespace
) -> dict[str, Any]:
    """The faithfulness figures, as explanation.json holds them: aggregates only."""
    variables = explainer.extractor.variables
    shares = {method: variable_shares(explanation, variables) for method, explanation in explanations.items()}
    curves = perturbation_curves(explainer, cohort.events, explanations, args.seed, "faithfulness")
    perturbation = summarize_curves(curves, args.seed)
    options = {"window_hours": args.window_hours, "batch_size": explainer.batch_size, "progress": True}
    probability = explainer.predicts_probability
    return {
        "num_records": len(cohort.events),
        "unit": "percentage points" if probability else f"in units of {explainer.label}",
        "scale": 100.0 if probability else 1.0,
        "verdicts": {method: verdict(perturbation, method) for method in explanations},
        "perturbation": perturbation | {"random_rankings": RANDOM_RANKINGS},
        "agreement": agreement(explanations, args.seed),
        "randomized_weights": randomization_check(explainer, cohort.events, explanations, args.seed, **options),
        "drivers": {
            method: driver_precision(found, variables, cohort.drivers, args.seed) for method, found in shares.items()
        }
        if cohort.drivers
        else {},
        "variable_shares": {
            method: {
                variables[index]: mean_with_interval(found[:, index], args.seed)
                for index in np.argsort(-found.mean(0), kind="stable")
                if found[:, index].any()
            }
            for method, found in shares.items()
        },
        "bootstrap": {"resampled": "records", "num_samples": NUM_RESAMPLES, "seed": args.seed, "level": LEVEL},
    }


def write_cohort(
    folder: Path, cohort: Cohort, patients: list[str], explainer: Explainer, args: argparse.Namespace
) -> dict[str, Any]:
    """index.html, its figures and explanation.json; returns the faithfulness figures, none of too few records."""
    account = cohort.account | {
        "Model": args.checkpoint.name,
        "Explained output": explainer.label,
        "Records": f"{len(cohort.events):,}, drawn with seed {args.seed}",
        "Occlusion": f"windows of {args.window_hours:g} hours",
    }
    assessment: dict[str, Any] = {}
    figures, tables = {}, {}
    if len(cohort.events) >= SMALLEST_GROUP:
        explanations = explain_all(explainer, cohort.events, args, progress=True)
        assessment = assess(explainer, cohort, explanations, args)
        attentions = channel_attentions(explainer, cohort.events, "attention between variables")
        variables = explainer.extractor.variables
        pictures = cohort_pictures(cohort, variables, explanations, assessment, attentions, args.seed)
        figures = {
            name: picture.save(folder / "figures")
            for name, picture in tqdm(pictures.items(), desc="figures", leave=False)
        }
        tables = cohort_tables(assessment)
    page = render(
        "explanation_cohort.html.j2",
        title=cohort.title,
        label=explainer.label,
        num_records=len(cohort.events),
        smallest_group=SMALLEST_GROUP,
        drivers=cohort.drivers,
        figures=figures,
        grouped=[name for name in figures if name.startswith("by_")],
        tables=tables,
        findings=findings(assessment) if assessment else [],
        patients={name: f"patients/{page}.html" for name, page in zip(patients, page_names(patients), strict=True)},
        account=account,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    content = {
        "label": explainer.label,
        "account": account,
        **assessment,
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_json(folder / EXPLANATION_FILE, content)
    return assessment


def page_names(record_ids: list[str]) -> list[str]:
    """File names for records, whatever their ids hold; the same for the same ids."""
    names: list[str] = []
    for position, record_id in enumerate(record_ids):
        name = re.sub(r"[^A-Za-z0-9_-]", "_", record_id)[:80]
        names.append(name if name not in names else f"{name}_{position}")
    return names


def write_patients(
    folder: Path, patients: Cohort, explainer: Explainer, assessment: dict[str, Any], args: argparse.Namespace
):
    """A page for each of the records, its figures beside it."""
    record_ids = list(patients.events.record_ids)
    probability = explainer.predicts_probability
    for row, name in enumerate(tqdm(page_names(record_ids), desc="patients", leave=False, disable=not record_ids)):
        patient = take(patients, np.array([row]))
        explanations = explain_all(explainer, patient.events, args, progress=False)
        trajectory = risk_trajectory(explainer, patient.events)
        pictures = patient_pictures(explanations, trajectory, patient.units, probability)
        (folder / f"{name}_figures").mkdir(parents=True)
        found = explanations["attention"].records.row(0, named=True)
        static = {key: column[0] for key, column in patient.events.static.items()}
        page = render(
            "explanation_patient.html.j2",
            record_id=record_ids[row],
            title=patient.title,
            label=f"predicted probability of {explainer.label}" if probability else f"predicted {explainer.label}",
            prediction=f"{found['prediction']:.1%}" if probability else f"{found['prediction']:.4g}",
            outcome=None if patient.outcomes is None else patient.outcomes[0],
            facts={spoken(key): describe(value, patient.units.get(key, "")) for key, value in static.items()},
            findings=findings(assessment) if assessment else [],
            figures={key: picture.save(folder / f"{name}_figures") for key, picture in pictures.items()},
            tables=patient_tables(explanations, trajectory, probability),
            methods=[
                {"name": method, "spoken": words, "text": TIMELINE_TEXTS[method]} for method, words in METHODS.items()
            ],
        )
        (folder / f"{name}.html").write_text(page, encoding="utf-8")


def describe(value: Any, unit: str) -> str:
    """A static value in words."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "unknown"
    return f"{value:g} {unit}".strip() if isinstance(value, int | float | np.number) else str(value)
