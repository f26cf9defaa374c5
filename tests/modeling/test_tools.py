"""What PyTorch's and transformers' tools do with a model: export, torch.func, attention backends, half precision."""

import pytest
import torch
from transformers import AutoModel

from modeling_hymate import HyMaTEForSequenceClassification, HyMaTEModel
from tests.modeling.test_modeling import both_axes
from tests.support.helpers import close, make_model, random_batch


@both_axes
@torch.no_grad()
def test_exported(axis):
    model = make_model(HyMaTEForSequenceClassification, attention_axis=axis)
    inputs = random_batch(model.config, batch=3, length=7)
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    shapes = {name: {0: batch} if name == "static_values" else {0: batch, 1: length} for name in inputs}
    program = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)
    for size, num_events in ((3, 7), (5, 40), (2, 1)):
        inputs = random_batch(model.config, batch=size, length=num_events, seed=size)
        close(program.module()(**inputs).logits, model(**inputs).logits)


def test_gradients_of_torch_func():
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    inputs = random_batch(model.config, batch=2, length=7)
    values = inputs.pop("values")
    found = torch.func.grad(lambda given: model(values=given, **inputs).logits.sum())(values)
    values.requires_grad_(True)
    model(values=values, **inputs).logits.sum().backward()
    close(found, values.grad)


@both_axes
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # of transformers' call
def test_flex_attention_agrees(axis):
    model = make_model(attention_axis=axis)
    flexible = make_model(attention_axis=axis, attn_implementation="flex_attention")
    flexible.load_state_dict(model.state_dict())
    inputs = random_batch(model.config, batch=2, length=7)
    close(flexible(**inputs).pooler_output, model(**inputs).pooler_output)


def test_variables_are_not_resized():
    with pytest.raises(ValueError, match="a HyMaTE model's variables cannot be resized"):
        make_model().resize_token_embeddings(20)


def test_the_scan_stays_in_float32_in_a_model_of_half_precision():
    config = make_model().config
    for model in (
        AutoModel.from_config(config, dtype=torch.bfloat16),
        HyMaTEModel._from_config(config, dtype="bfloat16"),
    ):
        kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
        assert kept == {name for name, _ in model.named_parameters() if name.endswith(("A_log", ".D", "dt_proj.bias"))}
        assert torch.isfinite(model(**random_batch(config, batch=2, length=5)).pooler_output).all()
