from hymate_training.predict import read_frame
"""The commands end to end: resume, two processes, exact counts, and what a user's mistake looks like."""
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
import json
from hymate_training.predict import read_frame
import math
from hymate_training.predict import read_frame
import os
from hymate_training.predict import read_frame
import signal
from hymate_training.predict import read_frame
import subprocess
from hymate_training.predict import read_frame
import sys
from hymate_training.predict import read_frame
import time
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
import numpy as np
from hymate_training.predict import read_frame
import polars as pl
from hymate_training.predict import read_frame
import pytest
from hymate_training.predict import read_frame
import torch
from hymate_training.predict import read_frame
from safetensors.torch import load_file
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
from hymate_training.cli import main
from hymate_training.predict import read_frame
from hymate_training.collation import (
from hymate_training.predict import read_frame
    ExampleDataset,
from hymate_training.predict import read_frame
    ForecastCollator,
from hymate_training.predict import read_frame
    TaskCollator,
from hymate_training.predict import read_frame
    fit_feature_extractor,
from hymate_training.predict import read_frame
    load_forecast,
from hymate_training.predict import read_frame
    load_task,
from hymate_training.predict import read_frame
    read_events,
from hymate_training.predict import read_frame
)
from hymate_training.predict import read_frame
from hymate_training.loop import EpochLoader, LoopOptions
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
TINY = [
from hymate_training.predict import read_frame
    "--model",
from hymate_training.predict import read_frame
    "hidden_size=8",
from hymate_training.predict import read_frame
    "num_mamba_layers=1",
from hymate_training.predict import read_frame
    "num_attention_heads=2",
from hymate_training.predict import read_frame
    "num_pooling_queries=2",
from hymate_training.predict import read_frame
    "state_size=4",
from hymate_training.predict import read_frame
    "--batch-size",
from hymate_training.predict import read_frame
    "16",
from hymate_training.predict import read_frame
]
from hymate_training.predict import read_frame
TASK = "in_hospital_mortality"
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def hymate(*arguments, launcher=(), **environment):
from hymate_training.predict import read_frame
    """Runs the command in a process of its own."""
from hymate_training.predict import read_frame
    command = [sys.executable, *launcher, "-m", "hymate_training", *map(str, arguments)]
from hymate_training.predict import read_frame
    return subprocess.run(
from hymate_training.predict import read_frame
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}, check=False
from hymate_training.predict import read_frame
    )
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
@pytest.fixture(scope="module")
from hymate_training.predict import read_frame
def pretrained(synthetic_folder, tmp_path_factory):
from hymate_training.predict import read_frame
    output = tmp_path_factory.mktemp("pretrained") / "run"
from hymate_training.predict import read_frame
    assert main(["pretrain", "--data", str(synthetic_folder), "--output", str(output), "--epochs", "1", *TINY]) == 0
from hymate_training.predict import read_frame
    return output
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
@pytest.fixture(scope="module")
from hymate_training.predict import read_frame
def finetuned(synthetic_folder, pretrained, tmp_path_factory):
from hymate_training.predict import read_frame
    output = tmp_path_factory.mktemp("finetuned") / "run"
from hymate_training.predict import read_frame
    arguments = [
from hymate_training.predict import read_frame
        "finetune",
from hymate_training.predict import read_frame
        "--data",
from hymate_training.predict import read_frame
        synthetic_folder,
from hymate_training.predict import read_frame
        "--task",
from hymate_training.predict import read_frame
        TASK,
from hymate_training.predict import read_frame
        "--output",
from hymate_training.predict import read_frame
        output,
from hymate_training.predict import read_frame
        "--checkpoint",
from hymate_training.predict import read_frame
        pretrained,
from hymate_training.predict import read_frame
    ]
from hymate_training.predict import read_frame
    assert main([*map(str, arguments), "--epochs", "2", "--ema-decay", "0.9", "--batch-size", "16"]) == 0
from hymate_training.predict import read_frame
    return output
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def weights(folder):
from hymate_training.predict import read_frame
    return load_file(folder / "model.safetensors")
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def assert_same_weights(one, other):
from hymate_training.predict import read_frame
    first, second = weights(one), weights(other)
from hymate_training.predict import read_frame
    assert first.keys() == second.keys()
from hymate_training.predict import read_frame
    for name, tensor in first.items():
from hymate_training.predict import read_frame
        assert torch.equal(tensor, second[name]), name
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_finetuning_starts_from_the_pretrained_encoder(pretrained, finetuned):
from hymate_training.predict import read_frame
    before, after = weights(pretrained), weights(finetuned)
from hymate_training.predict import read_frame
    shared = [name for name in before if name.startswith("hymate.")]
from hymate_training.predict import read_frame
    assert shared
from hymate_training.predict import read_frame
    assert all(before[name].shape == after[name].shape for name in shared)
from hymate_training.predict import read_frame
    drift = sum(float((before[name] - after[name]).norm()) for name in shared)
from hymate_training.predict import read_frame
    size = sum(float(before[name].norm()) for name in shared)
from hymate_training.predict import read_frame
    assert 0 < drift < 0.5 * size
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_run_leaves_everything_a_checkpoint_needs(finetuned):
from hymate_training.predict import read_frame
    names = {path.name for path in finetuned.iterdir()}
from hymate_training.predict import read_frame
    assert {
from hymate_training.predict import read_frame
        "config.json",
from hymate_training.predict import read_frame
        "model.safetensors",
from hymate_training.predict import read_frame
        "preprocessor_config.json",
from hymate_training.predict import read_frame
        "modeling_hymate.py",
from hymate_training.predict import read_frame
        "README.md",
from hymate_training.predict import read_frame
        "training_run.json",
from hymate_training.predict import read_frame
        "evaluation.json",
from hymate_training.predict import read_frame
        "last",
from hymate_training.predict import read_frame
    } <= names
from hymate_training.predict import read_frame
    assert "state" not in names
from hymate_training.predict import read_frame
    assert load_file(finetuned / "last" / "model.safetensors").keys() == weights(finetuned).keys()
from hymate_training.predict import read_frame
    assert not [name for name in names if name.startswith(".")]
from hymate_training.predict import read_frame
    evaluation = json.loads((finetuned / "evaluation.json").read_text())
from hymate_training.predict import read_frame
    low, high = evaluation["confidence_intervals"]["auroc"]
from hymate_training.predict import read_frame
    assert low <= evaluation["metrics"]["auroc"] <= high
from hymate_training.predict import read_frame
    assert sum(evaluation["variable_shares"].values()) == pytest.approx(1, abs=0.01)
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
@pytest.mark.parametrize("extra", [[], ["--gradient-accumulation-steps", "2", "--ema-decay", "0.9"]])
from hymate_training.predict import read_frame
def test_interrupted_run_resumes_exactly(synthetic_folder, tmp_path, extra, monkeypatch, capsys):
from hymate_training.predict import read_frame
    arguments = [
from hymate_training.predict import read_frame
        "finetune",
from hymate_training.predict import read_frame
        "--data",
from hymate_training.predict import read_frame
        synthetic_folder,
from hymate_training.predict import read_frame
        "--task",
from hymate_training.predict import read_frame
        TASK,
from hymate_training.predict import read_frame
        "--epochs",
from hymate_training.predict import read_frame
        "2",
from hymate_training.predict import read_frame
        "--save-steps",
from hymate_training.predict import read_frame
        "3",
from hymate_training.predict import read_frame
        *extra,
from hymate_training.predict import read_frame
        *TINY,
from hymate_training.predict import read_frame
    ]
from hymate_training.predict import read_frame
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
from hymate_training.predict import read_frame
    assert main([*map(str, arguments), "--output", str(whole)]) == 0
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    from hymate_training import loop  # noqa: PLC0415 - the module whose step is counted
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    step, calls = loop._step, []
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    def step_then_signal(*args):
from hymate_training.predict import read_frame
        calls.append(1)
from hymate_training.predict import read_frame
        if len(calls) == 5:  # in the middle of an epoch, and not at a saved step
from hymate_training.predict import read_frame
            os.kill(os.getpid(), signal.SIGTERM)
from hymate_training.predict import read_frame
        return step(*args)
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    monkeypatch.setattr(loop, "_step", step_then_signal)
from hymate_training.predict import read_frame
    assert main([*map(str, arguments), "--output", str(stopped)]) == 130
from hymate_training.predict import read_frame
    monkeypatch.setattr(loop, "_step", step)
from hymate_training.predict import read_frame
    assert main([*map(str, arguments), "--output", str(stopped), "--resume", "--batch-size", "7"]) == 2
from hymate_training.predict import read_frame
    assert "batch_size was" in capsys.readouterr().err
from hymate_training.predict import read_frame
    assert main([*map(str, arguments), "--output", str(stopped), "--resume"]) == 0
from hymate_training.predict import read_frame
    assert_same_weights(whole, stopped)
from hymate_training.predict import read_frame
    histories = [json.loads((run / "training_run.json").read_text())["history"] for run in (whole, stopped)]
from hymate_training.predict import read_frame
    assert [entry["auroc"] for entry in histories[0]] == [entry["auroc"] for entry in histories[1]]
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_killed_run_resumes_from_its_last_saved_state(synthetic_folder, tmp_path):
from hymate_training.predict import read_frame
    arguments = ["finetune", "--data", synthetic_folder, "--task", TASK, "--epochs", "2", "--save-steps", "2", *TINY]
from hymate_training.predict import read_frame
    whole, killed = tmp_path / "whole", tmp_path / "killed"
from hymate_training.predict import read_frame
    assert main([*map(str, arguments), "--output", str(whole)]) == 0
from hymate_training.predict import read_frame
    process = subprocess.Popen(
from hymate_training.predict import read_frame
        [sys.executable, "-m", "hymate_training", *map(str, arguments), "--output", str(killed)],
from hymate_training.predict import read_frame
        stdout=subprocess.DEVNULL,
from hymate_training.predict import read_frame
        stderr=subprocess.DEVNULL,
from hymate_training.predict import read_frame
    )
from hymate_training.predict import read_frame
    deadline = time.monotonic() + 120
from hymate_training.predict import read_frame
    while not (killed / "state").is_dir() and process.poll() is None and time.monotonic() < deadline:
from hymate_training.predict import read_frame
        time.sleep(0.02)
from hymate_training.predict import read_frame
    process.kill()
from hymate_training.predict import read_frame
    process.wait()
from hymate_training.predict import read_frame
    assert main([*map(str, arguments), "--output", str(killed), "--resume"]) == 0
from hymate_training.predict import read_frame
    assert_same_weights(whole, killed)
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_two_processes_train_and_evaluate_every_record_once(synthetic_folder, tmp_path):
from hymate_training.predict import read_frame
    output = tmp_path / "run"
from hymate_training.predict import read_frame
    result = hymate(
from hymate_training.predict import read_frame
        *["finetune", "--data", synthetic_folder, "--task", TASK, "--output", output, "--epochs", "1", *TINY],
from hymate_training.predict import read_frame
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
from hymate_training.predict import read_frame
        ACCELERATE_USE_CPU="true",
from hymate_training.predict import read_frame
        OMP_NUM_THREADS="1",
from hymate_training.predict import read_frame
    )
from hymate_training.predict import read_frame
    assert result.returncode == 0, result.stderr[-2000:]
from hymate_training.predict import read_frame
    run = json.loads((output / "training_run.json").read_text())
from hymate_training.predict import read_frame
    assert run["hardware"]["processes"] == 2
from hymate_training.predict import read_frame
    evaluation = json.loads((output / "evaluation.json").read_text())
from hymate_training.predict import read_frame
    assert evaluation["n"] == run["num_examples"]["validation"] == evaluation["num_records"]
from hymate_training.predict import read_frame
    # the figures both processes made together are those one process makes of the checkpoint
from hymate_training.predict import read_frame
    assert run["history"][-1]["auroc"] == pytest.approx(evaluation["metrics"]["auroc"], abs=1e-6)
from hymate_training.predict import read_frame
    train = run["num_examples"]["train"]
from hymate_training.predict import read_frame
    assert run["history"][-1]["step"] == math.ceil(math.ceil(train / 16) / 2)
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_processes_share_out_each_epoch(synthetic_folder):
from hymate_training.predict import read_frame
    class Share:
from hymate_training.predict import read_frame
        num_processes = 2
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
        def __init__(self, rank):
from hymate_training.predict import read_frame
            self.process_index = rank
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    extractor = fit_feature_extractor(synthetic_folder)
from hymate_training.predict import read_frame
    dataset = load_task(synthetic_folder, TASK, "train", extractor.variables)
from hymate_training.predict import read_frame
    options = LoopOptions(batch_size=16)
from hymate_training.predict import read_frame
    shares = [EpochLoader(dataset, None, options, Share(rank)).batches(epoch=3) for rank in (0, 1)]
from hymate_training.predict import read_frame
    assert len(shares[0]) == len(shares[1])
from hymate_training.predict import read_frame
    seen = np.concatenate([np.concatenate(share) for share in shares])
from hymate_training.predict import read_frame
    assert set(seen.tolist()) == set(range(len(dataset)))
from hymate_training.predict import read_frame
    assert len(seen) - len(dataset) <= options.batch_size
from hymate_training.predict import read_frame
    again = EpochLoader(dataset, None, options, Share(0)).batches(epoch=3)
from hymate_training.predict import read_frame
    assert all(np.array_equal(one, other) for one, other in zip(shares[0], again, strict=True))
from hymate_training.predict import read_frame
    other_epoch = EpochLoader(dataset, None, options, Share(0)).batches(epoch=4)
from hymate_training.predict import read_frame
    assert any(not np.array_equal(one, other) for one, other in zip(shares[0], other_epoch, strict=True))
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_an_epoch_draws_a_few_examples_of_each_record(synthetic_folder):
from hymate_training.predict import read_frame
    extractor = fit_feature_extractor(synthetic_folder)
from hymate_training.predict import read_frame
    events = read_events(synthetic_folder, "train", extractor.variables)
from hymate_training.predict import read_frame
    rows = np.repeat(np.arange(5), [1, 2, 9, 4, 7])
from hymate_training.predict import read_frame
    times = np.concatenate([np.linspace(5, 48, count) for count in (1, 2, 9, 4, 7)]).astype(np.float32)
from hymate_training.predict import read_frame
    dataset = ExampleDataset(events, rows, times)
from hymate_training.predict import read_frame
    assert dataset.lengths.tolist() == [
from hymate_training.predict import read_frame
        int((events.times[events.offsets[row] : events.offsets[row + 1]] <= time).sum())
from hymate_training.predict import read_frame
        for row, time in zip(rows, times, strict=True)
from hymate_training.predict import read_frame
    ]
from hymate_training.predict import read_frame
    accelerator = type("Alone", (), {"process_index": 0, "num_processes": 1})
from hymate_training.predict import read_frame
    loader = EpochLoader(dataset, None, LoopOptions(batch_size=4, examples_per_record=3), accelerator)
from hymate_training.predict import read_frame
    epochs = [np.concatenate(loader.batches(epoch)) for epoch in range(30)]
from hymate_training.predict import read_frame
    for drawn in epochs:
from hymate_training.predict import read_frame
        assert len(set(drawn.tolist())) == len(drawn)
from hymate_training.predict import read_frame
        assert np.bincount(rows[drawn]).tolist() == [1, 2, 3, 3, 3]
from hymate_training.predict import read_frame
    assert len(loader) == len(loader.batches(0)) == 3
from hymate_training.predict import read_frame
    assert set(np.concatenate(epochs).tolist()) == set(range(len(rows)))
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
@pytest.mark.parametrize("task", ["length_of_stay", "phenotypes", "discharge_destination"])
from hymate_training.predict import read_frame
def test_every_problem_type_trains_evaluates_and_predicts(synthetic_folder, tmp_path, task):
from hymate_training.predict import read_frame
    output = tmp_path / "run"
from hymate_training.predict import read_frame
    common = ["--data", str(synthetic_folder), "--task", task]
from hymate_training.predict import read_frame
    extra = {
from hymate_training.predict import read_frame
        "phenotypes": ["--pos-weight", "balanced"],
from hymate_training.predict import read_frame
        "length_of_stay": ["--mixed-precision", "bf16", "--gradient-accumulation-steps", "2"],
from hymate_training.predict import read_frame
        "discharge_destination": ["--report-to", "tensorboard", "--max-events", "50"],
from hymate_training.predict import read_frame
    }[task]
from hymate_training.predict import read_frame
    assert main(["finetune", *common, "--output", str(output), "--epochs", "1", *extra, *TINY]) == 0
from hymate_training.predict import read_frame
    assert ("tensorboard" in extra) == any((output / "logs").rglob("*tfevents*"))
from hymate_training.predict import read_frame
    report = tmp_path / "test.json"
from hymate_training.predict import read_frame
    assert main(["evaluate", *common, "--checkpoint", str(output), "--split", "test", "--output", str(report)]) == 0
from hymate_training.predict import read_frame
    assert json.loads(report.read_text())["n"] > 0
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def event_frame(folder, records=5):
from hymate_training.predict import read_frame
    from hymate_training.records import read_info, read_records  # noqa: PLC0415 - used here only
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    info, table = read_info(folder), read_records(folder, "test").slice(0, records)
from hymate_training.predict import read_frame
    frame = pl.from_arrow(table)
from hymate_training.predict import read_frame
    events = frame.select("record_id", "time", "variable", "value").explode("time", "variable", "value")
from hymate_training.predict import read_frame
    names = pl.Series(info.variables)
from hymate_training.predict import read_frame
    events = events.with_columns(variable=names.gather(events["variable"]))
from hymate_training.predict import read_frame
    return events, frame.select("record_id", *(column.name for column in info.static_columns))
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
from hymate_training.predict import read_frame
def test_predict_gives_what_evaluation_sees(synthetic_folder, finetuned, tmp_path, suffix):
from hymate_training.predict import read_frame
    events, static = event_frame(synthetic_folder)
from hymate_training.predict import read_frame
    events = events.sample(fraction=1.0, shuffle=True, seed=0)
from hymate_training.predict import read_frame
    for name, frame in (("events", events), ("static", static)):
from hymate_training.predict import read_frame
        path = tmp_path / f"{name}.{suffix}"
from hymate_training.predict import read_frame
        frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
from hymate_training.predict import read_frame
    output = tmp_path / f"predictions.{suffix}"
from hymate_training.predict import read_frame
    arguments = ["--events", tmp_path / f"events.{suffix}", "--static", tmp_path / f"static.{suffix}"]
from hymate_training.predict import read_frame
    assert main(["predict", "--checkpoint", str(finetuned), *map(str, arguments), "--output", str(output)]) == 0
from hymate_training.predict import read_frame
    found = pl.read_csv(output) if suffix == "csv" else pl.read_parquet(output)
from hymate_training.predict import read_frame
    assert set(found["record_id"].cast(pl.String)) == set(static["record_id"])
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    from hymate_training.predict import load_checkpoint, predict_examples  # noqa: PLC0415 - used here only
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    model, extractor = load_checkpoint(finetuned)
from hymate_training.predict import read_frame
    dataset = load_task(synthetic_folder, TASK, "test", extractor.variables)
from hymate_training.predict import read_frame
    predicted = predict_examples(model, dataset, TaskCollator(extractor))
from hymate_training.predict import read_frame
    expected = dict(zip(dataset.record_ids[predicted.indices], predicted.values[:, 1], strict=True))
from hymate_training.predict import read_frame
    for record_id, died in zip(found["record_id"].cast(pl.String), found["died"], strict=True):
from hymate_training.predict import read_frame
        assert died == pytest.approx(expected[record_id], abs=1e-5)
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_augmentation_removes_whole_variables_and_leaves_no_record_empty(synthetic_folder):
from hymate_training.predict import read_frame
    extractor = fit_feature_extractor(synthetic_folder)
from hymate_training.predict import read_frame
    dataset = load_task(synthetic_folder, TASK, "train", extractor.variables)
from hymate_training.predict import read_frame
    examples = dataset.__getitems__(list(range(40)))
from hymate_training.predict import read_frame
    plain = TaskCollator(extractor)(examples)
from hymate_training.predict import read_frame
    features = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
from hymate_training.predict import read_frame
    again = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
from hymate_training.predict import read_frame
    assert all(torch.equal(features[name], again[name]) for name in features)
from hymate_training.predict import read_frame
    assert features["attention_mask"].any(1).all()
from hymate_training.predict import read_frame
    dropped = 0
from hymate_training.predict import read_frame
    for row in range(40):
from hymate_training.predict import read_frame
        keep, kept = plain["attention_mask"][row], features["attention_mask"][row]
from hymate_training.predict import read_frame
        before = torch.bincount(plain["variable_ids"][row][keep], minlength=extractor.num_variables)
from hymate_training.predict import read_frame
        after = torch.bincount(features["variable_ids"][row][kept], minlength=extractor.num_variables)
from hymate_training.predict import read_frame
        assert ((after == before) | (after == 0)).all()
from hymate_training.predict import read_frame
        dropped += int(((before > 0) & (after == 0)).sum()) / max(1, int((before > 0).sum())) / 40
from hymate_training.predict import read_frame
    assert 0.2 < dropped < 0.4
from hymate_training.predict import read_frame
    everything = TaskCollator(extractor, variable_dropout=0.999, seed=1)(examples)
from hymate_training.predict import read_frame
    assert everything["attention_mask"].any(1).all()
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_augmentation_removes_a_share_of_the_events(synthetic_folder):
from hymate_training.predict import read_frame
    extractor = fit_feature_extractor(synthetic_folder)
from hymate_training.predict import read_frame
    dataset = load_task(synthetic_folder, TASK, "train", extractor.variables)
from hymate_training.predict import read_frame
    examples = dataset.__getitems__(list(range(len(dataset))))
from hymate_training.predict import read_frame
    before = TaskCollator(extractor)(examples)["attention_mask"].sum(1)
from hymate_training.predict import read_frame
    after = TaskCollator(extractor, event_dropout=0.6, seed=1)(examples)["attention_mask"].sum(1)
from hymate_training.predict import read_frame
    dropped = 1 - after / before
from hymate_training.predict import read_frame
    assert 0.25 < dropped.mean() < 0.35
from hymate_training.predict import read_frame
    assert dropped.min() < 0.1
from hymate_training.predict import read_frame
    assert 0.5 < dropped[before > 20].max() < 0.75
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_nothing_after_the_cut_reaches_the_forecaster(synthetic_folder):
from hymate_training.predict import read_frame
    extractor = fit_feature_extractor(synthetic_folder)
from hymate_training.predict import read_frame
    dataset = load_forecast(synthetic_folder, "train", extractor.variables, 12.0)
from hymate_training.predict import read_frame
    collator = ForecastCollator(extractor, fixed_cuts=True)
from hymate_training.predict import read_frame
    examples = dataset.__getitems__(list(range(30)))
from hymate_training.predict import read_frame
    features = collator(examples)
from hymate_training.predict import read_frame
    assert features["forecast_mask"].any()
from hymate_training.predict import read_frame
    last_input = (features["times"] * features["attention_mask"]).max(1).values * extractor.time_scale
from hymate_training.predict import read_frame
    assert (last_input >= 0).all()
from hymate_training.predict import read_frame
    # the targets are the first values after the input, found one by one
from hymate_training.predict import read_frame
    events = examples.events
from hymate_training.predict import read_frame
    for row in range(len(events)):
from hymate_training.predict import read_frame
        part = slice(events.offsets[row], events.offsets[row + 1])
from hymate_training.predict import read_frame
        later = events.times[part] > float(last_input[row]) + 1e-4
from hymate_training.predict import read_frame
        for variable in np.flatnonzero(features["forecast_mask"][row]):
from hymate_training.predict import read_frame
            at = np.flatnonzero(later & (events.variable_ids[part] == variable))[0]
from hymate_training.predict import read_frame
            expected = extractor.standardize(np.array([variable]), events.values[part][at : at + 1])[0]
from hymate_training.predict import read_frame
            assert float(features["forecast_values"][row, variable]) == pytest.approx(expected, abs=1e-5)
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
@pytest.mark.parametrize(
from hymate_training.predict import read_frame
    ("arguments", "complaint"),
from hymate_training.predict import read_frame
    [
from hymate_training.predict import read_frame
        (["finetune", "--data", "nowhere", "--task", TASK, "--output", "run"], "nowhere"),
from hymate_training.predict import read_frame
        (["finetune", "--data", "{data}", "--task", "recovery", "--output", "run"], "recovery"),
from hymate_training.predict import read_frame
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--recipe", "best"], "best"),
from hymate_training.predict import read_frame
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "hiden_size=8"], "hiden_size"),
from hymate_training.predict import read_frame
        (
from hymate_training.predict import read_frame
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "hidden_size=7"],
from hymate_training.predict import read_frame
            "hidden_size",
from hymate_training.predict import read_frame
        ),
from hymate_training.predict import read_frame
        (
from hymate_training.predict import read_frame
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "num_hidden_layers=3"],
from hymate_training.predict import read_frame
            "num_hidden_layers",
from hymate_training.predict import read_frame
        ),
from hymate_training.predict import read_frame
        (
from hymate_training.predict import read_frame
            ["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--model", "num_variables=5"],
from hymate_training.predict import read_frame
            "num_variables follows from the data",
from hymate_training.predict import read_frame
        ),
from hymate_training.predict import read_frame
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--learning-rate", "0"], "learning_rate"),
from hymate_training.predict import read_frame
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "run", "--resume"], "resume"),
from hymate_training.predict import read_frame
        (["finetune", "--data", "{data}", "--task", TASK, "--output", "{data}"], "not empty"),
from hymate_training.predict import read_frame
        (
from hymate_training.predict import read_frame
            ["evaluate", "--checkpoint", "{data}", "--data", "{data}", "--task", TASK, "--output", "x.json"],
from hymate_training.predict import read_frame
            "checkpoint",
from hymate_training.predict import read_frame
        ),
from hymate_training.predict import read_frame
        (["predict", "--checkpoint", "{run}", "--events", "gone.csv", "--output", "x.csv"], "gone.csv"),
from hymate_training.predict import read_frame
        (["predict", "--checkpoint", "{run}", "--events", "gone.csv", "--output", "x.txt"], "x.txt"),
from hymate_training.predict import read_frame
    ],
from hymate_training.predict import read_frame
)
from hymate_training.predict import read_frame
def test_mistakes_end_with_one_line_and_leave_nothing(
from hymate_training.predict import read_frame
    synthetic_folder, finetuned, tmp_path, monkeypatch, capsys, arguments, complaint
from hymate_training.predict import read_frame
):
from hymate_training.predict import read_frame
    monkeypatch.chdir(tmp_path)
from hymate_training.predict import read_frame
    arguments = [part.format(data=synthetic_folder, run=finetuned) for part in arguments]
from hymate_training.predict import read_frame
    assert main(arguments) == 2
from hymate_training.predict import read_frame
    message = capsys.readouterr().err.strip().splitlines()[-1]
from hymate_training.predict import read_frame
    assert complaint in message
from hymate_training.predict import read_frame
    assert "Traceback" not in message
from hymate_training.predict import read_frame
    assert not list(tmp_path.iterdir())
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_recipes_hold_only_known_options():
from hymate_training.predict import read_frame
    import argparse  # noqa: PLC0415 - used here only
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    from hymate_training.finetune import FinetuneOptions  # noqa: PLC0415 - likewise
from hymate_training.predict import read_frame
    from hymate_training.options import read_options, shipped_recipes  # noqa: PLC0415 - likewise
from hymate_training.predict import read_frame
    from hymate_training.pretrain import PretrainOptions  # noqa: PLC0415 - likewise
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    for recipe in shipped_recipes():
from hymate_training.predict import read_frame
        arguments = argparse.Namespace(recipe=recipe)
from hymate_training.predict import read_frame
        assert read_options(PretrainOptions, "pretrain", arguments).model["hidden_size"] > 0
from hymate_training.predict import read_frame
        assert read_options(FinetuneOptions, "finetune", arguments).epochs > 0
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_carrying_forward_takes_each_variables_last_value():
from hymate_training.predict import read_frame
    from hymate_training.pretrain import last_values  # noqa: PLC0415 - used here only
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
    rng = np.random.default_rng(0)
from hymate_training.predict import read_frame
    shape = (6, 40)
from hymate_training.predict import read_frame
    features = {
from hymate_training.predict import read_frame
        "values": torch.from_numpy(rng.normal(size=shape).astype(np.float32)),
from hymate_training.predict import read_frame
        "variable_ids": torch.from_numpy(rng.integers(0, 4, size=shape)),
from hymate_training.predict import read_frame
        "attention_mask": torch.from_numpy(np.arange(40) < rng.integers(1, 40, size=(6, 1))),
from hymate_training.predict import read_frame
        "value_mask": torch.from_numpy(rng.random(shape) < 0.7),
from hymate_training.predict import read_frame
    }
from hymate_training.predict import read_frame
    expected = torch.zeros(6, 4)
from hymate_training.predict import read_frame
    for row in range(6):
from hymate_training.predict import read_frame
        for at in range(40):
from hymate_training.predict import read_frame
            if features["attention_mask"][row, at] and features["value_mask"][row, at]:
from hymate_training.predict import read_frame
                expected[row, features["variable_ids"][row, at]] = features["values"][row, at]
from hymate_training.predict import read_frame
    assert torch.equal(last_values(features, 4), expected)
from hymate_training.predict import read_frame

from hymate_training.predict import read_frame

from hymate_training.predict import read_frame
def test_tables_are_read_as_prepare_reads_them(tmp_path):
from hymate_training.predict import read_frame
    path = tmp_path / "table.csv"
from hymate_training.predict import read_frame
    path.write_text("record_id,variable,ventilated,unit\n007,220045,true, MICU \n8,10,,\n")
from hymate_training.predict import read_frame
    frame = read_frame(path)
from hymate_training.predict import read_frame
    assert frame.rows() == [("007", "220045", "true", "MICU"), ("8", "10", None, None)]
