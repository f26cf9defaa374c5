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
discharge flag says; such contradictions are counted. A time of death at midnight is a date: it stands for the end of
that day, or of the stay that ends on it.

Variables are named by the label in d_items and d_labitems (fluid, category or item id added where several items share
a label), with the unit behind it where one item is reported in units that cannot be reconciled. A row without a unit
is taken to be in the unit its item usually has. Values that are not plausible are dropped and counted, and so are
rows without a number. `mimic_items` holds the tables of units and of plausible values.
"""

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from pyarrow import csv

from hymate_training.data.schema import DatasetInfo
from hymate_training.data.tables import read_csv_pieces
from hymate_training.data.writer import PreparedFolderWriter
from hymate_training.readers.mimic import (
    SPLIT_DESCRIPTION,
    TASKS,
    add_event_arguments,
    check_arguments,
    complete_stays,
    events_of,
    static_columns,
    units_and_codes,
    write_stays,
)
from hymate_training.readers.mimic_items import Variable, name_items

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

CITATION = (
    "Johnson AEW, Bulgarelli L, Shen L, et al. MIMIC-IV, a freely accessible electronic health record dataset. Sci "
    "Data 2023;10:1. Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", type=Path, required=True, help="Folder of the download, which holds hosp/ and icu/.")
    add_event_arguments(parser)


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
    check_arguments(min_stays, event_time)
    raw, output = Path(raw), Path(output).absolute()
    with PreparedFolderWriter(output, overwrite=overwrite) as writer:
        paths = _find_tables(raw)
        dropped: Counter[str] = Counter()
        stays = _read_stays(paths, seed, dropped)
        items = name_items(
            _read(paths, "d_items", {"itemid": ID, "label": TEXT, "category": TEXT, "unitname": TEXT}, "itemid"),
            _read(paths, "d_labitems", {"itemid": ID, "label": TEXT, "fluid": TEXT, "category": TEXT}, "itemid"),
        )
        events = (
            (name, events_of(name, batch, event_time))
            for name, source in SOURCES.items()
            for batch in read_csv_pieces(paths[name], source.columns, null_values=NULL_VALUES)
        )
        variables = write_stays(writer, stays, events, items, min_stays, dropped)
        info = _describe(raw, stays, variables, dropped, event_time, seed)
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
    years = pl.col("anchor_age") + pl.col("intime").dt.year() - pl.col("anchor_year")
    return complete_stays(stays, admissions, patients, paths, seed, dropped).with_columns(age=years)


def _describe(
    raw: Path,
    stays: pl.DataFrame,
    variables: dict[str, Variable],
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
        **units_and_codes(variables),
    }
    if version:
        extra["version"] = version.group(1)
    return DatasetInfo(
        source="MIMIC-IV demo" if demo else "MIMIC-IV",
        variables=tuple(variables),
        static_columns=static_columns(stays),
        tasks=TASKS,
        dropped={reason: count for reason, count in dropped.items() if count},
        split_description=SPLIT_DESCRIPTION.format(seed),
        license="odbl" if demo else "other",
        citation=CITATION,
        seed=seed,
        extra=extra,
    )
