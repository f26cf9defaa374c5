"""MIMIC-III (version 1.4) and its open demo: stays in the ICUs of a hospital in Boston, 2001 to 2012.

Reads the download as it comes (https://physionet.org/content/mimiciii/1.4/): the tables ICUSTAYS, ADMISSIONS,
PATIENTS, D_ITEMS, D_LABITEMS and the events of CHARTEVENTS, LABEVENTS, INPUTEVENTS_MV, INPUTEVENTS_CV, OUTPUTEVENTS,
and PROCEDUREEVENTS_MV, as .csv.gz or .csv, in a folder or a .zip, in upper or lower case. A record is an ICU stay,
its clock starts at `intime` and its events end at `outtime`.

The hospital changed its system in between: items below 220000 are CareVue's, those above MetaVision's, and what they
share with MIMIC-IV has the same number there. Everything is read as the reader `mimic-iv` reads it, but for these:

- LABEVENTS has no time of storage, so a result counts from the time of its sample, up to hours before it was known;
  charted values and outputs count from the later of `charttime` and `storetime`, unless `--event-time charted`.
- CareVue's infusions (INPUTEVENTS_CV) are rows of one time, at which both their rate and their amount count.
- Rows that are marked as an error are left out and counted.
- Ages above 89 are hidden by a date of birth 300 years before; they are read as 90.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa

from hymate_training.data.schema import DatasetInfo
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
from hymate_training.readers.mimic_items import name_items
from hymate_training.readers.source_tables import ID, NUMBER, TEXT, TIME, find_tables, read_pieces

CHARTED = {"charttime": TIME, "storetime": TIME, "itemid": ID, "valueuom": TEXT}
INTERVAL = {"icustay_id": ID, "starttime": TIME, "endtime": TIME, "itemid": ID, "statusdescription": TEXT}
DOSE = {"amount": NUMBER, "amountuom": TEXT, "rate": NUMBER, "rateuom": TEXT}
EVENTS: dict[str, dict[str, pa.DataType]] = {
    "chartevents": {"icustay_id": ID, **CHARTED, "valuenum": NUMBER, "error": ID},
    "labevents": {"subject_id": ID, "charttime": TIME, "itemid": ID, "valuenum": NUMBER, "valueuom": TEXT},
    "inputevents_mv": {**INTERVAL, **DOSE},
    "inputevents_cv": {"icustay_id": ID, "charttime": TIME, "storetime": TIME, "itemid": ID, **DOSE},
    "outputevents": {"icustay_id": ID, **CHARTED, "value": NUMBER, "iserror": ID},
    "procedureevents_mv": {**INTERVAL, "value": NUMBER, "valueuom": TEXT},
}
STAYS: dict[str, dict[str, pa.DataType]] = {
    "icustays": {
        **{"icustay_id": ID, "subject_id": ID, "hadm_id": ID},
        **{"first_careunit": TEXT, "intime": TIME, "outtime": TIME},
    },
    "admissions": {
        **{"hadm_id": ID, "deathtime": TIME, "hospital_expire_flag": ID},
        **{"admission_type": TEXT, "admission_location": TEXT},
    },
    "patients": {"subject_id": ID, "gender": TEXT, "dob": TIME},
    "d_items": {"itemid": ID, "label": TEXT, "category": TEXT, "unitname": TEXT},
    "d_labitems": {"itemid": ID, "label": TEXT, "fluid": TEXT, "category": TEXT},
}
KEYS = {"icustays": "icustay_id", "admissions": "hadm_id", "patients": "subject_id"}
OPTIONAL = ("error", "iserror")  # columns that an extract may lack
DEMO_PATIENTS = 100
CITATION = (
    "Johnson AEW, Pollard TJ, Shen L, et al. MIMIC-III, a freely accessible critical care database. Sci Data "
    "2016;3:160035. Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw",
        type=Path,
        required=True,
        help="Folder or .zip of the download, which holds ICUSTAYS.csv.gz and the other tables.",
    )
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
    """Read MIMIC-III into a prepared folder.

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
    with (
        PreparedFolderWriter(output, overwrite=overwrite) as writer,
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.raw-") as unpacked,
    ):
        paths = find_tables(raw, Path(unpacked), (*EVENTS, *STAYS))
        if missing := [table.upper() for table in (*STAYS, *EVENTS) if table not in paths]:
            raise ValueError(f"{raw} lacks the table(s) {', '.join(missing)}; the download is incomplete")
        dropped: Counter[str] = Counter()
        stays = _read_stays(paths, seed, dropped)
        items = name_items(_read(paths, "d_items"), _read(paths, "d_labitems"))
        events = (
            (name, part)
            for name in EVENTS
            for piece in read_pieces(paths[name], EVENTS[name], _required(name))
            for part in _events(name, piece, event_time, dropped)
        )
        variables = write_stays(writer, stays, events, items, min_stays, dropped)
        demo = stays["subject_id"].n_unique() <= DEMO_PATIENTS
        version = re.search(r"(\d+\.\d+)$", raw.resolve().name)
        info = DatasetInfo(
            source="MIMIC-III demo" if demo else "MIMIC-III",
            variables=tuple(variables),
            static_columns=static_columns(stays),
            tasks=TASKS,
            dropped={reason: count for reason, count in dropped.items() if count},
            split_description=SPLIT_DESCRIPTION.format(seed),
            license="odbl" if demo else "other",
            citation=CITATION,
            seed=seed,
            extra={
                "description": "ICU stays of the MIMIC-III Clinical Database"
                + (" Demo, an open sample of 100 patients, all of whom have died since." if demo else "."),
                "credentialed": not demo,
                "license_name": "Open Database License 1.0"
                if demo
                else "PhysioNet Credentialed Health Data License 1.5.0",
                "event_time": event_time,
                **units_and_codes(variables),
                **({"version": version.group(1)} if version else {}),
            },
        )
        writer.finish(info)
    return info


def _required(name: str) -> list[str]:
    return [column for column in {**EVENTS, **STAYS}[name] if column not in OPTIONAL]


def _read(paths: dict[str, Path], name: str) -> pl.DataFrame:
    """A small table, whole; its key must be there in every row and must not repeat."""
    table = pl.concat(read_pieces(paths[name], STAYS[name], _required(name)))
    key = KEYS.get(name, "itemid")
    if table[key].null_count():
        raise ValueError(f"{paths[name]}: {table[key].null_count()} row(s) have no {key}")
    if (twice := table[key].is_duplicated()).any():
        raise ValueError(f"{paths[name]}: {key} {table.filter(twice)[key][0]} occurs more than once")
    return table


def _read_stays(paths: dict[str, Path], seed: int, dropped: Counter[str]) -> pl.DataFrame:
    """The stays as `complete_stays` returns them, with `age`."""
    stays = _read(paths, "icustays").rename({"icustay_id": "stay_id"})
    patients = _read(paths, "patients")
    completed = complete_stays(stays, _read(paths, "admissions"), patients, paths, seed, dropped)
    birthday = pl.col("intime").dt.strftime("%m%d") >= pl.col("dob").dt.strftime("%m%d")
    years = pl.col("intime").dt.year() - pl.col("dob").dt.year() - (~birthday).cast(pl.Int32)
    return completed.with_columns(age=pl.when(years > 89).then(90).otherwise(years).cast(pl.Float64))


def _events(name: str, piece: pl.DataFrame, event_time: str, dropped: Counter[str]) -> Iterator[pl.DataFrame]:
    """Rows of a table -> events as `events_of` makes them of MIMIC-IV's."""
    rows = piece.rename({"icustay_id": "stay_id"}) if "icustay_id" in piece.columns else piece
    for mark in OPTIONAL:
        if mark in rows.columns:
            right = rows.filter(pl.col(mark).fill_null(0) == 0).drop(mark)
            dropped[f"{name}: rows marked as an error"] += rows.height - right.height
            rows = right
    if name == "labevents":
        rows = rows.with_columns(storetime=pl.lit(None, pl.Datetime("ms")))
    if name == "inputevents_cv":
        for part, unit in (("rate", "rateuom"), ("amount", "amountuom")):
            dosed = rows.filter(pl.col(part).is_not_null()).rename({part: "value", unit: "valueuom"})
            yield events_of(name, dosed, event_time).with_columns(part=pl.lit(f" {part}"))
    else:
        yield events_of(name.removesuffix("_mv"), rows, event_time)
