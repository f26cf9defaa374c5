"""The causal depthwise convolution with SiLU in Triton, forward and backward."""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("HyMaTE's GPU kernels need the package triton, which comes with PyTorch for CUDA") from error

from .triton_scan import place, rows, sigmoid


@triton.jit
def _convolved(
    x,
    weight,
    bias,
    time,
    stop,
    channel,
    inner,
    time_stride,
    KERNEL: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The convolution before its activation, `(STEPS, LANES)`, of the steps from `time` on."""
    steps = time + tl.arange(0, STEPS)[:, None]
    inside = channel < inner
    total = tl.zeros((STEPS, LANES), tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=inside, other=0.0)[None]
    for tap in tl.static_range(KERNEL):
        back = KERNEL - 1 - tap
        mask = inside[None] & (steps >= back) & (steps < stop)
        past = tl.load(rows(x, time - back, time_stride, channel, STEPS), mask=mask, other=0.0).to(tl.float32)
        total += past * tl.load(weight + channel * KERNEL + tap, mask=inside, other=0.0)[None]
    return total


@triton.jit(do_not_specialize=["length"])
def convolution_kernel(
    x,
    weight,
    bias,
    lengths,
    y,
    length,
    inner,
    x_batch,
    x_time,
    SILU: tl.constexpr,
    KERNEL: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
):
    row, part, channel, _at = place(inner, LANES)
    time = part * STEPS
    stop = length
    if lengths is not None:
        stop = tl.minimum(length, tl.load(lengths + row).to(tl.int32))
    steps = time + tl.arange(0, STEPS)[:, None]
    out = _convolved(x + row * x_batch, weight, bias, time, stop, channel, inner, x_time, KERNEL, STEPS, LANES)
    if SILU:
        out *= sigmoid(out)
    out = tl.where(steps < stop, out, 0.0)
    target = rows(y + row * length * inner, time, inner, channel, STEPS)
    tl.store(target, out.to(y.dtype.element_ty), mask=(channel < inner)[None] & (steps < length))


@triton.jit(do_not_specialize=["length"])
def convolution_grad_kernel(
    grad_y,
    x,
    weight,
    bias,
    lengths,
    grad_x,
    grad_weight,
    grad_bias,
    length,
    inner,
    grad_batch,
    grad_time,
    x_batch,
    x_time,
    grad_x_batch,
    grad_x_time,
    SILU: tl.constexpr,
    KERNEL: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradients of weight, `(KERNEL, inner)`, and bias are one for each program: their sums are the caller's."""
    row, part, channel, at = place(inner, LANES)
    time = part * STEPS
    stop = length
    if lengths is not None:
        stop = tl.minimum(length, tl.load(lengths + row).to(tl.int32))
    inside = (channel < inner)[None]
    steps = time + tl.arange(0, STEPS)[:, None]
    x += row * x_batch
    grad_y += row * grad_batch
    total = tl.zeros((STEPS, LANES), tl.float32)
    for ahead in tl.static_range(KERNEL):
        # a step reaches the outputs of itself and of the KERNEL - 1 steps after it
        mask = inside & (steps + ahead < stop)
        grad = tl.load(rows(grad_y, time + ahead, grad_time, channel, STEPS), mask=mask, other=0.0).to(tl.float32)
        if SILU:
            before = _convolved(x, weight, bias, time + ahead, stop, channel, inner, x_time, KERNEL, STEPS, LANES)
            opened = sigmoid(before)
            grad *= opened * (1 + before * (1 - opened))
        total += grad * tl.load(weight + channel * KERNEL + KERNEL - 1 - ahead, mask=channel < inner, other=0.0)[None]
        if ahead == 0:
            for tap in tl.static_range(KERNEL):
                back = KERNEL - 1 - tap
                past_mask = inside & (steps >= back) & (steps < stop)
                past = tl.load(rows(x, time - back, x_time, channel, STEPS), mask=past_mask, other=0.0)
                summed = tl.sum(grad * past.to(tl.float32), 0)
                tl.store(grad_weight + (at * KERNEL + tap) * inner + channel, summed, mask=channel < inner)
            if bias is not None:
                tl.store(grad_bias + at * inner + channel, tl.sum(grad, 0), mask=channel < inner)
    total = tl.where(steps < stop, total, 0.0)
    target = rows(grad_x + row * grad_x_batch, time, grad_x_time, channel, STEPS)
    tl.store(target, total.to(grad_x.dtype.element_ty), mask=inside & (steps < length))
