"""Weights that several processes share out among themselves (FSDP2), and what of Accelerate's launcher can be used.

`accelerate launch` says by its environment whether a model is sharded. Then every parameter, its gradient and its
averages in the optimizer are `DTensor`s, of which a process holds a part. States and checkpoints hold whole tensors
all the same, so that both are those of a run that is not sharded.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

# what a launcher may ask for that the loop does not do: a variable of its environment, and what to do instead
REFUSED_LAUNCHES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed trains HyMaTE with transformers' Trainer only: shard with FSDP2 here",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM does not know this model: shard with FSDP2",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "each process takes records of its own: leave parallelism_config out",
}
# the same of FSDP, by the name in a configuration file
REFUSED_SHARDING: dict[str, tuple[Callable[[Accelerator, Any], bool], str]] = {
    "fsdp_version": (lambda _, plugin: plugin.fsdp_version != 2, "must be 2"),
    "fsdp_cpu_ram_efficient_loading": (
        lambda _, plugin: plugin.cpu_ram_efficient_loading,
        "must be false: every process reads the checkpoint",
    ),
    "fsdp_offload_params": (lambda _, plugin: isinstance(plugin.cpu_offload, CPUOffloadPolicy), "must be false"),
    "fsdp_activation_checkpointing": (
        lambda _, plugin: plugin.activation_checkpointing,
        "must be false, since it draws dropout anew in the backward pass: use --gradient-checkpointing",
    ),
    "fsdp_ignored_modules": (
        lambda _, plugin: plugin.ignored_modules is not None,
        "must be left out: nobody would average their gradients",
    ),
    "dynamo_backend": (
        lambda accelerator, _: accelerator.state.dynamo_plugin.backend != DynamoBackend.NO,
        "cannot be combined with FSDP",
    ),
    "mixed_precision": (lambda accelerator, _: accelerator.mixed_precision == "fp16", "must be bf16 or no with FSDP"),
}


def check_launcher(mixed_precision: str) -> None:
    """Raises ValueError if the launcher asks for what the loop does not do, or for another precision than the run."""
    environment = os.environ
    for name, reason in REFUSED_LAUNCHES.items():
        if environment.get(name, "false").lower() == "true":
            raise ValueError(f"{name}=true: {reason}")
    launched = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", mixed_precision):
        raise ValueError(
            f"the launcher asks for mixed_precision {launched!r} and the run for {mixed_precision!r}: give "
            f"--mixed-precision {launched}, or leave it out of the launcher's configuration"
        )
    if environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise ValueError("ACCELERATE_GRADIENT_ACCUMULATION_STEPS: give --gradient-accumulation-steps instead")


def configure_sharding(accelerator: Accelerator) -> None:
    """Checks what the launcher said of FSDP, if anything, and keeps in float32 what each layer computes with: what may
    be less is for autocast to say, and decay rates and step sizes may not.

    Raises:
        ValueError: for what the loop does not do.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            "the launcher asks for FSDP, which Accelerate has for several processes on GPUs alone; here it found "
            f"{accelerator.num_processes} on {accelerator.device.type}: train without FSDP"
        )
    plugin = accelerator.state.fsdp_plugin
    for name, (is_set, reason) in REFUSED_SHARDING.items():
        if is_set(accelerator, plugin):
            raise ValueError(f"FSDP: {name} {reason}")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def name_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Says which layers are gathered one at a time, where the launcher's configuration did not: those that the model
    has, of those that keep only their inputs with gradient checkpointing."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        layers = {
            type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
        }
        plugin.transformer_cls_names_to_wrap = sorted(layers)


def empty_copy(model: nn.Module) -> nn.Module:
    """A copy of a model that is not sharded yet, without memory for its weights."""
    return copy.deepcopy(model).to("meta")


def assemble(empty: nn.Module, sharded: nn.Module, device: torch.device) -> nn.Module:
    """A model with the whole weights of a sharded one, in every process. All processes call this at once.

    Args:
        empty: an `empty_copy` of the sharded model.
        sharded: its weights.
        device: where to put them.
    """
    model = copy.deepcopy(empty)
    model.load_state_dict(gather(sharded.state_dict(), device), assign=True)
    return model


def gather(tensors: Mapping[str, torch.Tensor], device: torch.device, keep: bool = True) -> dict[str, torch.Tensor]:
    """Tensors with all of their shards, copied to `device` in processes that `keep` them. All processes call this at
    once, also where nothing is sharded."""
    whole = {}
    for name, tensor in tensors.items():
        found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = found.detach().to(device).contiguous().clone()
    return whole


def share_out(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of a whole tensor, the same in all processes, the shard that each holds of `like`; the tensor itself where that
    is not sharded. All processes call this at once."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.detach().to(like.device), like.device_mesh, like.placements)


def share_out_copy(model: nn.Module, sharded: nn.Module) -> None:
    """Shares out the parameters of a copy that was made of a model before it was sharded, and never runs forward."""
    for name, parameter in sharded.named_parameters():
        owner, _, own_name = name.rpartition(".")
        shard = share_out(model.get_parameter(name), parameter)
        model.get_submodule(owner).register_parameter(own_name, nn.Parameter(shard, requires_grad=False))


def own_shards(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of each tensor, in the same memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
