"""The commands end to end: resume, two processes, exact counts, and what a user's mistake looks like."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from MISSING import read_events
from safetensors.torch import load_file

from hymate_training.cli.main import main
from hymate_training.data.collators import ForecastCollator, TaskCollator, fit_feature_extractor
from hymate_training.data.examples import ExampleDataset, check_static_columns, load_forecast, load_task
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.evaluation import check_task
from hymate_training.fitting.loop import EpochLoader, LoopOptions
from hymate_training.inference import prediction as predict

TINY = [
    "--model",
    "hidden_size=8",
    "num_mamba_layers=1",
    "num_attention_heads=2",
    "num_pooling_queries=2",
    "state_size=4",
    "--batch-size",
    "16",
]
TASK = "in_hospital_mortality"


def hymate(*arguments, launcher=(), **environment):
    """Runs the command in a process of its own."""
    command = [sys.executable, *launcher, "-m", "hymate_training", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}, check=False
    )


@pytest.fixture(scope="module")
def pretrained(synthetic_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("pretrained") / "run"
    assert main(["pretrain", "--data", str(synthetic_folder), "--output", str(output), "--epochs", "1", *TINY]) == 0
    return output


@pytest.fixture(scope="module")
def finetuned(synthetic_folder, pretrained, tmp_path_factory):
    output = tmp_path_factory.mktemp("finetuned") / "run"
    arguments = [
        "finetune",
        "--data",
        synthetic_folder,
        "--task",
        TASK,
        "--output",
        output,
        "--checkpoint",
        pretrained,
    ]
    assert main([*map(str, arguments), "--epochs", "2", "--ema-decay", "0.9", "--batch-size", "16"]) == 0
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_finetuning_starts_from_the_pretrained_encoder(pretrained, finetuned):
    before, after = weights(pretrained), weights(finetuned)
    shared = [name for name in before if name.startswith("hymate.")]
    assert shared
    assert all(before[name].shape == after[name].shape for name in shared)
    drift = sum(float((before[name] - after[name]).norm()) for name in shared)
    size = sum(float(before[name].norm()) for name in shared)
    assert 0 < drift < 0.5 * size


def test_run_leaves_everything_a_checkpoint_needs(finetuned):
    names = {path.name for path in finetuned.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "modeling_hymate.py",
        "README.md",
        "training_run.json",
        "evaluation.json",
        "last",
    } <= names
    assert "state" not in names
    assert load_file(finetuned / "last" / "model.safetensors").keys() == weights(finetuned).keys()
    assert not [name for name in names if name.startswith(".")]
    evaluation = json.loads((finetuned / "evaluation.json").read_text())
    low, high = evaluation["confidence_intervals"]["auroc"]
    assert low <= evaluation["metrics"]["auroc"] <= high
    assert sum(evaluation["variable_shares"].values()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("extra", [[], ["--gradient-accumulation-steps", "2", "--ema-decay", "0.9"]])
def test_interrupted_run_resumes_exactly(synthetic_folder, tmp_path, extra, monkeypatch, capsys):
    arguments = [
        "finetune",
        "--data",
        synthetic_folder,
        "--task",
        TASK,
        "--epochs",
        "2",
        "--save-steps",
        "3",
        *extra,
        *TINY,
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*map(str, arguments), "--output", str(whole)]) == 0

    from hymate_training.fitting import loop  # noqa: PLC0415 - the module whose step is counted

    step, calls = loop._step, []

    def step_then_signal(*args):
        calls.append(1)
        if len(calls) == 5:  # in the middle of an epoch, and not at a saved step
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loop, "_step", step_then_signal)
    assert main([*map(str, arguments), "--output", str(stopped)]) == 130
    monkeypatch.setattr(loop, "_step", step)
    assert main([*map(str, arguments), "--output", str(stopped), "--resume", "--batch-size", "7"]) == 2
    assert "batch_size was" in capsys.readouterr().err
    other_task = ["phenotypes" if part == TASK else str(part) for part in arguments]
    assert main([*other_task, "--output", str(stopped), "--resume"]) == 2
    assert f"task was '{TASK}'" in capsys.readouterr().err
    assert main([*map(str, arguments), "--output", str(stopped), "--resume"]) == 0
    assert_same_weights(whole, stopped)
    histories = [json.loads((run / "training_run.json").read_text())["history"] for run in (whole, stopped)]
    assert [entry["auroc"] for entry in histories[0]] == [entry["auroc"] for entry in histories[1]]


def test_killed_run_resumes_from_its_last_saved_state(synthetic_folder, tmp_path):
    arguments = ["finetune", "--data", synthetic_folder, "--task", TASK, "--epochs", "2", "--save-steps", "2", *TINY]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*map(str, arguments), "--output", str(whole)]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "hymate_training", *map(str, arguments), "--output", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (killed / "state").is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert main([*map(str, arguments), "--output", str(killed), "--resume"]) == 0
    assert_same_weights(whole, killed)


def test_two_processes_train_and_evaluate_every_record_once(synthetic_folder, tmp_path):
    output = tmp_path / "run"
    result = hymate(
        *["finetune", "--data", synthetic_folder, "--task", TASK, "--output", output, "--epochs", "1", *TINY],
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    run = json.loads((output / "training_run.json").read_text())
    assert run["hardware"]["processes"] == 2
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert evaluation["n"] == run["num_examples"]["validation"] == evaluation["num_records"]
    # the figures both processes made together are those one process makes of the checkpoint
    assert run["history"][-1]["auroc"] == pytest.approx(evaluation["metrics"]["auroc"], abs=1e-6)
    train = run["num_examples"]["train"]
    assert run["history"][-1]["step"] == math.ceil(math.ceil(train / 16) / 2)


def test_processes_share_out_each_epoch(synthetic_folder):
    class Share:
        num_processes = 2

        def __init__(self, rank):
            self.process_index = rank

    extractor = fit_feature_extractor(synthetic_folder)
    dataset = load_task(synthetic_folder, TASK, "train", extractor.variables)
    options = LoopOptions(batch_size=16)
    shares = [EpochLoader(dataset, None, options, Share(rank)).batches(epoch=3) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    seen = np.concatenate([np.concatenate(share) for share in shares])
    assert set(seen.tolist()) == set(range(len(dataset)))
    assert len(seen) - len(dataset) <= options.batch_size
    again = EpochLoader(dataset, None, options, Share(0)).batches(epoch=3)
    assert all(np.array_equal(one, other) for one, other in zip(shares[0], again, strict=True))
    other_epoch = EpochLoader(dataset, None, options, Share(0)).batches(epoch=4)
    assert any(not np.array_equal(one, other) for one, other in zip(shares[0], other_epoch, strict=True))


def test_an_epoch_draws_a_few_examples_of_each_record(synthetic_folder):
    extractor = fit_feature_extractor(synthetic_folder)
    events = read_events(synthetic_folder, "train", extractor.variables)
    rows = np.repeat(np.arange(5), [1, 2, 9, 4, 7])
    times = np.concatenate([np.linspace(5, 48, count) for count in (1, 2, 9, 4, 7)]).astype(np.float32)
    dataset = ExampleDataset(events, rows, times)
    assert dataset.lengths.tolist() == [
        int((events.times[events.offsets[row] : events.offsets[row + 1]] <= time).sum())
        for row, time in zip(rows, times, strict=True)
    ]
    accelerator = type("Alone", (), {"process_index": 0, "num_processes": 1})
    loader = EpochLoader(dataset, None, LoopOptions(batch_size=4, examples_per_record=3), accelerator)
    epochs = [np.concatenate(loader.batches(epoch)) for epoch in range(30)]
    for drawn in epochs:
        assert len(set(drawn.tolist())) == len(drawn)
        assert np.bincount(rows[drawn]).tolist() == [1, 2, 3, 3, 3]
    assert len(loader) == len(loader.batches(0)) == 3
    assert set(np.concatenate(epochs).tolist()) == set(range(len(rows)))


@pytest.mark.parametrize("task", ["length_of_stay", "phenotypes", "discharge_destination"])
def test_every_problem_type_trains_evaluates_and_predicts(synthetic_folder, tmp_path, task):
    output = tmp_path / "run"
    common = ["--data", str(synthetic_folder), "--task", task]
    extra = {
        "phenotypes": ["--pos-weight", "balanced"],
        "length_of_stay": ["--mixed-precision", "bf16", "--gradient-accumulation-steps", "2"],
        "discharge_destination": ["--report-to", "tensorboard", "--max-events", "50"],
    }[task]
    assert main(["finetune", *common, "--output", str(output), "--epochs", "1", *extra, *TINY]) == 0
    assert ("tensorboard" in extra) == any((output / "logs").rglob("*tfevents*"))
    report = tmp_path / "test.json"
    assert main(["evaluate", *common, "--checkpoint", str(output), "--split", "test", "--output", str(report)]) == 0
    assert json.loads(report.read_text())["n"] > 0
    arguments = ["evaluate", *common, "--checkpoint", str(output), "--split", "validation", "--output", str(report)]
    assert main(arguments) == 0
    own = json.loads((output / "evaluation.json").read_text())
    assert json.loads(report.read_text())["metrics"] == pytest.approx(own["metrics"], rel=1e-4)  # with 50 events, too


def event_frame(folder, records=5):
    from hymate_training.data.prepared_folder import read_info, read_records  # noqa: PLC0415 - used here only

    info, table = read_info(folder), read_records(folder, "test").slice(0, records)
    frame = pl.from_arrow(table)
    events = frame.select("record_id", "time", "variable", "value").explode("time", "variable", "value")
    names = pl.Series(info.variables)
    events = events.with_columns(variable=names.gather(events["variable"]))
    return events, frame.select("record_id", *(column.name for column in info.static_columns))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predict_gives_what_evaluation_sees(synthetic_folder, finetuned, tmp_path, suffix):
    events, static = event_frame(synthetic_folder)
    events = events.sample(fraction=1.0, shuffle=True, seed=0)
    for name, frame in (("events", events), ("static", static)):
        path = tmp_path / f"{name}.{suffix}"
        frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    output = tmp_path / f"predictions.{suffix}"
    arguments = ["--events", tmp_path / f"events.{suffix}", "--static", tmp_path / f"static.{suffix}"]
    assert main(["predict", "--checkpoint", str(finetuned), *map(str, arguments), "--output", str(output)]) == 0
    found = pl.read_csv(output) if suffix == "csv" else pl.read_parquet(output)
    assert set(found["record_id"].cast(pl.String)) == set(static["record_id"])

    from hymate_training.inference.prediction import load_checkpoint, predict_examples  # noqa: PLC0415 - used here only

    model, extractor = load_checkpoint(finetuned)
    dataset = load_task(synthetic_folder, TASK, "test", extractor.variables)
    predicted = predict_examples(model, dataset, TaskCollator(extractor))
    expected = dict(zip(dataset.record_ids[predicted.indices], predicted.values[:, 1], strict=True))
    for record_id, died in zip(found["record_id"].cast(pl.String), found["died"], strict=True):
        assert died == pytest.approx(expected[record_id], abs=1e-5)


def test_a_checkpoint_goes_where_accelerate_says(finetuned, monkeypatch):
    monkeypatch.setattr(predict, "PartialState", lambda: SimpleNamespace(device=torch.device("meta")))
    assert predict.load_checkpoint(finetuned)[0].device.type == "meta"


def test_records_of_unknown_variables_alone_are_left_out_and_named(synthetic_folder, finetuned, tmp_path, capsys):
    events, _ = event_frame(synthetic_folder)
    foreign = events.head(2).with_columns(record_id=pl.lit("foreign"), variable=pl.lit("gamma_gt"))
    pl.concat([events, foreign]).write_csv(tmp_path / "events.csv")
    arguments = ["predict", "--checkpoint", str(finetuned), "--events", str(tmp_path / "events.csv")]
    arguments += ["--output", str(tmp_path / "predictions.csv")]
    assert main(arguments) == 2
    assert "'gamma_gt' is not one of" in capsys.readouterr().err
    assert main([*arguments, "--ignore-unknown-variables"]) == 0
    printed = capsys.readouterr().out
    assert "5 records" in printed
    assert "left out 1 records without any other event, 'foreign' first" in printed
    assert "taken as missing: age" in printed
    assert "foreign" not in set(pl.read_csv(tmp_path / "predictions.csv")["record_id"].cast(pl.String))
    foreign.write_csv(tmp_path / "events.csv")
    assert main([*arguments, "--ignore-unknown-variables"]) == 2
    assert "none of its variables is known" in capsys.readouterr().err


def test_other_units_and_longer_stays_are_pointed_out(synthetic_folder, finetuned, tmp_path, capsys):
    events, static = event_frame(synthetic_folder)
    arguments = ["predict", "--checkpoint", str(finetuned), "--output", str(tmp_path / "predictions.csv")]
    for name, frame in (("events", events), ("static", static)):
        frame.write_csv(tmp_path / f"{name}.csv")
        arguments += [f"--{name}", str(tmp_path / f"{name}.csv")]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 1  # nothing to remark
    in_meters = static.with_columns(pl.col("height") / 100)
    in_meters.write_csv(tmp_path / "static.csv")
    in_minutes = events.with_columns(pl.col("time") * 60)
    in_minutes.write_csv(tmp_path / "events.csv")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "100% of the values of height lie outside the range of the training records" in printed
    assert "hours; hardly any of the training records' come after" in printed


def test_predict_asks_for_record_ids_in_the_static_table(synthetic_folder, finetuned, tmp_path, capsys):
    events, static = event_frame(synthetic_folder)
    events.write_parquet(tmp_path / "events.parquet")
    static.rename({"record_id": "patient"}).write_parquet(tmp_path / "static.parquet")
    files = ["--events", tmp_path / "events.parquet", "--static", tmp_path / "static.parquet"]
    output = tmp_path / "predictions.csv"
    assert main(["predict", "--checkpoint", str(finetuned), *map(str, files), "--output", str(output)]) == 2
    assert "static.parquet lacks the column 'record_id'" in capsys.readouterr().err
    assert not output.exists()


def test_of_a_yes_or_no_question_the_name_of_yes_decides(finetuned):
    model, _ = predict.load_checkpoint(finetuned)
    assert predict.label_names(model) == ("survived", "died")
    check_task(model, TaskInfo("death", "", "binary", ("boolean_value",), ("no died", "died")))
    for labels in (("died", "survived"), ("no readmitted", "readmitted")):
        with pytest.raises(ValueError, match="the model predicts"):
            check_task(model, TaskInfo("other", "", "binary", ("boolean_value",), labels))


def test_data_without_a_static_column_of_the_model_are_refused(synthetic_folder, finetuned, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(synthetic_folder, folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["static_columns"] = [column for column in metadata["static_columns"] if column["name"] != "age"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    extractor = predict.load_checkpoint(finetuned)[1]
    check_static_columns(synthetic_folder, extractor)
    with pytest.raises(ValueError, match="lacks the static column 'age', with which the model was trained; it has"):
        check_static_columns(folder, extractor)


def test_augmentation_removes_whole_variables_and_leaves_no_record_empty(synthetic_folder):
    extractor = fit_feature_extractor(synthetic_folder)
    dataset = load_task(synthetic_folder, TASK, "train", extractor.variables)
    examples = dataset.__getitems__(list(range(40)))
    plain = TaskCollator(extractor)(examples)
    features = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
    again = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
    assert all(torch.equal(features[name], again[name]) for name in features)
    assert features["attention_mask"].any(1).all()
    dropped = 0
    for row in range(40):
        keep, kept = plain["attention_mask"][row], features["attention_mask"][row]
        before = torch.bincount(plain["variable_ids"][row][keep], minlength=extractor.num_variables)
        after = torch.bincount(features["variable_ids"][row][kept], minlength=extractor.num_variables)
        assert ((after == before) | (after == 0)).all()
        dropped += int(((before > 0) & (after == 0)).sum()) / max(1, int((before > 0).sum())) / 40
    assert 0.2 < dropped < 0.4
    everything = TaskCollator(extractor, variable_dropout=0.999, seed=1)(examples)
    assert everything["attention_mask"].any(1).all()


def test_augmentation_removes_a_share_of_the_events(synthetic_folder):
    extractor = fit_feature_extractor(synthetic_folder)
    dataset = load_task(synthetic_folder, TASK, "train", extractor.variables)
    examples = dataset.__getitems__(list(range(len(dataset))))
    before = TaskCollator(extractor)(examples)["attention_mask"].sum(1)
    after = TaskCollator(extractor, event_dropout=0.6, seed=1)(examples)["attention_mask"].sum(1)
    dropped = 1 - after / before
    assert 0.25 < dropped.mean() < 0.35
    assert dropped.min() < 0.1
    assert 0.5 < dropped[before > 20].max() < 0.75


def test_nothing_after_the_cut_reaches_the_forecaster(synthetic_folder):
    extractor = fit_feature_extractor(synthetic_folder)
    dataset = load_forecast(synthetic_folder, "train", extractor.variables, 12.0)
    collator = ForecastCollator(extractor, fixed_cuts=True)
    examples = dataset.__getitems__(list(range(30)))
    features = collator(examples)
    assert features["forecast_mask"].any()
    last_input = (features["times"] * features["attention_mask"]).max(1).values * extractor.time_scale
    assert (last_input >= 0).all()
    # the targets are the first values after the input, found one by one
    events = examples.events
    for row in range(len(events)):
        part = slice(events.offsets[row], events.offsets[row + 1])
        later = events.times[part] > float(last_input[row]) + 1e-4
        for variable in np.flatnonzero(features["forecast_mask"][row]):
            at = np.flatnonzero(later & (events.variable_ids[part] == variable))[0]
            expected = extractor.standardize(np.array([variable]), events.values[part][at : at + 1])[0]
            assert float(features["forecast_values"][row, variable]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["finetune", "--data", "nowhere", "--task", TASK, "--output", "run"], "nowhere"),
        (["finetune", "--data", "{data}", "--task", "recovery", "--output", "run"], "recovery"),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--recipe", "best"], "best"),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "hiden_size=8"], "hiden_size"),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "hidden_size=7"],
            "hidden_size",
        ),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "num_hidden_layers=3"],
            "num_hidden_layers",
        ),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "num_variables=5"],
            "num_variables follows from the data",
        ),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--learning-rate", "0"], "learning_rate"),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--resume"], "resume"),
        (
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--auxiliary-tasks", "saps_i"],
            '--auxiliary-tasks "" trains without any',
        ),
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "{data}"], "not empty"),
        (
            ["evaluate", "--checkpoint", "{data}", "--data", "{data}", "--task", TASK, "--output", "x.json"],
            "checkpoint",
        ),
        (["predict", "--checkpoint", "{run}", "--events", "gone.csv", "--output", "x.csv"], "gone.csv"),
        (["predict", "--checkpoint", "no/such", "--events", "gone.csv", "--output", "x.csv"], "no/such is no folder"),
        (["predict", "--checkpoint", "{run}", "--events", "gone.csv", "--output", "x.txt"], "x.txt"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(
    synthetic_folder, finetuned, tmp_path, monkeypatch, capsys, arguments, complaint
):
    monkeypatch.chdir(tmp_path)
    arguments = [part.format(data=synthetic_folder, run=finetuned) for part in arguments]
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_recipes_hold_only_known_options():
    import argparse  # noqa: PLC0415 - used here only

    from hymate_training.cli.options import read_options, shipped_recipes  # noqa: PLC0415 - likewise
    from hymate_training.fitting.finetuning import FinetuneOptions  # noqa: PLC0415 - likewise
    from hymate_training.fitting.pretraining import PretrainOptions  # noqa: PLC0415 - likewise

    for recipe in shipped_recipes():
        arguments = argparse.Namespace(recipe=recipe)
        assert read_options(PretrainOptions, "pretrain", arguments).model["hidden_size"] > 0
        assert read_options(FinetuneOptions, "finetune", arguments).epochs > 0


def test_carrying_forward_takes_each_variables_last_value():
    from hymate_training.fitting.pretraining import last_values  # noqa: PLC0415 - used here only

    rng = np.random.default_rng(0)
    shape = (6, 40)
    features = {
        "values": torch.from_numpy(rng.normal(size=shape).astype(np.float32)),
        "variable_ids": torch.from_numpy(rng.integers(0, 4, size=shape)),
        "attention_mask": torch.from_numpy(np.arange(40) < rng.integers(1, 40, size=(6, 1))),
        "value_mask": torch.from_numpy(rng.random(shape) < 0.7),
    }
    expected = torch.zeros(6, 4)
    for row in range(6):
        for at in range(40):
            if features["attention_mask"][row, at] and features["value_mask"][row, at]:
                expected[row, features["variable_ids"][row, at]] = features["values"][row, at]
    assert torch.equal(last_values(features, 4), expected)
