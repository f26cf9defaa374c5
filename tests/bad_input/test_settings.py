"""Hyper-parameters, configurations and limits: a number that none of its kind can be is refused by its name.

The cases are generated from the fields, so that a new one is tried without being listed.
"""

import dataclasses
import math
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from hymate_training.fitting.finetuning import FinetuneOptions
from hymate_training.fitting.options import LoopOptions
from hymate_training.fitting.pretraining import PretrainOptions
from hymate_training.serving.guard import ServeLimits
from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor

MAY_BE_ZERO = {
    *("weight_decay", "warmup_steps", "ema_decay", "variable_dropout", "event_dropout", "seed", "auxiliary_weight"),
    "dataloader_num_workers",
    *("min_observed_hours", "num_static_features", "num_mamba_layers", "num_attention_layers", "num_statistic_bins"),
    *("hidden_dropout", "attention_dropout", "classifier_dropout", "measured_weight", "initializer_range"),
    "label_mean",
}
MAY_BE_NEGATIVE = {"label_mean"}


def hints(kind: type) -> dict[str, str]:
    """Name -> type, as it is written, of the fields that a class has beside those of transformers."""
    own = {
        name
        for base in kind.__mro__
        if base.__module__.partition(".")[0] != "transformers"
        for name in getattr(base, "__annotations__", {})
    }
    return {field.name: str(field.type) for field in dataclasses.fields(kind) if field.name in own}


def numeric_fields(kind: type) -> dict[str, bool]:
    """Name -> whether it is a float, of the fields that hold a number or nothing."""
    return {
        name: "float" in hint
        for name, hint in hints(kind).items()
        if "float" in hint or hint == "<class 'int'>" or "int |" in hint
    }


def bad_numbers(kind: type) -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = []
    for name, is_float in numeric_fields(kind).items():
        wrong: list[Any] = [math.nan, math.inf] if is_float else []
        if issubclass(kind, LoopOptions):
            wrong += ["8", True, [1]] if is_float else [math.nan, 1.5, "8", True]
        wrong += [] if name in MAY_BE_NEGATIVE else [-1]
        wrong += [] if name in MAY_BE_ZERO else [0]
        listed = hints(kind)[name].startswith("list")
        cases += [(name, [value] if listed else value) for value in wrong]
    return cases


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{value}")
        for kind in (PretrainOptions, FinetuneOptions, ServeLimits, HyMaTEConfig)
        for name, value in bad_numbers(kind)
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_name(kind, name, value):
    name_in_message = "forecast_ho(urs|rizons)" if name == "forecast_hours" else name  # which stands for it
    with pytest.raises((ValueError, StrictDataclassError), match=name_in_message):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        (
            {"hidden_size": 10, "num_attention_heads": 4},
            r"hidden_size \(10\) must be a multiple of num_attention_heads",
        ),
        ({"attention_axis": "time"}, "attention_axis"),
        ({"attention_axis": "event", "num_statistic_bins": 2}, "num_statistic_bins"),
        ({"half_lives": []}, "half_lives must be a list of positive hours"),
        ({"hidden_dropout": 1.0}, "hidden_dropout"),
        ({"num_labels": 0}, "num_labels must be at least 1"),
        ({"num_labels": 3, "pos_weight": 2.0}, "a single pos_weight needs two classes"),
        ({"num_labels": 3, "pos_weight": [1.0, 2.0]}, "pos_weight has 2 entries, but num_labels is 3"),
        ({"num_labels": 1, "pos_weight": 2.0}, "pos_weight applies to classification"),
        ({"time_step_min": 1.0, "time_step_max": 0.1}, "time_step_min"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        HyMaTEConfig(**fields)


EXTRACTOR = {
    "variables": ["HR", "GCS"],
    "value_ranges": [[30.0, 200.0], [3.0, 15.0]],
    "value_medians": [None, None],
    "value_means": [80.0, 12.0],
    "value_deviations": [10.0, 3.0],
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(({name: EXTRACTOR[name][:1]}, name) for name in EXTRACTOR if name != "variables"),
        ({"variables": ["HR", "HR"]}, "variables must not repeat a name"),
        ({"unknown_variables": "drop"}, "unknown_variables must be 'error' or 'ignore'"),
        *(({"time_scale": value}, "time_scale must be positive") for value in (0, -1.0, math.nan, math.inf)),
        *(({"max_events": value}, "max_events must be at least 1") for value in (0, -1)),
        *(({"trained_hours": hours}, "trained_hours") for hours in ([2.0], [3.0, 1.0], [-1.0, 2.0], [0.0, math.inf])),
        *(({"value_means": [value, 12.0]}, "value_means") for value in (math.nan, math.inf)),
        *(({"value_deviations": [value, 3.0]}, "value_deviations") for value in (math.nan, math.inf, 0.0, -1.0)),
        *(({"value_ranges": [[30.0, value], [3.0, 15.0]]}, "value_ranges") for value in (math.nan, math.inf, 20.0)),
        *(({"value_medians": [value, None]}, "value_medians") for value in (math.nan, math.inf)),
    ],
)
def test_a_feature_extractor_that_cannot_be_is_refused(fields, message):
    HyMaTEFeatureExtractor(**EXTRACTOR)
    with pytest.raises(ValueError, match=message):
        HyMaTEFeatureExtractor(**EXTRACTOR | fields)
