"""The report about a model's explanations: a cohort page, pages of single patients, and numbers as JSON."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.explanations.attribution import Explainer
from hymate_training.explanations.cohort import Cohort
from hymate_training.explanations.cohort_page import EXPLANATION_FILE, write_cohort_page
from hymate_training.explanations.faithfulness import findings
from hymate_training.explanations.patient_page import page_names, write_patient_pages
from hymate_training.files import locked, write_json, writing_folder
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.privacy import FAITHFULNESS_FILE

NUM_RECORDS = 200
# what a report consists of: a folder that holds anything else is not replaced
PARTS = re.compile(
    rf"index\.html|{re.escape(EXPLANATION_FILE)}|figures/[^/]+\.(png|svg)|patients/[^/]+\.html"
    r"|patients/[^/]+_figures/[^/]+\.(png|svg)"
)


@dataclass(frozen=True)
class Report:
    """A report as it was written.

    Attributes:
        page: the cohort page, `index.html`.
        title: what the cohort is called.
        num_records: number of the cohort's records.
        findings: per method, what the deletion and insertion tests say: `method`, `verdict`, `ranking`, `areas`;
            empty for fewer than `SMALLEST_GROUP` records.
        assessment: the numbers behind them, see `faithfulness.assess`; empty likewise.
    """

    page: Path
    title: str
    num_records: int
    findings: list[dict[str, str]]
    assessment: dict[str, Any]


def build_report(
    explainer: Explainer,
    cohort: Cohort,
    output: str | Path,
    *,
    record_ids: Sequence[str] = (),
    num_records: int = NUM_RECORDS,
    window_hours: float = 6.0,
    seed: int = 0,
    card: bool = False,
    progress: bool = True,
) -> Report:
    """Explains a cohort by every method, tests the explanations and writes an HTML report about both.

        explainer = Explainer(model, extractor)
        cohort = cohort_of_task(explainer, PreparedFolder("runs/data"), "in_hospital_mortality")
        report = build_report(explainer, cohort, "runs/report")

    Args:
        explainer: the model, its feature extractor and the output to be explained.
        cohort: the records, from `cohort_of_task` or `cohort_of_records`.
        output: folder of the report: new, empty, or an earlier report, which is replaced once the new one is whole.
        record_ids: records that get a page of their own, as confidential as the records are.
        num_records: how many records of the cohort to draw.
        window_hours: width of the windows that occlusion removes.
        seed: of the drawn records, random orders and resamples.
        card: also say in the model card of the checkpoint that the model was loaded from whether its explanations
            are faithful.
        progress: show progress bars, where the output is a terminal.

    Raises:
        ValueError: for an unknown record; for fewer than `SMALLEST_GROUP` records, unless the records that may be
            shown are named; for an `output` that holds something else, or lies where the model or the records come
            from; for `card` with a model that was not loaded from a folder.
    """
    if num_records < 1:
        raise ValueError(f"num_records must be at least 1, got {num_records}")
    if not window_hours > 0:
        raise ValueError(f"window_hours must be positive, got {window_hours}")
    output = Path(output)
    checkpoint = Path(explainer.model.name_or_path or ".")
    if card and not (checkpoint / "config.json").is_file():
        raise ValueError(f"the model was loaded from {checkpoint}, which is no folder whose card could be written")
    check_output(output, (*cohort.sources, *([checkpoint] if explainer.model.name_or_path else [])))
    patients = cohort.named(record_ids)
    drawn = cohort.drawn(num_records, seed)
    _check_size(len(drawn), bool(record_ids), card)
    account = cohort.account | {
        "Model": checkpoint.name or type(explainer.model).__name__,
        "Explained output": explainer.label,
        "Records": f"{len(drawn):,}, drawn with seed {seed}",
        "Occlusion": f"windows of {window_hours:g} hours",
    }
    named = patients.record_ids
    links = {name: f"patients/{page}.html" for name, page in zip(named, page_names(named), strict=True)}
    options: dict[str, Any] = {"window_hours": window_hours, "progress": progress}
    with locked(output), writing_folder(output) as incoming:
        assessment = write_cohort_page(incoming, explainer, drawn, links=links, account=account, seed=seed, **options)
        found = findings(assessment) if assessment else []
        write_patient_pages(incoming / "patients", explainer, patients, found, **options)
    report = Report(output / "index.html", drawn.title, len(drawn), found, assessment)
    if card:
        add_to_card(report, checkpoint)
    return report


def add_to_card(report: Report, checkpoint: Path) -> None:
    """Writes what was found into a checkpoint's folder, and its model card anew."""
    told = {"title": report.title, "num_records": report.num_records, "findings": report.findings}
    write_json(checkpoint / FAITHFULNESS_FILE, told)
    write_model_card(checkpoint)


def check_output(output: Path, sources: Sequence[Path]) -> None:
    """Raises ValueError unless a report may be written to `output`, in place of an earlier one at most."""
    place = output.resolve()
    for source in sources:
        if source.exists() and (place == source.resolve() or source.resolve() in place.parents):
            raise ValueError(f"{output} lies where the model or the records are read from: name another output folder")
        if place in source.resolve().parents:
            raise ValueError(f"{output} holds {source}, which the report reads: name another output folder")
    if not place.exists():
        return
    if not place.is_dir():
        raise ValueError(f"{output} is a file: name a folder that is new or empty")
    held = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir())
    foreign = [name for name in held if not PARTS.fullmatch(name)]
    if held and (foreign or EXPLANATION_FILE not in held):
        raise ValueError(
            f"{output} holds something else than a report ({(foreign or held)[0]}): name a folder that is new or empty"
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
