"""What may leave the house: decided file by file by what is allowed there, not by what is forbidden.

Each file of a checkpoint that is pushed is checked to hold only what it is for, and numbers of few records are taken
out of what is published.
"""

import copy
import json
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError, safe_open

import modeling_hymate
from hymate_training.evaluation.aggregates import counts_of
from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.files import followed
from hymate_training.inference.checkpoints import (
    CONFIG_FILE,
    EXTRACTOR_FILE,
    MONITORING_FILE,
    RUN_FILE,
    load_config,
    load_extractor,
    read_finite_json,
)
from hymate_training.publishing import schemas
from modeling_hymate import HyMaTEFeatureExtractor

NOTES_FILE = "notes.md"  # the author's own part of the card
FAITHFULNESS_FILE = "faithfulness.json"  # what `hymate explain --card` found
EVALUATIONS = re.compile(r"evaluation(_[a-z_]{1,40})?\.json")
PLOTS = re.compile(
    r"evaluation(_[a-z_]{1,40})?_(roc|precision_recall|reliability|decision_curve|confusion|predicted_versus_true|survival)\.png"
)
LARGEST = {"json": 20_000_000, "png": 4_000_000, "md": 2_000_000, "": 100_000}  # bytes, by suffix
LARGEST_NOTES = 20_000  # bytes
MOST_NUMBERS = 200  # in the author's own text: prose and a small table, not one of records
LONGEST_WORD = 100  # characters; what is longer is code or encoded
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = {b"IHDR", b"pHYs", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # what matplotlib writes, and no text
PNG_SIDE = 4000  # pixels
HEADER_LIMIT = 100_000_000  # bytes, of the format itself


class Refused(ValueError):  # noqa: N818 - said of a file, it reads as a sentence
    """A file holds something that is not known to be free of patients' data."""


# ------------------------------------------------------------------------------------------------------------- JSON


def check_json(path: Path) -> dict[str, Any]:
    """The content of one of a checkpoint's JSON files; Refused unless it holds only what belongs there."""
    known: dict[str, schemas.Schema] = {
        CONFIG_FILE: schemas.CONFIG,
        EXTRACTOR_FILE: schemas.PREPROCESSOR,
        RUN_FILE: schemas.RUN,
        FAITHFULNESS_FILE: schemas.FAITHFULNESS,
        MONITORING_FILE: schemas.MONITORING,
    }
    try:
        content = read_finite_json(path)
    except ValueError as error:
        raise Refused(str(error).removeprefix(f"{path} ")) from error
    if problem := schemas.schema_problem(content, known.get(path.name, schemas.EVALUATION)):
        raise Refused(problem)
    if path.name == MONITORING_FILE and any(0 < count < SMALLEST_GROUP for count in monitored_counts(content)):
        raise Refused(f"counts fewer than {SMALLEST_GROUP} records")
    if path.name == MONITORING_FILE and (problem := schemas.monitoring_problem(content)):
        raise Refused(problem)
    if path.name not in {CONFIG_FILE, EXTRACTOR_FILE, RUN_FILE} and content["num_records"] < SMALLEST_GROUP:
        raise Refused(f"is about fewer than {SMALLEST_GROUP} records")
    return content


def monitored_counts(content: Mapping[str, Any]) -> list[int]:
    """Every count of records in the aggregates of the training data."""
    summaries = [summary for kind in content["counts"].values() for summary in kind.values()]
    return [count for summary in summaries for count in counts_of(summary).tolist()]


def published(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """What of a run's account or an evaluation is published: no small groups, and no folders of the machine.

    Where a group is hidden, so are the positives of its siblings, which would give its own away.
    """
    content = copy.deepcopy(content)
    if name == RUN_FILE and content.get("command"):
        content["command"] = without_folders(content["command"])
    if EVALUATIONS.fullmatch(name):
        for groups in (
            *content.get("subgroups", {}).values(),
            *(column["groups"] for column in content.get("subgroup_gaps", {}).values()),
            content.get("per_label", {}),
            content.get("by_hour", {}),
        ):
            few = [group for group, report in groups.items() if is_small(report)]
            for group, report in groups.items():
                if group in few:
                    groups[group] = {"num_records": None}
                elif few:
                    report.pop("positives", None)
        if "plots" in content:
            content["plots"] = public_plots(content)
    return content


def is_small(report: Mapping[str, Any]) -> bool:
    """Whether a group's numbers could tell about a single patient, or were taken out because they could."""
    return report["num_records"] is None or report["num_records"] < SMALLEST_GROUP


def public_plots(evaluation: Mapping[str, Any]) -> list[str]:
    """The plots of an evaluation that may be published: those of enough examples of each outcome."""
    positives = evaluation.get("positives")
    few = positives is not None and min(positives, evaluation["n"] - positives) < SMALLEST_GROUP
    return [] if few else list(evaluation.get("plots", []))


def without_folders(command: str) -> str:
    """The command with absolute paths cut to their last part: where a machine keeps its files is nobody's business."""
    return re.sub(r"(?<![\w.~-])~?/(?:[^\s/]+/)*([^\s/]+)/?", r"\1", command)


# ------------------------------------------------------------------------------------------- weights and extractor


def described_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that the model of a checkpoint's configuration has, without their numbers.

    `config.json` must have passed `check_json`. Refused if it describes no model.
    """
    try:
        config = load_config(folder)
        with torch.device("meta"):
            return getattr(modeling_hymate, config.architectures[0])(config).state_dict()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, StrictDataclassError) as error:
        raise Refused(f"does not describe a model: {_first_line(error)}") from error


def check_weights(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Refused unless a safetensors file holds exactly the tensors of that name and shape, finite, and no metadata."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            head = file.read(min(length, HEADER_LIMIT)).rstrip(b" ")
        if json.dumps(header := json.loads(head), separators=(",", ":")).encode() != head:
            raise Refused("has a header that is not as safetensors writes it")
        with safe_open(path, framework="pt") as found:
            metadata, names = header.get("__metadata__") or {}, set(found.keys())
            if metadata not in ({}, {"format": "pt"}):
                raise Refused("carries metadata beside the tensors")
            if unknown := sorted(names - set(expected)):
                raise Refused(f"holds {len(unknown)} tensors that are not weights of the model")
            if missing := sorted(set(expected) - names):
                raise Refused(f"lacks weights of the model, {missing[0]} first")
            for name, weight in expected.items():
                tensor = found.get_tensor(name)
                if tensor.shape != weight.shape or tensor.is_floating_point() != weight.is_floating_point():
                    raise Refused(f"{name} has the shape {tuple(tensor.shape)}, the model's {tuple(weight.shape)}")
                if not tensor.isfinite().all():
                    raise Refused(f"{name} holds values that are not finite numbers")
    except (SafetensorError, OSError, ValueError, struct.error, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("is damaged: it cannot be read as safetensors") from error


def fitting_extractor(folder: Path) -> HyMaTEFeatureExtractor:
    """The feature extractor, whose file has passed `check_json`; Refused unless it fits the model."""
    try:
        return load_extractor(folder)
    except ValueError as error:
        raise Refused(_first_line(error).removeprefix(f"{folder / EXTRACTOR_FILE}").lstrip(": ")) from error


def check_names(content: Mapping[str, Any], extractor: HyMaTEFeatureExtractor) -> None:
    """Refused if an evaluation, aggregates or a run's account name what the extractor does not know."""
    named = {
        "variable_shares": (set(content.get("variable_shares", {})), set(extractor.variables)),
        **{
            f"counts.{kind}": (set(content.get("counts", {}).get(kind, {})), set(extractor.variables))
            for kind in ("measured", "value")
        },
        "preprocessing.static_features": (
            set(content.get("preprocessing", {}).get("static_features", [])),
            set(extractor.static_feature_names),
        ),
    }
    for place, (names, known) in named.items():
        if not names <= known:
            raise Refused(f"{place} holds a name that {EXTRACTOR_FILE} does not know")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# -------------------------------------------------------------------------------------------------- plots and text


def check_png(path: Path) -> None:
    """Refused unless a file is a PNG picture as matplotlib writes it, without text and with nothing after its end."""
    content = path.read_bytes()
    if not content.startswith(PNG_SIGNATURE):
        raise Refused("is not a PNG picture")
    at = len(PNG_SIGNATURE)
    kind = b""
    while at < len(content) and kind != b"IEND":
        length, kind = struct.unpack(">I4s", content[at : at + 8].ljust(8, b"\0"))
        body = content[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", content[at + 8 + length : at + 12 + length].rjust(4, b"\0")[:4])
        if len(body) < length or crc != zlib.crc32(kind + body):
            raise Refused("is damaged")
        if kind not in PNG_CHUNKS:
            raise Refused("holds text or other data beside the picture")
        if kind == b"IHDR" and max(struct.unpack(">II", body[:8])) > PNG_SIDE:
            raise Refused("is larger than any plot that an evaluation draws")
        at += 12 + length
    if kind != b"IEND" or at < len(content):
        raise Refused("is cut short" if kind != b"IEND" else "holds data after the end of the picture")
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused("is damaged") from error


def check_text(path: Path) -> str:
    """A text of the author's own, which the card takes in; Refused unless it is prose and small tables of numbers."""
    if path.stat().st_size > LARGEST_NOTES:
        raise Refused(f"has more than {LARGEST_NOTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused("is not UTF-8 text") from error
    prose = re.sub(r"https://\S+", "", text)
    if re.search(r"<[a-zA-Z/!]|&#?\w+;|!\[|data:", prose):
        raise Refused("holds HTML or pictures: write Markdown")
    if any(not (letter.isprintable() or letter in "\n\t") for letter in text):
        raise Refused("holds characters that cannot be printed")
    if any(len(word) > LONGEST_WORD for word in text.split()):
        raise Refused(f"holds a word of more than {LONGEST_WORD} letters")
    if len(re.findall(r"\d+(?:[.,]\d+)*", text)) > MOST_NUMBERS:
        raise Refused(f"holds more than {MOST_NUMBERS} numbers: a card has room for prose and a small table")
    if problem := schemas.text_problem(text):
        raise Refused(problem)
    return text


def check_place(folder: Path, name: str) -> None:
    """Refused unless a file of the folder is a regular one, lies in it, and is no larger than its kind can be."""
    path = folder / name
    if followed(folder) not in followed(path).parents:
        raise Refused("is a link that leads out of the folder")
    if not path.is_file():
        raise Refused("is a link that leads nowhere" if path.is_symlink() else "is not a regular file")
    if path.suffix != ".safetensors" and path.stat().st_size > LARGEST[path.suffix.lstrip(".")]:
        raise Refused("is larger than such a file can be")
