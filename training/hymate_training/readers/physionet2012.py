"""PhysioNet/CinC Challenge 2012: 12,000 ICU stays, their first 48 hours, with outcomes.

Reads the download as it comes (https://physionet.org/content/challenge-2012/1.0.0/): for each of the sets a, b and c
that is there, `set-?.tar.gz`, `set-?.zip` or the unpacked folder `set-?/`, beside `Outcomes-?.txt`.

Conventions of the source:
- A stay is a file `<RecordID>.txt` of `Time,Parameter,Value` rows, time as hh:mm since admission.
- -1 stands for "unknown", and no variable can be negative (temperatures below zero are unit errors): a negative
  event is dropped and counted, a negative descriptor becomes null. Implausibly large values stay: the feature
  extractor clips to percentiles of the training split.
- Age, Gender, Height and ICUType are found by name and are static; Weight is charted again and again, so the
  descriptor's weight is an event like any other.
- In the outcomes, Length_of_stay and Survival are -1 where unknown (Survival also where no death is recorded). They
  are whole days, of which the middle is taken where hours are needed. Until when those without a recorded death were
  followed is not said; so the time to death is that to death in the hospital, and who leaves it alive is censored on
  leaving: counting the later deaths alone would leave only the dying under observation.

The split is that of STraTS (Tipirneni and Reddy, 2022): set a is the test split, sets b and c together are shuffled
and divided 80/20 into train and validation; stays with nothing but descriptors are left out.
"""

import argparse
import io
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
from tqdm import tqdm

from hymate_training.data.schema import SURVIVAL_COLUMNS, DatasetInfo, StaticColumn, TaskInfo
from hymate_training.data.splits import split_at_random
from hymate_training.data.writer import PreparedFolderWriter, nest_events
from hymate_training.files import regular
from hymate_training.readers.raw import read_members

logger = logging.getLogger(__name__)

UNITS = {
    "ALP": "IU/L",
    "ALT": "IU/L",
    "AST": "IU/L",
    "Albumin": "g/dL",
    "BUN": "mg/dL",
    "Bilirubin": "mg/dL",
    "Cholesterol": "mg/dL",
    "Creatinine": "mg/dL",
    "DiasABP": "mmHg",
    "FiO2": "fraction",
    "GCS": "points",
    "Glucose": "mg/dL",
    "HCO3": "mmol/L",
    "HCT": "%",
    "HR": "bpm",
    "K": "mEq/L",
    "Lactate": "mmol/L",
    "MAP": "mmHg",
    "MechVent": "",
    "Mg": "mmol/L",
    "NIDiasABP": "mmHg",
    "NIMAP": "mmHg",
    "NISysABP": "mmHg",
    "Na": "mEq/L",
    "PaCO2": "mmHg",
    "PaO2": "mmHg",
    "Platelets": "cells/nL",
    "RespRate": "breaths/min",
    "SaO2": "%",
    "SysABP": "mmHg",
    "Temp": "°C",
    "TroponinI": "µg/L",
    "TroponinT": "µg/L",
    "Urine": "mL",
    "WBC": "cells/nL",
    "Weight": "kg",
    "pH": "",
}
VARIABLES = tuple(UNITS)
# what the source writes -> what the record says; numeric descriptors have no table
CATEGORIES = {
    "Gender": {0.0: "female", 1.0: "male"},
    "ICUType": {
        1.0: "coronary care unit",
        2.0: "cardiac surgery recovery unit",
        3.0: "medical ICU",
        4.0: "surgical ICU",
    },
}
STATIC_UNITS = {"Age": "years", "Height": "cm"}
STATIC_COLUMNS = tuple(
    StaticColumn(name, "categorical", tuple(CATEGORIES[name].values()))
    if name in CATEGORIES
    else StaticColumn(name, "numeric")
    for name in ("Age", "Gender", "Height", "ICUType")
)
DESCRIPTORS = ("RecordID", *(column.name for column in STATIC_COLUMNS))


@dataclass(frozen=True)
class Outcome:
    """A task and the column of the outcome files it comes from, of a time to event the one that says whether the event
    was observed; a negative number there means unknown."""

    column: str
    task: TaskInfo


OBSERVED_HOURS = 48.0
OUTCOMES = (
    Outcome(
        "In-hospital_death",
        TaskInfo(
            "in_hospital_mortality",
            "Does the patient die in the hospital? Asked 48 hours after admission to the ICU.",
            "binary",
            ("boolean_value",),
            ("survived", "died"),
        ),
    ),
    Outcome(
        "SAPS-I",
        TaskInfo(
            "saps_i",
            "Simplified Acute Physiology Score I of the first 24 hours. Asked at 48 hours: an auxiliary target.",
            "regression",
            ("float_value",),
            ("points",),
        ),
    ),
    Outcome(
        "SOFA",
        TaskInfo(
            "sofa",
            "Sequential Organ Failure Assessment score. Asked at 48 hours: an auxiliary target.",
            "regression",
            ("float_value",),
            ("points",),
        ),
    ),
    Outcome(
        "Survival",
        TaskInfo(
            "survival",
            "Days from admission to the ICU to death, of patients whose death is on record. Asked at 48 hours: an "
            "auxiliary target.",
            "regression",
            ("float_value",),
            ("days",),
        ),
    ),
    Outcome(
        "Length_of_stay",
        TaskInfo(
            "length_of_stay",
            "Days from admission to the ICU to the end of the hospital stay, deaths included. Asked at 48 hours.",
            "regression",
            ("float_value",),
            ("days",),
        ),
    ),
    Outcome(
        "In-hospital_death",
        TaskInfo(
            "time_to_death",
            "When does the patient die in the hospital? Asked at 48 hours; who leaves it alive is censored then.",
            "time_to_event",
            SURVIVAL_COLUMNS,
            ("death",),
        ),
    ),
)

CITATION = (
    "Silva I, Moody G, Scott DJ, Celi LA, Mark RG. Predicting In-Hospital Mortality of ICU Patients: The "
    "PhysioNet/Computing in Cardiology Challenge 2012. Comput Cardiol 2012;39:245-248. "
    "Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)
HEADER = b"Time,Parameter,Value\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw", type=Path, required=True, help="Folder of the download: set-?.tar.gz, .zip or set-?/, Outcomes-?.txt."
    )


def prepare(raw: str | Path, output: str | Path, *, seed: int = 0, overwrite: bool = False) -> DatasetInfo:
    """Read the sets of the challenge into a prepared folder.

    Args:
        raw: folder of the download.
        output: the prepared folder to make.
        seed: of the shuffling of sets b and c.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: naming the file, and where it can the line, that is missing, damaged or not as published.
    """
    raw = Path(raw)
    with PreparedFolderWriter(output, overwrite=overwrite) as writer:
        sources = _find_sets(raw)
        stays, static, events, dropped = _read_sets(sources)
        outcomes, dropped_outcomes = _read_outcomes(raw, tuple(sources), stays)
        splits = _split(stays.filter(pl.col("stay").is_in(events["stay"].unique().implode())), seed)
        for split, members in splits.items():
            chosen = events.join(members.select("stay"), on="stay", how="semi").rename({"stay": "record_id"})
            frame = nest_events(chosen, static.rename({"stay": "record_id"}))
            names = stays["record_id"][frame["record_id"].cast(pl.Int64)]
            writer.write_records(split, frame.with_columns(names.alias("record_id")))
        for outcome in OUTCOMES:
            unknown = 0
            for split, members in splits.items():
                labels = _labels(outcome, members.join(outcomes, on="record_id", maintain_order="left"))
                unknown += members.height - labels.height
                writer.write_task(outcome.task, split, labels)
            if unknown:
                dropped[f"predictions of {outcome.task.name} without a known outcome"] = unknown
        info = DatasetInfo(
            source="PhysioNet 2012",
            variables=VARIABLES,
            static_columns=STATIC_COLUMNS,
            tasks=tuple(outcome.task for outcome in OUTCOMES),
            dropped=dropped | dropped_outcomes,
            split_description=_describe_split(tuple(sources), seed),
            license="odc-by",
            citation=CITATION,
            seed=seed,
            extra={
                "description": "Stays in four kinds of ICU, their first 48 hours, from the PhysioNet/Computing in "
                "Cardiology Challenge 2012.",
                "units": UNITS | STATIC_UNITS,
            },
        )
        writer.finish(info)
    return info


# ------------------------------------------------------------------------------------------------------------- files


def _find_sets(raw: Path) -> dict[str, Path]:
    """Set letter -> archive or folder. An archive goes before a folder: it is complete or it fails its checksum."""
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; --raw is the folder that holds set-b.tar.gz, set-c.tar.gz, ...")
    sources = {}
    for letter in "abc":
        candidates = (raw / f"set-{letter}{suffix}" for suffix in (".tar.gz", ".zip", ""))
        if source := next((path for path in candidates if path.exists()), None):
            sources[letter] = source
    if not sources:
        raise ValueError(f"{raw} holds none of set-a, set-b, set-c (as .tar.gz, .zip or a folder)")
    if not sources.keys() & {"b", "c"}:
        raise ValueError(f"{raw} holds set a only, which is the test split; training needs set-b or set-c beside it")
    for letter in sources:
        if not (raw / f"Outcomes-{letter}.txt").is_file():
            raise ValueError(f"{raw / f'Outcomes-{letter}.txt'} is missing; it holds the outcomes of set-{letter}")
    return sources


def _is_stay(path: PurePosixPath) -> bool:
    return path.suffix == ".txt" and not path.name.startswith((".", "Outcomes"))


# ------------------------------------------------------------------------------------------------------------- stays


def _read_sets(sources: dict[str, Path]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """All stays (stay, record_id, set), their static columns, the events that count, and what was dropped.

    `stay` numbers the stays by record id, so nothing depends on the order of files. Stays without events other than
    the weight among the descriptors have no events here.
    """
    bodies: list[bytes] = []  # one per stay, all in one buffer later: 8,000 little frames would take minutes
    files: dict[str, str] = {}  # record id -> where it was read, for messages
    letters: list[str] = []
    for letter, source in sources.items():
        for name, content in tqdm(
            read_members(source, _is_stay), desc=f"reading {source.name}", unit=" stays", leave=False, disable=None
        ):
            record_id, where = PurePosixPath(name).stem, f"{source}: {name}"
            if record_id in files:
                raise ValueError(f"record {record_id} occurs twice: {files[record_id]} and {where}")
            files[record_id] = where
            letters.append(letter)
            bodies.append(_body(content, where))
        if letter not in letters:
            raise ValueError(f"{source} holds no stays (files named <RecordID>.txt)")
    places = list(files.values())
    rows = _parse(bodies, places)

    order = pl.DataFrame({"record_id": list(files), "set": letters}).with_row_index("file").sort("record_id")
    order = order.with_row_index("stay")
    number = np.empty(order.height, dtype=np.uint32)  # file -> stay
    number[order["file"]] = order["stay"]
    rows = rows.with_columns(stay=number[rows["file"]])

    descriptors = rows.filter(pl.col("parameter").is_in(DESCRIPTORS))
    static = _static(descriptors, order, places)
    measured = rows.filter(pl.col("parameter").is_in(VARIABLES))
    kept = measured.filter(pl.col("value") >= 0)
    events = kept.select(
        "stay",
        "time",
        pl.col("parameter").replace_strict(VARIABLES, range(len(VARIABLES)), return_dtype=pl.Int32).alias("variable"),
        "value",
    )
    admission_weight = (pl.col("variable") == VARIABLES.index("Weight")) & (pl.col("time") == 0)
    with_events = events.filter(~admission_weight)["stay"].unique()
    dropped = {
        "rows without a parameter": rows["parameter"].null_count(),
        "events with a negative value (unknown)": measured.height - kept.height,
        "stays with descriptors only": order.height - len(with_events),
    }
    events = events.filter(pl.col("stay").is_in(with_events.implode()))
    return order.select("stay", "record_id", "set"), static, events, dropped


def _body(content: bytes, where: str) -> bytes:
    """A stay's rows without the header, each ending in a newline; malformed ones raise ValueError with their line."""
    content = content.replace(b"\r\n", b"\n")
    if not content.startswith(HEADER):
        raise ValueError(f"{where}: line 1 must read {HEADER.decode().strip()}")
    body = content[len(HEADER) :].rstrip(b"\n") + b"\n"
    if not body.isascii() or b"\n\n" in body or body.count(b",") != 2 * body.count(b"\n"):
        raise _malformed_line(body, where)
    return body


def _malformed_line(body: bytes, where: str) -> ValueError:
    for line, row in enumerate(body.splitlines(), start=2):
        if row.count(b",") != 2 or not row.isascii():
            return ValueError(f"{where}: line {line}: expected Time,Parameter,Value, found {row.decode('latin-1')!r}")
    return ValueError(f"{where}: not a table of Time,Parameter,Value")


def _parse(bodies: list[bytes], places: list[str]) -> pl.DataFrame:
    """All rows at once: file (index), time (hours), parameter (null where empty), value."""
    names = ["time", "parameter", "value"]
    text = io.BytesIO(b"".join(bodies))
    try:
        rows = pl.read_csv(
            text, has_header=False, schema=dict.fromkeys(names, pl.String), quote_char=None, raise_if_empty=False
        )
    except pl.exceptions.PolarsError:
        for body, where in zip(bodies, places, strict=True):  # rows of one and of three commas balance in `_body`
            if any(row.count(b",") != 2 for row in body.splitlines()):
                raise _malformed_line(body, where) from None
        raise
    counts = np.array([body.count(b"\n") for body in bodies])
    rows = rows.with_columns(file=np.repeat(np.arange(len(bodies), dtype=np.uint32), counts))

    clock = pl.col("time").str
    known = [*VARIABLES, *DESCRIPTORS]
    parsed = rows.select(
        "file",
        time=(clock.head(-3).cast(pl.Float64, strict=False) + clock.tail(2).cast(pl.Float64, strict=False) / 60).cast(
            pl.Float32
        ),
        parameter="parameter",
        value=pl.col("value").cast(pl.Float64, strict=False),
        bad_time=~clock.contains(r"^[0-9]{2,3}:[0-5][0-9]$").fill_null(False),
        bad_parameter=~pl.col("parameter").is_in(known).fill_null(True),
    ).with_columns(bad_value=~pl.col("value").is_finite().fill_null(False))
    checks = {
        "bad_time": "time must be hh:mm, found",
        "bad_parameter": "unknown parameter",
        "bad_value": "value must be a number, found",
    }
    for (column, message), name in zip(checks.items(), names, strict=True):
        if parsed[column].any():
            index = int(parsed[column].arg_max() or 0)
            file = int(rows["file"][index])
            line = index - int(counts[:file].sum()) + 2
            raise ValueError(f"{places[file]}: line {line}: {message} {rows[name][index]!r}")
    return parsed.select("file", "time", "parameter", "value")


def _static(descriptors: pl.DataFrame, order: pl.DataFrame, places: list[str]) -> pl.DataFrame:
    """One row per stay: the static columns, null where unknown. Checks RecordID against the file's name."""

    def fail(stay: int, problem: str) -> ValueError:
        return ValueError(f"{places[order['file'][stay]]}: {problem}")

    twice = descriptors.select("stay", "parameter").is_duplicated()
    if twice.any():
        row = descriptors.row(int(twice.arg_max() or 0), named=True)
        raise fail(row["stay"], f"{row['parameter']} occurs more than once")
    columns = {}
    for name in DESCRIPTORS:
        found = descriptors.filter(pl.col("parameter") == name)
        column = np.full(order.height, np.nan)
        column[found["stay"]] = found["value"]
        columns[name] = np.where(column >= 0, column, np.nan)
    written = columns.pop("RecordID")
    for stay, (value, record_id) in enumerate(zip(written, order["record_id"], strict=True)):
        if not record_id.isdigit() or value != int(record_id):
            found_id = "no RecordID row" if np.isnan(value) else f"RecordID {value:.0f}"
            raise fail(stay, f"{found_id} in the file of record {record_id}")
    static = pl.DataFrame({"stay": order["stay"], **columns}).fill_nan(None)
    for name, categories in CATEGORIES.items():
        wrong = static[name].is_in(list(categories)).not_().fill_null(False)
        if wrong.any():
            stay = int(wrong.arg_max() or 0)
            raise fail(
                stay,
                f"{name} must be one of {', '.join(f'{code:g}' for code in categories)}, found {static[name][stay]:g}",
            )
        static = static.with_columns(pl.col(name).replace_strict(categories, return_dtype=pl.String))
    return static


# ---------------------------------------------------------------------------------------------------------- outcomes


def _read_outcomes(raw: Path, letters: tuple[str, ...], stays: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row per stay: record_id and the outcome columns as numbers; and how many outcomes have no stay."""
    tables, surplus = [], 0
    for letter in letters:
        path = raw / f"Outcomes-{letter}.txt"
        try:
            table = pl.read_csv(regular(path), infer_schema=False, glob=False).rename(str.strip)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ValueError(f"{path} is not a readable table of outcomes: {error}") from error
        columns = ["RecordID", *dict.fromkeys(outcome.column for outcome in OUTCOMES)]
        if missing := [name for name in columns if name not in table.columns]:
            raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}")
        table = table.select(pl.col(columns).str.strip_chars())
        numbers = table.select(pl.col(columns).cast(pl.Float64, strict=False))
        for name in columns:
            wrong = numbers[name].is_finite().not_().fill_null(True)
            if wrong.any():
                row = int(wrong.arg_max() or 0)
                raise ValueError(f"{path}: line {row + 2}: {name} must be a number, found {table[name][row]!r}")
        numbers = numbers.with_columns(table["RecordID"].alias("record_id"))
        if (twice := numbers["record_id"].is_duplicated()).any():
            raise ValueError(f"{path}: record {numbers['record_id'][int(twice.arg_max() or 0)]} occurs twice")
        members = stays.filter(pl.col("set") == letter)["record_id"]
        if len(without := members.filter(~members.is_in(numbers["record_id"].implode()))):
            raise ValueError(
                f"{path} has no outcome for {len(without)} stay(s) of set-{letter}, record {without[0]} first"
            )
        tables.append(numbers.filter(pl.col("record_id").is_in(members.implode())))
        if numbers.height > len(members):
            surplus += numbers.height - len(members)
            logger.warning("%s lists %d stays, set-%s holds %d", path, numbers.height, letter, len(members))
    return pl.concat(tables), {"outcomes without a stay": surplus} if surplus else {}


def _labels(outcome: Outcome, members: pl.DataFrame) -> pl.DataFrame:
    known = members.filter(pl.col(outcome.column) >= 0)
    label = pl.col(outcome.column)
    if outcome.task.problem_type == "binary":
        if (wrong := known.filter(~label.is_in([0.0, 1.0]))).height:
            raise ValueError(
                f"record {wrong['record_id'][0]}: {outcome.column} must be 0 or 1, found {wrong[outcome.column][0]:g}"
            )
        label = label.cast(pl.Boolean)
    labels = [label]
    if outcome.task.problem_type == "time_to_event":
        died = label == 1
        day = pl.when(died).then("Survival").otherwise("Length_of_stay")
        labels = [24 * (day + 0.5).cast(pl.Float32), died]
        known = known.filter(day >= OBSERVED_HOURS / 24)
    columns = (found.alias(name) for found, name in zip(labels, outcome.task.label_columns, strict=True))
    return known.select("record_id", pl.lit(OBSERVED_HOURS, dtype=pl.Float32).alias("prediction_time"), *columns)


def _split(stays: pl.DataFrame, seed: int) -> dict[str, pl.DataFrame]:
    """Split -> its stays, sorted by record id."""
    test = stays.filter(pl.col("set") == "a")
    rest = stays.filter(pl.col("set") != "a")
    if rest.height < 2:
        raise ValueError(
            f"sets b and c hold {rest.height} stay(s) with events: too few for a train and a validation split"
        )
    train = int(0.8 * rest.height) / rest.height  # rounded down, as STraTS does
    assigned = split_at_random(rest["record_id"], {"train": train, "validation": 1 - train}, seed)
    division = rest["record_id"].replace_strict(assigned, return_dtype=pl.String)
    splits = {split: rest.filter(division == split) for split in ("train", "validation")} | {"test": test}
    return {split: members for split, members in splits.items() if members.height}


def _describe_split(letters: tuple[str, ...], seed: int) -> str:
    training = " and ".join(letter for letter in letters if letter != "a")
    text = f"Set(s) {training}, shuffled with seed {seed}: 80% train, 20% validation."
    if training != "b and c":
        text += " The protocol of STraTS uses sets b and c together; one of them was not there."
    if "a" in letters:
        return f"{text} Set a is the test split."
    return f"{text} Set a, the usual test split, was not there, so there is no test split."
