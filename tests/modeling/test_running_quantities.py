"""Running quantities: all prediction times in one pass against cutting and computing anew, and merging."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_hymate.running_quantities import (
    Running,
    empty_running,
    merge,
    quantities,
    running_quantities,
    running_quantities_reference,
    summarize,
)
from tests.support.helpers import close

HALF_LIVES = (0.5, 2.0)


def random_events(seed: int, batch: int = 3, channels: int = 4, hidden: int = 6, queries: int = 2) -> dict:
    """Arguments of `running_quantities` but for the prediction times: ties in time, for odd seeds also in value,
    missing numbers, records of any length."""
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(1, 25, (), generator=generator))
    mask = torch.arange(length) < torch.randint(0, length + 1, (batch, 1), generator=generator)
    shape = (batch, length)
    value_mask = torch.rand(shape, generator=generator) < 0.7
    values = (
        torch.randint(-4, 5, shape, generator=generator) / 2 if seed % 2 else torch.randn(shape, generator=generator)
    )
    return {
        "parts": torch.randn(*shape, hidden, generator=generator),
        "scores": 3 * torch.randn(*shape, queries, generator=generator),
        "values": values.masked_fill(~value_mask, 0),
        "times": (torch.randint(-2, 12, shape, generator=generator) / 4).sort(1).values.masked_fill(~mask, 0),
        "value_mask": value_mask,
        "slots": torch.randint(channels, shape, generator=generator).masked_fill(~mask, -1),
    }


def random_times(seed: int, predictions: int, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-3, 14, (batch, predictions), generator=generator) / 4).sort(1).values


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), predictions=st.integers(1, 9), natively=st.booleans())
def test_one_pass_is_cutting_and_computing_anew(seed, predictions, natively):
    events, times = random_events(seed), random_times(seed, predictions)
    if not natively:  # the kernels know float32 alone
        events["parts"] = events["parts"].double()
    leaves = [events[name].requires_grad_() for name in ("parts", "scores", "values")]
    found, expected = (
        function(**events, prediction_times=times, num_channels=4, half_lives=HALF_LIVES)
        for function in (running_quantities, running_quantities_reference)
    )
    weights = [torch.randn_like(tensor) for tensor in found]
    gradients = []
    for outputs in (found, expected):
        total = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    for name, one, other in zip(("pooled", "totals", "statistics"), found, expected, strict=True):
        assert one.shape == other.shape, name
        close(one, other, 2e-5)
    if seed % 2:  # a minimum that several events attain has many gradients
        gradients = [found[:2] for found in gradients]
    for one, other in zip(*gradients, strict=True):
        close(one, other, 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_merged_stretches_are_the_whole(seed):
    events = random_events(seed, batch=1)
    values, times, value_mask, slots = (events[name] for name in ("values", "times", "value_mask", "slots"))
    cells = slots.masked_fill(slots < 0, 4)
    whole = summarize(values, times, value_mask, cells, 4, HALF_LIVES)
    running = empty_running((4,), len(HALF_LIVES), values.device)
    for part in torch.arange(values.shape[1]).split(3):
        piece = summarize(values[:, part], times[:, part], value_mask[:, part], cells[:, part], 4, HALF_LIVES)
        running = merge(running, piece, HALF_LIVES)
    now = torch.tensor(20.0)
    close(quantities(running, now, HALF_LIVES), quantities(whole, now, HALF_LIVES), 1e-6)
    nothing = empty_running((4,), len(HALF_LIVES), values.device)
    for merged in (merge(nothing, whole, HALF_LIVES), merge(whole, nothing, HALF_LIVES)):
        for name, one, other in zip(Running._fields, merged, whole, strict=True):
            assert torch.equal(one, other), name


@torch.no_grad()
def test_long_silence_and_large_numbers_stay_exact():
    """Decayed means do not vanish over years, and a constant stays one of deviation 0 whatever its size."""
    length = 2000
    times = torch.linspace(0, 1e5, length).view(1, -1)
    arguments = {
        "parts": torch.ones(1, length, 2),
        "scores": torch.full((1, length, 1), -10.0),
        "values": torch.full((1, length), 777.7),
        "times": times,
        "value_mask": torch.ones(1, length, dtype=torch.bool),
        "slots": torch.zeros(1, length, dtype=torch.int64),
        "prediction_times": torch.tensor([[1e5, 9e5]]),
    }
    pooled, _, statistics = running_quantities(**arguments, num_channels=1, half_lives=[3.0])
    close(pooled, torch.ones(1, 2, 1, 2), 1e-6)
    close(statistics[..., 9], torch.zeros(1, 2, 1), 1e-6)  # variance
    close(statistics[..., 13], torch.full((1, 2, 1), 777.7), 1e-6)  # decayed mean


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_summed_in_float32(dtype):
    events = random_events(1)
    times = random_times(1, 4)
    arguments = {"prediction_times": times, "num_channels": 4, "half_lives": HALF_LIVES}
    expected = running_quantities(**events | {"parts": events["parts"].to(dtype).float()}, **arguments)
    found = running_quantities(**events | {"parts": events["parts"].to(dtype)}, **arguments)
    assert found[0].dtype == dtype
    close(found[0], expected[0].to(dtype), 0)
    close(found[2], expected[2], 0)
