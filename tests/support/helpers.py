"""Small models and random records that several tests share."""

import torch

from configuration_hymate import HyMaTEConfig
from modeling_hymate import HyMaTEModel


def tiny_config(**overrides) -> HyMaTEConfig:
    """A configuration that runs in milliseconds, without dropout."""
    settings = {
        "num_variables": 6,
        "num_static_features": 3,
        "hidden_size": 16,
        "num_mamba_layers": 2,
        "state_size": 4,
        "num_attention_layers": 1,
        "num_attention_heads": 2,
        "num_pooling_queries": 2,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return HyMaTEConfig(**settings | overrides)


def random_batch(config: HyMaTEConfig, batch: int = 3, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of `HyMaTEModel.forward`: unsorted events with ties in time, holes in the mask and missing numbers.

    Every record keeps at least its first event.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length)
    mask = torch.rand(shape, generator=generator) < 0.8
    mask[:, 0] = True
    inputs = {
        "values": torch.randn(shape, generator=generator),
        "times": torch.randint(-2, 6, shape, generator=generator) / 4,
        "variable_ids": torch.randint(config.num_variables, shape, generator=generator),
        "attention_mask": mask,
        "value_mask": torch.rand(shape, generator=generator) < 0.8,
    }
    if config.num_static_features:
        inputs["static_values"] = torch.randn(batch, config.num_static_features, generator=generator)
    return inputs


def perturbed(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Moves every parameter off its initial value, so that none is zero, one or shared by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def event_inputs(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arguments that hold something an event, (batch, length)."""
    return {name: tensor for name, tensor in inputs.items() if name != "static_values"}


def select_events(inputs: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    """The same records with the events at `index` only, in its order."""
    return inputs | {name: tensor[:, index] for name, tensor in event_inputs(inputs).items()}


def make_model(head=HyMaTEModel, seed: int = 0, **overrides):
    """A model with parameters far from their initial values, in evaluation mode."""
    torch.manual_seed(seed)
    return perturbed(head(tiny_config(**overrides)), seed).eval()


def close(found, expected, tolerance: float = 1e-5):
    """Asserts equality within one tolerance, absolute and relative."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def same(found, expected):
    """Asserts that batches are equal to the last bit, masks and numbers beside the tensors included."""
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0)


def gradients_of(model, loss) -> dict[str, torch.Tensor]:
    """Gradient of each parameter, by name."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
