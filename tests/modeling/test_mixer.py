"""The Mamba mixer: parity with transformers' `MambaMixer`, and adapters that wrap its layers."""

from itertools import cycle

import pytest
import torch
import transformers
from accelerate import cpu_offload
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import prune
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from modeling_hymate import HyMaTEModel
from modeling_hymate.mamba import HyMaTEMixer
from tests.support.helpers import perturbed, random_batch, tiny_config

TOLERANCE = 1e-5  # float32, relative to the largest entry


class ConvolutionThenGate(nn.Module):
    """An activation for the convolution and SiLU for the gate, which ask for them in turn."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.turns = cycle((activation, nn.functional.silu))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return next(self.turns)(states)


def mixers(**overrides) -> tuple[HyMaTEMixer, MambaMixer]:
    """Ours and theirs with the same weights, none of them at its initial value."""
    config = tiny_config(**overrides)
    ours = HyMaTEMixer(config)
    ours.init_weights()
    nn.init.normal_(ours.A_log)
    nn.init.normal_(ours.D)
    perturbed(ours)
    shared = ("hidden_size", "state_size", "conv_kernel", "expand", "time_step_rank", "use_bias", "use_conv_bias")
    theirs = MambaMixer(
        MambaConfig(
            **{name: getattr(config, name) for name in shared}, hidden_act=config.hidden_act, num_hidden_layers=1
        ),
        layer_idx=0,
    )
    if Version(transformers.__version__) < Version("5.15"):  # there `hidden_act` is the gate's, too
        theirs.act = ConvolutionThenGate(theirs.act)
    theirs.load_state_dict(ours.state_dict())  # strict: names and shapes are equal
    return ours, theirs


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("use_conv_bias", [False, True])
@pytest.mark.parametrize("hidden_act", ["silu", "gelu"])
def test_outputs_and_gradients_equal_transformers_mamba(use_bias, use_conv_bias, hidden_act):
    ours, theirs = mixers(use_bias=use_bias, use_conv_bias=use_conv_bias, hidden_act=hidden_act)
    hidden_states = torch.randn(2, 37, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 37, 16, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, mixer, arguments in (("ours", ours, (torch.tensor([37, 37]),)), ("theirs", theirs, ())):
        inputs = hidden_states.clone().requires_grad_()
        output = mixer.train()(inputs, *arguments)
        (output * weights).sum().backward()
        gradients = {key: parameter.grad for key, parameter in mixer.named_parameters()}
        found[name] = {"output": output, "input": inputs.grad} | gradients
    for name, expected in found["theirs"].items():
        error = (found["ours"][name] - expected).abs().max()
        assert error <= TOLERANCE * expected.abs().max().clamp(min=1), name


def test_padding_equals_shorter_inputs():
    ours, _ = mixers()
    hidden_states = torch.randn(3, 8, 16)
    lengths = torch.tensor([8, 5, 1])
    output = ours(hidden_states, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = ours(hidden_states[row : row + 1, :length], lengths.new_tensor([length]))
        torch.testing.assert_close(output[row : row + 1, :length], alone, rtol=1e-5, atol=1e-6)


def test_state_spaces_start_as_in_the_mamba_paper():
    config = tiny_config(hidden_size=64, num_mamba_layers=1, time_step_min=0.01, time_step_max=0.5)
    mixer = HyMaTEModel(config).mamba_layers[0].mixer
    torch.testing.assert_close(-mixer.A_log.exp(), -torch.arange(1.0, 5.0).expand(128, 4))
    assert (mixer.D == 1).all()
    steps = nn.functional.softplus(mixer.dt_proj.bias)
    assert 0.0099 < steps.min() < 0.03
    assert 0.2 < steps.max() < 0.501


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own use of transformers
@pytest.mark.parametrize("target", ["x_proj", "dt_proj", "in_proj", "out_proj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_around_projections_are_called(target, dtype, tmp_path):
    config = tiny_config()
    torch.manual_seed(0)
    perturbed(HyMaTEModel(config)).save_pretrained(tmp_path)
    model = HyMaTEModel.from_pretrained(tmp_path, dtype=dtype)
    inputs = random_batch(config)
    before = model(**inputs).last_hidden_state
    adapted = get_peft_model(model, LoraConfig(target_modules=[target], r=2, init_lora_weights=True))
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 0.1}
    torch.testing.assert_close(adapted(**inputs).last_hidden_state, before, **tolerance)  # starts at no change
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    after = adapted(**inputs).last_hidden_state
    assert (after - before).abs().max() > 1e-3
    after.sum().backward()
    adapters = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(adapters) == 2 * config.num_mamba_layers
    for name, parameter in adapters.items():
        assert parameter.grad.abs().max() > 0, name
    if dtype == torch.float32:
        torch.testing.assert_close(adapted.merge_and_unload()(**inputs).last_hidden_state, after, rtol=1e-4, atol=1e-5)


def test_a_kernel_too_wide_for_the_native_layer_still_runs():
    ours, theirs = mixers(conv_kernel=9)
    hidden_states = torch.randn(2, 12, ours.config.hidden_size)
    torch.testing.assert_close(
        ours(hidden_states, torch.tensor([12, 12])), theirs(hidden_states), rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("name", ["in_proj", "conv1d", "act", "x_proj", "dt_proj", "out_proj"])
def test_a_hook_on_any_layer_is_called(name):
    ours, _ = mixers()
    inputs = torch.randn(2, 12, ours.config.hidden_size), torch.tensor([12, 7])
    expected = ours(*inputs)
    calls = []
    getattr(ours, name).register_forward_hook(lambda *arguments: calls.append(arguments))
    torch.testing.assert_close(ours(*inputs), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["in_proj", "conv1d", "act", "x_proj", "dt_proj", "out_proj"])
def test_a_replaced_forward_of_any_layer_is_called(name):
    ours, _ = mixers()
    inputs = torch.randn(2, 12, ours.config.hidden_size), torch.tensor([12, 7])
    expected = ours(*inputs)
    layer = getattr(ours, name)
    original, calls = layer.forward, []
    layer.forward = lambda states: calls.append(states) or original(states)
    torch.testing.assert_close(ours(*inputs), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert len(calls) == 1


def test_layers_that_accelerate_offloads_run():
    ours, _ = mixers()
    inputs = torch.randn(2, 12, ours.config.hidden_size), torch.tensor([12, 7])
    with torch.no_grad():
        expected = ours(*inputs)
        for layer in (ours.in_proj, ours.conv1d, ours.x_proj, ours.dt_proj, ours.out_proj):
            cpu_offload(layer, execution_device="cpu")
        assert ours.in_proj.weight.is_meta
        torch.testing.assert_close(ours(*inputs), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_pruned_convolution_trains_on():
    ours, _ = mixers()
    prune.l1_unstructured(ours.conv1d, "weight", amount=0.5)
    for _ in range(2):
        ours(torch.randn(2, 12, ours.config.hidden_size), torch.tensor([12, 7])).sum().backward()
    assert ours.conv1d.weight_orig.grad.abs().sum() > 0
