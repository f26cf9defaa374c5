"""Proposals for a table's variables: right ones with a reason, doubtful ones without a concept."""

import numpy as np
import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.concepts.mapping import MAP_COLUMNS, read_map
from hymate_training.concepts.suggestion import PROPOSED_FROM, suggest
from hymate_training.concepts.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()


def table(variable: str, median: float | None, unit: str = "", count: int = 40, spread: float = 0.2) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    values = [None] * count if median is None else median * np.exp(spread * generator.standard_normal(count))
    return pl.DataFrame(
        {"variable": [variable] * count, "value": values, "unit": [unit] * count},
        schema_overrides={"value": pl.Float64},
    )


@pytest.mark.parametrize(
    ("variable", "median", "unit", "concept", "factor"),
    [
        ("HR", 85, "", "heart_rate", "1"),
        ("Herzfrequenz", 85, "/min", "heart_rate", "1"),
        ("8867-4", 85, "", "heart_rate", "1"),
        ("LOINC:2160-0 (Kreat)", 90, "umol/L", "creatinine", "0.011312"),
        ("Serum Creatinine", 90, "µmol/L", "creatinine", "0.011312"),
        ("creatinine", 90, "", "creatinine", "0.011312"),
        ("Glucose (70-105)", 7.2, "mmol/L", "glucose", "18.016"),
        ("glucose", 7.2, "", "glucose", "18.016"),
        ("tempF", 98.6, "", "body_temperature", "[degF]"),
        ("Body_Temp", 37.0, "C", "body_temperature", "1"),
        ("Asparate Aminotransferase (AST)", 40, "IU/L", "aspartate_aminotransferase", "1"),
        ("Sys BP (noninvasive)", 120, "mmHg", "systolic_blood_pressure", "1"),
        ("ABP systolic", 118, "mmHg", "invasive_systolic_blood_pressure", "1"),
        ("Lactic Acid", 1.9, "mmol/L", "lactate", "1"),
        ("norepinephrine", None, "", "norepinephrine", ""),
        ("FiO2", 0.4, "", "fraction_of_inspired_oxygen", "100"),
    ],
)
def test_proposals(variable, median, unit, concept, factor):
    spread = 0.01 if concept == "body_temperature" else 0.2
    row = suggest(table(variable, median, unit, spread=spread)).row(0, named=True)
    assert (row["concept"], row["factor"]) == (concept, factor), row
    assert PROPOSED_FROM <= row["confidence"] <= 1
    assert row["reason"]


@pytest.mark.parametrize(
    ("variable", "median", "unit"),
    [
        ("HR Alarm [High]", 120, "bpm"),
        ("glucose CSF", 70, "mg/dL"),
        ("Potassium, Urine", 30, "mEq/L"),
        ("favourite colour", 3, ""),
        ("sodium", 140, "mmHg"),
        ("heart rate", 4000, ""),
        ("Vancomycin", 15, "ug/mL"),
        ("goal heart rate", 80, ""),
    ],
)
def test_what_is_doubtful_gets_no_concept_but_a_reason(variable, median, unit):
    row = suggest(table(variable, median, unit)).row(0, named=True)
    assert row["concept"] == "", row
    assert row["confidence"] < PROPOSED_FROM
    assert row["reason"]


def test_each_unit_of_a_variable_gets_its_own_row():
    rows = suggest(pl.concat([table("Kreatinin", 90, "umol/L"), table("Kreatinin", 1.1, "mg/dL", count=20)]))
    assert rows.columns == list(MAP_COLUMNS)
    assert rows["unit"].to_list() == ["umol/L", "mg/dL"]
    assert rows["concept"].to_list() == ["creatinine"] * 2
    assert rows["factor"].to_list() == ["0.011312", "1"]


def test_the_order_of_the_rows_changes_nothing():
    frame = pl.concat([table("HR", 80), table("Na", 140, "mmol/L"), table("mood", 3)])
    assert suggest(frame).equals(suggest(frame.sample(fraction=1, shuffle=True, seed=1)))


def test_nine_of_ten_variables_of_a_real_hospital_are_right(shared_data):
    """Laboratory and bedside items of MIMIC-III by their labels, against the vocabulary's own map of them."""
    raw = shared_data("mimic-iii-demo-1.4")
    known = {
        int(item): concept for item, (concept, _) in VOCABULARY.variables_of("mimic-iii").items() if item.isdigit()
    }
    right, asked = 0, 0
    for events, items in (("LABEVENTS", "D_LABITEMS"), ("CHARTEVENTS", "D_ITEMS")):
        labels = pl.read_csv(raw / f"{items}.csv.gz", infer_schema=False).select(pl.col("itemid", "label"))
        rows = pl.read_csv(raw / f"{events}.csv.gz", infer_schema=False, columns=["itemid", "valuenum", "valueuom"])
        rows = rows.join(labels, on="itemid").filter(pl.col("itemid").cast(pl.Int64).is_in(list(known)))
        frequent = rows.group_by("itemid").len().filter(pl.col("len") >= 30)["itemid"]
        rows = rows.filter(pl.col("itemid").is_in(frequent.implode()))
        map_ = suggest(
            rows.select(
                pl.col("label").alias("variable"), pl.col("valuenum").alias("value"), pl.col("valueuom").alias("unit")
            )
        )
        meant: dict[str, set[str]] = {}
        for item, label in rows.select("itemid", "label").unique().iter_rows():
            meant.setdefault(label, set()).add(known[int(item)].name)
        for variable, concept in (
            map_.unique("variable", keep="first", maintain_order=True).select("variable", "concept").iter_rows()
        ):
            asked += 1
            right += concept in meant[variable]
    assert asked > 100
    assert right / asked >= 0.9


def test_from_the_command_line_to_a_map_that_can_be_read(tmp_path, capsys):
    frame = pl.concat([table("HR", 80), table("Na", 140, "mmol/L"), table("mood", 3)])
    frame = frame.with_columns(record_id=pl.lit("a"), time=pl.lit(1.0))
    frame.write_parquet(tmp_path / "events.parquet")
    run = ["concepts", "suggest", "--events", str(tmp_path / "events.parquet"), "--output", str(tmp_path / "map.csv")]
    assert main(run) == 0
    assert "3 variables: 2 proposed, 1 without a concept" in capsys.readouterr().out
    assert read_map(tmp_path / "map.csv")["concept"].to_list() == ["heart_rate", "sodium"]
    assert main(run) == 2
    assert "may have been edited" in capsys.readouterr().err


def test_wrong_tables_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lack the column 'variable'"):
        suggest(pl.DataFrame({"value": [1.0]}))
    with pytest.raises(ValueError, match="no rows"):
        suggest(pl.DataFrame({"variable": []}, schema={"variable": pl.String}))


def test_the_vocabulary_is_listed(capsys):
    assert main(["concepts", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(concept.name in printed for concept in VOCABULARY.concepts.values())
    assert "8867-4" in printed
    assert main(["concepts", "list", "--source", "mimic-iii"]) == 0
    printed = capsys.readouterr().out
    assert "220045" in printed
    assert "211" in printed
    assert main(["concepts", "list", "--source", "nowhere"]) == 2
    assert "mimic-iv" in capsys.readouterr().err
