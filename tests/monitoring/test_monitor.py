"""Comparing new records with training: the statistics, what is kept, the verdict, the page, and real hospitals."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hymate_training.cli.main import main
from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.aggregates import (
    MISSING,
    asked_last,
    count_like,
    counts_of,
    describe,
    names_of,
    seen_records,
    summarize,
)
from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.explanations.background import Background
from hymate_training.fitting.finetuning import keep_aggregates
from hymate_training.fitting.run import make_config
from hymate_training.inference.checkpoints import MONITORING_FILE, load_checkpoint, load_extractor, save_checkpoint
from hymate_training.monitoring.drift import compare, homogeneity, stability_index
from hymate_training.monitoring.monitor import monitor
from hymate_training.publishing.privacy import Refused, check_json
from hymate_training.readers import physionet2019
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.runs import TINY_MODEL, event_frame

# ------------------------------------------------------------------------------------------------------ statistics


def test_the_stability_index_by_hand():
    assert stability_index(np.array([50, 50]), np.array([50, 50])) == 0
    many = stability_index(np.array([500_000, 500_000]), np.array([800_000, 200_000]))
    assert many == pytest.approx(0.3 * np.log(0.8 / 0.5) - 0.3 * np.log(0.2 / 0.5), rel=1e-4)
    assert np.isfinite(stability_index(np.array([100, 0]), np.array([0, 100])))


def test_the_test_is_that_of_two_samples_and_ignores_empty_bins():
    expected = stats.chi2_contingency([[30, 70], [50, 50]], correction=False).pvalue
    assert homogeneity(np.array([30, 70, 0]), np.array([50, 50, 0])) == pytest.approx(expected)
    assert homogeneity(np.array([30, 0]), np.array([5, 0])) == 1


columns = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=0, max_size=200)


@settings(max_examples=100, deadline=None)
@given(columns)
def test_bins_hold_enough_records_or_none_and_count_themselves(values):
    column = np.array(values, dtype=np.float64)
    for summary in summarize({"timing": {"hours": column}})["timing"].values():
        counts = counts_of(summary)
        assert all(count == 0 or count >= SMALLEST_GROUP for count in counts)
        again = count_like(summary, column)
        binned = len(summary["counts"])
        assert again[:binned].tolist() == counts[:binned].tolist()
        assert again.sum() == len(column)
        assert len(names_of(summary)) == len(counts)


def test_a_number_that_no_record_has_is_missing_for_all():
    """As where no static table is given: the column then holds None alone."""
    summary = summarize({"static": {"age": np.linspace(20, 90, 50)}})["static"]["age"]
    counts = count_like(summary, np.full(12, None, dtype=object))
    assert counts.tolist() == [0] * len(summary["counts"]) + [12]


def test_rare_names_are_not_kept_and_new_ones_are_other():
    column = np.array(["f"] * 40 + ["m"] * 30 + ["x"] * 3 + [None] * 12, dtype=object)
    summary = summarize({"static": {"sex": column}})["static"]["sex"]
    assert summary["categories"] == {"f": 40, "m": 30, MISSING: 12}
    assert "x" not in json.dumps(summary)
    assert dict(
        zip(names_of(summary), count_like(summary, np.array(["m", "new", None], dtype=object)), strict=True)
    ) == {
        "f": 0,
        "m": 1,
        MISSING: 1,
        "other": 1,
    }


# --------------------------------------------------------------------------------------------------- a whole month


@pytest.fixture(scope="module")
def month(synthetic_folder) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The records of the simulated test split."""
    return event_frame(synthetic_folder, 1000)


def run(finetuned: Path, folder: Path, events: pl.DataFrame, static: pl.DataFrame, *arguments: str) -> int:
    events.write_parquet(folder / "events.parquet")
    static.write_parquet(folder / "static.parquet")
    files = ["--events", str(folder / "events.parquet"), "--static", str(folder / "static.parquet")]
    return main(["monitor", "--checkpoint", str(finetuned), *files, "--output", str(folder / "out"), *arguments])


def test_records_of_the_same_source_are_as_in_training(finetuned, month, tmp_path):
    assert run(finetuned, tmp_path, *month) == 0
    content = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert not content["shifted"]
    assert content["reasons"] == []
    assert {row["kind"] for row in content["comparisons"]} == {"timing", "measured", "value", "static", "score"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "No limit is passed" in page
    assert not set(month[1]["record_id"]) & set(page.split())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda events: events.with_columns(pl.col("value") * 18), "other values"),
        (
            lambda events: events.filter(pl.col("variable") != events["variable"].mode()[0]),
            "measured in another share",
        ),
        (lambda events: events.with_columns(pl.col("time") * 9), "hours: other numbers"),
        (
            lambda events: pl.concat([events, events.with_columns(variable=pl.lit("New"))]),
            "only 50.0% of the events are of variables that the model knows",
        ),
    ],
)
def test_changes_are_named(finetuned, month, tmp_path, change, reason):
    events, static = month
    assert run(finetuned, tmp_path, change(events), static) == 1
    content = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert any(reason in found for found in content["reasons"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Shifted past" in page
    assert "<h1>In hospital mortality: new records differ" in page
    units = load_extractor(finetuned).units
    for row in (row for row in content["comparisons"][:8] if row["shifted"]):
        unit = f", {units[row['name']]}" if row["kind"] == "value" and row["name"] in units else ""
        assert f"{row['name'].replace('_', ' ')}{unit}, " in page
        first = row["bins"][0]
        assert f"{first['reference']:.0%} → {first['new']:.0%}" in page


def test_outcomes_show_whether_probabilities_still_hold(finetuned, month, tmp_path):
    events, static = month
    predicted = monitor(finetuned, events, static).content
    assert predicted["calibration"] is None
    ids = static["record_id"].to_list()
    pl.DataFrame({"record_id": [*ids, "other"], "label": [1] * (len(ids) - 1) + [0, 0]}).write_csv(tmp_path / "y.csv")
    assert run(finetuned, tmp_path, events, static, "--labels", str(tmp_path / "y.csv")) == 1
    content = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert content["calibration"]["n"] == len(ids)
    assert any("calibration intercept" in found for found in content["reasons"])
    assert "records with a known outcome" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("record_id,outcome\na,1\n", "lacks the column 'label'"),
        ("record_id,label\na,1\na,0\n", "row 1: record_id named before"),
        ("record_id,label\na,2\n", "row 1: label must be 0 or 1"),
        ("record_id,label\na,1\n", "holds 0 of the records"),
    ],
)
def test_labels_that_do_not_fit_are_a_mistake(finetuned, month, tmp_path, capsys, labels, problem):
    (tmp_path / "labels.csv").write_text(labels)
    assert run(finetuned, tmp_path, *month, "--labels", str(tmp_path / "labels.csv")) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_few_records_and_checkpoints_without_aggregates_are_refused(finetuned, month, tmp_path):
    events, static = month
    few = static["record_id"][: SMALLEST_GROUP - 1].to_list()
    with pytest.raises(ValueError, match="9 records are too few"):
        monitor(finetuned, events.filter(pl.col("record_id").is_in(few)), static.head(SMALLEST_GROUP - 1))
    for path in finetuned.iterdir():
        if path.suffix in (".json", ".safetensors") and path.name != MONITORING_FILE:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"lacks monitoring.json.*fine-tune it again"):
        monitor(tmp_path, events, static)


def emptied(content: dict) -> None:
    content["counts"] = {}


def backwards(content: dict) -> None:
    content["counts"]["timing"]["events"]["edges"].reverse()


def shortened(content: dict) -> None:
    content["counts"]["timing"]["events"]["counts"].pop()


def without_task(content: dict) -> None:
    del content["task"]


def without_number(content: dict) -> None:
    content["counts"]["timing"]["events"]["edges"][0] = float("nan")


def without_records(content: dict) -> None:
    content["num_records"] = 0


def negative(content: dict) -> None:
    content["num_records"] = -5


def too_few(content: dict) -> None:
    content["num_records"] = 12


DAMAGES = {
    emptied: "counts lacks a key: ",
    backwards: "counts.timing.events: its edges do not ascend",
    shortened: "counts.timing.events: its bins do not fit its counts",
    without_task: "the file lacks a key: task",
    without_number: "it holds a number that is not finite",
    without_records: "num_records must be at least 1",
    negative: "num_records must be at least 1",
    too_few: "counts.timing.events counts .* records, but num_records is 12",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_aggregates_are_refused(damage, finetuned, month, tmp_path):
    """By `explain` and `push` as well, which read them, too."""
    shutil.copytree(finetuned, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "monitoring.json").read_text())
    damage(content)
    (tmp_path / "run" / "monitoring.json").write_text(json.dumps(content))
    said = rf"monitoring\.json is damaged: {DAMAGES[damage]}"
    with pytest.raises(ValueError, match=said):
        monitor(tmp_path / "run", *month)
    with pytest.raises(ValueError, match=said):
        Background.of(load_checkpoint(tmp_path / "run"), "died")
    with pytest.raises(Refused):
        check_json(tmp_path / "run" / MONITORING_FILE)


def test_what_a_published_evaluation_hides_is_unknown():
    for hidden in ({"num_records": None}, {"num_records": 40, "n": 40}):
        evaluation = {"problem_type": "multilabel", "per_label": {"sepsis": hidden}}
        assert Background("sepsis", ("sepsis",), evaluation).base_rate is None


def test_names_in_what_stays_here_may_look_like_identifiers(finetuned, month, tmp_path):
    """Codes of wards, say: they are not published, and no damage."""
    shutil.copytree(finetuned, tmp_path / "run")
    path = tmp_path / "run" / MONITORING_FILE
    content = json.loads(path.read_text())
    content["counts"]["static"]["ward"] = {"categories": {"10001": 20, "10002": 20}}
    path.write_text(json.dumps(content))
    monitor(tmp_path / "run", *month)
    with pytest.raises(Refused):
        check_json(path)


def test_what_is_kept_may_be_published_unless_it_counts_few(finetuned, tmp_path):
    content = check_json(finetuned / MONITORING_FILE)
    kind, summaries = next((kind, found) for kind, found in content["counts"].items() if found)
    name, summary = next(iter(summaries.items()))
    summary["counts" if "counts" in summary else "categories"] = [3, 40] if "counts" in summary else {"a": 3}
    (tmp_path / MONITORING_FILE).write_text(
        json.dumps(content | {"counts": content["counts"] | {kind: {name: summary}}})
    )
    with pytest.raises(Refused, match="counts fewer than 10 records"):
        check_json(tmp_path / MONITORING_FILE)


# -------------------------------------------------------------------------------------------------- two hospitals


def test_another_hospital_is_flagged_and_other_patients_of_the_same_one_are_not(shared_data, tmp_path):
    """PhysioNet 2019: hospital B against a checkpoint of A; and 20 random halves of A, each against the other."""
    physionet2019.prepare(shared_data("physionet2019"), tmp_path / "prepared")
    folder = PreparedFolder(tmp_path / "prepared")
    extractor = fit_feature_extractor(folder)
    fields = TINY_MODEL | {"id2label": {0: "no sepsis", 1: "sepsis"}, "problem_type": "single_label_classification"}
    save_checkpoint(HyMaTEForSequenceClassification(make_config(extractor, fields)), extractor, tmp_path / "model")
    sets = {split: load_task(folder, "sepsis_onset", split, extractor.variables) for split in folder.splits}
    keep_aggregates(tmp_path / "model", sets, "sepsis_onset", 256)
    check_json(tmp_path / "model" / MONITORING_FILE)

    def month(split: str) -> tuple[pl.DataFrame, pl.DataFrame]:
        seen = seen_records(asked_last(sets[split]))
        seen = seen.take(np.random.default_rng(0).permutation(len(seen))[:500])
        ids, names = np.array(seen.record_ids), np.array(extractor.variables)
        events = {"time": seen.times, "variable": names[seen.variable_ids], "value": seen.values}
        static = {name: list(column) for name, column in seen.static.items()}
        return pl.DataFrame({"record_id": ids[seen.rows], **events}), pl.DataFrame({"record_id": ids, **static})

    assert monitor(tmp_path / "model", *month("test")).shifted
    assert not monitor(tmp_path / "model", *month("validation")).shifted

    seen = [seen_records(asked_last(sets[split])) for split in ("train", "validation")]
    parts = [describe(records, extractor.variables, records.static) for records in seen]
    described = {
        kind: {name: np.concatenate([part[kind][name] for part in parts]) for name in parts[0][kind]}
        for kind in parts[0]
    }
    flagged = 0
    for repeat in range(20):
        half = np.random.default_rng(repeat).permutation(sum(map(len, seen))) % 2 == 0
        one, other = (
            {kind: {name: column[keep] for name, column in found.items()} for kind, found in described.items()}
            for keep in (half, ~half)
        )
        flagged += any(row["shifted"] for row in compare(summarize(one), other))
    assert flagged == 0
