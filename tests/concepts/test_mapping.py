"""Prepared folders by concepts: names, units, what is kept out, what is refused, and that nothing leaks."""

import json
from pathlib import Path

import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.concepts.mapping import Rule, apply_concepts, read_map, rules_from_vocabulary
from hymate_training.concepts.vocabulary import Conversion, load_vocabulary
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import DatasetInfo
from hymate_training.data.writer import PreparedFolderWriter
from tests.support.leakage import check_leakage

RECORDS = 30


def write_events(path: Path, rows: list[tuple], unit: bool = True) -> Path:
    columns = ["record_id", "time", "variable", "value", *(["unit"] if unit else [])]
    pl.DataFrame([row[: len(columns)] for row in rows], schema=columns, orient="row", strict=False).write_csv(path)
    return path


def own_rows() -> list[tuple]:
    """Thirty records of a hospital that measures in its own units under its own names."""
    rows = []
    for number in range(RECORDS):
        record = f"r{number:02d}"
        rows += [
            (record, 0.5, "Puls", 70 + number, "bpm"),
            (record, 1.0, "Temp", 98.6, "°F"),
            (record, 2.0, "Kreatinin", 88.4, "umol/L"),
            (record, 2.5, "Kreatinin", 1.5, "mg/dL"),
            (record, 3.0, "Noradrenalin", None, ""),
            (record, 3.5, "Mood", 3, ""),
            (record, 40.0, "Puls", 90, "bpm"),
        ]
    return rows


MAP = """variable,unit,concept,factor,confidence,reason
Puls,bpm,heart_rate,1,1,
Temp,°F,body_temperature,[degF],1,
Kreatinin,umol/L,creatinine,0.011312,1,
Kreatinin,mg/dL,creatinine,,1,
Noradrenalin,,norepinephrine,,1,
Mood,,,,0,no idea
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """events.csv, static.csv, labels.csv and map.csv."""
    write_events(tmp_path / "events.csv", own_rows())
    pl.DataFrame(
        {
            "record_id": [f"r{number:02d}" for number in range(RECORDS)],
            "Alter": [500 if number == 4 else 40 + number for number in range(RECORDS)],
            "Geschlecht": ["w" if number % 2 else "M" for number in range(RECORDS)],
            "Haus": ["Nord"] * RECORDS,
        }
    ).write_csv(tmp_path / "static.csv")
    pl.DataFrame(
        {
            "record_id": [f"r{number:02d}" for number in range(RECORDS)],
            "prediction_time": 24.0,
            "died": [number % 3 == 0 for number in range(RECORDS)],
        }
    ).write_csv(tmp_path / "labels.csv")
    (tmp_path / "map.csv").write_text(MAP + "Alter,,age,,1,\nGeschlecht,,sex,,1,\n", encoding="utf-8")
    return tmp_path


def prepare(own: Path, *more: str) -> int:
    run = ["prepare", "frame", "--events", own / "events.csv", "--static", own / "static.csv"]
    run += ["--labels", own / "labels.csv", "--concepts", own / "map.csv", "--output", own / "out"]
    return main([*map(str, run), *more])


def test_own_tables_by_a_map(own):
    assert prepare(own) == 0
    folder = PreparedFolder(own / "out")
    assert folder.info.variables == ("heart_rate", "body_temperature", "creatinine", "norepinephrine")
    row = next(row for row in folder.records("train").to_pylist() if row["record_id"] != "r04")
    number = int(row["record_id"][1:])
    events = [
        (time, folder.info.variables[index], value)
        for time, index, value in zip(row["time"], row["variable"], row["value"], strict=True)
    ]
    assert events == [
        (0.5, "heart_rate", 70 + number),
        (1.0, "body_temperature", pytest.approx(37, abs=1e-3)),
        (2.0, "creatinine", pytest.approx(1.0, abs=1e-3)),
        (2.5, "creatinine", pytest.approx(1.5)),
        (3.0, "norepinephrine", None),
        (40.0, "heart_rate", 90),
    ]
    assert (row["age"], row["sex"]) == (40 + number, "female" if number % 2 else "male")
    assert [column.name for column in folder.info.static_columns] == ["age", "sex"]
    assert folder.info.dropped == {
        "age of a record that is not believed (made unknown)": 1,
        "events of variables without a concept": RECORDS,
    }
    concepts = folder.info.extra["concepts"]
    assert concepts["unmapped"] == {"Mood": RECORDS}
    assert concepts["unmapped_static"] == ["Haus"]
    assert concepts["vocabulary"] == load_vocabulary().fingerprint
    assert folder.info.extra["units"]["creatinine"] == "mg/dL"
    assert "| Mood | 30 |" in (own / "out" / "README.md").read_text(encoding="utf-8")
    assert "Mood" not in folder.info.extra["description"]  # which goes into cards of models
    assert check_leakage(own / "out", "labels") > 0


def test_a_unit_that_does_not_fit_the_range_is_refused_by_name(own, capsys):
    """Fahrenheit that nobody said is Fahrenheit."""
    text = (own / "map.csv").read_text(encoding="utf-8")
    (own / "map.csv").write_text(text.replace("[degF]", "1"), encoding="utf-8")
    assert prepare(own) == 2
    message = capsys.readouterr().err
    assert "variable 'Temp' in °F, median 98.6, does not fit the concept body_temperature" in message
    assert "[degF] would fit" in message
    assert not (own / "out").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("heart_rate", "heartbeat"), "row 1: 'Puls': 'heartbeat' is not a concept"),
        (lambda text: text.replace("0.011312", "often"), "row 3: 'Kreatinin': factor 'often' is neither a number nor"),
        (lambda text: text.replace("0.011312", "0"), "row 3: 'Kreatinin': factor must be a number other than 0"),
        (lambda text: text.replace("0.011312", "nan"), "row 3: 'Kreatinin': factor must be a number other than 0"),
        (
            lambda text: text.replace("[degF]", "").replace("°F", "K"),
            "row 2: 'Temp': unit 'K' is not one of body_temp",
        ),
        (lambda text: text.replace("Kreatinin,mg/dL", "Kreatinin,umol/L"), "row 3: variable and unit occur twice"),
        (lambda text: text.replace("Mood", ""), "row 6: variable is missing"),
        (lambda text: text.replace("concept,factor", "concept,times"), "lacks the column 'factor'"),
        (lambda text: text.splitlines()[0] + "\nMood,,,,,\n", "no row has a concept"),
        (lambda text: "", "cannot be read"),
    ],
)
def test_a_broken_map_is_one_clear_message(edit, message, own, capsys):
    (own / "map.csv").write_text(edit(MAP), encoding="utf-8")
    assert prepare(own) == 2
    assert message in capsys.readouterr().err
    assert not (own / "out").exists()


def test_an_edited_factor_is_used_and_a_map_for_another_table_refused(own, capsys):
    table = own / "map.csv"
    table.write_text(MAP.replace("Puls,bpm,heart_rate,1", "Puls,bpm,heart_rate,0.5"), encoding="utf-8")
    rows = read_map(table)
    assert rows.filter(pl.col("variable") == "Puls")["factor"].to_list() == [0.5]
    table.write_text("variable,unit,concept,factor\nHF,bpm,heart_rate,1\n", encoding="utf-8")
    assert prepare(own) == 2
    assert "the map fits none of the" in capsys.readouterr().err
    assert main(["prepare", "frame", "--events", "x.csv", "--concepts", str(own / "no.csv"), "--output", "o"]) == 2
    assert "hymate concepts suggest" in capsys.readouterr().err


def test_a_table_without_units_takes_those_of_the_map(own):
    write_events(own / "events.csv", [row for row in own_rows() if row[2:] != ("Kreatinin", 1.5, "mg/dL")], unit=False)
    (own / "map.csv").write_text(
        MAP.replace("Kreatinin,mg/dL,creatinine,,1,\n", "").replace("0.011312", ""), encoding="utf-8"
    )
    assert prepare(own) == 0
    folder = PreparedFolder(own / "out")
    row = folder.records("train").to_pylist()[0]
    found = dict(zip((folder.info.variables[index] for index in row["variable"]), row["value"], strict=True))
    assert found["creatinine"] == pytest.approx(1.0, abs=1e-3)
    assert found["body_temperature"] == pytest.approx(37, abs=1e-3)


def test_records_and_predictions_that_are_left_without_events_are_counted(own):
    rows = [row for row in own_rows() if row[0] != "r03" or row[2] == "Mood"]
    rows = [row for row in rows if row[0] != "r05" or row[2] == "Mood" or row[1] > 24]
    write_events(own / "events.csv", rows)
    assert prepare(own) == 0
    info = PreparedFolder(own / "out").info
    assert info.dropped["records without an event of a concept"] == 1
    assert info.dropped["predictions of labels before the record's first event of a concept"] == 2


def test_values_out_of_range_and_events_that_did_not_happen_are_dropped(tmp_path, synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    vocabulary = load_vocabulary()
    rules = rules_from_vocabulary(folder.info, "synthetic")
    rules = {
        **rules,
        "glucose": Rule(vocabulary["norepinephrine"]),
        "sodium": Rule(vocabulary["sodium"], Conversion(1, 72)),
    }
    found = apply_concepts(folder, PreparedFolderWriter(tmp_path / "out"), rules)
    assert found.dropped["values outside their concept's plausible range"] > 0
    assert "glucose" not in found.variables
    assert "norepinephrine" in found.variables


def test_every_source_that_the_vocabulary_knows_can_be_prepared(tmp_path, capsys):
    assert main(["prepare", "synthetic", "--num-records", "60", "--concepts", "--output", str(tmp_path / "out")]) == 0
    info = PreparedFolder(tmp_path / "out").info
    assert "urine_output" in info.extra["concepts"]["unmapped"]  # an hourly rate, which is no concept
    assert "without a concept" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["variables"][0] == "heart_rate"
    assert max(check_leakage(tmp_path / "out", task.name) for task in info.tasks) >= 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_rules_of_a_source_it_does_not_know_are_refused():
    info = DatasetInfo("mine", ("colour",), (), (), {}, "", "other", "", None)
    with pytest.raises(ValueError, match=r"none of the 1 variables of mine .* concepts suggest"):
        rules_from_vocabulary(info, "frame")


@pytest.mark.parametrize(
    ("code", "concept"),
    [
        ("LAB//50912//mg/dL", "creatinine"),
        ("LAB//50912//UNK", "creatinine"),
        ("INFUSION_START//221906", "norepinephrine"),
        ("LOINC//8867-4", "heart_rate"),
        ("LAB//50912//mm[Hg]", None),
        ("PROCEDURE//225792", "mechanical_ventilation"),
        ("DIAGNOSIS//ICD//9//4019", None),
    ],
)
def test_codes_of_meds(code, concept):
    info = DatasetInfo("mine", (code, "LAB//220045//bpm"), (), (), {}, "", "other", "", None)
    rule = rules_from_vocabulary(info, "meds").get(code)
    assert (rule and rule.concept.name) == concept


def test_shards_cannot_be_named_by_concepts(tmp_path, capsys):
    run = ["prepare", "meds", "--raw", str(tmp_path), "--shard", "1/2", "--concepts", "--output", str(tmp_path / "o")]
    assert main(run) == 2
    assert "leave --shard out" in capsys.readouterr().err
