"""transformers' common tests of models, for the encoder and both heads, on each kind of configuration.

What is left out or said otherwise here stands with its reason; what transformers itself skips (text, images, audio,
generation, mixtures of experts, GPUs) says so when it runs.
"""

import tempfile
import unittest
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.auto import modeling_auto as auto

from configuration_hymate import HyMaTEConfig
from modeling_hymate import HyMaTEForPreTraining, HyMaTEForSequenceClassification, HyMaTEModel
from tests.support.helpers import random_batch, tiny_config
from tests.support.transformers_tests import common_tests

common = common_tests("test_modeling_common")

# Where the tests look up what a class is for. Models that are registered from outside transformers are not among them,
# and the tests of losses, problem types and mismatched shapes would pass without having looked at one.
common.MODEL_MAPPING_NAMES = {**auto.MODEL_MAPPING_NAMES, "hymate": "HyMaTEModel"}
common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES = {
    **auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "hymate": "HyMaTEForSequenceClassification",
}


class ModelTester:
    """What the tests ask about a model: sizes, a configuration and a batch."""

    is_training = True
    batch_size = 3
    seq_length = 9

    def __init__(self, **overrides):
        self.overrides = overrides
        config = self.get_config()
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        # the tests take one kind of layer for granted; hidden states are those of Mamba layers, attentions of the rest
        self.num_hidden_layers = config.num_attention_layers
        self.expected_num_hidden_layers = 1 + config.num_mamba_layers

    def get_config(self) -> HyMaTEConfig:
        return tiny_config(**self.overrides)

    def prepare_config_and_inputs_for_common(self) -> tuple[HyMaTEConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        return config, random_batch(config, self.batch_size, self.seq_length)


class CommonTests(common.ModelTesterMixin):
    overrides: ClassVar[dict[str, Any]]
    all_model_classes = (HyMaTEModel, HyMaTEForPreTraining, HyMaTEForSequenceClassification)
    additional_model_inputs = ("times", "variable_ids", "static_values")  # which the test may draw more of
    # Variables cannot be resized, and the call says so: tests/modeling/test_tools.py holds it.
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ModelTester(**self.overrides)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Labels of the heads, which the test knows of text and images alone."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is HyMaTEForPreTraining:
            config = self.model_tester.get_config()
            shape = (self.model_tester.batch_size, len(config.forecast_horizons), config.num_variables)
            inputs |= {"forecast_values": torch.ones(shape), "forecast_mask": torch.ones(shape, dtype=torch.bool)}
        return inputs

    def test_attention_outputs(self):
        """Attention runs across the variables of a record, as many as the record with the most has."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        if config.attention_axis == "channel":
            kept = inputs["variable_ids"].masked_fill(~inputs["attention_mask"], -1)
            tokens = max(len(set(row.tolist()) - {-1}) for row in kept)
            self.model_tester.encoder_seq_length = tokens
        super().test_attention_outputs()

    def test_retain_grad_hidden_states_attentions(self):
        """As in transformers, but from `pooler_output`: the states of events, which it takes, precede attention."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = HyMaTEModel._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=self.has_attentions)
        kept = [*outputs.hidden_states, *(outputs.attentions or ())]
        for states in kept:
            states.retain_grad()
        outputs.pooler_output.flatten()[0].backward()
        for states in kept:
            assert states.grad is not None
            assert states.grad.any()

    def test_load_with_mismatched_shapes(self):
        """As in transformers, with the number of variables in place of the vocabulary, and our inputs."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        other = tiny_config(**self.overrides, num_variables=config.num_variables + 4)
        with tempfile.TemporaryDirectory() as folder:
            HyMaTEForSequenceClassification(config).save_pretrained(folder)
            with pytest.raises(RuntimeError):
                AutoModelForSequenceClassification.from_pretrained(folder, num_labels=42)
            with pytest.raises(RuntimeError):
                AutoModel.from_pretrained(folder, config=other)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=42, ignore_mismatched_sizes=True
            )
            assert model(**inputs).logits.shape == (self.model_tester.batch_size, 42)
            model = AutoModel.from_pretrained(folder, config=other, ignore_mismatched_sizes=True)
            assert torch.isfinite(model(**inputs).pooler_output).all()


class WithoutMamba:
    @unittest.skip("asks for parameters of Mamba layers")
    def test_keep_in_fp32_modules_exist(self):
        pass


class WithoutAttention:
    has_attentions = False


class TestChannelAxis(CommonTests, unittest.TestCase):
    overrides: ClassVar = {"attention_axis": "channel"}


class TestChannelAxisWithStatistics(CommonTests, unittest.TestCase):
    overrides: ClassVar = {"attention_axis": "channel", "num_statistic_bins": 3}


class TestChannelAxisWithoutMamba(WithoutMamba, CommonTests, unittest.TestCase):
    overrides: ClassVar = {"attention_axis": "channel", "num_mamba_layers": 0}


class TestChannelAxisWithoutAttention(WithoutAttention, CommonTests, unittest.TestCase):
    overrides: ClassVar = {"attention_axis": "channel", "num_attention_layers": 0}


class TestEventAxis(CommonTests, unittest.TestCase):
    overrides: ClassVar = {"attention_axis": "event"}


class TestEventAxisWithoutMamba(WithoutMamba, CommonTests, unittest.TestCase):
    overrides: ClassVar = {"attention_axis": "event", "num_mamba_layers": 0}


class TestEventAxisWithoutAttention(WithoutAttention, CommonTests, unittest.TestCase):
    overrides: ClassVar = {"attention_axis": "event", "num_attention_layers": 0}
