"""eICU Collaborative Research Database: stays in ICUs of many US hospitals, their first hours.

Reads the published folder (https://physionet.org/content/eicu-crd/2.0/, or the demo, .../eicu-crd-demo/2.0.1/): the
tables `patient` and, where they are there, `lab`, `vitalPeriodic`, `vitalAperiodic` and `nurseCharting`, each as .csv
or .csv.gz. Tables are read in pieces, so that what stays in memory is the events of the first `observed_hours`.

Conventions of the source:
- A record is a stay in a unit (patientunitstayid); a patient (uniquepid) may have several, and all of them go to one
  split. Time is in minutes since admission to the unit, here in hours; what was measured before is dropped.
- A laboratory value is placed at the time it was drawn; one that was last revised after the observed hours was not
  known by then, at least not as it stands, and is dropped.
- Bedside vitals come every five minutes from the monitor (vitalPeriodic), irregularly from cuffs and catheters
  (vitalAperiodic), and from nurses' charts. Readings of one variable in one hour are averaged into one event, placed
  at the last of them, so that it holds nothing from after its time.
- Age "> 89" is read as 90.
- A value outside `PLAUSIBLE` is dropped, after `CONVERTED` has brought values of a second unit into the first.

Tasks, asked at `observed_hours` for stays of at least that length: `in_hospital_mortality` (hospitaldischargestatus)
and `length_of_stay` (days in the unit); with the table `apachePatientResult` also `icu_mortality`, and its outcomes
where `patient` knows none. Where the two contradict each other, `patient` is right: a death in the unit of who left
the hospital alive is made unknown and counted.
"""

import argparse
import html
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from hymate_training.data.schema import SPLITS, SURVIVAL_COLUMNS, DatasetInfo, StaticColumn, TaskInfo
from hymate_training.data.splits import RANDOM_SPLIT, split_at_random
from hymate_training.data.tables import read_csv_pieces
from hymate_training.data.writer import PreparedFolderWriter, nest_events
from hymate_training.files import regular

BEDSIDE_UNITS = {
    "heartrate": "bpm",
    "respiration": "breaths/min",
    "sao2": "%",
    "temperature": "°C",
    "systemicsystolic": "mmHg",
    "systemicdiastolic": "mmHg",
    "systemicmean": "mmHg",
    "noninvasivesystolic": "mmHg",
    "noninvasivediastolic": "mmHg",
    "noninvasivemean": "mmHg",
    "cvp": "mmHg",
    "etco2": "mmHg",
    "pasystolic": "mmHg",
    "padiastolic": "mmHg",
    "pamean": "mmHg",
    "paop": "mmHg",
    "icp": "mmHg",
    "cardiacoutput": "L/min",
    "gcs_total": "points",
    "gcs_eyes": "points",
    "gcs_verbal": "points",
    "gcs_motor": "points",
}
PERIODIC = (
    *("heartrate", "respiration", "sao2", "temperature", "systemicsystolic", "systemicdiastolic", "systemicmean"),
    *("cvp", "etco2", "pasystolic", "padiastolic", "pamean", "icp"),
)
APERIODIC = ("noninvasivesystolic", "noninvasivediastolic", "noninvasivemean", "paop", "cardiacoutput")
CHARTED = {  # (nursingchartcelltypevallabel, nursingchartcelltypevalname) -> variable
    ("Heart Rate", "Heart Rate"): "heartrate",
    ("Respiratory Rate", "Respiratory Rate"): "respiration",
    ("O2 Saturation", "O2 Saturation"): "sao2",
    ("Temperature", "Temperature (C)"): "temperature",
    ("Temperature", "Temperature (F)"): "temperature",
    ("Invasive BP", "Invasive BP Systolic"): "systemicsystolic",
    ("Invasive BP", "Invasive BP Diastolic"): "systemicdiastolic",
    ("Invasive BP", "Invasive BP Mean"): "systemicmean",
    ("Non-Invasive BP", "Non-Invasive BP Systolic"): "noninvasivesystolic",
    ("Non-Invasive BP", "Non-Invasive BP Diastolic"): "noninvasivediastolic",
    ("Non-Invasive BP", "Non-Invasive BP Mean"): "noninvasivemean",
    ("Glasgow coma score", "GCS Total"): "gcs_total",
    ("Glasgow coma score", "Eyes"): "gcs_eyes",
    ("Glasgow coma score", "Verbal"): "gcs_verbal",
    ("Glasgow coma score", "Motor"): "gcs_motor",
}
PLAUSIBLE = {
    **dict.fromkeys(("systemicsystolic", "noninvasivesystolic"), (1, 350)),
    **dict.fromkeys(("systemicdiastolic", "noninvasivediastolic"), (1, 250)),
    **dict.fromkeys(("systemicmean", "noninvasivemean"), (1, 300)),
    **dict.fromkeys(("pasystolic", "padiastolic", "pamean"), (-10, 200)),
    **dict.fromkeys(("temperature", "Temperature"), (25, 45)),
    **dict.fromkeys(("sao2", "O2 Sat (%)", "Oxyhemoglobin"), (1, 100)),
    **dict.fromkeys(("glucose", "bedside glucose"), (1, 2500)),
    **dict.fromkeys(("bicarbonate", "HCO3", "Total CO2"), (0, 80)),
    **dict.fromkeys(("Base Excess", "Base Deficit"), (-50, 50)),
    "heartrate": (1, 350),
    "respiration": (0, 100),
    "cvp": (-20, 80),
    "etco2": (0, 150),
    "paop": (-10, 80),
    "icp": (-20, 150),
    "cardiacoutput": (0.2, 30),
    "gcs_total": (3, 15),
    "gcs_eyes": (1, 4),
    "gcs_verbal": (1, 5),
    "gcs_motor": (1, 6),
    "FiO2": (15, 100),
    "pH": (6.3, 8.0),
    "paO2": (10, 800),
    "paCO2": (3, 250),
    "sodium": (80, 220),
    "potassium": (0.5, 20),
    "chloride": (40, 200),
    "calcium": (1, 30),
    "ionized calcium": (1, 20),
    "anion gap": (-20, 80),
    "Hgb": (1, 30),
    "Hct": (3, 80),
    "height": (100, 230),
    "weight": (20, 400),
}
ANY_OTHER = (0, float("inf"))
# variable -> (values of a second unit, what brings them into the first)
CONVERTED = {
    "FiO2": (pl.col("value") <= 1, pl.col("value") * 100),  # fraction -> %
    "ionized calcium": (pl.col("value") < 2, pl.col("value") * 4.008),  # mmol/L -> mg/dL
    **dict.fromkeys(("temperature", "Temperature"), (pl.col("value") > 50, (pl.col("value") - 32) / 1.8)),  # °F -> °C
}

STAY = {"patientunitstayid": pa.int64()}
PATIENT_COLUMNS = STAY | {
    "uniquepid": pa.string(),
    "gender": pa.string(),
    "age": pa.string(),
    "ethnicity": pa.string(),
    "unittype": pa.string(),
    "admissionheight": pa.float64(),
    "admissionweight": pa.float64(),
    "hospitaldischargestatus": pa.string(),
    "unitdischargeoffset": pa.float64(),
}
LAB_COLUMNS = STAY | {
    "labresultoffset": pa.float64(),
    "labname": pa.string(),
    "labresult": pa.float64(),
    "labmeasurenamesystem": pa.string(),
    "labresultrevisedoffset": pa.float64(),
}
RESULT_COLUMNS = STAY | {"actualicumortality": pa.string(), "actualhospitalmortality": pa.string()}
CHART_COLUMNS = STAY | {
    "nursingchartoffset": pa.float64(),
    "nursingchartcelltypevallabel": pa.string(),
    "nursingchartcelltypevalname": pa.string(),
    "nursingchartvalue": pa.string(),
}
EVENT_TABLES = ("lab", "vitalPeriodic", "vitalAperiodic", "nurseCharting")
RESULTS = "apachePatientResult"
RESULT_OF = {"EXPIRED": True, "ALIVE": False}
SUFFIXES = (".csv.gz", ".csv")
COMPACT_AT = 20_000_000  # rows of hourly sums gathered before equal hours are merged
RECORDS_PER_SHARD = 20_000
CITATION = (
    "Pollard TJ, Johnson AEW, Raffa JD, Celi LA, Mark RG, Badawi O. The eICU Collaborative Research Database, a "
    "freely available multi-center database for critical care research. Scientific Data 2018;5:180178. "
    "Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw", type=Path, required=True, help="Folder of the tables, patient.csv.gz, lab.csv.gz, ..."
    )
    parser.add_argument(
        "--observed-hours",
        type=float,
        default=24.0,
        help="Hours from admission to the unit that a record holds; the tasks are asked at their end (default: 24).",
    )


def prepare(
    raw: str | Path, output: str | Path, *, observed_hours: float = 24.0, seed: int = 0, overwrite: bool = False
) -> DatasetInfo:
    """Read eICU's tables into a prepared folder.

    Args:
        raw: folder of the tables.
        output: the prepared folder to make.
        observed_hours: hours from admission to the unit that a record holds.
        seed: of the shuffling of patients.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: naming the file that is missing, damaged or not as published.
    """
    raw = Path(raw)
    if not observed_hours > 0:
        raise ValueError(f"--observed-hours must be positive, got {observed_hours:g}")
    with PreparedFolderWriter(output, overwrite=overwrite) as writer:
        tables = _find_tables(raw)
        dropped: Counter[str] = Counter()
        stays, static_columns = _read_patients(tables["patient"], dropped)
        stays = _add_results(stays, tables.get(RESULTS), dropped)
        reading = Reading(stays.select("patientunitstayid", "stay"), observed_hours, dropped)
        events, variables, units = reading.events(tables)
        measured = stays.join(events.select(pl.col("stay").unique()), on="stay", how="semi").sort("stay")
        dropped[f"stays without an event in the first {observed_hours:g} hours"] = stays.height - measured.height
        long = pl.col("unitdischargeoffset") >= observed_hours * 60
        expired = long & (pl.col("hospitaldischargestatus") == "Expired")
        died = measured.group_by("uniquepid").agg(expired.fill_null(False).any().alias("died"))
        outcome = {patient: "died" if dead else "survived" for patient, dead in died.iter_rows()}
        assigned = split_at_random(outcome, RANDOM_SPLIT, seed, outcome)
        measured = measured.with_columns(split=pl.col("uniquepid").replace_strict(assigned, return_dtype=pl.String))
        tasks = _tasks(observed_hours, RESULTS in tables)
        for split in SPLITS:
            members = measured.filter(pl.col("split") == split)
            for shard in members.iter_slices(RECORDS_PER_SHARD):
                chosen = events.join(shard.select("stay"), on="stay", how="semi").rename({"stay": "record_id"})
                static = shard.select(pl.col("stay").alias("record_id"), *(column.name for column in static_columns))
                ids = shard["patientunitstayid"].cast(pl.String).alias("record_id")
                writer.write_records(split, nest_events(chosen, static).with_columns(ids))
            asked = members.filter(long)
            dropped[f"predictions of stays shorter than {observed_hours:g} hours"] += members.height - asked.height
            known = asked.filter(pl.col("hospitaldischargestatus").is_in(["Alive", "Expired"]))
            dropped[f"predictions of {tasks[0].name} without a known outcome"] += asked.height - known.height
            resulted = asked.drop_nulls("icu_death")
            later = resulted.filter(pl.col("unitdischargeoffset") > observed_hours * 60)
            labels: tuple[tuple[Any, ...], ...] = (
                (known, pl.col("hospitaldischargestatus") == "Expired"),
                (asked, pl.col("unitdischargeoffset") / 1440),
                (resulted, pl.col("icu_death")),
                (later, (pl.col("unitdischargeoffset") / 60).cast(pl.Float32), pl.col("icu_death")),
            )
            for task, (rows, *outcomes) in zip(tasks, labels, strict=False):
                frame = rows.select(
                    pl.col("patientunitstayid").cast(pl.String).alias("record_id"),
                    pl.lit(observed_hours, dtype=pl.Float32).alias("prediction_time"),
                    *(found.alias(name) for found, name in zip(outcomes, task.label_columns, strict=True)),
                )
                if frame.height:
                    writer.write_task(task, split, frame)
        info = _describe(variables, static_columns, tasks, units, tuple(tables), dropped, observed_hours, seed)
        writer.finish(info)
    return info


def _describe(
    variables: tuple[str, ...],
    static_columns: tuple[StaticColumn, ...],
    tasks: tuple[TaskInfo, ...],
    units: dict[str, str],
    tables: tuple[str, ...],
    dropped: Counter[str],
    observed_hours: float,
    seed: int,
) -> DatasetInfo:
    return DatasetInfo(
        source="eICU",
        variables=variables,
        static_columns=static_columns,
        tasks=tasks,
        dropped={reason: count for reason, count in dropped.items() if count},
        split_description="By patient, those with a positive label of in_hospital_mortality and the others "
        f"shuffled apart with seed {seed}: 80% train, 10% validation, 10% test.",
        license="other",
        citation=CITATION,
        seed=seed,
        extra={
            "description": f"Stays in ICUs of many US hospitals, their first {observed_hours:g} hours, from the "
            f"eICU Collaborative Research Database (tables {', '.join(tables)}).",
            "units": units | {"age": "years", "height": "cm", "weight": "kg"},
        },
    )


def _tasks(observed_hours: float, with_results: bool) -> tuple[TaskInfo, ...]:
    asked = f"Asked {observed_hours:g} hours after admission to the unit, of stays at least that long."
    return (
        TaskInfo(
            "in_hospital_mortality",
            f"Does the patient die in the hospital? {asked}",
            "binary",
            ("boolean_value",),
            ("survived", "died"),
        ),
        TaskInfo(
            "length_of_stay",
            f"Days from admission to the unit to discharge from it, deaths included. {asked}",
            "regression",
            ("float_value",),
            ("days",),
        ),
        TaskInfo(
            "icu_mortality",
            f"Does the patient die in the unit? {asked}",
            "binary",
            ("boolean_value",),
            ("survived", "died"),
        ),
        TaskInfo(
            "time_to_death",
            f"When does the patient die in the unit? {asked} Who leaves it alive is censored on leaving.",
            "time_to_event",
            SURVIVAL_COLUMNS,
            ("death",),
        ),
    )[: 4 if with_results else 2]


def _find_tables(raw: Path) -> dict[str, Path]:
    """Table -> file, whatever the case of its name."""
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; --raw is the folder that holds patient.csv.gz, lab.csv.gz, ...")
    present = {path.name.lower(): path for path in sorted(raw.iterdir())}
    tables = {}
    for table in ("patient", *EVENT_TABLES, RESULTS):
        found = [present[f"{table.lower()}{suffix}"] for suffix in SUFFIXES if f"{table.lower()}{suffix}" in present]
        if found:
            tables[table] = regular(found[0])
    if "patient" not in tables:
        raise ValueError(f"{raw} is not a folder of eICU: it holds no patient.csv.gz or patient.csv")
    if not set(tables) & set(EVENT_TABLES):
        raise ValueError(f"{raw} holds no events: lab, vitalPeriodic, vitalAperiodic or nurseCharting (.csv.gz, .csv)")
    return tables


def _read_patients(path: Path, dropped: Counter[str]) -> tuple[pl.DataFrame, tuple[StaticColumn, ...]]:
    """Stays, numbered by id (`stay`), with the static columns; and what those are."""
    rows = pl.concat(read_csv_pieces(path, PATIENT_COLUMNS))
    stays = rows.drop_nulls("patientunitstayid").sort("patientunitstayid")
    dropped[f"rows of {path.name} without a patientunitstayid"] = rows.height - stays.height
    if (twice := stays["patientunitstayid"].is_duplicated()).any():
        raise ValueError(f"{path}: stay {stays['patientunitstayid'][int(twice.arg_max() or 0)]} occurs twice")
    for name in ("uniquepid", "unitdischargeoffset"):
        if (unknown := stays[name].is_null()).any():
            raise ValueError(f"{path}: stay {stays['patientunitstayid'][int(unknown.arg_max() or 0)]} has no {name}")
    age = pl.col("age").str.strip_chars().replace({"> 89": "90", "": None})
    stays = stays.with_columns(years=age.cast(pl.Float64, strict=False))
    if (wrong := stays["years"].is_null() & stays.select(age.is_not_null()).to_series()).any():
        at = int(wrong.arg_max() or 0)
        where = f"{path}: stay {stays['patientunitstayid'][at]}"
        raise ValueError(f"{where}: age must be a number or '> 89', found {stays['age'][at]!r}")
    measures = {}
    for name in ("height", "weight"):
        plausible = pl.col(f"admission{name}").is_between(*PLAUSIBLE[name])
        dropped[f"implausible {name}s (made unknown)"] = stays.filter(~plausible).height
        measures[name] = pl.when(plausible).then(f"admission{name}")
    stays = stays.with_row_index("stay").select(
        "stay",
        "patientunitstayid",
        "uniquepid",
        "hospitaldischargestatus",
        "unitdischargeoffset",
        pl.col("years").alias("age"),
        pl.when(pl.col("gender").is_in(["Female", "Male"])).then(pl.col("gender").str.to_lowercase()).alias("gender"),
        "ethnicity",
        "unittype",
        **measures,
    )
    return stays, (
        StaticColumn("age", "numeric"),
        StaticColumn("gender", "categorical", ("female", "male")),
        *(
            StaticColumn(name, "categorical", tuple(stays[name].drop_nulls().unique().sort()))
            for name in ("ethnicity", "unittype")
        ),
        StaticColumn("height", "numeric"),
        StaticColumn("weight", "numeric"),
    )


def _add_results(stays: pl.DataFrame, path: Path | None, dropped: Counter[str]) -> pl.DataFrame:
    """The stays with `icu_death`, and the hospital's outcome by APACHE where `patient` has none."""
    if path is None:
        return stays.with_columns(icu_death=pl.lit(None, pl.Boolean))
    rows = pl.concat(read_csv_pieces(path, RESULT_COLUMNS))
    results = rows.select(
        "patientunitstayid",
        icu_death=pl.col("actualicumortality").replace_strict(RESULT_OF, default=None, return_dtype=pl.Boolean),
        death=pl.col("actualhospitalmortality").replace_strict(RESULT_OF, default=None, return_dtype=pl.Boolean),
    ).unique()  # a row per version of APACHE
    several = results.filter(pl.col("patientunitstayid").is_duplicated())
    if several.height:
        raise ValueError(f"{path}: stay {several['patientunitstayid'][0]} has two outcomes")
    joined = stays.join(results, on="patientunitstayid", how="left", maintain_order="left")
    by_apache = pl.when("death").then(pl.lit("Expired")).when(~pl.col("death")).then(pl.lit("Alive"))
    contradicted = by_apache.ne(pl.col("hospitaldischargestatus"))
    dropped[f"outcomes of {RESULTS} that patient contradicts"] = joined.filter(contradicted).height
    joined = joined.with_columns(pl.coalesce("hospitaldischargestatus", by_apache)).drop("death")
    alive = pl.col("icu_death") & (pl.col("hospitaldischargestatus") == "Alive")
    dropped["deaths in a unit that were discharged alive (made unknown)"] = joined.filter(alive).height
    return joined.with_columns(icu_death=pl.when(~alive.fill_null(False)).then("icu_death"))


@dataclass
class Reading:
    """Reads the tables of events: the stays and hours wanted, and what was dropped on the way."""

    stays: pl.DataFrame  # patientunitstayid, stay
    observed_hours: float
    dropped: Counter[str]
    number: dict[str, int] = field(default_factory=lambda: {name: at for at, name in enumerate(BEDSIDE_UNITS)})
    units: dict[str, Counter[str]] = field(default_factory=dict)
    hourly: list[pl.DataFrame] = field(default_factory=list)

    def events(self, tables: dict[str, Path]) -> tuple[pl.DataFrame, tuple[str, ...], dict[str, str]]:
        """Events (stay, time, variable, value), the variables that occur, by name, and their units."""
        parts = []
        if "lab" in tables:
            parts += [self._lab(piece) for piece in read_csv_pieces(tables["lab"], LAB_COLUMNS)]
        for table, columns, offset in (
            ("vitalPeriodic", PERIODIC, "observationoffset"),
            ("vitalAperiodic", APERIODIC, "observationoffset"),
        ):
            if table in tables:
                kinds = STAY | {offset: pa.float64()} | dict.fromkeys(columns, pa.float64())
                for piece in read_csv_pieces(tables[table], kinds):
                    long = piece.unpivot(on=columns, index=["patientunitstayid", offset], variable_name="name")
                    self._add_hourly(self._clean(long.drop_nulls("value"), offset, table))
        if "nurseCharting" in tables:
            for piece in read_csv_pieces(tables["nurseCharting"], CHART_COLUMNS):
                self._add_hourly(self._chart(piece))
        if self.hourly:
            merged = _merge_hours(self.hourly)
            parts.append(merged.select("stay", "time", "variable", value=pl.col("sum") / pl.col("count")))
        return self._named(pl.concat([part.cast({"value": pl.Float32, "time": pl.Float32}) for part in parts]))

    def _lab(self, piece: pl.DataFrame) -> pl.DataFrame:
        known = piece.drop_nulls(["labname", "labresult"])
        self.dropped["lab rows without a name or a number"] += piece.height - known.height
        for name, unit, count in known.group_by("labname", "labmeasurenamesystem").len().drop_nulls().iter_rows():
            self.units.setdefault(name, Counter())[html.unescape(unit)] += count
        late = pl.col("labresultrevisedoffset") > self.observed_hours * 60
        in_time = pl.col("labresultoffset") <= self.observed_hours * 60
        later = (late & in_time & (pl.col("labresultoffset") >= 0)).fill_null(False)
        settled = known.filter(~later)
        self.dropped[f"lab values revised after the first {self.observed_hours:g} hours"] += (
            known.height - settled.height
        )
        return self._clean(settled.rename({"labname": "name", "labresult": "value"}), "labresultoffset", "lab")

    def _chart(self, piece: pl.DataFrame) -> pl.DataFrame:
        wanted = pl.DataFrame(
            [(*key, name) for key, name in CHARTED.items()],
            schema=["nursingchartcelltypevallabel", "nursingchartcelltypevalname", "name"],
            orient="row",
        )
        rows = piece.join(wanted, on=wanted.columns[:2], how="inner")
        rows = rows.with_columns(value=pl.col("nursingchartvalue").str.strip_chars().cast(pl.Float64, strict=False))
        known = rows.filter(pl.col("value").is_finite())
        self.dropped["charted vitals without a number"] += rows.height - known.height
        return self._clean(known, "nursingchartoffset", "nurseCharting")

    def _clean(self, rows: pl.DataFrame, offset: str, table: str) -> pl.DataFrame:
        """(stay, time, variable, value) of the stays and hours wanted, in one unit per variable, plausible."""
        named = rows.join(self.stays, on="patientunitstayid", how="inner")
        self.dropped[f"{table} values of a stay that is not in patient"] += rows.height - named.height
        begun = named.filter(pl.col(offset) >= 0)
        self.dropped[f"{table} values from before admission to the unit"] += named.height - begun.height
        inside = begun.filter(pl.col(offset) <= self.observed_hours * 60)
        self.dropped[f"{table} values after the first {self.observed_hours:g} hours"] += begun.height - inside.height
        value = pl.col("value")
        for name, (other_unit, converted) in CONVERTED.items():
            value = pl.when((pl.col("name") == name) & other_unit).then(converted).otherwise(value)
        in_one_unit = inside.with_columns(value=value)
        low, high = (
            pl.col("name").replace_strict(
                {name: float(limits[end]) for name, limits in PLAUSIBLE.items()},
                default=ANY_OTHER[end],
                return_dtype=pl.Float64,
            )
            for end in (0, 1)
        )
        plausible = in_one_unit.filter(pl.col("value").is_between(low, high) & pl.col("value").is_finite())
        self.dropped[f"{table} values that are implausible"] += in_one_unit.height - plausible.height
        for name in plausible["name"].unique().sort():
            self.number.setdefault(name, len(self.number))
        return plausible.select(
            "stay",
            time=pl.col(offset) / 60,
            variable=pl.col("name").replace_strict(self.number, return_dtype=pl.Int32),
            value="value",
        )

    def _add_hourly(self, rows: pl.DataFrame) -> None:
        sums = rows.select(
            "stay", "variable", "time", hour=pl.col("time").floor().cast(pl.Int32), sum="value", count=pl.lit(1.0)
        )
        self.hourly.append(_merge_hours([sums]))
        if sum(part.height for part in self.hourly) > COMPACT_AT:
            self.hourly = [_merge_hours(self.hourly)]

    def _named(self, events: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...], dict[str, str]]:
        names = list(self.number)
        occurring = [names[at] for at in events["variable"].unique().sort()]
        variables = (
            *(name for name in BEDSIDE_UNITS if name in occurring),
            *sorted(name for name in occurring if name not in BEDSIDE_UNITS),
        )
        position = {self.number[name]: at for at, name in enumerate(variables)}
        events = events.with_columns(pl.col("variable").replace_strict(position, return_dtype=pl.Int32))
        common = {name: found.most_common(1)[0][0] for name, found in self.units.items()}
        return events, variables, {name: (BEDSIDE_UNITS | common).get(name, "") for name in variables}


def _merge_hours(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return (
        pl.concat(parts)
        .group_by("stay", "variable", "hour")
        .agg(pl.col("time").max(), pl.col("sum").sum(), pl.col("count").sum())
    )
