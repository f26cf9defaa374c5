"""A stranger's walk: an own table -> proposals -> map -> prepared -> fine-tuned from a checkpoint -> predicted.

The table is made of MIMIC-III demo rows, under other names and in other units. The checkpoint is the released encoder
of several sources. Fine-tuned for one epoch on so few stays it says nothing of patients: that each step works is the
point.
"""

import json
from pathlib import Path

import polars as pl
import pytest
from pyarrow import csv

from hymate_training.cli.main import main
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.publishing.push import plan_push
from tests.support.leakage import check_leakage

ICU = Path(__file__).resolve().parents[2] / "model_cards" / "hymate-icu-pretrained"
# item of MIMIC-III -> the hospital's name for it, its unit there, factor and offset from MIMIC's
OWN = {
    211: ("Puls", "bpm", 1, 0),
    220045: ("Puls", "bpm", 1, 0),
    618: ("Resp. rate", "/min", 1, 0),
    220210: ("Resp. rate", "/min", 1, 0),
    646: ("SpO2", "%", 1, 0),
    220277: ("SpO2", "%", 1, 0),
    456: ("NIBP mean", "mmHg", 1, 0),
    220181: ("NIBP mean", "mmHg", 1, 0),
    678: ("Body temp", "°C", 5 / 9, -160 / 9),
    223761: ("Body temp", "°C", 5 / 9, -160 / 9),
    50912: ("Kreatinin", "µmol/L", 88.4, 0),
    50931: ("Glucose, blood", "mmol/L", 1 / 18.016, 0),
    50813: ("Laktat", "mmol/L", 1, 0),
    50983: ("Natrium", "mmol/L", 1, 0),
    50971: ("Kalium", "mmol/L", 1, 0),
    50882: ("HCO3-", "mmol/L", 1, 0),
    51222: ("Hämoglobin", "g/L", 10, 0),
    51265: ("Thrombozyten", "10^9/L", 1, 0),
    51301: ("Leukozyten", "10^9/L", 1, 0),
    51006: ("BUN", "mg/dL", 1, 0),
    50885: ("Bilirubin total", "µmol/L", 17.1, 0),
    50820: ("Blood pH", "", 1, 0),
    50868: ("Anion gap", "mmol/L", 1, 0),
    51237: ("INR", "", 1, 0),
    742: ("calibrated", "", 1, 0),
}
MEANT = {
    **{"Puls": "heart_rate", "Resp. rate": "respiratory_rate", "SpO2": "pulse_oximetry_saturation"},
    **{"NIBP mean": "mean_blood_pressure", "Body temp": "body_temperature", "Kreatinin": "creatinine"},
    **{"Glucose, blood": "glucose", "Laktat": "lactate", "Natrium": "sodium", "Kalium": "potassium"},
    **{"HCO3-": "bicarbonate", "Hämoglobin": "hemoglobin", "Thrombozyten": "platelets", "BUN": "urea_nitrogen"},
    **{"Leukozyten": "white_blood_cells", "Bilirubin total": "total_bilirubin", "Blood pH": "blood_ph"},
    **{"Anion gap": "anion_gap", "INR": "inr"},
}


@pytest.fixture(scope="module")
def hospital(shared_data, tmp_path_factory) -> Path:
    """labs.csv, admissions.csv and outcomes.csv of the ICU stays of at least 24 hours."""
    raw, folder = shared_data("mimic-iii-demo-1.4"), tmp_path_factory.mktemp("hospital")
    stays = pl.read_csv(raw / "ICUSTAYS.csv.gz", try_parse_dates=True).filter(pl.col("los") >= 1)
    died = pl.read_csv(raw / "ADMISSIONS.csv.gz").select("hadm_id", "hospital_expire_flag")
    stays = stays.join(died, on="hadm_id")
    items = pl.DataFrame(
        [(item, *rest) for item, rest in OWN.items()],
        schema=["itemid", "name", "unit", "factor", "offset"],
        orient="row",
        strict=False,
    )
    parts = []
    for table in ("CHARTEVENTS", "LABEVENTS"):
        columns = ["subject_id", "itemid", "charttime", "valuenum"]
        options = csv.ConvertOptions(include_columns=columns)
        rows = pl.DataFrame(csv.read_csv(raw / f"{table}.csv.gz", convert_options=options))
        parts.append(rows.drop_nulls().join(items, on="itemid").join(stays, on="subject_id"))
    rows = pl.concat([part.select(sorted(set(parts[0].columns) & set(parts[1].columns))) for part in parts])
    rows = rows.filter(pl.col("charttime").is_between("intime", "outtime"))
    rows.select(
        pl.col("icustay_id").alias("FALL"),
        pl.col("charttime").dt.strftime("%d.%m.%Y %H:%M").alias("ZEIT"),
        pl.col("name").alias("ANALYT"),
        (pl.col("valuenum") * pl.col("factor") + pl.col("offset")).round(3).alias("WERT"),
        pl.col("unit").alias("EINHEIT"),
    ).write_csv(folder / "labs.csv", separator=";")
    start = pl.col("intime").dt.strftime("%Y-%m-%d %H:%M")
    stays.select(pl.col("icustay_id").alias("FALL"), start.alias("AUFNAHME")).write_csv(folder / "admissions.csv")
    stays.select(
        pl.col("icustay_id").alias("FALL"), prediction_time=pl.lit(24.0), died=pl.col("hospital_expire_flag")
    ).write_csv(folder / "outcomes.csv")
    columns = "{record_id: FALL, time: ZEIT, variable: ANALYT, value: WERT, unit: EINHEIT, start: AUFNAHME}"
    (folder / "layout.yaml").write_text(f"columns: {columns}\n")
    return folder


@pytest.fixture(scope="module")
def proposals(hospital) -> pl.DataFrame:
    run = ["concepts", "suggest", "--events", hospital / "labs.csv", "--layout", hospital / "layout.yaml"]
    assert main([*map(str, run), "--output", str(hospital / "map.csv")]) == 0
    return pl.read_csv(hospital / "map.csv", infer_schema=False)


def test_nine_of_ten_known_variables_are_proposed_right(proposals):
    found = dict(proposals.select("variable", "concept").iter_rows())
    right = [variable for variable, concept in MEANT.items() if found[variable] == concept]
    assert len(right) >= 0.9 * len(MEANT), {name: found[name] for name in set(MEANT) - set(right)}
    assert not found["calibrated"]


def test_the_walk(hospital, proposals, tmp_path, capsys):
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    files = ["--events", hospital / "labs.csv", "--start", hospital / "admissions.csv"]
    prepare = ["prepare", "frame", *files, "--labels", f"died={hospital / 'outcomes.csv'}"]
    prepare += ["--layout", hospital / "layout.yaml", "--concepts", hospital / "map.csv", "--output", prepared]
    capsys.readouterr()
    assert main([str(part) for part in prepare]) == 0
    assert "calibrated" in capsys.readouterr().out  # kept out and counted by name
    folder = PreparedFolder(prepared)
    assert set(folder.info.variables) == set(MEANT.values())
    values = pl.concat(pl.DataFrame(pl.from_arrow(folder.records(split))) for split in SPLITS)
    medians = dict(values.explode("variable", "value").group_by("variable").agg(pl.col("value").median()).iter_rows())
    creatinine = medians[folder.info.variables.index("creatinine")]
    assert 0.5 < creatinine < 2  # in mg/dL again
    assert check_leakage(prepared, "died") > 0

    finetune = ["finetune", "--data", prepared, "--task", "died", "--checkpoint", ICU, "--output", run]
    assert main([*map(str, finetune), "--epochs", "1", "--batch-size", "16"]) == 0
    said = capsys.readouterr().out
    assert f"variables that keep the checkpoint's weights: {len(MEANT)}, that the data lack: 123 (" in said
    assert "static columns that the data lack: age, height, weight, sex" in said
    transfer = json.loads((run / "training_run.json").read_text())["transfer"]
    assert set(transfer["shared"]) == set(MEANT.values())
    assert transfer["fresh"] == []

    plan = plan_push(run)  # but how the hospital names its files stays
    assert "export.json" in plan.left
    assert "ANALYT" not in "".join(path.read_text() for path in run.glob("*.json") if path.name != "export.json")

    predict = ["predict", "--checkpoint", run, *files, "--output", tmp_path / "predicted.csv"]
    assert main([str(part) for part in predict]) == 0  # layout and map come with the checkpoint
    assert "calibrated" in capsys.readouterr().out
    predicted = pl.read_csv(tmp_path / "predicted.csv")
    assert predicted.height == len(values)


def test_a_checkpoint_of_other_variables_is_refused(hospital, proposals, tmp_path, pretrained, capsys):
    """Its heart rate is called otherwise: without concepts nothing is shared."""
    files = ["--events", hospital / "labs.csv", "--start", hospital / "admissions.csv"]
    prepare = ["prepare", "frame", *files, "--labels", f"died={hospital / 'outcomes.csv'}"]
    prepare += ["--layout", hospital / "layout.yaml", "--output", tmp_path / "prepared"]
    assert main([str(part) for part in prepare]) == 0
    finetune = ["finetune", "--data", tmp_path / "prepared", "--task", "died", "--checkpoint", pretrained]
    assert main([*map(str, finetune), "--output", str(tmp_path / "run")]) == 2
    assert "shares no variable with the data" in capsys.readouterr().err
