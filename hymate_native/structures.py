"""The C structures that the kernels read, as ctypes sees them, and how tensors are described in them.

`INTERFACE` says what this Python code takes the library to be; `hymate_native.library` compares it with what the
library says of itself (csrc/interface.h) before it calls anything.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_KERNEL = 8  # widest causal convolution
CHUNK = 16  # steps between two states that a training forward keeps
NUM_QUANTITIES = 13, 2  # running quantities of a channel, and those that it has for each half-life
NUM_HISTORY = 13, 3  # numbers that say what is known of a channel, and those that do for each half-life
VERSION = 1  # raised, here and in interface.h, when the meaning of a field changes and not its place


class Rows(ctypes.Structure):
    """A (batch, length, channels) tensor whose channels are contiguous; strides count elements."""

    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("time_stride", ctypes.c_int64))


def _structure(name: str, *groups: tuple[type, str]) -> type[ctypes.Structure]:
    fields = [(field, kind) for kind, names in groups for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


ScanArguments = _structure(
    "ScanArguments",
    (ctypes.c_int64, "batch length inner state dtype softplus threads"),
    (Rows, "u delta z B C"),
    (ctypes.c_void_p, "A D bias lengths initial"),
    (Rows, "out"),
    (ctypes.c_void_p, "final states"),
    (Rows, "grad_out"),
    (ctypes.c_void_p, "grad_final"),
    (Rows, "grad_u grad_delta grad_z grad_B grad_C"),
    (ctypes.c_void_p, "grad_A grad_D grad_bias grad_initial"),
)
ConvolutionArguments = _structure(
    "ConvolutionArguments",
    (ctypes.c_int64, "batch length inner kernel dtype silu threads"),
    (Rows, "x"),
    (ctypes.c_void_p, "weight bias lengths initial"),
    (Rows, "out grad_out grad_x"),
    (ctypes.c_void_p, "grad_weight grad_bias"),
)
MixerArguments = _structure(
    "MixerArguments",
    (ctypes.c_int64, "batch length width inner state rank kernel outputs dtype threads"),
    (Rows, "rows"),
    (ctypes.c_void_p, "in_weight in_bias conv_weight conv_bias x_weight dt_weight dt_bias A D out_weight out_bias"),
    (ctypes.c_void_p, "lengths"),
    (ctypes.c_double, "eps"),
    (ctypes.c_void_p, "norm factors conv_initial scan_initial conv_final scan_final"),
    (Rows, "out projected convolved parameters"),
    (ctypes.c_void_p, "states"),
    (Rows, "grad_out grad_rows"),
    (ctypes.c_void_p, "grad_in_weight grad_in_bias grad_conv_weight grad_conv_bias grad_x_weight grad_dt_weight"),
    (ctypes.c_void_p, "grad_dt_bias grad_A grad_D grad_out_weight grad_out_bias grad_norm"),
)

_ATTENTION_WEIGHTS = (
    "attention_norm q_weight q_bias k_weight k_bias v_weight v_bias o_weight o_bias mlp_norm up_weight up_bias "
    "down_weight down_bias"
)
AttentionArguments = _structure(
    "AttentionArguments",
    (ctypes.c_int64, "groups tokens width heads inside threads seed"),
    (ctypes.c_double, "eps dropout attention_dropout"),
    (ctypes.c_void_p, f"x mask {_ATTENTION_WEIGHTS} out grad_out grad_x"),
    (ctypes.c_void_p, " ".join(f"grad_{weight}" for weight in _ATTENTION_WEIGHTS.split())),
)
FusionArguments = _structure(
    "FusionArguments",
    (ctypes.c_int64, "groups tokens width threads"),
    (ctypes.c_double, "eps"),
    (ctypes.c_void_p, "x mask norm weight bias score pooled weights grad_pooled grad_weights"),
    (ctypes.c_void_p, "grad_x grad_norm grad_weight grad_bias grad_score"),
)
RunningArguments = _structure(
    "RunningArguments",
    (ctypes.c_int64, "batch length predictions channels width queries half_lives threads"),
    (ctypes.c_void_p, "parts scores values times value_mask slots prediction_times half_life"),
    (ctypes.c_void_p, "pooled totals statistics grad_pooled grad_totals grad_parts grad_scores"),
    (ctypes.c_void_p, "channel_weights event_weights"),
)
MemoryArguments = _structure(
    "MemoryArguments",
    (ctypes.c_int64, "batch length variables channels width queries half_lives threads"),
    (ctypes.c_void_p, "half_life sums history parts scores values times value_mask variable_ids lengths"),
    (ctypes.c_void_p, "new_sums new_history now channel_ids pooled quantities"),
)
StatisticArguments = _structure(
    "StatisticArguments",
    (ctypes.c_int64, "cells half_lives threads"),
    (ctypes.c_double, "time_scale"),
    (ctypes.c_void_p, "quantities statistics present"),
)
TokenArguments = _structure(
    "TokenArguments",
    (ctypes.c_int64, "batch predictions channels width statistics bins variables threads"),
    (ctypes.c_void_p, "pooled mask statistic present channel_ids embedding knots out"),
    (ctypes.c_void_p, "grad_out grad_pooled grad_embedding grad_knots"),
)
EmbeddingArguments = _structure(
    "EmbeddingArguments",
    (ctypes.c_int64, "batch length width inside variables threads"),
    (
        ctypes.c_void_p,
        "values times variable_ids value_mask lengths variable vectors value_weight value_bias value_out",
    ),
    (ctypes.c_void_p, "time_weight time_bias time_out missing factors out grad_out grad_variable grad_vectors"),
    (
        ctypes.c_void_p,
        "grad_value_weight grad_value_bias grad_value_out grad_time_weight grad_time_bias grad_time_out",
    ),
    (ctypes.c_void_p, "grad_missing"),
)
ProjectionArguments = _structure(
    "ProjectionArguments",
    (ctypes.c_int64, "batch length width queries threads"),
    (ctypes.c_double, "eps bound"),
    (ctypes.c_void_p, "x lengths norm query_weight value_weight value_bias parts scores grad_parts grad_scores"),
    (ctypes.c_void_p, "grad_x grad_norm grad_query_weight grad_value_weight grad_value_bias"),
)
PooledArguments = _structure("PooledArguments", (ProjectionArguments, "projection"), (RunningArguments, "running"))
OcclusionArguments = _structure(
    "OcclusionArguments",
    (MixerArguments, "mixer"),
    (ProjectionArguments, "projection"),
    (RunningArguments, "running"),
    (ctypes.c_void_p, "starts absent last_times"),
)
ArrangeArguments = _structure(
    "ArrangeArguments",
    (ctypes.c_int64, "batch length variables threads"),
    (ctypes.c_void_p, "values times variable_ids mask value_mask"),
    (ctypes.c_void_p, "sorted_values sorted_times sorted_ids sorted_mask sorted_value_mask"),
    (ctypes.c_void_p, "order slots lengths channels moved channel_ids"),
)


def _interface(*structures: type[ctypes.Structure]) -> dict[str, int]:
    interface = {"version": VERSION, "kChunk": CHUNK, "kLargeKernel": MAX_KERNEL}
    interface |= dict(zip(("kQuantities", "kHalfLifeQuantities"), NUM_QUANTITIES, strict=True))
    interface |= dict(zip(("kHistory", "kHalfLifeHistory"), NUM_HISTORY, strict=True))
    for structure in structures:
        name = structure.__name__
        interface[f"sizeof({name})"] = ctypes.sizeof(structure)
        interface |= {f"{name}.{field[0]}": getattr(structure, field[0]).offset for field in structure._fields_}
    return interface


INTERFACE = _interface(
    *(Rows, ScanArguments, ConvolutionArguments, MixerArguments),
    *(AttentionArguments, FusionArguments, RunningArguments, MemoryArguments, StatisticArguments, TokenArguments),
    *(EmbeddingArguments, ProjectionArguments, PooledArguments, OcclusionArguments, ArrangeArguments),
)


def describe(tensor: Tensor | None) -> Rows:
    """Describes a (batch, length, channels) tensor; None becomes an absent one."""
    if tensor is None:
        return Rows(None, 0, 0)
    return Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def dense_rows(tensor: Any) -> Any:
    """The tensor itself if its last dimension is contiguous, else a contiguous copy; None stays None."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def dense(tensor: Any) -> Any:
    return None if tensor is None else tensor.contiguous()
