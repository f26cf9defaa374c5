"""A model's layers as the compiled step of a stream takes them: found once, and looked at again at every event."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .native import HOOKS, REPLACEMENTS, is_plain, runs_natively
from .scan import hymate_native


class _Layers:
    """The layers of a model, and all that they were found in."""

    def __init__(self, model: Any, like: torch.Tensor):
        self.found = _find_layers(model, like)
        modules = list(model.modules())
        self._children = [
            (module.__dict__["_modules"], name, child) for module in modules for name, child in module.named_children()
        ]
        plain = [module for module in modules if is_plain(module)]
        # hooks and attributes as PyTorch keeps them, so that a look at all of them takes no longer than a kernel
        self._hooks = [module.__dict__[name] for module in plain for name in HOOKS]
        self._attributes = [module.__dict__.keys() for module in plain]
        self._parameters = [
            (module.__dict__["_parameters"], name, parameter, parameter.data_ptr())
            for module in modules
            for name, parameter in module.named_parameters(recurse=False)
        ]

    def are_current(self) -> bool:
        """Whether the model still consists of the same plain modules with the same memory. What is written into that
        memory in place counts at once."""
        return (
            not any(self._hooks)
            and all(names.isdisjoint(REPLACEMENTS) for names in self._attributes)
            and all(children.get(name) is child for children, name, child in self._children)
            and all(
                parameters.get(name) is parameter and parameter.data_ptr() == address
                for parameters, name, parameter, address in self._parameters
            )
        )


_found: WeakKeyDictionary[nn.Module, _Layers] = WeakKeyDictionary()


def native_layers(model: Any) -> Any:
    """The layers of a `HyMaTEModel` as `hymate_native.StreamLayers`; None where one does not run natively."""
    like = model.embedding.missing_value.detach()
    if not runs_natively(like):
        return None
    layers = _found.get(model)
    if layers is None or layers.found is None or not layers.are_current():
        layers = _found[model] = _Layers(model, like)
    return layers.found


def _find_layers(model: Any, like: torch.Tensor) -> Any:
    tokens, statistics = model.channel_tokens, model.channel_tokens.statistics
    is_native = (
        statistics is not None
        and runs_natively(like, tokens, statistics)
        and model.embedding.is_native(like, like)
        and tokens.projects_natively(like)
        and model.fusion.runs_natively(like)
        and all(layer.is_fusable(like) for layer in model.mamba_layers)
        and all(layer.runs_natively(like) for layer in model.attention_layers)
        and all(parameter.is_contiguous() for parameter in model.parameters())
    )
    if not is_native:
        return None
    zero, num_static = like.new_zeros(1, 1), model.config.num_static_features
    # a forward pass checks the weights' shapes, and a step does not
    model(zero, zero, zero.long(), static_values=like.new_zeros(1, num_static) if num_static else None)
    return hymate_native.StreamLayers(
        embedding=_flat(model.embedding.weights().values()),
        mixers=[(_flat(layer.weights()), layer.norm.eps) for layer in model.mamba_layers],
        pooling=_flat(tokens.projection_weights().values()),
        knots=(statistics.knots.detach(), statistics.num_bins),
        attention=[
            (_flat(layer.weights().values()), layer.attention.config.num_attention_heads, layer.attention_norm.eps)
            for layer in model.attention_layers
        ],
        fusion=_flat(model.fusion.weights()),
        half_lives=model.half_lives,
        time_scale=tokens.time_scale,
    )


def _flat(weights: Iterable[Any]) -> list[Any]:
    """The weights side by side, those in tuples, too."""
    flat = (item for weight in weights for item in (weight if isinstance(weight, tuple) else (weight,)))
    return [item.detach() if isinstance(item, torch.Tensor) else item for item in flat]
