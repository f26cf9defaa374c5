"""The report about a model's explanations: a cohort page, pages of single patients, and numbers as JSON."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hymate_training.data.exports import Layout, read_starts
from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.explanations.attribution import BATCH_SIZE, Explainer
from hymate_training.explanations.background import Background
from hymate_training.explanations.cohort import Cohort, cohort_of_records, cohort_of_task, with_starts
from hymate_training.explanations.cohort_page import EXPLANATION_FILE, write_cohort_page
from hymate_training.explanations.faithfulness import findings
from hymate_training.explanations.patient_page import page_names, write_patient_pages
from hymate_training.files import followed, locked, write_json, writing_folder
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from hymate_training.inference.prediction import read_export
from hymate_training.inference.records import count_remarks, read_records
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.privacy import FAITHFULNESS_FILE

NUM_RECORDS = 200
# what a report consists of: a folder that holds anything else is not replaced
PARTS = re.compile(rf"index\.html|{re.escape(EXPLANATION_FILE)}|figures/[^/]+\.(png|svg)|patients/[^/]+\.html")


@dataclass(frozen=True)
class Report:
    """A report as it was written.

    Attributes:
        page: the cohort page, `index.html`.
        patients: name of a record -> its page, for those that were named.
        title: what the cohort is called.
        num_records: number of the cohort's records; 0 where it was not explained.
        findings: per method, what the deletion and insertion tests say: `method`, `verdict`, `ranking`, `areas`;
            empty for fewer than `SMALLEST_GROUP` records.
        assessment: the numbers behind them, see `faithfulness.assess`; empty likewise.
    """

    page: Path
    patients: dict[str, Path]
    title: str
    num_records: int
    findings: list[dict[str, str]]
    assessment: dict[str, Any]


def build_report(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    *,
    data: PreparedFolder | str | Path | None = None,
    task: str | None = None,
    split: str = "validation",
    events: Any = None,
    static: Any = None,
    ignore_unknown_variables: bool = False,
    label: str | None = None,
    record_ids: Sequence[str] = (),
    num_records: int | None = None,
    window_hours: float = 6.0,
    max_events: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    card: bool = False,
    start: str | Path | None = None,
    layout: Layout | None = None,
) -> Report:
    """Explains predictions and writes an HTML report: about single records, or about a cohort and by every method
    with tests of the explanations.

        build_report("runs/mortality", "runs/report", data="runs/data", task="in_hospital_mortality")
        build_report("runs/mortality", "runs/report", events="events.csv", static="static.csv", record_ids=["132539"])

    Records of a task are asked at its prediction time, as `evaluate` asks them, others at their last event, as
    `predict` does.

    Args:
        checkpoint: a fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        output: folder of the report: new, empty, or an earlier report, which is replaced once the new one is whole.
        data: prepared folder whose records are explained.
        task: its task.
        split: train, validation or test.
        events: records in place of those of a prepared folder: a CSV or Parquet file, a polars or pandas frame, or a
            list of a hospital's files, as `predict` takes them.
        static: the same with one row per record: `record_id` and the static columns.
        ignore_unknown_variables: drop and count events of variables that the model does not know, which are an error
            otherwise.
        label: output to explain; see `Explainer`.
        record_ids: records that get a page of their own, as confidential as the records are.
        num_records: how many records to draw for the cohort page; where absent `NUM_RECORDS`, or none where
            `record_ids` names some, whose pages are then made in seconds.
        window_hours: width of the windows that occlusion removes.
        max_events: keep only the latest events of longer records; as in training where absent.
        batch_size: records at a time.
        seed: of the drawn records, random orders and resamples.
        card: also say in the checkpoint's model card whether its explanations are faithful.
        start: table of `record_id` and `start`: pages of single records then give times by the clock. Events may then
            have timestamps, as for `predict`.
        layout: of the files of events and starts.

    Raises:
        ValueError: unless there are either `data` and `task` or `events`; for bad records; and as `load_checkpoint`,
            `Explainer` and `write_report` do.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if (data is None) == (events is None):
        raise ValueError("give either data or events")
    if data is not None and task is None:
        raise ValueError("data needs a task: name one of the prepared folder's")
    opened = load_checkpoint(checkpoint)
    explainer = Explainer(opened.model, opened.extractor, label, batch_size)
    if data is not None and task is not None:
        cohort = cohort_of_task(explainer, open_prepared(data), task, split, max_events=max_events, seed=seed)
    else:
        sources = [events, static] if not isinstance(events, list) else [*events, static]
        paths = [Path(source) for source in sources if isinstance(source, str | Path)]
        title = paths[0].name if isinstance(sources[0], str | Path) else "records"
        if isinstance(events, list):
            events, static, _ = read_export(opened, events, static, start, layout)
        records = read_records(opened.extractor, events, static, ignore_unknown_variables=ignore_unknown_variables)
        cohort = cohort_of_records(explainer, records.events, title=title, max_events=max_events, sources=paths)
        if said := [*records.about_all(), *count_remarks(records.remarks, len(records.events), "records")]:
            cohort = replace(cohort, account=cohort.account | {"Remarks": "; ".join(said)})
    if start is not None:
        cohort = with_starts(cohort, read_starts(start, layout), None if layout is None else layout.time_zone)
    background = Background.of(opened, explainer.label, task)
    options: dict[str, Any] = {"num_records": num_records, "window_hours": window_hours, "seed": seed}
    return write_report(
        explainer, cohort, output, opened.path, background, record_ids=record_ids, card=card, **options
    )


def write_report(
    explainer: Explainer,
    cohort: Cohort,
    output: str | Path,
    checkpoint: Path,
    background: Background,
    *,
    record_ids: Sequence[str] = (),
    num_records: int | None = None,
    window_hours: float = 6.0,
    seed: int = 0,
    card: bool = False,
) -> Report:
    """Writes the report about a cohort; arguments as for `build_report`.

    Raises:
        ValueError: for an unknown record; for fewer than `SMALLEST_GROUP` records, unless the records that may be
            shown are named; for an `output` that holds something else, lies where the model or the records come
            from, or is being written by another process.
    """
    if num_records is not None and num_records < 1:
        raise ValueError(f"num_records must be at least 1, got {num_records}")
    if not 0 < window_hours < math.inf:
        raise ValueError(f"window_hours must be positive, got {window_hours}")
    output = Path(output)
    check_output(output, (checkpoint, *cohort.sources))
    explainer = explainer.asking(cohort.asked)
    patients = cohort.named(record_ids)
    if num_records is None:
        num_records = 0 if len(patients) and not card else NUM_RECORDS
    drawn = cohort.drawn(num_records, seed)
    _check_size(len(drawn), len(patients) > 0, card)
    account = cohort.account | {"Model": checkpoint.resolve().name, "Explained output": explainer.label}
    if len(drawn):
        account |= {
            "Records": f"{len(drawn):,} of {len(cohort):,}, drawn with seed {seed}",
            "Occlusion": f"windows of {window_hours:g} hours",
        }
    options: dict[str, Any] = {"window_hours": window_hours, "progress": True}
    with locked(output), writing_folder(output) as incoming:
        assessment = write_cohort_page(
            incoming,
            explainer,
            drawn,
            background=background,
            account=account,
            num_patients=len(patients),
            seed=seed,
            **options,
        )
        found = findings(assessment) if assessment else []
        write_patient_pages(incoming / "patients", explainer, patients, background, found, **options)
    pages = {
        record_id: output / "patients" / f"{name}.html"
        for record_id, name in zip(patients.record_ids, page_names(patients.record_ids), strict=True)
    }
    written = Report(output / "index.html", pages, drawn.title, len(drawn), found, assessment)
    if card:
        add_to_card(written, checkpoint)
    return written


def add_to_card(report: Report, checkpoint: Path) -> None:
    """Writes what was found into a checkpoint's folder, and its model card anew."""
    told = {"title": report.title, "num_records": report.num_records, "findings": report.findings}
    write_json(checkpoint / FAITHFULNESS_FILE, told)
    write_model_card(checkpoint)


def check_output(output: Path, sources: Sequence[Path]) -> None:
    """Raises ValueError unless a report may be written to `output`, in place of an earlier one at most."""
    place = followed(output)
    for source in sources:
        if source.exists() and (place == followed(source) or followed(source) in place.parents):
            raise ValueError(f"{output} lies where the model or the records are read from: name another output folder")
        if place in followed(source).parents:
            raise ValueError(f"{output} holds {source}, which the report reads: name another output folder")
    if not place.exists():
        return
    if not place.is_dir():
        raise ValueError(f"{output} is a file: name a folder that is new or empty")
    held = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir())
    foreign = [name for name in held if not PARTS.fullmatch(name)]
    if held and (foreign or EXPLANATION_FILE not in held):
        raise ValueError(
            f"{output} holds something other than a report ({(foreign or held)[0]}): "
            "name a folder that is new or empty"
        )


def _check_size(num_records: int, named: bool, card: bool) -> None:
    if num_records >= SMALLEST_GROUP:
        return
    if card:
        raise ValueError(f"a model card needs at least {SMALLEST_GROUP} records, got {num_records}")
    if not named:
        raise ValueError(
            f"a report on fewer than {SMALLEST_GROUP} records could tell about a single one, and these are "
            f"{num_records}: name the records that may be shown (record_ids, --record-id)"
        )
