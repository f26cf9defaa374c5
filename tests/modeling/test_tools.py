"""What PyTorch's and transformers' tools do with a model: export, torch.func, attention backends, half precision."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from transformers import AutoModel

from modeling_hymate import HyMaTEForPreTraining, HyMaTEForSequenceClassification, HyMaTEModel
from tests.modeling.test_modeling import both_axes
from tests.support.helpers import close, make_model, random_batch


@both_axes
@torch.no_grad()
def test_exported(axis):
    model = make_model(HyMaTEForSequenceClassification, attention_axis=axis)
    inputs = random_batch(model.config, batch=3, length=7)
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    shapes = {name: {0: batch} if name == "static_values" else {0: batch, 1: length} for name in inputs}
    torch.compiler.reset()  # what other tests compiled may fix sizes of the scan's loop
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


def offload_to_cpu(model, folder):
    cpu_offload(model, execution_device="cpu")
    return model


def offload_to_disk(model, folder):
    disk_offload(model, folder / "offload", execution_device="cpu")
    return model


def load_in_part(model, folder):
    """`device_map="auto"` with memory for a part of the weights."""
    model.save_pretrained(folder)
    size = sum(parameter.nbytes for parameter in model.parameters())
    loaded = type(model).from_pretrained(
        folder, device_map="auto", max_memory={"cpu": int(0.7 * size)}, offload_folder=folder / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    return loaded.eval()


@pytest.mark.parametrize("offload", [offload_to_cpu, offload_to_disk, load_in_part])
@pytest.mark.parametrize("options", [{}, {"num_statistic_bins": 2}, {"attention_axis": "event"}])
@pytest.mark.parametrize("head", [HyMaTEForSequenceClassification, HyMaTEForPreTraining])
@torch.no_grad()
def test_offloaded_models_give_the_same_numbers(head, options, offload, tmp_path):
    model = make_model(head, **options)
    inputs = random_batch(model.config, batch=3, length=9)
    expected = model(**inputs).logits
    offloaded = offload(copy.deepcopy(model), tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    for _ in range(2):  # what is fetched for a pass is there in the next one, too
        close(offloaded(**inputs).logits, expected)


def test_a_stream_of_an_offloaded_model_is_refused():
    model = make_model()
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(ValueError, match="a stream needs all weights in memory"):
        model.start_stream(torch.zeros(1, model.config.num_static_features))


@both_axes
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*deprecated")  # PyTorch points to torchao
def test_layers_in_int8(axis):
    """Dynamically quantized layers are called, also where a compiled kernel would otherwise read their weights."""
    model = make_model(HyMaTEForSequenceClassification, attention_axis=axis)
    inputs = random_batch(model.config, batch=3, length=9)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    layers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    called = set()
    for name in layers:
        assert not isinstance(quantized.get_submodule(name), torch.nn.Linear)
        quantized.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
    expected, found = model(**inputs).logits, quantized(**inputs).logits
    assert called == layers
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()  # rounding to 255 steps, layer upon layer


def scaled(output):
    """The same, one and a half times as large: a tensor, or each number in a tuple."""
    if isinstance(output, tuple):
        return tuple(map(scaled, output))
    return 1.5 * output if isinstance(output, torch.Tensor) and output.is_floating_point() else output


def hook_it(module):
    return module.register_forward_hook(lambda *arguments: scaled(arguments[-1])).remove


def replace_it(module):
    forward = module.forward
    module.forward = lambda *arguments, **named: scaled(forward(*arguments, **named))
    return lambda: module.__dict__.pop("forward")


@both_axes
@pytest.mark.parametrize("change", [hook_it, replace_it])
@torch.no_grad()
def test_whatever_is_done_to_any_part_counts_as_without_kernels(change, axis, monkeypatch):
    """Adapters, probes and quantizers put themselves into any module, activations and containers included."""
    model = make_model(HyMaTEForSequenceClassification, attention_axis=axis)
    inputs = random_batch(model.config, batch=2, length=5)
    logits, counted = model(**inputs).logits, 0
    for name, module in model.named_modules():
        undo = change(module)
        found = model(**inputs).logits
        with monkeypatch.context() as without:
            without.setenv("HYMATE_SCAN_BACKEND", "reference")
            torch.testing.assert_close(found, model(**inputs).logits, rtol=1e-4, atol=1e-4, msg=name)
        undo()
        counted += not torch.allclose(found, logits)
    assert counted > 30
    close(model(**inputs).logits, logits)
