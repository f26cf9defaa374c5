"""A classifier as a program that runs without this package: for ONNX Runtime, compiled, or for torch.export."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from hymate_training.data.prepared_folder import refuse_inside
from hymate_training.files import check_place, refuse_existing, writing_file
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from modeling_hymate import Events, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification

SUFFIXES = {"onnx": ".onnx", "aoti": ".pt2", "torch": ".pt2"}
OUTPUTS = ("predictions", "logits")
TOLERANCE = 1e-4  # by which a program may differ from the model, in its logits
ONNX_OPSET = 18


@dataclass(frozen=True)
class ExportedModel:
    """What `export` wrote.

    Attributes:
        output: the program.
        inputs: names of its arguments, in order.
        difference: largest difference of its logits from the model's on made-up records; None where nothing here
            runs it.
    """

    output: Path
    inputs: tuple[str, ...]
    difference: float | None


class ExportedClassifier(nn.Module):
    """What is exported: the tensors of a feature extractor in; predictions and logits out."""

    def __init__(self, model: HyMaTEForSequenceClassification, inputs: tuple[str, ...]):
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities or numbers, and logits, both `(batch, [predictions,] num_labels)`."""
        logits = self.model(**dict(zip(self.inputs, tensors, strict=True))).logits
        return self.model.predictions(logits), logits


def export(
    checkpoint: str | Path | Checkpoint, output: str | Path, program: str = "onnx", *, overwrite: bool = False
) -> ExportedModel:
    """Writes a fine-tuned model as a program of its own, which takes any number of records, of any length.

    Its arguments are what the feature extractor returns: `values`, `times`, `variable_ids`, `attention_mask`,
    `value_mask`, all `(batch, length)`, `static_values` where the model has static columns, and `prediction_times
    (batch, predictions)` where it was trained at many hours. It returns `predictions`, which are probabilities or
    numbers, and `logits`. Nothing in it is checked; events may come in any order.

    Args:
        checkpoint: the model's folder, or its name on the Hub.
        output: file to write: `.onnx`, or `.pt2`.
        program: `"onnx"`, for ONNX Runtime; `"aoti"`, code compiled for this machine by PyTorch's AOTInductor, which
            needs a C++ compiler here and only PyTorch where it runs; or `"torch"`, for `torch.export.load`.
        overwrite: replace an `output` that is there already.

    Returns:
        The file, the names of the arguments, and by how much its logits differ from the model's on made-up records.

    Raises:
        ValueError: if the checkpoint is none, for another program or suffix, for an output that is there already or
            lies in a prepared folder, if a package that it takes is missing, and if the program's answers are not the
            model's.
    """
    output = Path(output)
    if program not in SUFFIXES:
        raise ValueError(f"program must be one of {', '.join(SUFFIXES)}, got {program!r}")
    if output.suffix != SUFFIXES[program]:
        raise ValueError(f"{output}: the suffix of a program for {program} is {SUFFIXES[program]}")
    if program == "onnx" and (missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]):
        raise ValueError(f"a program for ONNX takes the package {missing[0]}: pip install 'hymate[onnx]'")
    refuse_inside(output)
    refuse_existing(output, overwrite)
    check_place(output)
    opened = load_checkpoint(checkpoint)
    model = opened.model.cpu()
    examples = example_inputs(opened.extractor, num_records=3, seed=0)
    classifier = ExportedClassifier(model, tuple(examples)).eval()
    with writing_file(output) as incoming, torch.no_grad():
        written = incoming.with_name(incoming.name + output.suffix)  # which some writers insist on
        try:
            run = WRITERS[program](classifier, examples, written)
            difference = _difference(classifier, opened.extractor, run)
            shutil.move(written, incoming)
        finally:
            written.unlink(missing_ok=True)
    return ExportedModel(output, tuple(examples), difference)


def example_inputs(extractor: HyMaTEFeatureExtractor, num_records: int, seed: int) -> dict[str, torch.Tensor]:
    """Tensors of made-up records of different lengths, with values within the ranges of their variables."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, num_records)
    variables = rng.integers(extractor.num_variables, size=lengths.sum())
    ranges = np.array(extractor.value_ranges)[variables]
    values = rng.uniform(ranges[:, 0], ranges[:, 1])
    values[rng.random(len(values)) < 0.2] = np.nan
    events = Events(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=rng.uniform(0, extractor.time_scale, len(values)),
        variable_ids=variables,
        values=values,
        static={column["name"]: np.full(num_records, None, object) for column in extractor.static_columns},
        record_ids=[str(row) for row in range(num_records)],
    )
    asked = None
    if extractor.trained_hours is not None:
        first, last = extractor.trained_hours
        asked = rng.uniform(first, last, (num_records, int(rng.integers(2, 5)))).tolist()
    return dict(extractor.encode(events, prediction_times=asked))


def _exported(classifier: ExportedClassifier, examples: dict[str, torch.Tensor]) -> ExportedProgram:
    batch, length, predictions = Dim("batch", min=1), Dim("length", min=1), Dim("predictions", min=1)
    second = {"static_values": None, "prediction_times": predictions}
    shapes = tuple(
        {0: batch} if (size := second.get(name, length)) is None else {0: batch, 1: size} for name in examples
    )
    torch.compiler.reset()  # what was compiled or exported in this process before may fix sizes of the scan's loop
    return torch.export.export(classifier, tuple(examples.values()), dynamic_shapes=(shapes,), strict=False)


def _write_torch(classifier: ExportedClassifier, examples: dict[str, torch.Tensor], output: Path) -> Callable:
    torch.export.save(_exported(classifier, examples), output)
    return torch.export.load(output).module()


def _write_aoti(classifier: ExportedClassifier, examples: dict[str, torch.Tensor], output: Path) -> Callable:
    program = _exported(classifier, examples)
    torch._inductor.aoti_compile_and_package(program, package_path=str(output))
    return torch._inductor.aoti_load_package(str(output))


def _write_onnx(classifier: ExportedClassifier, examples: dict[str, torch.Tensor], output: Path) -> Callable | None:
    import onnxscript  # noqa: PLC0415 - of an extra

    op: Any = onnxscript.opset18

    def sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)  # which keeps the order of equals

    def searchsorted(sorted_sequence: Any, self: Any, **options: Any) -> Any:
        below = op.Less(op.Unsqueeze(sorted_sequence, [1]), op.Unsqueeze(self, [2]))
        return op.ReduceSum(op.Cast(below, to=7), [2], keepdims=0)  # 7 is ONNX's number of int64

    program = torch.onnx.export(
        _exported(classifier, examples),
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
        input_names=list(examples),
        output_names=list(OUTPUTS),
        custom_translation_table={
            torch.ops.aten.sort.stable: sort,
            torch.ops.aten.searchsorted.Tensor: searchsorted,
        },
    )
    assert program is not None  # as it is without `dynamo`
    program.save(output)
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime  # noqa: PLC0415 - optional

    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        found = session.run(list(OUTPUTS), dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True)))
        return [torch.from_numpy(array) for array in found]

    return run


WRITERS: dict[str, Callable] = {"onnx": _write_onnx, "aoti": _write_aoti, "torch": _write_torch}


def _difference(
    classifier: ExportedClassifier, extractor: HyMaTEFeatureExtractor, run: Callable | None
) -> float | None:
    """Largest difference of the program's logits from the model's; ValueError if it is more than rounding."""
    if run is None:
        return None
    differences = []
    for seed, num_records in enumerate((1, 2, 5), 1):
        inputs = tuple(example_inputs(extractor, num_records, seed).values())
        differences += [
            (one - other).abs().max() for one, other in zip(run(*inputs), classifier(*inputs), strict=True)
        ]
    difference = float(torch.stack(differences).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"the program's answers differ from the model's by {difference:.1e}: it was not written")
    return difference
