"""One hundred patients of MIMIC-IV in three editions: what native tables, MEDS and OMOP share is the same in all.

Where they differ, for these reasons:
- Visits: MEDS has the hospital's times. OMOP begins a visit at the registration in the emergency department where
  there was one, which is earlier (but for one of 181), and has 577 visits more: contacts without an admission.
- Deaths: native tables and OMOP give the time of deaths in the hospital, the native ones `deathtime`, OMOP the earlier
  of that and the discharge (four patients "die" at the midnight with which their discharge is entered). MEDS has
  deaths after discharge as well, from the patients' date of death.
- Diagnoses: MEDS has the ICD codes of the native table, at discharge. OMOP keeps the codes that are conditions: those
  of the chapters that are none (V, Z: factors; E, V to Y: causes; some findings) went to `observation`, which this
  edition lacks. An ICD code that two concepts stand for is two rows.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import mimic_iv, omop

OMOP = Path("mimic-iv-demo-omop-0.9", "1_omop_data_csv")
BILLED = 32821  # the type of conditions that come from billing
BEGUN = pl.min_horizontal("admittime", "edregtime")  # of a visit in OMOP


@pytest.fixture(scope="module")
def native(shared_data) -> dict[str, pl.DataFrame]:
    folder = shared_data("mimic-iv-demo-2.2") / "hosp"
    admissions = pl.read_csv(folder / "admissions.csv.gz", infer_schema_length=None, try_parse_dates=True)
    diagnoses = pl.read_csv(folder / "diagnoses_icd.csv.gz", infer_schema_length=None).select(
        "subject_id", "hadm_id", code=pl.col("icd_code").cast(pl.String).str.strip_chars(), version="icd_version"
    )
    return {"admissions": admissions, "diagnoses": diagnoses}


@pytest.fixture(scope="module")
def meds(shared_data) -> pl.DataFrame:
    shards = sorted((shared_data("mimic-iv-demo-meds") / "data").rglob("*.parquet"))
    return pl.concat([pl.read_parquet(shard) for shard in shards])


@pytest.fixture(scope="module")
def cdm(shared_data) -> dict[str, pl.DataFrame]:
    folder = shared_data(OMOP.parts[0]) / OMOP.parts[1]

    def read(table: str) -> pl.DataFrame:
        return pl.read_csv(folder / f"{table}.csv.gz", infer_schema_length=None, try_parse_dates=True)

    persons = read("person").select("person_id", subject_id=pl.col("person_source_value").cast(pl.Int64))
    visits = read("visit_occurrence").join(persons, on="person_id")
    name = pl.col("visit_source_value").str.split("|").list.get(1)  # subject|admission, or subject|date
    visits = visits.with_columns(hadm_id=name.cast(pl.Int64, strict=False))
    return {
        "visits": visits,
        "deaths": read("death").join(persons, on="person_id"),
        "conditions": read("condition_occurrence").join(
            visits.select("visit_occurrence_id", "hadm_id"), on="visit_occurrence_id"
        ),
    }


def test_visits(native, meds, cdm):
    admissions = native["admissions"]
    admitted = meds.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION//"))
    left = meds.filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE//"))
    for found, time in ((admitted, "admittime"), (left, "dischtime")):
        expected = admissions.select("subject_id", time=pl.col(time).cast(pl.Datetime("us")))
        assert (
            found.select("subject_id", "time").sort("subject_id", "time").equals(expected.sort("subject_id", "time"))
        )
    named = cdm["visits"].drop_nulls("hadm_id")
    assert cdm["visits"].height - named.height == 577
    both = admissions.join(named, on="hadm_id", how="inner")
    assert both.height == admissions.height == named.height
    assert (both["visit_end_datetime"] == both["dischtime"]).all()
    other = both.filter(pl.col("visit_start_datetime") != BEGUN)
    assert other["hadm_id"].to_list() == [22380825]
    assert (other["visit_start_datetime"] == other["admittime"]).all()


def test_deaths(native, meds, cdm):
    died = native["admissions"].filter(pl.col("hospital_expire_flag") == 1)
    both = died.join(cdm["deaths"], on="subject_id", how="inner")
    assert both.height == died.height == cdm["deaths"].height == 15
    earlier = both.select(pl.min_horizontal("deathtime", "dischtime")).to_series()
    assert (both["death_datetime"] == earlier).all()
    assert (both["death_datetime"] != both["deathtime"]).sum() == 4
    dead = meds.filter(pl.col("code") == "MEDS_DEATH")
    assert set(died["subject_id"]) < set(dead["subject_id"])
    in_hospital = dead.join(died, on="subject_id", how="inner")
    assert (in_hospital["time"].dt.date() == in_hospital["deathtime"].dt.date()).all()
    later = dead.join(native["admissions"].group_by("subject_id").agg(pl.col("dischtime").max()), on="subject_id")
    after = later.filter(~pl.col("subject_id").is_in(died["subject_id"].implode()))
    assert (after["time"].dt.date() >= after["dischtime"].dt.date()).all()


def test_diagnoses(native, meds, cdm):
    expected = native["diagnoses"].with_columns(
        name=pl.format("DIAGNOSIS//ICD//{}//{}", pl.col("version"), pl.col("code"))
    )
    found = meds.filter(pl.col("code").str.starts_with("DIAGNOSIS//"))
    assert sorted(zip(found["subject_id"], found["code"], strict=True)) == sorted(
        zip(expected["subject_id"], expected["name"], strict=True)
    )
    ends = set(native["admissions"].select("subject_id", pl.col("dischtime").cast(pl.Datetime("us"))).iter_rows())
    assert set(found.select("subject_id", "time").iter_rows()) <= ends
    billed = cdm["conditions"].filter(pl.col("condition_type_concept_id") == BILLED)
    codes = set(zip(billed["hadm_id"], billed["condition_source_value"].str.strip_chars(), strict=True))
    all_codes = set(zip(expected["hadm_id"], expected["code"], strict=True))
    assert codes < all_codes
    left = all_codes - codes
    none = sum(code[0] in "EVWXYZ" for _, code in left)
    assert none / len(left) > 0.9
    assert len(all_codes) - len(left) == 3640


def test_the_readers_see_the_same_stays(shared_data, native, cdm, tmp_path):
    """Deaths and lengths of the stays that the reader of OMOP asks about are those of the hospital."""
    omop.prepare(shared_data(OMOP.parts[0]), tmp_path / "omop", min_records=3)
    folder = PreparedFolder(tmp_path / "omop")
    rows = [
        {**row, "died": died}
        for split in SPLITS
        for row, died in zip(
            folder.task("length_of_stay", split).to_pylist(),
            folder.task("in_hospital_mortality", split)["boolean_value"].to_pylist(),
            strict=True,
        )
    ]
    visits = cdm["visits"].select("hadm_id", record_id=pl.col("visit_occurrence_id").cast(pl.String))
    asked = pl.DataFrame(rows).join(visits, on="record_id").join(native["admissions"], on="hadm_id")
    assert asked.height == len(rows) == 248
    assert (asked["died"] == (asked["hospital_expire_flag"] == 1)).all()
    days = (pl.col("dischtime") - BEGUN).dt.total_seconds() / 86_400
    assert np.allclose(asked["float_value"], asked.select(days).to_series())
    mimic_iv.prepare(shared_data("mimic-iv-demo-2.2"), tmp_path / "native")
    prepared = PreparedFolder(tmp_path / "native")
    in_icu = {row["record_id"] for split in SPLITS for row in prepared.records(split).to_pylist()}
    stays = pl.read_csv(shared_data("mimic-iv-demo-2.2") / "icu" / "icustays.csv.gz", infer_schema_length=None)
    within = stays.filter(pl.col("stay_id").cast(pl.String).is_in(list(in_icu)))
    assert within.height == 140
    assert set(within["hadm_id"]) <= set(cdm["visits"]["hadm_id"])
