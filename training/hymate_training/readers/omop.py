"""OMOP Common Data Model, versions 5.3 and 5.4: any hospital's records, in CSV or in Parquet.

Reads the tables as an export has them, in a folder, below one or in a .zip: `person`, `visit_occurrence` and, where
they are there, `visit_detail`, `measurement`, `observation`, `condition_occurrence`, `drug_exposure`,
`procedure_occurrence`, `device_exposure`, `death` and `concept`, each as .csv, .csv.gz or Parquet (a file, or a folder
of files).

- A record is a visit, or with `--records person` all that is known of a person. Its clock starts with the visit, or
  with the person's first event.
- An event counts from its datetime; one that has a date alone counts from the end of that day, and so does every event
  where all visits begin and end at midnight, for then the datetimes are dates. Conditions and procedures that come
  from billing (by their type concept) are coded when a visit is over, whatever their date says, and count from its
  end. Measurements and observations carry `value_as_number`, all others no number. Events that name no visit go to
  the visit of their person in which they lie.
- A variable is a concept, called by its name in `concept` where that table is there. Concept 0 ("no matching concept")
  is told apart by its source value, and a concept reported in several units becomes one variable per unit.
- Static columns are age at the record's start and gender. Race is left out, and so is the kind of visit: that an
  emergency visit became a stay is known at its end.

Tasks, of visits that last at least `--observed-hours` (admissions): `in_hospital_mortality` and `length_of_stay`,
asked at those hours of patients then alive, and `readmission_30d`, asked on leaving alive: does another admission
begin within 30 days? A death without a time counts as at the end of its day, or of the visit that ends on it. A
discharge as dead (of `discharged_to_concept_id`) is a death, and so is a death within a visit whatever its discharge
says; contradictions of the two are counted.
"""

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa

from hymate_training.concepts.vocabulary import load_vocabulary
from hymate_training.data.schema import DatasetInfo
from hymate_training.data.writer import PreparedFolderWriter
from hymate_training.readers.source_tables import ID, NUMBER, TEXT, find_tables, read_pieces, seconds_of
from hymate_training.readers.stays import (
    DAY,
    STATIC_COLUMNS,
    Stays,
    add_stay_arguments,
    settle_deaths,
    split_by_outcome,
    units_and_codes,
    write_stays,
)
from hymate_training.readers.store import EventStore, name_with_units

GENDERS = {8507: "male", 8532: "female"}
DISCHARGED, DIED = ("discharged_to_concept_id", "discharge_to_concept_id"), 4216643  # of CDM 5.4 and 5.3
# type concepts of what billing, a claim or the discharge says of a visit once it is over
CODED_AT_END = (32810, 32821, 32823, *range(32844, 32847), *range(32853, 32862), *range(38000183, 38000186))
CODED_AT_END += (*range(38000199, 38000202), *range(44786627, 44786630))


@dataclass(frozen=True)
class Domain:
    """A table of events: the stem of its columns, the stem of those that say when, and what else it has."""

    table: str
    stem: str
    when: str
    numeric: bool = False
    coded: bool = False

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns that are read."""
        columns = {"person_id": ID, "visit_occurrence_id": ID, f"{self.stem}_concept_id": ID}
        columns |= {f"{self.stem}_source_value": TEXT, f"{self.when}_date": TEXT, f"{self.when}_datetime": TEXT}
        if self.numeric:
            columns |= {"value_as_number": NUMBER, "unit_concept_id": ID, "unit_source_value": TEXT}
        if self.coded:
            columns |= {f"{self.stem}_type_concept_id": ID}
        return columns


DOMAINS = (
    Domain("measurement", "measurement", "measurement", numeric=True),
    Domain("observation", "observation", "observation", numeric=True),
    Domain("condition_occurrence", "condition", "condition_start", coded=True),
    Domain("drug_exposure", "drug", "drug_exposure_start"),
    Domain("procedure_occurrence", "procedure", "procedure", coded=True),
    Domain("device_exposure", "device", "device_exposure_start"),
    Domain("visit_detail", "visit_detail", "visit_detail_start"),
)
TABLES = (*(domain.table for domain in DOMAINS), "person", "visit_occurrence", "death", "concept", "cdm_source")
CITATION = (
    "OHDSI. OMOP Common Data Model, https://ohdsi.github.io/CommonDataModel/. Cite the data set itself as its "
    "publisher asks."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", type=Path, required=True, help="Folder or .zip that holds the tables of the CDM.")
    add_stay_arguments(parser, "visit", "person")


def prepare(
    raw: str | Path,
    output: str | Path,
    *,
    records: Literal["visit", "person"] = "visit",
    observed_hours: float = 24.0,
    min_records: int = 10,
    seed: int = 0,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read the tables in `raw` into the prepared folder `output`.

    Args:
        raw: folder or archive of the tables.
        output: the prepared folder to make.
        records: what a record is.
        observed_hours: of a visit, after which its tasks are asked.
        min_records: training records that a variable must be met in.
        seed: shuffles the persons.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: naming the file that is missing, damaged or no table of the CDM, or the argument that is wrong.
    """
    output = Path(output).absolute()
    stays = Stays(records, observed_hours, min_records, "visit")
    with (
        PreparedFolderWriter(output, overwrite=overwrite) as writer,
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.raw-") as unpacked,
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.events-") as scratch,
    ):
        tables = _find(Path(raw), Path(unpacked))
        dropped: Counter[str] = Counter()
        persons = _read_persons(tables, dropped)
        visits, whole_days = _read_visits(tables, persons, dropped)
        owners = stays.owners(visits, split_by_outcome(visits, seed))
        with EventStore(Path(scratch), owners.height, ("domain", "concept", "source", "unit")) as store:
            for domain in DOMAINS:
                if domain.table in tables:
                    path = tables[domain.table]
                    for piece in read_pieces(path, domain.columns, ["person_id", f"{domain.stem}_concept_id"]):
                        seconds = seconds_of(piece, domain.when, path, whole_days=whole_days)
                        events = _events(domain, piece, seconds, visits)
                        store.add(stays.locate(events, visits, owners, domain.table, dropped))
        variables = _name_variables(store, tables)
        written = write_stays(writer, stays, store, [name for name, *_ in variables], owners, visits, dropped)
        info = DatasetInfo(
            source=_source_name(tables),
            variables=written.variables,
            static_columns=STATIC_COLUMNS,
            tasks=written.tasks,
            dropped={reason: count for reason, count in dropped.items() if count},
            split_description=f"By person, those who die in a visit and the others shuffled apart with seed {seed}: "
            "80% train, 10% validation, 10% test.",
            license="other",
            citation=CITATION,
            seed=seed,
            extra={
                "description": f"Records of one {records} each, from tables of the OMOP Common Data Model: "
                f"{', '.join(name for name in TABLES if name in tables)}.",
                **units_and_codes(variables, written),
            },
        )
        writer.finish(info)
    return info


# ------------------------------------------------------------------------------------------------- persons and visits


def _find(raw: Path, unpacked: Path) -> dict[str, Path]:
    tables = find_tables(raw, unpacked, TABLES)
    if missing := [table for table in ("person", "visit_occurrence") if table not in tables]:
        raise ValueError(f"{raw} lacks the table(s) {', '.join(missing)}, as .csv, .csv.gz or .parquet")
    if not any(domain.table in tables for domain in DOMAINS):
        raise ValueError(f"{raw} holds no events: none of {', '.join(domain.table for domain in DOMAINS)}")
    return tables


def _read_persons(tables: dict[str, Path], dropped: Counter[str]) -> pl.DataFrame:
    """A row per person: person_id, born (seconds), gender, death (seconds) and whether its time of day is known."""
    path = tables["person"]
    columns = {"person_id": ID, "gender_concept_id": ID, "year_of_birth": ID, "month_of_birth": ID, "day_of_birth": ID}
    rows = pl.concat(list(read_pieces(path, columns, ["person_id", "year_of_birth"])))
    if (twice := rows["person_id"].is_duplicated()).any():
        raise ValueError(f"{path}: person {rows.filter(twice)['person_id'][0]} occurs twice")
    if rows["person_id"].null_count():
        raise ValueError(f"{path}: person_id is missing in {rows['person_id'].null_count()} row(s)")
    born = pl.date(pl.col("year_of_birth"), pl.col("month_of_birth").fill_null(7), pl.col("day_of_birth").fill_null(1))
    persons = rows.select(
        "person_id",
        born=born.cast(pl.Datetime("us")).dt.epoch("s").cast(pl.Float64),
        gender=pl.col("gender_concept_id").replace_strict(GENDERS, default=None, return_dtype=pl.String),
    )
    if "death" not in tables:
        return persons.with_columns(death=pl.lit(None, pl.Float64))
    path = tables["death"]
    kinds = {"person_id": ID, "death_date": TEXT, "death_datetime": TEXT}
    deaths = pl.concat(list(read_pieces(path, kinds, ["person_id"])), how="vertical_relaxed")
    deaths = deaths.select("person_id", seconds_of(deaths, "death", path).alias("death"))
    # midnight stands for an unknown time of the day
    unknown = pl.col("death") % DAY == 0
    deaths = deaths.with_columns(death=pl.when(unknown).then(pl.col("death") + DAY - 1).otherwise("death"))
    strange = deaths.join(persons, on="person_id", how="anti")
    dropped["deaths of a person that is not in person"] = strange.height
    return persons.join(deaths.group_by("person_id").agg(pl.col("death").min()), on="person_id", how="left")


def _read_visits(tables: dict[str, Path], persons: pl.DataFrame, dropped: Counter[str]) -> tuple[pl.DataFrame, bool]:
    """A row per visit, by start: number, visit, person_id, start, end, born, gender, death (seconds), days.

    And whether all times of the data set are dates.
    """
    path = tables["visit_occurrence"]
    columns = {"visit_occurrence_id": ID, "person_id": ID}
    columns |= {f"visit_{edge}_{kind}": TEXT for edge in ("start", "end") for kind in ("date", "datetime")}
    columns |= dict.fromkeys(DISCHARGED, ID)
    rows = pl.concat(list(read_pieces(path, columns, ["visit_occurrence_id", "person_id"])), how="vertical_relaxed")
    if (twice := rows["visit_occurrence_id"].is_duplicated()).any():
        raise ValueError(f"{path}: visit {rows.filter(twice)['visit_occurrence_id'][0]} occurs twice")
    moments = pl.concat([seconds_of(rows, stem, path, end=False) for stem in ("visit_start", "visit_end")])
    whole_days = bool((moments.drop_nulls() % DAY == 0).all())
    discharged = [pl.col(name) for name in DISCHARGED]
    rows = rows.select(
        pl.col("visit_occurrence_id").alias("visit"),
        "person_id",
        seconds_of(rows, "visit_start", path, end=False).alias("start"),
        seconds_of(rows, "visit_end", path, whole_days=whole_days).alias("end"),
        expired=pl.coalesce(pl.when(column == DIED).then(True).when(column != 0).then(False) for column in discharged),
    )
    known = rows.drop_nulls(["visit", "person_id", "start", "end"]).filter(pl.col("end") >= pl.col("start"))
    dropped["visits without a start, or an end after it"] = rows.height - known.height
    visits = known.join(persons, on="person_id", how="inner")
    dropped["visits of a person that is not in person"] = known.height - visits.height
    if not visits.height:
        raise ValueError(f"{path}: no visit has a start, an end and a person of {tables['person']}")
    visits = settle_deaths(visits, dropped)
    days = (pl.col("end") - pl.col("start")) / DAY
    visits = visits.with_columns(days=days.floor() if whole_days else days)
    return visits.sort("start", "visit").with_row_index("number"), whole_days


# ------------------------------------------------------------------------------------------------------------ events


def _events(domain: Domain, piece: pl.DataFrame, seconds: pl.Series, visits: pl.DataFrame) -> pl.DataFrame:
    """person_id, visit (null where none is named), seconds, value, domain, concept, source (of concept 0), unit."""
    concept = pl.col(f"{domain.stem}_concept_id").fill_null(0)
    value, unit = pl.lit(None, pl.Float64), pl.lit(None, pl.String)
    if domain.numeric:
        units = load_vocabulary().omop_units
        spelled = pl.col("unit_source_value").cast(pl.String).str.strip_chars().replace("", None)
        unit = pl.coalesce(
            pl.col("unit_concept_id").replace_strict(units, default=None, return_dtype=pl.String), spelled
        )
        value = pl.col("value_as_number").fill_nan(None)
    events = piece.with_columns(seconds=seconds).select(
        "person_id",
        pl.col("visit_occurrence_id").alias("visit"),
        "seconds",
        value.alias("value"),
        pl.lit(domain.stem).alias("domain"),
        concept.alias("concept"),
        pl.when(concept == 0)
        .then(pl.col(f"{domain.stem}_source_value").cast(pl.String).str.strip_chars().fill_null(""))
        .alias("source"),
        pl.when(value.is_not_null()).then(unit).alias("unit"),
        (
            pl.col(f"{domain.stem}_type_concept_id").is_in(CODED_AT_END).fill_null(False)
            if domain.coded
            else pl.lit(False)
        ).alias("coded"),
    )
    ends = visits.select("visit", pl.col("end").alias("over"))
    coded = events.join(ends, on="visit", how="left", maintain_order="left")
    return coded.with_columns(
        seconds=pl.when("coded").then(pl.max_horizontal("seconds", "over")).otherwise("seconds")
    ).drop("coded", "over")


def _name_variables(store: EventStore, tables: dict[str, Path]) -> list[tuple[str, str, str]]:
    """Name, unit ("" where there is none) and code of each key of the store."""
    names = _concept_names(tables, {concept for _, concept, *_ in store.keys})
    named = []
    for domain, concept, source, unit in store.keys:
        name = names.get(concept) if concept else source
        name = name or f"{domain} {concept or 'of no concept'}"
        thing = (domain, concept) if concept else (domain, source)
        named.append((thing, name, unit, f"drug//{concept}//{name}" if domain == "drug" else f"{domain}//{concept}"))
    return name_with_units(named)


def _concept_names(tables: dict[str, Path], used: set[int]) -> dict[int, str]:
    if "concept" not in tables:
        return {}
    wanted = pl.Series(sorted(used), dtype=pl.Int64)
    found = [
        piece.filter(pl.col("concept_id").is_in(wanted.implode()))
        for piece in read_pieces(tables["concept"], {"concept_id": ID, "concept_name": TEXT}, ["concept_id"])
    ]
    return dict(pl.concat(found).drop_nulls().iter_rows())


def _source_name(tables: dict[str, Path]) -> str:
    if "cdm_source" in tables:
        rows = pl.concat(list(read_pieces(tables["cdm_source"], {"cdm_source_name": TEXT})))
        if names := rows["cdm_source_name"].drop_nulls().to_list():
            return f"{names[0]} (OMOP)"
    return "OMOP"
