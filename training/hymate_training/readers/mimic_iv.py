"""MIMIC-IV (versions 2.2 and 3.1) and its open demo: stays in the ICUs of a hospital in Boston.

Reads the download as it comes (https://physionet.org/content/mimiciv/): `hosp/*.csv.gz` and `icu/*.csv.gz`, or the
same unpacked. A record is an ICU stay, its clock starts at `intime` and its events end at `outtime`.

When an event counts. Charted values, laboratory results and outputs count from the moment they stood in the database,
the later of `charttime` and `storetime`: a blood sample's result is not known when the blood is drawn. With
`--event-time charted` they count from `charttime`, as in most of the literature. The rate of an infusion counts from
its start and its amount from its end, when it has become a fact; so do a procedure and its duration. (The storetime of
such a row is that of its last edit, often its end, and says nothing about its start.) Rows marked "Rewritten", which a
later correction replaced, are left out.

Static columns are what is known at `intime`: age, gender, first care unit, type and place of the admission. Race is
left out: "unable to obtain" is written when a patient dies early. `last_careunit`, diagnoses and `discharge_location`
come from the end of the stay and are never read. An admission with a time of death counts as a death, whatever its
discharge flag says; such contradictions are counted.

Variables are named by the label in d_items and d_labitems (fluid, category or item id added where several items share
a label), with the unit behind it where one item is reported in units that cannot be reconciled. A row without a unit
is taken to be in the unit its item usually has. Values that are not plausible are dropped and counted, and so are
rows without a number. `mimic_iv_items` holds the tables of units and of plausible values.

Memory does not grow with the tables: they are streamed, each row goes to a temporary file of its block of stays beside
the output (about 8 bytes per row), and the blocks become shards one after another.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv
from tqdm import tqdm

from hymate_training.data.schema import SPLITS, DatasetInfo, StaticColumn, TaskInfo
from hymate_training.data.splits import split_at_random
from hymate_training.data.tables import read_csv_pieces
from hymate_training.data.writer import PreparedFolderWriter, nest_events
from hymate_training.readers.mimic_iv_items import Keys, convert, name_items, resolve_variables

STAYS_PER_SHARD = 1000
SPLIT = {"train": 0.70, "validation": 0.15, "test": 0.15}
NULL_VALUES = csv.ConvertOptions().null_values  # NULL, NA, NaN and the like


@dataclass(frozen=True)
class Source:
    """An event table: the folder it lies in and the columns read, with their types."""

    folder: str
    columns: dict[str, pa.DataType]


TIME, ID, NUMBER, TEXT = pa.timestamp("s"), pa.int64(), pa.float64(), pa.string()
CHARTED = {"charttime": TIME, "storetime": TIME, "itemid": ID, "valueuom": TEXT}
INTERVAL = {"stay_id": ID, "starttime": TIME, "endtime": TIME, "itemid": ID, "statusdescription": TEXT}
SOURCES = {
    "chartevents": Source("icu", {"stay_id": ID, **CHARTED, "valuenum": NUMBER}),
    "labevents": Source("hosp", {"subject_id": ID, **CHARTED, "valuenum": NUMBER}),
    "inputevents": Source("icu", {**INTERVAL, "amount": NUMBER, "amountuom": TEXT, "rate": NUMBER, "rateuom": TEXT}),
    "outputevents": Source("icu", {"stay_id": ID, **CHARTED, "value": NUMBER}),
    "procedureevents": Source("icu", {**INTERVAL, "value": NUMBER, "valueuom": TEXT}),
}

MORTALITY = {
    hours: TaskInfo(
        name,
        f"Does the patient die in the hospital? Asked {hours} hours after admission to the ICU, of patients who are "
        "then alive and still there.",
        "binary",
        ("boolean_value",),
        ("survived", "died"),
    )
    for hours, name in ((48, "in_hospital_mortality"), (24, "in_hospital_mortality_24h"))
}
LENGTH_OF_STAY = TaskInfo(
    "length_of_stay",
    "Days from admission to the ICU to leaving it, deaths included. Asked at 24 hours, of patients still there.",
    "regression",
    ("float_value",),
    ("days",),
)
READMISSION = TaskInfo(
    "readmission_30d",
    "Is the patient admitted to an ICU again within 30 days? Asked on leaving the ICU alive (no death within 6 "
    "hours). Deaths outside an ICU count as no readmission.",
    "binary",
    ("boolean_value",),
    ("not readmitted", "readmitted"),
)
DECOMPENSATION = TaskInfo(
    "decompensation_24h",
    "Does the patient die in the hospital within the next 24 hours? Asked every hour from the fourth to the "
    "end of the stay.",
    "binary",
    ("boolean_value",),
    ("survives 24 hours", "dies within 24 hours"),
)
TASKS = (*MORTALITY.values(), LENGTH_OF_STAY, READMISSION, DECOMPENSATION)
FIRST_DECOMPENSATION_HOUR = 4

CITATION = (
    "Johnson AEW, Bulgarelli L, Shen L, et al. MIMIC-IV, a freely accessible electronic health record dataset. Sci "
    "Data 2023;10:1. Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", type=Path, required=True, help="Folder of the download, which holds hosp/ and icu/.")
    parser.add_argument(
        "--min-stays", type=int, default=10, help="Drop variables met in fewer training stays (default: 10)."
    )
    parser.add_argument(
        "--event-time",
        choices=("stored", "charted"),
        default="stored",
        help="When a charted value counts: once it stands in the database, or at its chart time (default: stored).",
    )


def prepare(
    raw: str | Path,
    output: str | Path,
    *,
    min_stays: int = 10,
    event_time: Literal["stored", "charted"] = "stored",
    seed: int = 0,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read MIMIC-IV into a prepared folder.

    Args:
        raw: folder of the download.
        output: the prepared folder to make.
        min_stays: drop variables met in fewer training stays.
        event_time: when a charted value counts, as the module explains.
        seed: of the shuffling of patients, who are divided 70/15/15.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: naming the file that is missing, damaged or not as published.
    """
    if min_stays < 1:
        raise ValueError(f"--min-stays must be at least 1, got {min_stays}")
    if event_time not in ("stored", "charted"):
        raise ValueError(f"--event-time must be 'stored' or 'charted', got {event_time!r}")
    raw, output = Path(raw), Path(output).absolute()
    with PreparedFolderWriter(output, overwrite=overwrite) as writer:
        paths = _find_tables(raw)
        dropped: Counter[str] = Counter()
        stays = _read_stays(paths, seed, dropped)
        items = name_items(
            _read(paths, "d_items", {"itemid": ID, "label": TEXT, "category": TEXT, "unitname": TEXT}, "itemid"),
            _read(paths, "d_labitems", {"itemid": ID, "label": TEXT, "fluid": TEXT, "category": TEXT}, "itemid"),
        )
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.events-") as scratch:
            blocks, keys = _spill(paths, stays, event_time, Path(scratch), dropped)
            units, table = resolve_variables(keys, items)
            units, table = _choose_variables(units, table, stays, blocks, min_stays, dropped)
            first_event = _write_records(writer, blocks, stays, table)
        stays = stays.with_columns(first_event=first_event)
        dropped["stays without events"] = stays["first_event"].null_count()
        for task, labels in _labels(stays.drop_nulls("first_event"), dropped):
            for split in SPLITS:
                frame = labels.filter(pl.col("split") == split).drop("split")
                writer.write_task(task, split, frame)
        info = _describe(raw, stays, units, dropped, event_time, seed)
        writer.finish(info)
    return info


# ------------------------------------------------------------------------------------------------------------- files


def _find_tables(raw: Path) -> dict[str, Path]:
    """Name of each table that is read -> its file."""
    if not (raw / "hosp").is_dir() or not (raw / "icu").is_dir():
        raise ValueError(
            f"{raw} does not hold the folders hosp/ and icu/; --raw is the folder of the MIMIC-IV download"
        )
    folders = {name: source.folder for name, source in SOURCES.items()}
    folders |= {"patients": "hosp", "admissions": "hosp", "d_labitems": "hosp", "icustays": "icu", "d_items": "icu"}
    paths = {}
    for name, folder in folders.items():
        candidates = [raw / folder / f"{name}.csv{suffix}" for suffix in (".gz", "")]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise ValueError(f"{candidates[0]} is missing, and so is {candidates[1].name}; the download is incomplete")
        paths[name] = found
    return paths


def _read(paths: dict[str, Path], name: str, columns: dict[str, pa.DataType], key: str) -> pl.DataFrame:
    """A small table, whole; `key` must be there in every row and must not repeat."""
    table = pl.concat(read_csv_pieces(paths[name], columns, null_values=NULL_VALUES))
    if table[key].null_count():
        raise ValueError(f"{paths[name]}: {table[key].null_count()} row(s) have no {key}")
    if (twice := table[key].is_duplicated()).any():
        raise ValueError(f"{paths[name]}: {key} {table[key][int(twice.arg_max() or 0)]} occurs more than once")
    return table


def _read_stays(paths: dict[str, Path], seed: int, dropped: Counter[str]) -> pl.DataFrame:
    """One row per ICU stay, by stay_id: times, what is known at its start, what is to be predicted, split, number."""
    stays = _read(
        paths,
        "icustays",
        {"stay_id": ID, "subject_id": ID, "hadm_id": ID, "first_careunit": TEXT, "intime": TIME, "outtime": TIME},
        "stay_id",
    )
    admissions = _read(
        paths,
        "admissions",
        {
            "hadm_id": ID,
            "deathtime": TIME,
            "hospital_expire_flag": ID,
            "admission_type": TEXT,
            "admission_location": TEXT,
        },
        "hadm_id",
    )
    patients = _read(
        paths, "patients", {"subject_id": ID, "gender": TEXT, "anchor_age": NUMBER, "anchor_year": ID}, "subject_id"
    )
    for other, name, key in ((admissions, "admissions", "hadm_id"), (patients, "patients", "subject_id")):
        if (unknown := stays.join(other, on=key, how="anti")).height:
            raise ValueError(f"{paths[name]} has no row for {key} {unknown[key][0]} of {paths['icustays']}")
    if admissions["hospital_expire_flag"].is_in([0, 1]).not_().fill_null(True).any():
        raise ValueError(f"{paths['admissions']}: hospital_expire_flag must be 0 or 1")
    contradictory = pl.col("deathtime").is_not_null() & (pl.col("hospital_expire_flag") == 0)
    dropped["discharge flags that contradict a time of death (taken as deaths)"] = admissions.filter(
        contradictory
    ).height
    admissions = admissions.with_columns(
        hospital_expire_flag=pl.when(contradictory).then(1).otherwise("hospital_expire_flag")
    )
    known = stays.drop_nulls(["intime", "outtime"]).filter(pl.col("outtime") > pl.col("intime"))
    dropped["stays without a start, an end or a length"] = stays.height - known.height
    if not known.height:
        raise ValueError(f"{paths['icustays']}: no stay has an intime before its outtime")
    assigned = split_at_random(known["subject_id"].to_list(), SPLIT, seed)
    split = pl.DataFrame({"subject_id": list(assigned), "split": list(assigned.values())})
    following = pl.col("intime").shift(-1).over("subject_id", order_by="intime")
    return (
        known.join(admissions, on="hadm_id", how="left")
        .join(patients, on="subject_id", how="left")
        .join(split, on="subject_id", how="left")
        .with_columns(
            age=pl.col("anchor_age") + pl.col("intime").dt.year() - pl.col("anchor_year"),
            hours=_hours("outtime"),
            death=_hours("deathtime"),
            gap=(following - pl.col("outtime")).dt.total_seconds() / 86400,
        )
        .sort("stay_id")
        .with_row_index("stay")
    )


def _hours(column: str) -> pl.Expr:
    return (pl.col(column) - pl.col("intime")).dt.total_seconds() / 3600


# ------------------------------------------------------------------------------------------------------------ events


def _events(name: str, batch: pl.DataFrame, event_time: str) -> pl.DataFrame:
    """Rows of a table -> events: its patient or stay, when it is `seen`, part (see `Keys`), itemid, unit, value."""
    who = pl.col("stay_id" if "stay_id" in batch.columns else "subject_id")
    if "charttime" in batch.columns:
        value = "valuenum" if "valuenum" in batch.columns else "value"
        seen = pl.max_horizontal("charttime", "storetime") if event_time == "stored" else pl.col("charttime")
        seen = pl.when(pl.col("charttime").is_not_null()).then(seen)
        return batch.select(
            who, seen.alias("seen"), _part(""), "itemid", _unit("valueuom"), pl.col(value).alias("value")
        )
    batch = batch.filter(pl.col("statusdescription").ne_missing("Rewritten"))
    start, end = pl.col("starttime").alias("seen"), pl.max_horizontal("starttime", "endtime").alias("seen")
    if name == "inputevents":
        rate = batch.filter(pl.col("rate").is_not_null()).select(
            who, start, _part(" rate"), "itemid", _unit("rateuom"), pl.col("rate").alias("value")
        )
        amount = batch.select(
            who, end, _part(" amount"), "itemid", _unit("amountuom"), pl.col("amount").alias("value")
        )
        return pl.concat([rate, amount])
    happened = batch.select(who, start, _part(""), "itemid", unit=pl.lit(None, pl.String), value=pl.lit(np.nan))
    lasting = batch.filter(pl.col("valueuom").is_in(["min", "hour", "day"])).select(
        who, end, _part(" duration"), "itemid", _unit("valueuom"), "value"
    )
    return pl.concat([happened, lasting])


def _part(part: str) -> pl.Expr:
    return pl.lit(part).alias("part")


def _unit(column: str) -> pl.Expr:
    """Spelling without surrounding blanks and a trailing dot; null where there is none."""
    spelled = pl.col(column).str.strip_chars(" .")
    return pl.when(spelled.is_in(["", "None"]).not_()).then(spelled).alias("unit")


def _spill(
    paths: dict[str, Path], stays: pl.DataFrame, event_time: str, scratch: Path, dropped: Counter[str]
) -> tuple[list[Path], Keys]:
    """All events of the stays, one file per block of stays: stay, time (hours), key, value (NaN: carries none)."""
    blocks = [scratch / f"{block}.arrow" for block in range(-(-stays.height // STAYS_PER_SHARD))]
    schema = pa.schema([("stay", pa.uint32()), ("time", pa.float32()), ("key", pa.uint32()), ("value", pa.float32())])
    keys = Keys()
    with ExitStack() as stack:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        files = [stack.enter_context(pa.ipc.new_file(str(path), schema, options=options)) for path in blocks]
        for name, source in SOURCES.items():
            for batch in read_csv_pieces(paths[name], source.columns, null_values=NULL_VALUES):
                events = keys.replace(name, _of_stays(name, _events(name, batch, event_time), stays, dropped))
                block = (events["stay"] // STAYS_PER_SHARD).alias("block")
                for (number,), part in (
                    events.select(schema.names)
                    .with_columns(block)
                    .partition_by("block", as_dict=True, include_key=False)
                    .items()
                ):
                    files[number].write_table(part.to_arrow().cast(schema))
    return blocks, keys


def _of_stays(name: str, events: pl.DataFrame, stays: pl.DataFrame, dropped: Counter[str]) -> pl.DataFrame:
    """The events that lie in a stay, with its number and their hours since its start."""
    who = events.columns[0]
    numbered = events.drop_nulls("value").drop_nulls("itemid")
    dropped[f"{name}: rows without a number"] += events.height - numbered.height
    located = numbered.with_row_index("row").join(stays.select("stay", who, "intime", "outtime"), on=who)
    inside = located.filter(pl.col("seen").is_between("intime", "outtime"))
    if who == "subject_id":  # a moment at which one stay ends and the next begins belongs to the next
        inside = inside.sort("intime").unique("row", keep="last").sort("row")
    dropped[f"{name}: rows outside an ICU stay"] += numbered.height - inside.height
    return inside.select("stay", _hours("seen").cast(pl.Float32).alias("time"), "part", "itemid", "unit", "value")


def _choose_variables(
    units: dict[str, str],
    table: pl.DataFrame,
    stays: pl.DataFrame,
    blocks: list[Path],
    min_stays: int,
    dropped: Counter[str],
) -> tuple[dict[str, str], pl.DataFrame]:
    """What `resolve_variables` returned, without the variables that too few training stays have."""
    names = list(units)
    stays_with, events_of = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    training = stays.filter(pl.col("split") == "train").select("stay")
    for path in tqdm(blocks, desc="counting variables", unit=" blocks", leave=False):
        raw = pl.read_ipc(path)
        block = convert(raw, table)
        dropped["values that are not plausible"] += raw.height - block.height
        events_of += np.bincount(block["variable"], minlength=len(names))
        pairs = block.join(training, on="stay", how="semi").select("stay", "variable").unique()
        stays_with += np.bincount(pairs["variable"], minlength=len(names))
    kept = np.flatnonzero(stays_with >= min_stays)
    if not len(kept):
        raise ValueError(f"no variable is met in {min_stays} training stays; lower --min-stays")
    rare = int(events_of.sum() - events_of[kept].sum())
    dropped[f"events of variables met in fewer than {min_stays} training stays"] = rare
    position = pl.DataFrame({"variable": kept.astype(np.int32), "position": np.arange(len(kept), dtype=np.int32)})
    table = table.join(position, on="variable").drop("variable").rename({"position": "variable"})
    return {names[index]: units[names[index]] for index in kept}, table


# --------------------------------------------------------------------------------------------------- records, labels


STATIC = ("age", "gender", "first_careunit", "admission_type", "admission_location")


def _write_records(
    writer: PreparedFolderWriter, blocks: list[Path], stays: pl.DataFrame, table: pl.DataFrame
) -> pl.Series:
    """Writes one shard per block and split; hours of each stay's first event, null where it has none."""
    first = [pl.DataFrame(schema={"stay": pl.UInt32, "first": pl.Float32})]
    for path in tqdm(blocks, desc="writing records", unit=" blocks", leave=False):
        events = convert(pl.read_ipc(path), table)
        first.append(events.group_by("stay").agg(pl.col("time").min().alias("first")))
        for split in SPLITS:
            members = stays.filter(pl.col("split") == split).select("stay", *STATIC)
            chosen = events.join(members.select("stay"), on="stay", how="semi")
            if chosen.height:
                frame = nest_events(chosen.rename({"stay": "record_id"}), members.rename({"stay": "record_id"}))
                ids = stays["stay_id"].gather(frame["record_id"].cast(pl.UInt32)).cast(pl.String)
                writer.write_records(split, frame.with_columns(ids.alias("record_id")))
    return stays.select("stay").join(pl.concat(first), on="stay", how="left", maintain_order="left")["first"]


def _labels(stays: pl.DataFrame, dropped: Counter[str]) -> Iterator[tuple[TaskInfo, pl.DataFrame]]:
    """Each task with its predictions: split, record_id, prediction_time, label."""

    def asked(members: pl.DataFrame, task: TaskInfo, time: pl.Expr, label: pl.Expr) -> tuple[TaskInfo, pl.DataFrame]:
        rows = members.select(
            "split",
            "first_event",
            pl.col("stay_id").cast(pl.String).alias("record_id"),
            time.cast(pl.Float32).alias("prediction_time"),
            label.alias(task.label_columns[0]),
        )
        seen = rows.filter(pl.col("first_event") <= pl.col("prediction_time")).drop("first_event")
        dropped[f"predictions of {task.name} before the stay's first event"] = rows.height - seen.height
        return task, seen

    died = pl.col("hospital_expire_flag") == 1

    def there_at(hours: float) -> pl.DataFrame:
        return stays.filter((pl.col("hours") >= hours) & (pl.col("death").is_null() | (pl.col("death") > hours)))

    for hours, task in MORTALITY.items():
        yield asked(there_at(hours), task, pl.lit(hours), died)
    yield asked(there_at(24), LENGTH_OF_STAY, pl.lit(24), (pl.col("hours") / 24).cast(pl.Float32))
    left_alive = stays.filter(pl.col("death").is_null() | (pl.col("death") > pl.col("hours") + 6))
    left_alive = left_alive.filter(~(died & pl.col("death").is_null()))
    yield asked(left_alive, READMISSION, pl.col("hours"), (pl.col("gap") <= 30).fill_null(False))
    timed = stays.filter(~(died & pl.col("death").is_null()))
    dropped["stays that end in a death without a time, of decompensation_24h"] = stays.height - timed.height
    hourly = timed.with_columns(
        hour=pl.int_ranges(FIRST_DECOMPENSATION_HOUR, pl.col("hours").floor().cast(pl.Int64) + 1)
    )
    hourly = (
        hourly.filter(pl.col("hour").list.len() > 0)
        .explode("hour")
        .filter(pl.col("death").is_null() | (pl.col("hour") < pl.col("death")))
    )
    within = (pl.col("death") - pl.col("hour") <= 24).fill_null(False)
    yield asked(hourly, DECOMPENSATION, pl.col("hour"), within)


def _describe(
    raw: Path,
    stays: pl.DataFrame,
    units: dict[str, str],
    dropped: Counter[str],
    event_time: str,
    seed: int,
) -> DatasetInfo:
    demo = (raw / "demo_subject_id.csv").is_file()
    version = re.search(r"(\d+\.\d+)$", raw.resolve().name)
    extra: dict[str, Any] = {
        "description": "ICU stays of the MIMIC-IV Clinical Database"
        + (" Demo, an open sample of 100 patients: enough to try things, too few for any claim." if demo else "."),
        "credentialed": not demo,
        "license_name": "Open Database License 1.0" if demo else "PhysioNet Credentialed Health Data License 1.5.0",
        "event_time": event_time,
        "units": {**{name: unit for name, unit in units.items() if unit}, "age": "years"},
    }
    if version:
        extra["version"] = version.group(1)
    return DatasetInfo(
        source="MIMIC-IV demo" if demo else "MIMIC-IV",
        variables=tuple(units),
        static_columns=(
            StaticColumn("age", "numeric"),
            *(
                StaticColumn(name, "categorical", tuple(stays[name].drop_nulls().unique().sort()))
                for name in STATIC[1:]
            ),
        ),
        tasks=TASKS,
        dropped={reason: count for reason, count in dropped.items() if count},
        split_description=f"Patients, shuffled with seed {seed}: 70 % train, 15 % validation, 15 % test.",
        license="odbl" if demo else "other",
        citation=CITATION,
        seed=seed,
        extra=extra,
    )
