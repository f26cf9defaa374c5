"""By path: until every caller hands on a PreparedFolder and imports from `examples` and `collators`, then deleted."""

from collections.abc import Sequence
from pathlib import Path

from hymate_training.data import collators, examples
from hymate_training.data.collators import ForecastCollator, TaskCollator
from hymate_training.data.examples import ExampleDataset, Examples, TaskDataset
from hymate_training.data.prepared_folder import PreparedFolder
from modeling_hymate import Events, HyMaTEFeatureExtractor

__all__ = ["ExampleDataset", "Examples", "ForecastCollator", "TaskCollator", "TaskDataset"]


def read_events(folder: str | Path, split: str, variables: Sequence[str]) -> Events:
    return PreparedFolder(folder).events(split, variables)


def load_task(folder: str | Path, task: str, split: str, variables: Sequence[str]) -> TaskDataset:
    return examples.load_task(PreparedFolder(folder), task, split, variables)


def load_forecast(folder: str | Path, split: str, variables: Sequence[str], min_hours: float) -> ExampleDataset:
    return examples.load_forecast(PreparedFolder(folder), split, variables, min_hours)


def check_static_columns(folder: str | Path, extractor: HyMaTEFeatureExtractor) -> None:
    examples.check_static_columns(PreparedFolder(folder), extractor)


def fit_feature_extractor(folder: str | Path) -> HyMaTEFeatureExtractor:
    return collators.fit_feature_extractor(PreparedFolder(folder))
