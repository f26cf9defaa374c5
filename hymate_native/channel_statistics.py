"""Running quantities brought to the scale of standardized values, as a PyTorch operator."""

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator
from hymate_native.structures import NUM_QUANTITIES, StatisticArguments, pointer


@CustomOperator("channel_statistics", "(Tensor quantities, float time_scale) -> (Tensor, Tensor)")
def statistics_operator(quantities, time_scale):
    outputs = _new_outputs(quantities, time_scale)
    size = quantities.shape[-1]
    half_lives = (size - NUM_QUANTITIES[0]) // NUM_QUANTITIES[1]
    arguments = StatisticArguments(
        *(quantities.numel() // size, half_lives, library.threads(), time_scale),
        *map(pointer, (quantities, *outputs)),
    )
    library.call("channel_statistics", arguments)
    return outputs


@statistics_operator.register_fake
def _new_outputs(quantities, time_scale):
    return torch.empty_like(quantities), torch.empty_like(quantities, dtype=torch.bool)


def channel_statistics(quantities: Tensor, time_scale: float) -> tuple[Tensor, Tensor]:
    """Running quantities on about the scale of standardized values, between -4 and 4, on the CPU.

    The signature is that of `modeling_hymate.channel_statistics`, which says what they are. There is no gradient.

    Args:
        quantities: of `running_quantities`, float32, `(..., quantities)`.
        time_scale: hours in one unit of their times.

    Returns:
        The statistics and a boolean tensor, true where there is a number or an event to describe, both of that shape.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available.
    """
    fixed, decaying = NUM_QUANTITIES
    size = quantities.shape[-1]
    if size < fixed or (size - fixed) % decaying:
        raise ValueError(f"quantities must be {fixed}, and {decaying} for each half-life, got {size}")
    check_shapes(quantities=(quantities, quantities.shape))
    check_float32(quantities=quantities)
    return torch.ops.hymate.channel_statistics(quantities.contiguous(), time_scale)
