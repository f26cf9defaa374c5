"""Fine-tuning: where it starts, what it reads and what it leaves."""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import DatasetInfo
from hymate_training.files import locked
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.fitting.pretraining import pretrain
from tests.support.runs import TASK, TINY, TINY_MODEL, assert_same_weights, hymate, weights


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


def test_metadata_is_parsed_once_and_each_split_read_once(synthetic_folder, pretrained, tmp_path, monkeypatch):
    opened: Counter[str] = Counter()
    parse, read = DatasetInfo.from_json.__func__, pq.ParquetFile.iter_batches

    def count_parsing(cls, text):
        opened["metadata.json"] += 1
        return parse(cls, text)

    def count_reading(self, *arguments, columns=None, **options):
        name = Path(str(self.path)).relative_to(synthetic_folder).as_posix()
        if columns is None or "time" in columns or "prediction_time" in columns:
            opened[name] += 1
        return read(self, *arguments, columns=columns, **options)

    def remember(self, source, *arguments, **options):
        self.path = source
        initialize(self, source, *arguments, **options)

    initialize = pq.ParquetFile.__init__
    monkeypatch.setattr(pq.ParquetFile, "__init__", remember)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count_reading)
    monkeypatch.setattr(DatasetInfo, "from_json", classmethod(count_parsing))
    options = FinetuneOptions(epochs=1, batch_size=16, auxiliary_tasks="length_of_stay")
    finetune(synthetic_folder, TASK, tmp_path / "run", options, pretrained)
    assert opened == {
        "metadata.json": 1,
        "records/train-00000.parquet": 1,
        "records/validation-00000.parquet": 1,
        f"tasks/{TASK}/train.parquet": 1,
        f"tasks/{TASK}/validation.parquet": 1,
        "tasks/length_of_stay/train.parquet": 1,
    }


def test_an_open_folder_is_taken_as_it_is(synthetic_folder, tmp_path):
    folder = PreparedFolder(synthetic_folder)
    options = FinetuneOptions(epochs=1, batch_size=64, model=TINY_MODEL)
    result = finetune(folder, TASK, tmp_path / "run", options)
    assert result.output == tmp_path / "run"
    assert [entry["epoch"] for entry in result.history] == [1]
    assert result.evaluation.content == json.loads(result.evaluation.output.read_text())


@pytest.mark.parametrize("train", [pretrain, partial(finetune, task=TASK)], ids=["pretrain", "finetune"])
def test_a_second_run_into_the_same_folder_is_refused(train, synthetic_folder, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="another process is writing to"):
        train(synthetic_folder, output=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_gradient_checkpointing_changes_no_weight(synthetic_folder, tmp_path):
    options = {"epochs": 1, "batch_size": 64, "model": TINY_MODEL | {"hidden_dropout": 0.2}}
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        finetune(
            PreparedFolder(synthetic_folder),
            TASK,
            tmp_path / name,
            FinetuneOptions(gradient_checkpointing=checkpointed, **options),
        )
    assert_same_weights(tmp_path / "plain", tmp_path / "checkpointed")


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
    # the metrics both processes made together are those one process makes of the checkpoint
    assert run["history"][-1]["auroc"] == pytest.approx(evaluation["metrics"]["auroc"], abs=1e-6)
    train = run["num_examples"]["train"]
    assert run["history"][-1]["step"] == math.ceil(math.ceil(train / 16) / 2)
