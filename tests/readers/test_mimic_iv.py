"""MIMIC-IV: a small database with known answers, every way it can be broken, and the real demo."""

import gzip
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.data import tables as tables_in
from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import mimic_iv, store
from hymate_training.readers.mimic import TASKS
from hymate_training.readers.mimic_items import BOUNDS, PLAUSIBLE
from tests.support.helpers import same
from tests.support.leakage import check_leakage
from tests.support.prepared import labels_frame

Tables = dict[str, pl.DataFrame]
START = datetime(2150, 3, 1, 10)
HEART_RATE, FAHRENHEIT, CELSIUS, DRUG, URINE, VENTILATION, CREATININE = (
    220045,
    223761,
    223762,
    221906,
    226559,
    225792,
    50912,
)
NUM_STAYS = 20


def at(stay: int, hours: float) -> str:
    return f"{START + timedelta(days=40 * stay, hours=hours):%Y-%m-%d %H:%M:%S}"


def charted(who: str, rows: list[tuple], value: str) -> pl.DataFrame:
    columns = [who, "charttime", "storetime", "itemid", value, "valueuom"]
    return pl.DataFrame([tuple(str(cell) for cell in row) for row in rows], schema=columns, orient="row")


def make_tables() -> Tables:
    """Stay i of patient i lasts 60 hours; those divisible by 4 die in it at hour 59, patient 1 returns in 10 days."""
    stays = [(i, i, 100 + i, "MICU", "SICU", at(i, 0), at(i, 60), "2.5") for i in range(NUM_STAYS)]
    stays.append((NUM_STAYS, 1, 100 + NUM_STAYS, "CCU", "CCU", at(1, 60 + 240), at(1, 60 + 240 + 30), "1.25"))
    columns = ["stay_id", "subject_id", "hadm_id", "first_careunit", "last_careunit", "intime", "outtime", "los"]
    icustays = pl.DataFrame(stays, schema=columns, orient="row")
    died = [i % 4 == 0 and i < NUM_STAYS for i in range(NUM_STAYS + 1)]
    admissions = pl.DataFrame(
        {
            "subject_id": icustays["subject_id"],
            "hadm_id": icustays["hadm_id"],
            "deathtime": [at(i, 59) if dead else "" for i, dead in enumerate(died)],
            "discharge_location": ["DIED" if dead else "HOME" for dead in died],
            "admission_type": "URGENT",
            "admission_location": "EMERGENCY ROOM",
            "hospital_expire_flag": [int(dead) for dead in died],
        }
    )
    patients = pl.DataFrame(
        {"subject_id": range(NUM_STAYS), "gender": "F", "anchor_age": 60, "anchor_year": 2148, "dod": ""}
    )
    chart, labs, outputs, inputs, procedures = [], [], [], [], []
    for i in range(NUM_STAYS):
        chart += [
            (i, at(i, hour), at(i, hour + 0.5), HEART_RATE, 60 + i + hour / 10, "bpm") for hour in range(1, 59, 6)
        ]
        chart.append((i, at(i, 2), "", FAHRENHEIT, 98.6, "°F"))
        chart.append((i, at(i, 3), "", CELSIUS, 38.0, "°C"))
        labs.append((i, at(i, 4), at(i, 6), CREATININE, 1.1, "mg/dL"))
        labs.append((i, at(i, 30), at(i, 32), CREATININE, 1.3, "mg/dl"))
        labs.append((i, at(i, 31), at(i, 33), CREATININE, 1.4, ""))
        labs.append((i, at(i, 49), at(i, 51), CREATININE, 1.5, "mg/dL"))
        labs.append((i, at(i, -200), at(i, -199), CREATININE, 9, "mg/dL"))
        outputs.append((i, at(i, 5), at(i, 5), URINE, 100, "ml"))
        inputs.append((i, at(i, 7), at(i, 9), DRUG, 240, "mcg", 2, "mcg/min", "FinishedRunning"))
        inputs.append((i, at(i, 9), at(i, 10), DRUG, 5, "mcg", 5, "mcg/min", "Rewritten"))
        procedures.append((i, at(i, 8), at(i, 58), VENTILATION, 3000, "min", "FinishedRunning"))
    chart.append((NUM_STAYS, at(1, 301), "", HEART_RATE, 80, "bpm"))
    interval = ["stay_id", "starttime", "endtime", "itemid"]

    def frame(rows: list[tuple], columns: list[str]) -> pl.DataFrame:
        return pl.DataFrame([tuple(map(str, row)) for row in rows], schema=columns, orient="row")

    return {
        "icu/icustays": icustays,
        "hosp/admissions": admissions,
        "hosp/patients": patients,
        "icu/d_items": pl.DataFrame(
            {
                "itemid": [HEART_RATE, FAHRENHEIT, CELSIUS, DRUG, URINE, VENTILATION],
                "label": [
                    "Heart Rate",
                    "Temperature Fahrenheit",
                    "Temperature Celsius",
                    "Noradrenaline",
                    "Foley",
                    "Ventilation",
                ],
                "category": ["Vitals", "Vitals", "Vitals", "Medications", "Output", "Ventilation"],
                "unitname": ["bpm", "°F", "°C", "", "mL", "min"],
            }
        ),
        "hosp/d_labitems": pl.DataFrame(
            {"itemid": [CREATININE], "label": ["Creatinine"], "fluid": ["Blood"], "category": ["Chemistry"]}
        ),
        "icu/chartevents": charted("stay_id", chart, "valuenum"),
        "hosp/labevents": charted("subject_id", labs, "valuenum").with_columns(comments=pl.lit("two\nlines")),
        "icu/outputevents": charted("stay_id", outputs, "value"),
        "icu/inputevents": frame(inputs, [*interval, "amount", "amountuom", "rate", "rateuom", "statusdescription"]),
        "icu/procedureevents": frame(procedures, [*interval, "value", "valueuom", "statusdescription"]),
    }


def write(raw: Path, tables: Tables, packed: bool = True) -> Path:
    for name, table in tables.items():
        path = raw / f"{name}.csv{'.gz' if packed else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = table.write_csv().encode()
        path.write_bytes(gzip.compress(text, 1) if packed else text)
    return raw


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mimic") / "3.1", make_tables())


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "mimic"
    mimic_iv.prepare(raw, output, min_stays=1)
    return output


def events_of(folder: Path, record_id: str = "2") -> pl.DataFrame:
    """time, variable and value of a record's events."""
    info = PreparedFolder(folder).info
    for split in SPLITS:
        records = pl.DataFrame(pl.from_arrow(PreparedFolder(folder).records(split))).filter(
            pl.col("record_id") == record_id
        )
        if records.height:
            events = records.select("time", "variable", "value").explode("time", "variable", "value")
            names = pl.Series([info.variables[index] for index in events["variable"]])
            return events.with_columns(names.alias("variable"))
    raise AssertionError(f"no record {record_id}")


def all_of(folder: Path, read: Callable) -> pl.DataFrame:
    return pl.concat(pl.DataFrame(pl.from_arrow(read(split))) for split in SPLITS).sort(
        pl.all().exclude("time", "variable", "value")
    )


def find(events: pl.DataFrame, variable: str) -> list[tuple]:
    return [(round(time, 3), value) for time, _, value in events.filter(pl.col("variable") == variable).iter_rows()]


def test_events_are_what_was_known_and_when(folder):
    events = events_of(folder)
    assert find(events, "Heart Rate")[:2] == [(1.5, pytest.approx(62.1)), (7.5, pytest.approx(62.7))]
    assert find(events, "Temperature Celsius") == [(2, pytest.approx(37.0, abs=1e-4)), (3, 38)]
    # results stand when they are stored; two spellings of a unit and a missing unit are one variable
    creatinine = [(6, 1.1), (32, 1.3), (33, 1.4), (51, 1.5)]
    assert find(events, "Creatinine") == [(time, pytest.approx(value)) for time, value in creatinine]
    # a rate is known when the infusion starts, an amount when it ends; micrograms become milligrams
    assert find(events, "Noradrenaline rate") == [(7, pytest.approx(0.12))]
    assert find(events, "Noradrenaline amount") == [(9, pytest.approx(0.24))]
    assert find(events, "Ventilation") == [(8, None)]
    assert find(events, "Ventilation duration") == [(58, 3000)]
    info = PreparedFolder(folder).info
    assert info.extra["units"]["Noradrenaline rate"] == "mg/hour"
    assert info.extra["version"] == "3.1"
    assert info.extra["credentialed"] is True
    assert info.dropped["labevents: rows outside an ICU stay"] == NUM_STAYS


def test_charted_events_stand_at_their_chart_time(raw, tmp_path):
    mimic_iv.prepare(raw, tmp_path / "out", min_stays=1, event_time="charted")
    events = events_of(tmp_path / "out")
    assert find(events, "Heart Rate")[0][0] == 1
    assert [time for time, _ in find(events, "Creatinine")] == [4, 30, 31, 49]


def test_static_columns_know_nothing_of_the_end(folder):
    records = all_of(folder, lambda split: PreparedFolder(folder).records(split))
    assert set(records["first_careunit"]) == {"MICU", "CCU"}
    ages = dict(records.select("record_id", "age").iter_rows())
    assert (ages["2"], ages["19"]) == (62, 64)  # 2150 and 2152; 60 years old in 2148
    assert "SICU" not in (folder / "metadata.json").read_text()
    assert "discharge" not in (folder / "metadata.json").read_text()


def test_labels(folder):
    def labels(task: str) -> dict:
        table = all_of(folder, lambda split: PreparedFolder(folder).task(task, split))
        return {(record, time): label for record, time, label in table.iter_rows()}

    died = {str(i): i % 4 == 0 for i in range(NUM_STAYS)}
    assert labels("in_hospital_mortality") == {(record, 48.0): dead for record, dead in died.items()}
    assert labels("in_hospital_mortality_24h") == {(r, 24.0): d for r, d in died.items()} | {("20", 24.0): False}
    assert labels("length_of_stay")["2", 24.0] == 2.5
    assert labels("length_of_stay")["20", 24.0] == 1.25
    readmitted = labels("readmission_30d")
    assert {record for record, _ in readmitted} == {record for record, dead in died.items() if not dead} | {"20"}
    assert [key for key, label in readmitted.items() if label] == [("1", 60.0)]
    hourly = labels("decompensation_24h")
    assert [hour for record, hour in hourly if record == "4"] == list(range(4, 59))
    assert [hour for (record, hour), label in hourly.items() if record == "4" and label] == list(range(35, 59))
    assert not any(label for (record, _), label in hourly.items() if not died.get(record))


def test_time_to_death_is_censored_on_leaving_the_icu_alive(folder):
    rows = all_of(folder, lambda split: PreparedFolder(folder).task("time_to_death", split)).iter_rows(named=True)
    until = {row["record_id"]: row for row in rows}
    assert {record for record, row in until.items() if row["event_observed"]} == {
        str(i) for i in range(NUM_STAYS) if i % 4 == 0
    } - {"20"}
    assert {row["prediction_time"] for row in until.values()} == {24.0}
    assert (until["2"]["event_time"], until["20"]["event_time"]) == (60.0, 30.0)
    assert 58 < until["4"]["event_time"] <= 60


def test_a_time_of_death_counts_whatever_the_discharge_flag_says(folder, tmp_path):
    tables = make_tables()
    alive = pl.col("hospital_expire_flag") * (pl.col("hadm_id") != 104)
    tables["hosp/admissions"] = tables["hosp/admissions"].with_columns(hospital_expire_flag=alive)
    info = mimic_iv.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_stays=1)
    assert info.dropped["discharge flags that contradict a time of death (taken as deaths)"] == 1
    for task in info.tasks:
        assert labels_frame(tmp_path / "out", task.name).equals(labels_frame(folder, task.name))


def test_a_death_at_midnight_is_not_before_the_events_of_its_day(tmp_path):
    """Whose stay ends on that day died at its end; who dies a day later, at the end of that one."""
    tables = make_tables()
    stays, admissions = tables["icu/icustays"], tables["hosp/admissions"]
    ends = dict(zip(stays["hadm_id"].to_list(), stays["outtime"].to_list(), strict=True))
    chosen = admissions.filter(pl.col("hospital_expire_flag") == 1)["hadm_id"].to_list()[:2]
    that_day = f"{ends[chosen[0]][:10]} 00:00:00"
    next_day = f"{datetime.fromisoformat(ends[chosen[1]]) + timedelta(days=1):%Y-%m-%d} 00:00:00"
    midnights = pl.col("hadm_id").replace_strict(dict(zip(chosen, (that_day, next_day), strict=True)), default=None)
    tables["hosp/admissions"] = admissions.with_columns(deathtime=pl.coalesce(midnights, "deathtime"))
    info = mimic_iv.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_stays=1)
    said = "times of death at midnight (taken as the end of that day, or of the stay that ends on it)"
    assert info.dropped[said] == 2
    names = dict(zip(stays["hadm_id"].to_list(), stays["stay_id"].cast(pl.String).to_list(), strict=True))
    until = {row["record_id"]: row for row in labels_frame(tmp_path / "out", "time_to_death").to_dicts()}
    length = {row["hadm_id"]: row for row in stays.to_dicts()}
    for hadm_id, observed in zip(chosen, (True, False), strict=True):
        begin, end = (datetime.fromisoformat(length[hadm_id][name]) for name in ("intime", "outtime"))
        row = until[names[hadm_id]]
        assert row["event_observed"] is observed
        assert row["event_time"] == pytest.approx((end - begin).total_seconds() / 3600)


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_nothing_after_the_prediction_reaches_a_tensor(folder, task):
    later = check_leakage(folder, task)
    assert (later > 0) == (task != "readmission_30d")  # asked at the very end of the record


def test_raw_rows_from_after_the_prediction_change_no_tensor(raw, folder, tmp_path):
    """What is stored after hour 48, and what the hospital wrote down at the end, altered in the published files."""
    tables = make_tables()
    generator = np.random.default_rng(0)
    for name, who in (("icu/chartevents", "stay_id"), ("hosp/labevents", "subject_id")):
        table = tables[name]
        limits = pl.Series([at(int(i), 48) if int(i) < NUM_STAYS else "0" for i in table[who]])
        stored = pl.Series([max(pair) for pair in table.select("charttime", "storetime").iter_rows()])
        noise = pl.Series(generator.uniform(1, 9, table.height).astype(str))
        late = stored > limits
        assert 0 < late.sum() < table.height
        tables[name] = table.with_columns(
            valuenum=pl.when(late).then(noise).otherwise("valuenum"),
            charttime=pl.when(late & (pl.Series(generator.random(table.height)) < 0.5))
            .then(stored)
            .otherwise("charttime"),
        )
    tables["icu/procedureevents"] = tables["icu/procedureevents"].with_columns(value=pl.lit("7"))  # ends at hour 58
    tables["icu/icustays"] = tables["icu/icustays"].with_columns(last_careunit=pl.lit("HOSPICE"))
    tables["hosp/admissions"] = tables["hosp/admissions"].with_columns(discharge_location=pl.lit("HOSPICE"))
    tables["hosp/patients"] = tables["hosp/patients"].with_columns(dod=pl.lit("2199-01-01"))
    altered = tmp_path / "altered"
    mimic_iv.prepare(write(tmp_path / "raw", tables), altered, min_stays=1)
    extractor = fit_feature_extractor(PreparedFolder(folder))
    extractor.unknown_variables = "ignore"

    def tensors(source: Path) -> dict:
        dataset = load_task(PreparedFolder(source), "in_hospital_mortality", "train", extractor.variables)
        return TaskCollator(extractor)(dataset.__getitems__(range(len(dataset))))

    before, after = tensors(folder), tensors(altered)
    assert before["attention_mask"].sum() > 100
    same(after, before)


def test_implausible_values_and_rare_variables_are_dropped_and_counted(tmp_path):
    tables = make_tables()
    stones = charted("subject_id", [(3, at(3, 1), "", CREATININE, 3, "stones")], "valuenum")
    tables["hosp/labevents"] = pl.concat([tables["hosp/labevents"], stones], how="diagonal")
    odd = [(3, at(3, 1), "", HEART_RATE, 5000, "bpm"), (3, at(3, 2), "", HEART_RATE, "", "bpm")]
    odd += [(3, at(3, -2), "", HEART_RATE, 70, "bpm")]
    tables["icu/chartevents"] = pl.concat([tables["icu/chartevents"], charted("stay_id", odd, "valuenum")])
    info = mimic_iv.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_stays=2)
    assert info.dropped["values that are not plausible"] == 1
    assert info.dropped["events of variables met in fewer than 2 training stays"] == 1
    assert info.dropped["chartevents: rows without a number"] == 1
    assert info.dropped["chartevents: rows outside an ICU stay"] == 1
    with pytest.raises(ValueError, match="--min-stays"):
        mimic_iv.prepare(tmp_path / "raw", tmp_path / "none", min_stays=1000)


def test_units_that_cannot_be_reconciled_split_a_variable(tmp_path):
    tables = make_tables()
    rows = [(i, at(i, 1), "", CREATININE, 90, "umol/L") for i in range(NUM_STAYS)]
    labs = charted("subject_id", rows, "valuenum").with_columns(comments=pl.lit(""))
    tables["hosp/labevents"] = pl.concat([tables["hosp/labevents"], labs])
    info = mimic_iv.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_stays=1)
    assert {"Creatinine [mg/dL]", "Creatinine [umol/L]"} < set(info.variables)
    assert len(find(events_of(tmp_path / "out"), "Creatinine [mg/dL]")) == 4  # with the row that has no unit


def test_result_does_not_depend_on_blocks_or_packing(folder, tmp_path, monkeypatch):
    raw = write(tmp_path / "raw", make_tables(), packed=False)
    monkeypatch.setattr(store, "RECORDS_A_BLOCK", 3)
    monkeypatch.setattr(tables_in, "PIECE_BYTES", 2048)
    mimic_iv.prepare(raw, tmp_path / "out", min_stays=1)
    assert len(list((tmp_path / "out" / "records").glob("train-*"))) > 3
    for split in SPLITS:
        one, other = (
            pl.DataFrame(pl.from_arrow(PreparedFolder(path).records(split))) for path in (folder, tmp_path / "out")
        )
        assert one.sort("record_id").equals(other.sort("record_id"))


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-20])


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(path: Path):
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))

    return apply


BROKEN = {
    "truncated": ("icu/chartevents", truncate, "damaged"),
    "no gzip": ("hosp/labevents", lambda path: path.write_bytes(b"<html>not found</html>"), "damaged"),
    "missing table": ("icu/outputevents", Path.unlink, "missing"),
    "missing column": ("icu/chartevents", rewrite(lambda text: text.replace(b"valuenum", b"number")), "valuenum"),
    "empty table": ("icu/inputevents", rewrite(lambda text: text.split(b"\n")[0] + b"\n"), "no rows"),
    "empty file": ("hosp/patients", lambda path: path.write_bytes(b""), "is empty"),
    "duplicate stay": ("icu/icustays", rewrite(lambda text: text + text.split(b"\n")[1] + b"\n"), "more than once"),
    "no such admission": ("hosp/admissions", rewrite(lambda text: text.replace(b"103,", b"999,")), "hadm_id 103"),
    "latin-1": ("icu/chartevents", rewrite(lambda text: text.decode().encode("latin-1")), "invalid UTF8"),
    "utf-16": ("icu/d_items", rewrite(lambda text: text.decode().encode("utf-16")), "is not a table in UTF-8"),
    "no number": ("icu/chartevents", rewrite(lambda text: text.replace(b",38.0,", b",warm,")), "warm"),
    "no time": ("icu/icustays", rewrite(lambda text: text.replace(b"2150-", b"March ")), "is not readable.*timestamp"),
    "short row": ("icu/procedureevents", rewrite(lambda text: text + b"1,2\n"), "columns"),
    "flag": ("hosp/admissions", rewrite(lambda text: text.replace(b",1\n", b",2\n")), "hospital_expire_flag"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_download_is_named_and_leaves_nothing(raw, tmp_path, broken):
    table, damage, message = BROKEN[broken]
    copy = write(tmp_path / "raw", make_tables())
    damage(copy / f"{table}.csv.gz")
    with pytest.raises(ValueError, match=message) as caught:
        mimic_iv.prepare(copy, tmp_path / "out", min_stays=1)
    assert f"{table}.csv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    """Even where the parser quotes rows: here from a quotation mark that is never closed."""
    raw = write(tmp_path / "raw", make_tables())
    rewrite(lambda text: text.replace(b",min,", b',"min,', 1))(raw / "icu" / "procedureevents.csv.gz")
    assert main(["prepare", "mimic-iv", "--min-stays", "1", "--raw", str(raw), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.rpartition("hymate prepare: ")[2]
    assert "procedureevents.csv.gz" in message
    assert message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="hosp/ and icu/"):
        mimic_iv.prepare(tmp_path, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_bounds_are_stated_once():
    assert len(BOUNDS) == sum(len(items) for items, *_ in PLAUSIBLE.values())
    assert all(low < high for _, low, high in BOUNDS.values())


def test_the_real_demo(shared_data, tmp_path):
    raw = shared_data("mimic-iv-demo-2.2")
    info = mimic_iv.prepare(raw, tmp_path / "out")
    assert info.extra["credentialed"] is False
    assert info.extra["version"] == "2.2"
    records = all_of(tmp_path / "out", lambda split: PreparedFolder(tmp_path / "out").records(split))
    stays = pl.read_csv(raw / "icu" / "icustays.csv.gz", try_parse_dates=True)
    assert set(records["record_id"]) <= set(stays["stay_id"].cast(pl.String))
    assert records.height == 140
    patients = dict(stays.select(pl.col("stay_id").cast(pl.String), "subject_id").iter_rows())
    by_split = [
        {patients[i] for i in PreparedFolder(tmp_path / "out").records(s)["record_id"].to_pylist()} for s in SPLITS
    ]
    assert sum(map(len, by_split)) == len(set.union(*by_split)) == 100
    days = dict(stays.select(pl.col("stay_id").cast(pl.String), "los").iter_rows())
    for split in SPLITS:
        for record, _, label in zip(
            *PreparedFolder(tmp_path / "out").task("length_of_stay", split).to_pydict().values(), strict=True
        ):
            assert label == pytest.approx(days[record], abs=1e-4)
            assert label >= 1
    # every heart rate of a stay, read another way
    record = records.row(0, named=True)
    rates = pl.read_csv(raw / "icu" / "chartevents.csv.gz", infer_schema=False).filter(
        (pl.col("stay_id") == record["record_id"]) & (pl.col("itemid") == "220045")
    )["valuenum"]
    index = info.variables.index("Heart Rate")
    found = [value for variable, value in zip(record["variable"], record["value"], strict=True) if variable == index]
    assert sorted(found) == sorted(float(rate) for rate in rates if float(rate) <= 350)
    assert check_leakage(tmp_path / "out", "decompensation_24h", max_examples=100) > 0
