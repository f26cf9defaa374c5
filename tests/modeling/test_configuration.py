"""The configuration: derived sizes, saving, and errors that name the fields."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

import modeling_hymate  # noqa: F401 - registers the Auto classes
from configuration_hymate import HyMaTEConfig


def test_derived_sizes():
    config = HyMaTEConfig(hidden_size=40, num_attention_heads=5)
    assert config.intermediate_size == 80
    assert config.time_step_rank == 3
    assert config.mamba_inner_size == 80
    assert config.num_hidden_layers == config.num_mamba_layers + config.num_attention_layers == 3
    assert config.pooler_size == 40
    assert HyMaTEConfig(num_static_features=2).pooler_size == 128
    assert (
        HyMaTEConfig(intermediate_size=7, time_step_rank=9).to_dict().items()
        >= {
            "intermediate_size": 7,
            "time_step_rank": 9,
        }.items()
    )


def test_saving_and_loading(tmp_path):
    config = HyMaTEConfig(
        num_variables=9,
        attention_axis="event",
        hidden_dropout=0,
        classifier_dropout=0.5,
        pos_weight=[1, 2.5, 0.25],
        num_labels=3,
        problem_type="multi_label_classification",
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, HyMaTEConfig)
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_labels_go_by_name():
    config = HyMaTEConfig(id2label={0: "survived", 1: "died"}, label2id={"survived": 0, "died": 1})
    assert config.num_labels == 2
    assert HyMaTEConfig.from_dict(config.to_dict()).id2label == {0: "survived", 1: "died"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_variables": 0}, "num_variables must be at least 1, got 0"),
        ({"state_size": -1}, "state_size must be at least 1, got -1"),
        ({"time_step_rank": 0}, "time_step_rank must be at least 1, got 0"),
        ({"num_mamba_layers": -1}, "num_mamba_layers must not be negative, got -1"),
        ({"num_attention_heads": 5}, r"hidden_size \(64\) must be a multiple of num_attention_heads \(5\)"),
        ({"num_pooling_queries": 3}, r"hidden_size \(64\) must be a multiple of num_pooling_queries \(3\)"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout must lie in \[0, 1\), got 1.0"),
        ({"classifier_dropout": -0.1}, r"classifier_dropout must lie in \[0, 1\), got -0.1"),
        ({"time_step_min": 0.2}, r"time_step_min \(0.2\) must be positive and at most time_step_max \(0.1\)"),
        ({"time_step_min": 0}, r"time_step_min \(0\) must be positive"),
        ({"label_deviation": 0}, "label_deviation must be positive, got 0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be positive, got -1e-05"),
        ({"label_mean": float("inf")}, "label_mean must be a finite number, got inf"),
        ({"initializer_range": -0.1}, "initializer_range must not be negative, got -0.1"),
        ({"num_labels": 0}, "num_labels must be at least 1, got 0"),
        ({"id2label": {0: "a", 1: "a"}}, r"id2label must give each label a name of its own, got \['a', 'a'\]"),
        ({"id2label": {0: "a", 1: " "}}, "id2label must give each label a name of its own"),
        ({"id2label": {1: "a", 2: "b"}}, "id2label must number its labels from 0 on, got 1, 2"),
        ({"pos_weight": float("nan")}, "pos_weight must be positive, got nan"),
        ({"pos_weight": 0.0}, "pos_weight must be positive, got 0.0"),
        ({"pos_weight": [1.0, -2.0]}, "pos_weight must be positive"),
        ({"pos_weight": [1.0, 2.0, 3.0]}, "pos_weight has 3 entries, but num_labels is 2"),
        ({"pos_weight": 2.0, "problem_type": "regression"}, "problem_type is 'regression'"),
        ({"pos_weight": 2.0, "num_labels": 1}, "problem_type is None with num_labels=1, a regression"),
        ({"pos_weight": 2.0, "num_labels": 3}, "a single pos_weight needs two classes, but num_labels is 3"),
        (
            {"pos_weight": 2.0, "num_labels": 3, "problem_type": "single_label_classification"},
            "a single pos_weight needs two classes",
        ),
        ({"attention_axis": "time"}, "attention_axis"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_variables": 3.5}, "num_variables"),
    ],
)
def test_impossible_values_are_named(fields, message):
    with pytest.raises(StrictDataclassError, match=message):  # how transformers reports a ValueError of `validate_*`
        HyMaTEConfig(**fields)
