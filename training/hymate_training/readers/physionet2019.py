"""PhysioNet/CinC Challenge 2019: 40,336 ICU patients of two hospitals, hour by hour, with the onset of sepsis.

Reads the download as it comes (https://physionet.org/content/challenge-2019/1.0.0/): for each of the hospitals A and B
that is there, `training_setA.zip`, `training_setA.tar.gz` or the unpacked folder `training_setA/`, in `raw` itself or
in its folder `training/`.

Conventions of the source:
- A patient is a file `<id>.psv`, one row per hour, NaN where nothing was measured. ICULOS counts the hours since
  admission to the ICU and is the time of a row's events; patients may begin later than at hour 1.
- Age (100 stands for 90 and over), Gender, Unit1/Unit2 and HospAdmTime are repeated in every row and are static. Unit1
  is the medical, Unit2 the surgical ICU; neither is known for a third of the patients.
- No variable but BaseExcess can be negative: such values are dropped and counted.
- SepsisLabel is 1 from six hours before the onset of sepsis until the record's end: the shift is in the published
  label. A record may begin with a positive label; when it turned is then unknown.

Tasks:
- `sepsis_onset`, a prediction every hour: is the published label positive now or within the next `horizon_hours`? With
  0, the default, this is the published label itself, the challenge's question: is the onset of sepsis at most six
  hours ahead, or past? A horizon of h hours asks it h hours earlier: is the onset at most 6 + h hours ahead, or past?
  An hour is left out, and counted, while nothing has been measured yet.
- `sepsis`, one prediction per patient (as the work around Raindrop has it): is this the hour, six before the onset,
  at which the published label turns positive? Patients with sepsis are asked about at that hour, so that nothing from
  the onset or after it is seen, all others at their last hour. Patients whose label is positive in their first row are
  left out, and counted. How much of a stay is seen differs between the two classes, and a model may profit from that;
  `sepsis_onset` is the task in which it cannot.
"""

import argparse
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
from tqdm import tqdm

from hymate_training.data.schema import SPLITS, DatasetInfo, StaticColumn, TaskInfo
from hymate_training.data.splits import RANDOM_SPLIT, split_at_random
from hymate_training.data.writer import PreparedFolderWriter, nest_events
from hymate_training.readers.raw import read_members

UNITS = {
    "HR": "bpm",
    "O2Sat": "%",
    "Temp": "°C",
    "SBP": "mmHg",
    "MAP": "mmHg",
    "DBP": "mmHg",
    "Resp": "breaths/min",
    "EtCO2": "mmHg",
    "BaseExcess": "mmol/L",
    "HCO3": "mmol/L",
    "FiO2": "fraction",
    "pH": "",
    "PaCO2": "mmHg",
    "SaO2": "%",
    "AST": "IU/L",
    "BUN": "mg/dL",
    "Alkalinephos": "IU/L",
    "Calcium": "mg/dL",
    "Chloride": "mmol/L",
    "Creatinine": "mg/dL",
    "Bilirubin_direct": "mg/dL",
    "Glucose": "mg/dL",
    "Lactate": "mg/dL",
    "Magnesium": "mmol/dL",
    "Phosphate": "mg/dL",
    "Potassium": "mmol/L",
    "Bilirubin_total": "mg/dL",
    "TroponinI": "ng/mL",
    "Hct": "%",
    "Hgb": "g/dL",
    "PTT": "s",
    "WBC": "1000/µL",
    "Fibrinogen": "mg/dL",
    "Platelets": "1000/µL",
}
VARIABLES = tuple(UNITS)
SIGNED = ("BaseExcess",)
DESCRIPTORS = ("Age", "Gender", "Unit1", "Unit2", "HospAdmTime")
COLUMNS = (*VARIABLES, *DESCRIPTORS, "ICULOS", "SepsisLabel")
LABEL_LEAD_HOURS = 6.0  # by which the published label precedes the onset of sepsis
FLAGS = ("Gender", "Unit1", "Unit2", "SepsisLabel")  # 0 or 1
STATIC_COLUMNS = (
    StaticColumn("Age", "numeric"),
    StaticColumn("Gender", "categorical", ("female", "male")),
    StaticColumn("Unit", "categorical", ("medical ICU", "surgical ICU")),
    StaticColumn("HospAdmTime", "numeric"),
)
HOSPITAL = StaticColumn("Hospital", "categorical", ("A", "B"))
STATIC_UNITS = {"Age": "years", "HospAdmTime": "hours from ICU to hospital admission, negative"}
SEPSIS = TaskInfo(
    "sepsis",
    "Does the published label, six hours ahead of the onset of sepsis, turn positive? Once per patient: asked at the "
    "hour at which it does, so that nothing from the onset on is seen, and at the last hour of all others.",
    "binary",
    ("boolean_value",),
    ("no sepsis", "sepsis"),
)
CITATION = (
    "Reyna MA, Josef CS, Jeter R, Shashikumar SP, Westover MB, Nemati S, Clifford GD, Sharma A. Early Prediction of "
    "Sepsis From Clinical Data: The PhysioNet/Computing in Cardiology Challenge 2019. Crit Care Med 2020;48(2):210-7. "
    "doi:10.13026/v64v-d857. "
    "Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)
HOSPITAL_SPLIT = {"train": 0.8, "validation": 0.2}
HEADER = "|".join(COLUMNS)
FILES_AT_ONCE = 2000  # parsed together: some 80,000 rows
RECORDS_PER_SHARD = 10_000


def sepsis_onset(horizon_hours: int) -> TaskInfo:
    """The hourly task for a horizon."""
    asked = f"within {horizon_hours} hours" if horizon_hours else "now"
    return TaskInfo(
        "sepsis_onset",
        f"Every hour: is the published label positive {asked}? It is so from six hours before the onset of sepsis to "
        f"the end of the record, so the onset is at most {6 + horizon_hours} hours ahead, or past.",
        "binary",
        ("boolean_value",),
        ("no sepsis", "sepsis"),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw", type=Path, required=True, help="Folder of the download: training_set?.zip or training_set?/."
    )
    parser.add_argument(
        "--split",
        choices=("hospital", "random"),
        help="Hospital: A is divided into train and validation (80/20) and B is the test split. Random: all patients, "
        "80/10/10 (default: hospital where both are there).",
    )
    parser.add_argument(
        "--horizon-hours",
        type=int,
        default=0,
        help="Horizon of sepsis_onset, added to the six hours that the published label looks ahead (default: 0).",
    )


def prepare(
    raw: str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    horizon_hours: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read the hospitals of the challenge into a prepared folder.

    Args:
        raw: folder of the download.
        output: the prepared folder to make.
        split: `"hospital"` (A is divided into train and validation, B is the test split) or `"random"`; where absent,
            `"hospital"` if both are there.
        horizon_hours: of sepsis_onset, added to the six hours that the published label looks ahead.
        seed: of the shuffling of patients.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: naming the file, and where it can the line, that is missing, damaged or not as published.
    """
    if horizon_hours < 0:
        raise ValueError(f"--horizon-hours must be 0 or more, got {horizon_hours}")
    with PreparedFolderWriter(output, overwrite=overwrite) as writer:
        sources = _find_hospitals(Path(raw))
        split = split or ("hospital" if len(sources) == 2 else "random")
        if split == "hospital" and len(sources) < 2:
            raise ValueError(f"--split hospital needs hospitals A and B; {raw} holds {', '.join(sources)} only")
        patients, events, hours, dropped = _read(sources)
        patients = patients.with_columns(split=_assign(patients, split, seed))
        # where one hospital only is trained on, the column would tell nothing, or a category never met
        static_columns = (*STATIC_COLUMNS, HOSPITAL) if split == "random" and len(sources) == 2 else STATIC_COLUMNS
        first = events.group_by("patient").agg(first_event=pl.col("time").min())
        measured = patients.join(first, on="patient", how="inner").sort("patient")
        dropped["patients without a measurement"] = patients.height - measured.height
        names = measured.select("patient", "record_id", "split", "first_event")
        predictions = {}
        for task, rows in (
            (sepsis_onset(horizon_hours), _hourly(hours, horizon_hours)),
            (SEPSIS, _once(hours, dropped)),
        ):
            named = rows.join(names, on="patient", how="inner").sort("patient", "prediction_time")
            predictions[task] = named.filter(pl.col("prediction_time") >= pl.col("first_event"))
            unseen = named.height - predictions[task].height
            dropped[f"predictions of {task.name} before the first measurement"] = unseen
        for name in SPLITS:
            _write_records(writer, name, measured.filter(pl.col("split") == name), events, static_columns)
            for task, rows in predictions.items():
                chosen = rows.filter(pl.col("split") == name)
                if chosen.height:
                    writer.write_task(task, name, chosen.select("record_id", "prediction_time", "boolean_value"))
        info = _describe(tuple(predictions), static_columns, tuple(sources), dropped, split, horizon_hours, seed)
        writer.finish(info)
    return info


def _describe(
    tasks: tuple[TaskInfo, ...],
    static_columns: tuple[StaticColumn, ...],
    hospitals: tuple[str, ...],
    dropped: dict[str, int],
    split: str,
    horizon_hours: int,
    seed: int,
) -> DatasetInfo:
    return DatasetInfo(
        source="PhysioNet 2019",
        variables=VARIABLES,
        static_columns=static_columns,
        tasks=tasks,
        dropped={reason: count for reason, count in dropped.items() if count},
        split_description=_describe_split(hospitals, split, seed),
        license="cc-by-4.0",
        citation=CITATION,
        seed=seed,
        extra={
            "description": "ICU patients of two hospitals, hour by hour, from the PhysioNet/Computing in "
            "Cardiology Challenge 2019 on the early prediction of sepsis.",
            "units": UNITS | STATIC_UNITS,
            # the challenge's utility is defined on the published label, which a longer horizon hides
            "utility": {} if horizon_hours else {"sepsis_onset": "physionet2019"},
            "label_leads": {"sepsis_onset": LABEL_LEAD_HOURS + horizon_hours},
        },
    )


def _write_records(
    writer: PreparedFolderWriter,
    split: str,
    members: pl.DataFrame,
    events: pl.DataFrame,
    static_columns: tuple[StaticColumn, ...],
) -> None:
    for shard in members.iter_slices(RECORDS_PER_SHARD):
        static = shard.select(pl.col("patient").alias("record_id"), *(column.name for column in static_columns))
        chosen = events.join(shard.select("patient"), on="patient", how="semi").rename({"patient": "record_id"})
        writer.write_records(split, nest_events(chosen, static).with_columns(shard["record_id"]))


# ------------------------------------------------------------------------------------------------------------- files


def _find_hospitals(raw: Path) -> dict[str, Path]:
    """Hospital -> archive or folder. An archive goes before a folder: it is complete or it fails its checksum."""
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; --raw is the folder that holds training_setA.zip, training_setB.zip")
    sources = {}
    for hospital in HOSPITAL.categories:
        name = f"training_set{hospital}"
        places = [
            folder / f"{name}{suffix}" for folder in (raw, raw / "training") for suffix in (".zip", ".tar.gz", "")
        ]
        if source := next((path for path in places if path.exists()), None):
            sources[hospital] = source
    if not sources:
        raise ValueError(f"{raw} holds none of training_setA, training_setB (.zip, .tar.gz or folder)")
    return sources


def _is_patient(path: PurePosixPath) -> bool:
    return path.suffix == ".psv" and not path.name.startswith(".")


# ---------------------------------------------------------------------------------------------------------- patients


def _read(sources: dict[str, Path]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Patients (patient, record_id, static), their events (patient, time, variable, value), their hours (patient,
    time, positive) and what was dropped. `patient` numbers them by record id."""
    places: dict[str, str] = {}  # record id -> where it was read, for messages
    static, events, hours = [], [], []
    negative = 0
    for hospital, source in sources.items():
        found = 0
        members = tqdm(
            read_members(source, _is_patient),
            desc=f"reading {source.name}",
            unit=" patients",
            leave=False,
            disable=None,
        )
        files = iter(members)
        while batch := list(islice(files, FILES_AT_ONCE)):
            bodies = []
            for name, content in batch:
                record_id, where = PurePosixPath(name).stem, f"{source}: {name}"
                if record_id in places:
                    raise ValueError(f"patient {record_id} occurs twice: {places[record_id]} and {where}")
                places[record_id] = where
                bodies.append((where, _body(content, where)))
            rows = _parse(bodies, len(places) - len(bodies))
            for index, name in enumerate(VARIABLES):
                known = rows.filter(pl.col(name).is_not_null()).select("patient", "time", value=name)
                kept = known if name in SIGNED else known.filter(pl.col("value") >= 0)
                negative += known.height - kept.height
                events.append(kept.select("patient", "time", pl.lit(index, dtype=pl.Int8).alias("variable"), "value"))
            static.append(_static(rows, hospital))
            hours.append(rows.select("patient", "time", positive=pl.col("SepsisLabel") == 1))
            found += len(bodies)
        if not found:
            raise ValueError(f"{source} holds no patients (files named <id>.psv)")
    order = pl.DataFrame({"record_id": list(places)}).with_row_index("read").sort("record_id")
    rank = np.empty(order.height, dtype=np.uint32)  # by order of reading -> by record id
    rank[order["read"]] = np.arange(order.height)
    tables = [
        frame.with_columns(patient=pl.Series(rank[frame["patient"]]))
        for frame in map(pl.concat, (static, events, hours))
    ]
    patients = tables[0].sort("patient").with_columns(order["record_id"])
    return patients, tables[1], tables[2], {"events with a negative value": negative}


def _body(content: bytes, where: str) -> bytes:
    """A patient's rows without the header, each ending in a newline."""
    if not content.isascii():
        raise ValueError(f"{where}: not a table of numbers: it holds bytes that are not ASCII")
    header, _, body = content.replace(b"\r\n", b"\n").partition(b"\n")
    names = header.decode().strip().split("|")
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"{where}: line 1 lacks the column(s) {', '.join(missing)}")
    if names != list(COLUMNS):
        raise ValueError(f"{where}: line 1 must read {HEADER}")
    if not body.strip():
        raise ValueError(f"{where}: no rows")
    return body.rstrip(b"\n") + b"\n"


def _parse(bodies: list[tuple[str, bytes]], first: int) -> pl.DataFrame:
    """All rows at once: patient (number, from `first` on), time (hours) and the columns; NaN is null. Checks them."""
    counts = np.array([body.count(b"\n") for _, body in bodies])
    whole = sum(body.count(b"|") for _, body in bodies) == (len(COLUMNS) - 1) * counts.sum()
    types = {name: pl.Float64 if name in DESCRIPTORS else pl.Float32 for name in COLUMNS}
    try:
        rows = pl.read_csv(
            io.BytesIO(b"".join(body for _, body in bodies)),
            has_header=False,
            separator="|",
            schema=types,
            null_values=["NaN"],
            quote_char=None,
            raise_if_empty=False,
        )
    except pl.exceptions.PolarsError:
        whole = False
    if not whole or rows.height != counts.sum():
        raise next(_malformed(bodies), ValueError(f"{bodies[0][0]}: not a table of numbers"))
    file = np.repeat(np.arange(len(bodies), dtype=np.uint32), counts)
    rows = rows.with_columns(file=file)

    same = pl.col("file") == pl.col("file").shift()
    label = pl.col("SepsisLabel")
    checks = {
        "a value must be a finite number or NaN": ~pl.all_horizontal(pl.col(COLUMNS).is_finite().fill_null(True)),
        "ICULOS must be a number of hours": pl.col("ICULOS").is_null() | (pl.col("ICULOS") < 0),
        "ICULOS must grow from row to row": same & (pl.col("ICULOS") <= pl.col("ICULOS").shift()),
        "SepsisLabel is missing": label.is_null(),
        **{f"{name} must be 0 or 1": (pl.col(name) != 0) & (pl.col(name) != 1) for name in FLAGS},
        "SepsisLabel must stay 1 once it is": same & (label < label.shift()),
    }
    wrong = rows.select(check.fill_null(False).alias(rule) for rule, check in checks.items())
    for rule in checks:
        if wrong[rule].any():
            at = int(wrong[rule].arg_max() or 0)
            line = at - int(counts[: file[at]].sum()) + 2
            raise ValueError(f"{bodies[file[at]][0]}: line {line}: {rule}")
    return rows.select(pl.col("file").alias("patient") + first, pl.col("ICULOS").alias("time"), *COLUMNS)


def _malformed(bodies: list[tuple[str, bytes]]) -> Iterator[ValueError]:
    for where, body in bodies:
        for line, row in enumerate(body.decode().split("\n")[:-1], start=2):
            cells = row.split("|")
            if len(cells) != len(COLUMNS):
                yield ValueError(f"{where}: line {line}: expected {len(COLUMNS)} columns, found {len(cells)}")
            for name, cell in zip(COLUMNS, cells, strict=False):
                try:
                    float(cell or "nan")
                except ValueError:
                    yield ValueError(f"{where}: line {line}: {name} must be a number, found {cell!r}")


def _static(rows: pl.DataFrame, hospital: str) -> pl.DataFrame:
    known = rows.group_by("patient", maintain_order=True).agg(pl.col(DESCRIPTORS).drop_nulls().first())
    units = pl.when(pl.col("Unit1") == 1).then(pl.lit("medical ICU")).when(pl.col("Unit2") == 1)
    return known.select(
        "patient",
        "Age",
        pl.col("Gender").replace_strict({0.0: "female", 1.0: "male"}, return_dtype=pl.String),
        units.then(pl.lit("surgical ICU")).alias("Unit"),
        "HospAdmTime",
        pl.lit(hospital).alias("Hospital"),
    )


# ------------------------------------------------------------------------------------------------- labels and splits


def _hourly(hours: pl.DataFrame, horizon_hours: int) -> pl.DataFrame:
    """Is the label positive by `horizon_hours` after this hour? The label never falls back, see `_parse`."""
    turned = hours.filter("positive").group_by("patient").agg(turned=pl.col("time").min())
    return hours.join(turned, on="patient", how="left").select(
        "patient",
        prediction_time="time",
        boolean_value=(pl.col("turned") <= pl.col("time") + horizon_hours).fill_null(False),
    )


def _once(hours: pl.DataFrame, dropped: dict[str, int]) -> pl.DataFrame:
    asked = hours.group_by("patient").agg(
        begins=pl.col("time").min(),
        prediction_time=pl.coalesce(pl.col("time").filter("positive").min(), pl.col("time").max()),
        boolean_value=pl.col("positive").any(),
    )
    early = pl.col("boolean_value") & (pl.col("prediction_time") == pl.col("begins"))
    dropped["predictions of sepsis whose label is positive from the first row on"] = asked.filter(early).height
    return asked.filter(~early).drop("begins")


def _assign(patients: pl.DataFrame, split: str, seed: int) -> pl.Series:
    if split == "random":
        assigned = split_at_random(patients["record_id"], RANDOM_SPLIT, seed)
    else:
        trained = patients.filter(pl.col("Hospital") == "A")["record_id"]
        assigned = dict.fromkeys(patients["record_id"], "test") | split_at_random(trained, HOSPITAL_SPLIT, seed)
    return patients["record_id"].replace_strict(assigned, return_dtype=pl.String)


def _describe_split(hospitals: tuple[str, ...], split: str, seed: int) -> str:
    if split == "hospital":
        return f"Hospital A, shuffled by patient with seed {seed}: 80% train, 20% validation. Hospital B: test."
    source = "Hospitals A and B" if len(hospitals) == 2 else f"Hospital {hospitals[0]} (the other was not there)"
    return f"{source}, shuffled by patient with seed {seed}: 80% train, 10% validation, 10% test."
