"""The checkpoint that a page shows: its model, and what its card says."""

import contextlib
import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import Pipeline, pipeline

DOWNLOADED = ["*.json", "*.safetensors", "*.py", "*.png", "README.md"]
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
ANCHOR = re.compile(r"<a id=\"[^\"]*\"></a>\n?")
LEADING = 12  # variables of which a simulated stay is made


@dataclass(frozen=True)
class Shown:
    """What a page shows.

    Attributes:
        name: of the checkpoint on the Hub, or its folder's.
        classify: the pipeline, which holds the model and its feature extractor.
        card: the card's sections: title -> Markdown without pictures.
        plots: pictures of its evaluation, and what each shows.
        leading: names of the variables that the model attends to most, where that was evaluated.
    """

    name: str
    classify: Pipeline
    card: dict[str, str]
    plots: list[tuple[str, str]]
    leading: list[str]

    @property
    def labels(self) -> list[str]:
        """Names of the model's outputs."""
        return list(self.classify.model.config.id2label.values())

    @property
    def extractor(self) -> Any:
        """The model's feature extractor."""
        return self.classify.feature_extractor

    @property
    def is_number(self) -> bool:
        """Whether the model answers numbers, and no probabilities."""
        return self.classify.model.config.problem_type == "regression"

    @property
    def default_label(self) -> str:
        """The output to follow at first: of two classes the second, which is the one that is asked about."""
        return self.labels[1] if len(self.labels) == 2 else self.labels[0]


def load(place: str, revision: str | None = None) -> Shown:
    """Opens a checkpoint.

    Args:
        place: its folder, or its name on the Hub.
        revision: of the Hub's, a commit.

    Raises:
        ValueError: for a model that cannot be asked at many times of a stay.
    """
    folder = Path(place)
    if not folder.is_dir():
        folder = Path(snapshot_download(place, revision=revision, allow_patterns=DOWNLOADED))
    with contextlib.suppress(ModuleNotFoundError):  # where the package is installed, its code serves
        importlib.import_module("modeling_hymate")
    classify = pipeline("ehr-classification", model=str(folder), trust_remote_code=True)
    if classify.model.config.attention_axis != "channel":
        raise ValueError(f"{place} attends across events, and cannot be asked at many times of a stay")
    evaluation = _read(folder / "evaluation.json")
    shares = evaluation.get("variable_shares", {})
    plots = [folder / name for name in evaluation.get("plots", [])]
    variables = classify.feature_extractor.variables
    return Shown(
        name=Path(place).resolve().name if Path(place).is_dir() else place,
        classify=classify,
        card=_sections(folder / "README.md"),
        plots=[
            (str(path), path.stem.removeprefix("evaluation_").replace("_", " ")) for path in plots if path.is_file()
        ],
        leading=[name for name in (shares or variables) if name in variables][:LEADING],
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _sections(card: Path) -> dict[str, str]:
    if not card.is_file():
        return {}
    text = ANCHOR.sub("", PICTURE.sub("", card.read_text(encoding="utf-8")))
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return {title.strip(): body.strip() for title, _, body in (section.partition("\n") for section in sections)}
