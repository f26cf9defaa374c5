"""Checkpoints: found by folder or by name on the Hub, opened once, and refused in one line where they are damaged."""

import copy
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from hymate_training.data.prepared_folder import refuse_inside
from hymate_training.files import check_place, json_object, json_problem, tensors_written
from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from modeling_hymate.hazards import check_horizons, risk_name

CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE = "config.json", "preprocessor_config.json", "model.safetensors"
RUN_FILE = "training_run.json"  # how a checkpoint came about
EXPORT_FILE = "export.json"  # how the files are laid out and named that its data were read from; never pushed
MONITORING_FILE = "monitoring.json"  # aggregates of the training data, which `hymate monitor` compares with
EVALUATION_FILE = "evaluation.json"  # beside a fine-tuned model: its evaluation on the validation split
EVALUATION_FILES = "evaluation*.json"  # and on other splits
DOWNLOADED = ["*.json", "*.safetensors", "README.md"]  # and no code: that of the installed package runs
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FLOATS = ("F64", "F32", "F16", "BF16")  # of weights, as safetensors calls them
LFS_POINTER = b"version https://git-lfs"

Model = TypeVar("Model", bound=PreTrainedModel)
Schema = dict[str, Any]


def _maybe(**properties: Schema) -> Schema:
    """An object whose properties are these where it holds them."""
    return {"type": "object", "properties": properties}


_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_SHARE = _NUMBER | {"minimum": 0, "maximum": 1}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_INTERVAL = {"type": ["array", "null"], "minItems": 2, "maxItems": 2, "items": _NUMBER}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


# of the files beside the weights, what is read here and in other rooms
KEPT: dict[str, Schema] = {
    EVALUATION_FILE: json_object(
        problem_type=_TEXT,
        task=_TEXT,
        split=_TEXT,
        n=_COUNT | {"minimum": 1},
        num_records=_COUNT | {"minimum": 1},
        metrics=json_object(_NUMBER_OR_NULL),
        confidence_intervals=json_object(_INTERVAL),
    )
    | {
        "allOf": [
            _maybe(
                positives={"type": ["integer", "null"], "minimum": 0},
                decision_threshold=_SHARE,
                threshold=json_object(value=_NUMBER),
                conformal=json_object(
                    levels=_list(_SHARE), thresholds=json_object(json_object(_list(_NUMBER_OR_NULL)))
                ),
                calibration=_maybe(
                    curve=json_object(predicted=_list(_NUMBER), observed=_list(_NUMBER), intervals=_list(_INTERVAL))
                    | {"type": ["object", "null"]}
                ),
                per_label=json_object(json_object()),
                horizons=_list(json_object(hours=_NUMBER)),
            )
        ]
    },
    RUN_FILE: _maybe(task=_maybe(name=_TEXT), split_fingerprints=json_object(_TEXT)),
    EXPORT_FILE: _maybe(layout=json_object(), concepts=json_object(map=_list(json_object()))),
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fine-tuned model with what belongs to it, opened once and handed on.

    Attributes:
        path: the folder it was read from.
        model: in evaluation mode, on the device that Accelerate chooses.
        extractor: the feature extractor that fits it.
        evaluation: what its evaluation on the validation split found; None where it has none.
    """

    path: Path
    model: HyMaTEForSequenceClassification
    extractor: HyMaTEFeatureExtractor
    evaluation: dict[str, Any] | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the model's outputs, in order."""
        return label_names(self.model)

    def threshold(self, task: str) -> dict[str, Any] | None:
        """The threshold chosen for a task when the model was fine-tuned, as its evaluation holds it; None without."""
        evaluation = self.evaluation or {}
        return evaluation.get("threshold") if evaluation.get("task") == task else None

    def conformal(self, task: str) -> dict[str, Any] | None:
        """The thresholds of conformal prediction that its evaluation holds for a task; None without."""
        evaluation = self.evaluation or {}
        return evaluation.get("conformal") if evaluation.get("task") == task else None


def load_checkpoint(checkpoint: str | Path | Checkpoint) -> Checkpoint:
    """Opens a fine-tuned model.

    Args:
        checkpoint: its folder, or its name on the Hub (`"ORG/NAME"`); an open checkpoint is returned as it is.

    Returns:
        The model, its feature extractor, and the evaluation beside them.

    Raises:
        ValueError: if there is no such folder or repository; if a file is missing, damaged or of another kind; if
            the model has no classifier, or weights that are not finite, or a feature extractor that does not fit it.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    folder = checkpoint_folder(checkpoint)
    extractor = load_extractor(folder)
    model, missing = load_model(HyMaTEForSequenceClassification, folder)
    if missing:
        raise ValueError(f"{folder} holds no classifier: run `hymate finetune --checkpoint {folder}` first")
    return Checkpoint(folder, model.to(PartialState().device), extractor, read_kept(folder, EVALUATION_FILE))


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: `checkpoint` itself, or where the repository of that name on the Hub is downloaded.

    A `Path`, and text whose first part is a folder here, name a folder and never a repository.

    Raises:
        ValueError: if there is no such folder or repository, or it lacks a file.
    """
    folder = Path(checkpoint)
    if not folder.exists() and _is_hub_name(checkpoint):
        try:
            folder = Path(snapshot_download(str(checkpoint), allow_patterns=DOWNLOADED))
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{checkpoint} is not a folder, and cannot be loaded from the Hub: {reason}") from error
    if not folder.is_dir():
        raise ValueError(f"{checkpoint} is not a folder")
    for name in (CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{checkpoint} is not a checkpoint: it lacks {name}")
    return folder


def checkpoint_name(checkpoint: str | Path) -> str:
    """What a checkpoint is called elsewhere: its name on the Hub, or the last part of its folder."""
    return str(checkpoint) if _is_hub_name(checkpoint) else Path(checkpoint).name


def load_extractor(folder: Path) -> HyMaTEFeatureExtractor:
    """The feature extractor of a checkpoint, checked against its model's configuration.

    Raises:
        ValueError: if a file is damaged or of another kind, or the two do not fit.
    """
    config, path = load_config(folder), folder / EXTRACTOR_FILE
    kind = read_json(path).get("feature_extractor_type")
    if kind != HyMaTEFeatureExtractor.__name__:
        raise ValueError(f"{path} does not hold a feature extractor of HyMaTE, but of type {kind!r}")
    try:
        extractor = HyMaTEFeatureExtractor.from_pretrained(folder)
        found = (extractor.num_variables, len(extractor.static_feature_names), extractor.time_scale)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a feature extractor of HyMaTE: {error}") from error
    expected = (config.num_variables, config.num_static_features, config.time_scale)
    names = ("the number of variables", "the number of static features", "time_scale")
    for name, own, wanted in zip(names, found, expected, strict=True):
        if own != wanted:
            raise ValueError(f"{path} does not fit its model: {name} is {own}, but in {folder / CONFIG_FILE} {wanted}")
    return extractor


def load_config(folder: Path) -> HyMaTEConfig:
    """The configuration of a checkpoint.

    Raises:
        ValueError: if it is damaged or that of another model.
    """
    path = folder / CONFIG_FILE
    content = read_json(path)
    if content.get("model_type") != HyMaTEConfig.model_type:
        raise ValueError(f"{path} describes a model of type {content.get('model_type')!r}, not a HyMaTE model")
    try:
        return HyMaTEConfig.from_pretrained(folder)
    except (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a configuration of HyMaTE: {reason}") from error


def load_model(model_class: type[Model], folder: Path, **fields: Any) -> tuple[Model, set[str]]:
    """A checkpoint's weights in a model of the given class, and the names of the weights that its head lacks there.

    Args:
        model_class: a head; whatever its own encoder lacks is an error.
        folder: the checkpoint.
        fields: of the configuration, in place of those that the checkpoint holds.

    Raises:
        ValueError: if the weights are damaged, not finite, or do not fit the configuration.
    """
    load_config(folder)
    path = folder / WEIGHTS_FILE
    _check_weights(path)
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **fields
            )
    except (RuntimeError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{folder} does not fit the model options: {error}") from error
    for name, found, wanted in report["mismatched_keys"]:
        raise ValueError(
            f"{path} does not fit the configuration: {name} is {tuple(found)} there, but the model's {tuple(wanted)}"
        )
    missing = set(report["missing_keys"])
    encoder = sorted(name for name in missing if name.startswith(f"{model.base_model_prefix}."))
    if encoder:
        raise ValueError(f"{path} is not complete: it lacks {encoder[0]}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: the weights {name} are not all finite numbers")
    return model.eval(), missing


def at_horizons(checkpoint: Checkpoint, horizons: Sequence[float]) -> Checkpoint:
    """A time-to-event checkpoint that says the risk within other horizons, in hours; its weights are shared.

    Raises:
        ValueError: for a model of another kind, and for horizons beyond its bins of time.
    """
    own = checkpoint.model.config
    if own.time_bins is None:
        raise ValueError(f"{checkpoint.path}: horizons are for time-to-event models, and this is none")
    check_horizons(horizons, own.time_bins)
    model = copy.copy(checkpoint.model)
    model.config = copy.copy(own)
    model.config.horizons = [float(hours) for hours in horizons]
    model.config.id2label = dict(enumerate(risk_name(own.event or "event", hours) for hours in horizons))
    return replace(checkpoint, model=model)


def check_json_output(output: str | Path, keys: Collection[str]) -> None:
    """Raises unless an account of results may be written to `output`, in place of an earlier one of its kind at most.

    Args:
        output: JSON file to write.
        keys: what an account of its kind holds.

    Raises:
        ValueError: for another ending; for a file that is there and holds something else; in a prepared folder; and in
            the folder of a checkpoint, where names have meanings, for another name than `evaluation*.json`.
        OSError: if nothing can be written there.
    """
    path = Path(output)
    if path.suffix != ".json":
        raise ValueError(f"output must end in .json, got {output}")
    if (path.parent / CONFIG_FILE).is_file() and not fnmatch(path.name, EVALUATION_FILES):
        raise ValueError(
            f"{output} lies in the folder of a checkpoint: call it {EVALUATION_FILES}, or put it elsewhere"
        )
    refuse_inside(path)
    check_place(path)
    if path.is_file():
        try:
            held = read_json(path)
        except (ValueError, OSError):
            held = {}
        if not set(keys) <= set(held):
            raise ValueError(f"{output} is there already and holds something else: name another file")


def save_checkpoint(model: PreTrainedModel, extractor: HyMaTEFeatureExtractor, folder: Path) -> None:
    """Writes a model and its feature extractor into a folder."""
    with _quiet(), tensors_written(folder):
        model.save_pretrained(folder)
    extractor.save_pretrained(folder)


def label_names(model: HyMaTEForSequenceClassification) -> tuple[str, ...]:
    """Names of the model's outputs, in order."""
    return tuple(str(name) for name in (model.config.id2label or {}).values())


def _is_hub_name(checkpoint: str | Path) -> bool:
    if not isinstance(checkpoint, str) or not HUB_NAME.fullmatch(checkpoint):
        return False
    return not Path(checkpoint).parent.exists()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; ValueError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is damaged: it must hold an object, not a {type(content).__name__}")
    return dict(content)


def read_finite_json(path: Path) -> dict[str, Any]:
    """What `read_json` returns; ValueError also for NaN and infinite numbers, which Python reads and JSON has not."""
    content = read_json(path)
    try:
        json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it holds a number that is not finite") from error
    return content


def read_kept(folder: Path, name: str) -> dict[str, Any] | None:
    """What a file beside a checkpoint's weights holds, by one of the names of `KEPT`; None where there is none.

    Raises:
        ValueError: naming the file and the place, where it is damaged.
    """
    path = folder / name
    if not path.is_file():
        return None
    content = read_finite_json(path)
    problem = json_problem(content, KEPT[name])
    if problem is None and name == EVALUATION_FILE and (place := _uneven(content)):
        problem = f"the numbers of {place} do not fit each other"
    if problem is not None:
        raise ValueError(f"{path} is damaged: {problem}")
    return content


def _uneven(evaluation: Mapping[str, Any]) -> str | None:
    """Where an evaluation contradicts itself; None where it does not."""
    conformal = evaluation.get("conformal", {"levels": [], "thresholds": {}})
    parts = [part for parts in conformal["thresholds"].values() for part in parts.values()]
    curve = evaluation.get("calibration", {}).get("curve")
    wrong = {
        "positives and n": (evaluation.get("positives") or 0) > evaluation["n"],
        "conformal": any(len(part) != len(conformal["levels"]) for part in parts),
        "calibration.curve": curve is not None and len({len(points) for points in curve.values()}) > 1,
    }
    return next((place for place, is_wrong in wrong.items() if is_wrong), None)


def _check_weights(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
    if not head:
        raise ValueError(f"{path} is damaged: it is empty")
    if head == LFS_POINTER:
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights: run `git lfs pull`")
    try:
        with safe_open(path, "pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, kind in kinds.items():
        if kind not in FLOATS:
            raise ValueError(
                f"{path} is damaged: the weights {name} are of type {kind}, not one of {', '.join(FLOATS)}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of missing and unexpected weights, which are judged here, and without its bars."""
    logger = logging.getLogger("transformers.modeling_utils")

    def judged_here(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    bar = transformers_logging.is_progress_bar_enabled()
    logger.addFilter(judged_here)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(judged_here)
        if bar:
            transformers_logging.enable_progress_bar()
