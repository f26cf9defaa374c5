"""Exported programs: they answer as the model does, whatever the number of records and their lengths."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from hymate_training.cli.main import main
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.export import WRITERS, export
from tests.support.helpers import close
from tests.support.runs import event_frame, hymate

RUN_ALONE = """
import sys
sys.path[:] = [path for path in sys.path if path]
import numpy, onnxruntime
inputs = numpy.load(sys.argv[2])
answers = onnxruntime.InferenceSession(sys.argv[1]).run(["predictions"], dict(inputs))
assert not {"torch", "hymate", "modeling_hymate"} & set(sys.modules)
numpy.save(sys.argv[3], answers[0])
"""


@pytest.fixture(scope="module")
def followed(finetuned, tmp_path_factory):
    """The classifier as one that was trained at many hours, so that its program is asked at times."""
    folder = tmp_path_factory.mktemp("followed") / "run"
    shutil.copytree(finetuned, folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_hours": [0.0, 48.0]}))
    return folder


def records(folder, checkpoint, count, prediction_times=None):
    """Tensors of test records whose events are in no order."""
    events, static = event_frame(folder, count)
    shuffled = events.sample(fraction=1, shuffle=True, seed=1)
    first = events["record_id"].unique(maintain_order=True)
    order = pl.DataFrame({"record_id": first}).join(shuffled, on="record_id", maintain_order="left")
    inputs = checkpoint.extractor(order, static, prediction_times=prediction_times)
    mixed = torch.randperm(inputs["values"].shape[1], generator=torch.Generator().manual_seed(0))
    alone = ("static_values", "prediction_times")
    return {name: tensor if name in alone else tensor[:, mixed] for name, tensor in inputs.items()}


def exported(checkpoint, output, program) -> tuple[str, ...]:
    """What the command says that its program takes; the scan that the environment names is not the program's."""
    command = ["export", "--checkpoint", checkpoint.path, "--program", program, "--output", output]
    done = hymate(*command, HYMATE_SCAN_BACKEND="chunked")
    assert done.returncode == 0, done.stderr
    found = re.search(r"; takes (.*); its logits differ from the model's by at most (\S+) ", done.stdout)
    assert float(found[2]) < 1e-5
    return tuple(found[1].split(", "))


@torch.no_grad()
def expected(checkpoint, inputs):
    logits = checkpoint.model(**inputs).logits
    return checkpoint.model.predictions(logits), logits


@pytest.mark.parametrize("hours", [None, [1.5, 40.0, 12.0]], ids=["once", "at times"])
def test_a_program_of_torch_answers_as_the_model(hours, finetuned, followed, synthetic_folder, tmp_path):
    checkpoint = load_checkpoint(finetuned if hours is None else followed)
    inputs_of_program = exported(checkpoint, tmp_path / "model.pt2", "torch")
    program = torch.export.load(tmp_path / "model.pt2")
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "hymate" in name]  # none of our operators
    for count in (1, 4):
        inputs = records(synthetic_folder, checkpoint, count, hours)
        assert tuple(inputs) == inputs_of_program
        close(tuple(program.module()(*inputs.values())), expected(checkpoint, inputs))


@pytest.mark.parametrize("hours", [None, [1.5, 40.0, 12.0]], ids=["once", "at times"])
def test_onnx_runtime_answers_as_the_model_without_this_package(
    hours, finetuned, followed, synthetic_folder, tmp_path
):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    checkpoint = load_checkpoint(finetuned if hours is None else followed)
    exported(checkpoint, tmp_path / "model.onnx", "onnx")
    inputs = records(synthetic_folder, checkpoint, 3, hours)
    np.savez(tmp_path / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
    call = [
        sys.executable,
        "-I",
        "-c",
        RUN_ALONE,
        tmp_path / "model.onnx",
        tmp_path / "inputs.npz",
        tmp_path / "out.npy",
    ]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    close(torch.from_numpy(np.load(tmp_path / "out.npy")), expected(checkpoint, inputs)[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_compiled_code_answers_as_the_model(finetuned, synthetic_folder, tmp_path):
    checkpoint = load_checkpoint(finetuned)
    exported(checkpoint, tmp_path / "model.pt2", "aoti")
    program = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    inputs = records(synthetic_folder, checkpoint, 4)
    close(tuple(program(*inputs.values())), expected(checkpoint, inputs))


def test_mistakes_are_named(finetuned, tmp_path, monkeypatch):
    for output, program, message in (
        ("model.bin", "onnx", r"the suffix of a program for onnx is \.onnx"),
        ("model.onnx", "torch", r"the suffix of a program for torch is \.pt2"),
        ("model.onnx", "tensorrt", "program must be one of onnx, aoti, torch, got 'tensorrt'"),
    ):
        with pytest.raises(ValueError, match=message):
            export(finetuned, tmp_path / output, program)
    monkeypatch.setattr("hymate_training.inference.export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"takes the package onnx: pip install 'hymate\[onnx\]'"):
        export(finetuned, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_program_is_replaced_where_asked_and_only_when_the_new_one_is_whole(finetuned, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    command = ["export", "--checkpoint", str(finetuned), "--program", "torch", "--output", str(path)]
    monkeypatch.setitem(WRITERS, "torch", None)
    with pytest.raises(TypeError):  # in the middle of the work
        main([*command, "--overwrite"])
    assert main(command) == 2
    assert path.read_text() == "mine"
    monkeypatch.undo()
    assert main([*command, "--overwrite"]) == 0
    torch.export.load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_program_that_answers_otherwise_is_not_written(finetuned, tmp_path, monkeypatch):
    def wrong(*tensors):
        return torch.zeros(len(tensors[0]), 2), torch.full((len(tensors[0]), 2), 9.0)

    writers = {"torch": lambda classifier, examples, output: output.write_bytes(b"?") and wrong}
    monkeypatch.setattr("hymate_training.inference.export.WRITERS", writers)
    with pytest.raises(ValueError, match="the program's answers differ from the model's"):
        export(finetuned, tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())
