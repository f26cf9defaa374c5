"""The selective scan in Triton: kernels that a GPU's machine compiles when they are first used.

A program takes one batch row, a block of `LANES` channels and one segment of time, and walks through its segment a
tile of `STEPS` time steps at a time. A tile's states are a block of `(STEPS, STATES, LANES)` numbers: channels lie
across the lanes of a warp, so that rows are read without gaps; states are divided among the lanes and warps that are
left; steps stay in the registers of one thread, so that the recurrence is a chain of multiply-adds without exchange.
Nothing of shape (batch, length, inner, state) is held: the forward pass keeps one state in `CHUNK` steps, from which
the backward pass computes those in between once more.

One segment serves a whole row unless rows and channels are too few to fill the device. Then time is cut: every segment
runs from a state of zero, the states at the cuts follow from one another, and the segments run again from these. All
sums are taken in a fixed order, without atomics: equal inputs give equal results, gradients included.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("HyMaTE's GPU kernels need the package triton, which comes with PyTorch for CUDA") from error

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


# ------------------------------------------------------------------------------------------------- device functions


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp2(x * -LOG2_E))


@triton.jit
def softplus(x):
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    # log1p(e) / e on [0, 1]: a Chebyshev fit of relative error 3e-8, a fraction of the cost of log1p
    p = e * 0.005253457929939032 - 0.02958850748836994
    p = p * e + 0.07836166769266129
    p = p * e - 0.13674770295619965
    p = p * e + 0.19111430644989014
    p = p * e - 0.24844369292259216
    p = p * e + 0.33319270610809326
    p = p * e - 0.49999502301216125
    return tl.maximum(x, 0.0) + (p * e + 1) * e


@triton.jit
def _at(tile, step, STEPS: tl.constexpr):
    """One step of a `(STEPS, STATES, LANES)` tile. Where `step` is a constant this costs nothing: compilers drop
    integer zeros from a sum, but must keep `+ 0.0`."""
    chosen = (tl.arange(0, STEPS) == step)[:, None, None]
    return tl.sum(tl.where(chosen, tile.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def _advance(hidden, decay, entered, STEPS: tl.constexpr):
    """The states after each step of a tile, and the last of them."""
    index = tl.arange(0, STEPS)[:, None, None]
    after = tl.zeros_like(decay)
    for step in tl.static_range(STEPS):
        hidden = _at(decay, step, STEPS) * hidden + _at(entered, step, STEPS)
        after = tl.where(index == step, hidden[None], after)
    return after, hidden


@triton.jit
def _retreat(carry, decay, direct, STEPS: tl.constexpr):
    """The gradients of a tile's states, where `direct` arrives through a step's own output and `carry` from the steps
    after the tile; and what the tile passes on to the steps before it."""
    index = tl.arange(0, STEPS)[:, None, None]
    grads = tl.zeros_like(decay)
    for back in tl.static_range(STEPS):
        grad = _at(direct, STEPS - 1 - back, STEPS) + carry
        grads = tl.where(index == STEPS - 1 - back, grad[None], grads)
        carry = _at(decay, STEPS - 1 - back, STEPS) * grad
    return grads, carry


@triton.jit
def _over_lanes(tile, STEPS: tl.constexpr, STATES: tl.constexpr, LANES: tl.constexpr):
    """Sum of a tile over its channels, `(STEPS * STATES,)`. Transposed through shared memory first, each thread sums
    alone; left as it is, a sum across lanes takes five exchanges per number."""
    return tl.sum(tl.trans(tl.reshape(tile, (STEPS * STATES, LANES))), 0)


@triton.jit
def place(inner, LANES: tl.constexpr):
    """Row, segment, channels of this program, and its place among those of (row, segment). Segments lie along two axes
    of the grid, of which a GPU bounds the size of each."""
    blocks = tl.cdiv(inner, LANES)
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    channel = (tl.program_id(0) % blocks) * LANES + tl.arange(0, LANES)
    part = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    return row, part, channel, row * (tl.num_programs(1) * tl.num_programs(2)) + part


@triton.jit
def _span(lengths, row, part, segment, length):
    """First step of the segment, the one after its last, and the one after its last real one."""
    start = part * segment
    end = tl.minimum(start + segment, length)
    stop = end
    if lengths is not None:
        stop = tl.maximum(start, tl.minimum(end, tl.load(lengths + row).to(tl.int32)))
    return start, end, stop


@triton.jit
def rows(pointer, time, time_stride, channel, STEPS: tl.constexpr):
    """Pointers to `(STEPS, LANES)` of one row, from the step `time` on."""
    start = pointer + tl.cast(time, tl.int64) * time_stride
    return start + tl.arange(0, STEPS)[:, None] * time_stride + channel[None]


@triton.jit
def _read(pointer, time, time_stride, channel, mask, STEPS: tl.constexpr):
    return tl.load(rows(pointer, time, time_stride, channel, STEPS), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(pointer, time, time_stride, channel, value, mask, STEPS: tl.constexpr):
    tl.store(rows(pointer, time, time_stride, channel, STEPS), value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _clear(pointer, start, end, inner, time_stride, channel, STEPS: tl.constexpr, LANES: tl.constexpr):
    """Zeros in the rows that no tile reaches."""
    for time in range(start, end, STEPS):
        mask = (channel < inner)[None] & (time + tl.arange(0, STEPS)[:, None] < end)
        _write(pointer, time, time_stride, channel, tl.zeros((STEPS, LANES), tl.float32), mask, STEPS)


@triton.jit
def _weights(pointer, time, time_stride, stop, STATE: tl.constexpr, STATES: tl.constexpr, STEPS: tl.constexpr):
    """B or C of a tile, `(STEPS, STATES, 1)`; zero from `stop` on."""
    steps = tl.arange(0, STEPS)[:, None]
    states = tl.arange(0, STATES)[None]
    offsets = tl.cast(time, tl.int64) * time_stride + steps * time_stride + states
    tile = tl.load(pointer + offsets, mask=(time + steps < stop) & (states < STATE), other=0.0)
    return tile.to(tl.float32)[:, :, None]


@triton.jit
def _step_sizes(delta, bias, channel, inner, mask, SOFTPLUS: tl.constexpr):
    """Step sizes with bias, before softplus, and after; zero where `mask` is not set."""
    if bias is not None:
        delta += tl.load(bias + channel, mask=channel < inner, other=0.0)[None]
    size = delta
    if SOFTPLUS:
        size = softplus(delta)
    return delta, tl.where(mask, size, 0.0)


@triton.jit
def _rates(A, channel, inner, STATE: tl.constexpr, STATES: tl.constexpr):
    """Offsets of a block's states among `(state, inner)`, which of them exist, and A for powers of two."""
    state = tl.arange(0, STATES)[:, None]
    mask = (state < STATE) & (channel < inner)[None]
    rate = tl.load(A + channel[None] * STATE + state, mask=mask, other=0.0) * LOG2_E
    return state * inner + channel[None], mask, rate


# ---------------------------------------------------------------------------------------------------------- kernels


@triton.jit(do_not_specialize=["length", "segment"])
def scan_kernel(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    lengths,
    entering,
    y,
    kept,
    leaving,
    elapsed,
    length,
    inner,
    segment,
    u_batch,
    u_time,
    delta_batch,
    delta_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    z_batch,
    z_time,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    STATE: tl.constexpr,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    LANES: tl.constexpr,
):
    """Runs a segment from the state `entering` (zero if absent); writes, of these, what is there: the output `y`, the
    states `kept`, the last state `leaving` and the sum of step sizes `elapsed`."""
    row, part, channel, at = place(inner, LANES)
    start, end, stop = _span(lengths, row, part, segment, length)
    offsets, exists, rate = _rates(A, channel, inner, STATE, STATES)
    steps = tl.arange(0, STEPS)[:, None]
    inside = (channel < inner)[None]
    u += row * u_batch
    delta += row * delta_batch
    B += row * B_batch
    hidden = tl.zeros((STATES, LANES), tl.float32)
    if entering is not None:
        hidden = tl.load(entering + at * STATE * inner + offsets, mask=exists, other=0.0)
    total = tl.zeros((LANES,), tl.float32)
    for time in tl.range(start, stop, STEPS, num_stages=STAGES):
        if kept is not None:  # noqa: SIM102 - this is decided when the kernel is compiled, the next in the loop
            if time % CHUNK == 0:
                chunk = row * tl.cdiv(length, CHUNK) + time // CHUNK
                tl.store(kept + chunk * STATE * inner + offsets, hidden, mask=exists)
        mask = inside & (time + steps < stop)
        x = _read(u, time, u_time, channel, mask, STEPS)
        shifted = _read(delta, time, delta_time, channel, mask, STEPS)
        shifted, size = _step_sizes(shifted, bias, channel, inner, mask, SOFTPLUS)
        decay = tl.exp2(size[:, None, :] * rate[None])
        entered = (size * x)[:, None, :] * _weights(B, time, B_time, stop, STATE, STATES, STEPS)
        after, hidden = _advance(hidden, decay, entered, STEPS)
        if elapsed is not None:
            total += tl.sum(size, 0)
        if y is not None:
            out = tl.sum(after * _weights(C + row * C_batch, time, C_time, stop, STATE, STATES, STEPS), 1)
            if D is not None:
                out += tl.load(D + channel, mask=channel < inner, other=0.0)[None] * x
            if z is not None:
                gate = _read(z + row * z_batch, time, z_time, channel, mask, STEPS)
                out *= gate * sigmoid(gate)
            out = tl.where(mask, out, 0.0)
            _write(y + row * length * inner, time, inner, channel, out, inside & (time + steps < end), STEPS)
    if y is not None:
        done = start + tl.cdiv(stop - start, STEPS) * STEPS
        _clear(y + row * length * inner, done, end, inner, inner, channel, STEPS, LANES)
    if leaving is not None:
        tl.store(leaving + at * STATE * inner + offsets, hidden, mask=exists)
    if elapsed is not None:
        tl.store(elapsed + at * inner + channel, total, mask=channel < inner)


@triton.jit(do_not_specialize=["length", "segment"])
def carry_grad_kernel(
    delta,
    A,
    C,
    z,
    bias,
    lengths,
    grad_y,
    departing,
    elapsed,
    length,
    inner,
    segment,
    delta_batch,
    delta_time,
    C_batch,
    C_time,
    z_batch,
    z_time,
    grad_batch,
    grad_time,
    SOFTPLUS: tl.constexpr,
    STATE: tl.constexpr,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    LANES: tl.constexpr,
):
    """What the outputs of a segment alone pass on, `departing`, as a gradient of the state that enters it."""
    row, part, channel, at = place(inner, LANES)
    start, _end, stop = _span(lengths, row, part, segment, length)
    offsets, exists, rate = _rates(A, channel, inner, STATE, STATES)
    steps = tl.arange(0, STEPS)[:, None]
    delta += row * delta_batch
    C += row * C_batch
    grad_y += row * grad_batch
    carry = tl.zeros((STATES, LANES), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    tiles = tl.cdiv(stop - start, STEPS)
    for back in tl.range(0, tiles, num_stages=STAGES):
        time = start + (tiles - 1 - back) * STEPS
        mask = (channel < inner)[None] & (time + steps < stop)
        shifted = _read(delta, time, delta_time, channel, mask, STEPS)
        shifted, size = _step_sizes(shifted, bias, channel, inner, mask, SOFTPLUS)
        total += tl.sum(size, 0)
        grad = _read(grad_y, time, grad_time, channel, mask, STEPS)
        if z is not None:
            gate = _read(z + row * z_batch, time, z_time, channel, mask, STEPS)
            grad *= gate * sigmoid(gate)
        decay = tl.exp2(size[:, None, :] * rate[None])
        direct = grad[:, None, :] * _weights(C, time, C_time, stop, STATE, STATES, STEPS)
        _grads, carry = _retreat(carry, decay, direct, STEPS)
    tl.store(departing + at * STATE * inner + offsets, carry, mask=exists)
    tl.store(elapsed + at * inner + channel, total, mask=channel < inner)


@triton.jit
def carry_kernel(
    A,
    own,
    elapsed,
    first,
    carried,
    last,
    inner,
    segments,
    REVERSE: tl.constexpr,
    STATE: tl.constexpr,
    STATES: tl.constexpr,
    LANES: tl.constexpr,
):
    """From what each segment makes of zero, `own`, to what it must start from, `carried`, and what the last one
    leaves, `last`. Segments follow one another forward in time, or backward for gradients."""
    row, _part, channel, _at_part = place(inner, LANES)
    offsets, exists, rate = _rates(A, channel, inner, STATE, STATES)
    hidden = tl.zeros((STATES, LANES), tl.float32)
    if first is not None:
        hidden = tl.load(first + row * STATE * inner + offsets, mask=exists, other=0.0)
    for index in range(segments):
        part = index
        if REVERSE:
            part = segments - 1 - index
        at = row * segments + part
        tl.store(carried + at * STATE * inner + offsets, hidden, mask=exists)
        time = tl.load(elapsed + at * inner + channel, mask=channel < inner, other=0.0)
        made = tl.load(own + at * STATE * inner + offsets, mask=exists, other=0.0)
        hidden = tl.exp2(time[None] * rate) * hidden + made
    tl.store(last + row * STATE * inner + offsets, hidden, mask=exists)


@triton.jit(do_not_specialize=["length", "segment"])
def scan_grad_kernel(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    lengths,
    kept,
    grad_y,
    arriving,
    grad_u,
    grad_delta,
    grad_z,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_bias,
    departing,
    length,
    inner,
    segment,
    u_batch,
    u_time,
    delta_batch,
    delta_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    z_batch,
    z_time,
    grad_batch,
    grad_time,
    grad_z_batch,
    grad_z_time,
    SOFTPLUS: tl.constexpr,
    STATE: tl.constexpr,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    LANES: tl.constexpr,
):
    """Backward through a segment, from `arriving`, the gradient of its last state (zero if absent), to `departing`,
    that of the state that enters it. The gradients of A, D and the bias are one for each program, those of B and C
    one for each block of channels: their sums are the caller's."""
    row, part, channel, at = place(inner, LANES)
    start, end, stop = _span(lengths, row, part, segment, length)
    offsets, exists, rate = _rates(A, channel, inner, STATE, STATES)
    steps = tl.arange(0, STEPS)[:, None]
    inside = (channel < inner)[None]
    blocks = tl.cdiv(inner, LANES)
    u += row * u_batch
    delta += row * delta_batch
    B += row * B_batch
    C += row * C_batch
    grad_y += row * grad_batch
    grad_u += row * length * inner
    grad_delta += row * length * inner
    if z is not None:
        z += row * z_batch
        grad_z += row * grad_z_batch
    grad_rate = tl.zeros((STATES, LANES), tl.float32)
    grad_skip = tl.zeros((LANES,), tl.float32)
    grad_shift = tl.zeros((LANES,), tl.float32)
    carry = tl.zeros((STATES, LANES), tl.float32)
    if arriving is not None:
        carry = tl.load(arriving + at * STATE * inner + offsets, mask=exists, other=0.0)
    tiles = tl.cdiv(stop - start, STEPS)
    for back in tl.range(0, tiles, num_stages=STAGES):
        time = start + (tiles - 1 - back) * STEPS
        mask = inside & (time + steps < stop)
        writable = inside & (time + steps < end)
        x = _read(u, time, u_time, channel, mask, STEPS)
        shifted = _read(delta, time, delta_time, channel, mask, STEPS)
        shifted, size = _step_sizes(shifted, bias, channel, inner, mask, SOFTPLUS)
        B_tile = _weights(B, time, B_time, stop, STATE, STATES, STEPS)
        C_tile = _weights(C, time, C_time, stop, STATE, STATES, STEPS)
        grad = _read(grad_y, time, grad_time, channel, mask, STEPS)
        decay = tl.exp2(size[:, None, :] * rate[None])
        entered = (size * x)[:, None, :] * B_tile
        chunk = row * tl.cdiv(length, STEPS) + time // STEPS
        hidden = tl.load(kept + chunk * STATE * inner + offsets, mask=exists, other=0.0)
        after, _hidden = _advance(hidden, decay, entered, STEPS)
        if z is not None:
            gate = _read(z, time, z_time, channel, mask, STEPS)
            opened = sigmoid(gate)
            out = tl.sum(after * C_tile, 1)
            if D is not None:
                out += tl.load(D + channel, mask=channel < inner, other=0.0)[None] * x
            grad_gate = grad * out * opened * (1 + gate * (1 - opened))
            _write(grad_z, time, grad_z_time, channel, grad_gate, writable, STEPS)
            grad *= gate * opened
        grads, carry = _retreat(carry, decay, grad[:, None, :] * C_tile, STEPS)
        grad_entered = tl.sum(grads * B_tile, 1)  # of size * x
        grad_power = grads * (after - entered)  # of size * A: the state before a step, decayed, is what B did not add
        grad_size = grad_entered * x + tl.sum(grad_power * rate[None], 1) * LN_2
        grad_rate += tl.sum(grad_power * size[:, None, :], 0)
        grad_x = grad_entered * size
        if D is not None:
            grad_x += grad * tl.load(D + channel, mask=channel < inner, other=0.0)[None]
            grad_skip += tl.sum(grad * x, 0)
        if SOFTPLUS:
            grad_size *= sigmoid(shifted)
        grad_size = tl.where(mask, grad_size, 0.0)
        grad_shift += tl.sum(grad_size, 0)
        _write(grad_u, time, inner, channel, tl.where(mask, grad_x, 0.0), writable, STEPS)
        _write(grad_delta, time, inner, channel, grad_size, writable, STEPS)
        # partial sums of this block of channels, among (row, step, block, state)
        pair = tl.arange(0, STEPS * STATES)
        cell = ((row * length + time + pair // STATES) * blocks + tl.program_id(0) % blocks) * STATE + pair % STATES
        pair_mask = (pair % STATES < STATE) & (time + pair // STATES < end)
        tl.store(grad_B + cell, _over_lanes(grads * (size * x)[:, None, :], STEPS, STATES, LANES), mask=pair_mask)
        tl.store(grad_C + cell, _over_lanes(after * grad[:, None, :], STEPS, STATES, LANES), mask=pair_mask)
    done = start + tiles * STEPS
    _clear(grad_u, done, end, inner, inner, channel, STEPS, LANES)
    _clear(grad_delta, done, end, inner, inner, channel, STEPS, LANES)
    if z is not None:
        _clear(grad_z, done, end, inner, grad_z_time, channel, STEPS, LANES)
    tl.store(grad_A + at * STATE * inner + offsets, grad_rate, mask=exists)
    if D is not None:
        tl.store(grad_D + at * inner + channel, grad_skip, mask=channel < inner)
    if bias is not None:
        tl.store(grad_bias + at * inner + channel, grad_shift, mask=channel < inner)
    if departing is not None:
        tl.store(departing + at * STATE * inner + offsets, carry, mask=exists)
