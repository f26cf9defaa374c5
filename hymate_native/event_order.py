"""Events in their canonical order, checked, with the channels that they belong to: one pass over a batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator
from hymate_native.structures import ArrangeArguments, pointer


@CustomOperator(
    "arrange_events",
    "(Tensor values, Tensor times, Tensor variable_ids, Tensor mask, Tensor value_mask, SymInt num_variables) -> "
    f"({', '.join(['Tensor'] * 10)})",
)
def _arrange(*inputs):
    """Returns the events, order and slots; numbers of events, of channels and whether any moved, `(3, batch)`; the
    channels' variables, `(batch, num_variables)`; and whether the events were valid."""
    *tensors, num_variables = inputs
    outputs = _new_outputs(*inputs)
    *_, counts, channel_ids, is_right = outputs
    arguments = ArrangeArguments(
        *(*tensors[0].shape, num_variables, library.threads()),
        *map(pointer, (*tensors, *outputs[:7], *counts, channel_ids)),
    )
    is_right.fill_(library.call("arrange_events", arguments, may_refuse=True))
    return outputs


@_arrange.register_fake
def _new_outputs(values, times, variable_ids, mask, value_mask, num_variables):
    arranged = [torch.empty_like(tensor) for tensor in (values, times, variable_ids, mask, value_mask)]
    batch = values.shape[0]
    sizes = values.shape, values.shape, (3, batch), (batch, num_variables)
    numbers = (variable_ids.new_empty(size) for size in sizes)
    return *arranged, *numbers, mask.new_empty(())


class ArrangedEvents(NamedTuple):
    """What `arrange_events` returns; all `(batch, length)` but as said.

    Attributes:
        values, times, variable_ids, mask, value_mask: in the canonical order, 0 and false where the mask leaves out.
        order: where each event stood, or None where all stood in this order.
        slots: channel of each event; -1 where the mask leaves out.
        lengths: number of events of each record, `(batch,)`.
        channel_ids: variables observed in each record, ascending, `(batch, channels)`; then -1.
    """

    values: Tensor
    times: Tensor
    variable_ids: Tensor
    mask: Tensor
    value_mask: Tensor
    order: Tensor | None
    slots: Tensor
    lengths: Tensor
    channel_ids: Tensor


def arrange_events(
    values: Tensor, times: Tensor, variable_ids: Tensor, mask: Tensor, value_mask: Tensor, num_variables: int
) -> ArrangedEvents | None:
    """Sorts events by time, then variable, then value (those without a number last), masked ones behind all others.

    Args:
        values, times: float32, `(batch, length)`.
        variable_ids: int64, mask and value_mask: boolean, of that shape.

    Returns:
        The events; None where one that the mask keeps has a variable that is not in `[0, num_variables)`, or a time or
        value that is not finite.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available.
    """
    named = {"values": values, "times": times, "variable_ids": variable_ids, "mask": mask, "value_mask": value_mask}
    check_shapes(**{name: (tensor, tuple(values.shape)) for name, tensor in named.items()})
    check_float32(values=values, times=times)
    tensors = (values, times, variable_ids.long(), mask.bool(), value_mask.bool())
    # what is returned depends on the data, so that nothing could be traced here
    *sorted_events, order, slots, counts, channel_ids, is_right = _arrange.run(
        *(tensor.contiguous() for tensor in tensors), num_variables
    )
    if not is_right:
        return None
    most, moved = counts[1:].amax(1).tolist() if len(values) else (0, 0)
    values, times, variable_ids, mask, value_mask = sorted_events
    channel_ids = channel_ids[:, : max(1, most)].contiguous()
    return ArrangedEvents(
        *(values, times, variable_ids, mask, value_mask),
        order=order if moved else None,
        slots=slots,
        lengths=counts[0],
        channel_ids=channel_ids,
    )
