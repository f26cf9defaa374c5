"""Statistics in the tokens: what they say of running quantities, and their piecewise-linear functions."""

import math

import pytest
import torch

from modeling_hymate import HyMaTEForSequenceClassification
from modeling_hymate.channel_statistics import (
    BOUND,
    OF_TIMES,
    OF_VALUES,
    HyMaTEChannelStatistics,
    channel_statistics,
    piecewise_linear,
)
from modeling_hymate.running_quantities import HALF_LIFE_QUANTITIES, QUANTITIES
from tests.support.helpers import close, make_model, random_batch, tiny_config


def test_statistics_are_on_about_one_scale():
    found = dict.fromkeys(QUANTITIES, 0.0) | {"count": 9, "since_first": 0.75, "since_last": 0.25, "numbers": 4}
    found |= {"first": -1.5, "last": 0.5, "min": -2.0, "max": 9.0, "mean": 0.1, "variance": 0.25}
    found |= {"mean_change": 0.4, "last_change": -0.3, "change_variance": 1.0, "decayed_mean": 0.2}
    row = torch.tensor([*(found[name] for name in QUANTITIES), 0.2, 0.3, 5.0, 1.0])
    names = [name for name in (*OF_VALUES, *OF_TIMES) for _ in range(1 + (name in HALF_LIFE_QUANTITIES))]
    statistics, present = channel_statistics(torch.stack([row, 0 * row]), time_scale=64.0)
    hours = 2 * BOUND / math.log1p(64)
    expected = {name: [found[name]] for name in ("first", "last", "min", "mean", "mean_change", "last_change")} | {
        "max": [4.0],  # as far out as anything counts
        "deviation": [1 - BOUND],
        "change_deviation": [2 - BOUND],
        "decayed_mean": [0.2, 0.3],
        "count": [math.log(10) - BOUND],
        "since_first": [hours * math.log(49) - BOUND],
        "since_last": [hours * math.log(17) - BOUND],
        "rate": [math.log(10 / 49)],
        "recent_count": [math.log(6) - BOUND, math.log(2) - BOUND],
    }
    for name, value in expected.items():
        chosen = torch.tensor([other == name for other in names])
        close(statistics[0][chosen], torch.tensor(value))
    assert present[0].all()
    assert not present[1].any()
    only_times = row.clone()
    only_times[QUANTITIES.index("numbers")] = 0
    assert channel_statistics(only_times, 64.0)[1].tolist() == [name in OF_TIMES for name in names]


def random_statistics(seed: int = 0, variables: int = 6, statistics: int = 5, bins: int = 4):
    generator = torch.Generator().manual_seed(seed)
    numbers = 8 * torch.rand(2, 3, 4, statistics, generator=generator) - 4
    present = torch.rand(numbers.shape, generator=generator) < 0.8
    channel_ids = torch.tensor([[0, 2, 5, -1], [1, 2, 3, 5]])
    present &= (channel_ids >= 0)[:, None, :, None]
    knots = torch.randn(variables * statistics * (bins + 1), 16, generator=generator)
    return numbers, present, channel_ids, knots, bins


def by_definition(numbers, present, channel_ids, knots, bins):
    at = torch.linspace(-BOUND, BOUND, bins + 1)
    vectors = knots.view(-1, numbers.shape[-1], bins + 1, knots.shape[1])
    found = torch.zeros(*numbers.shape[:-1], knots.shape[1])
    for row, prediction, slot, index in present.nonzero().tolist():
        value = numbers[row, prediction, slot, index]
        left = min(bins - 1, max(0, int((value >= at).sum()) - 1))
        share = (value - at[left]) / (at[left + 1] - at[left])
        ends = vectors[channel_ids[row, slot], index, left : left + 2]
        found[row, prediction, slot] = found[row, prediction, slot] + (1 - share) * ends[0] + share * ends[1]
    return found


@pytest.mark.parametrize("of_inputs", [False, True])
def test_functions_pass_through_their_knots_and_are_straight_between(of_inputs):
    """Outputs and gradients, also where explanations ask for those of the statistics."""
    numbers, present, channel_ids, knots, bins = random_statistics()
    leaves = [knots.requires_grad_(), *([numbers.requires_grad_()] if of_inputs else [])]
    found = piecewise_linear(numbers, present, channel_ids, knots, bins)
    expected = by_definition(numbers, present, channel_ids, knots, bins)
    close(found, expected, 1e-4)
    weights = torch.randn_like(found)
    for one, other in zip(
        *(torch.autograd.grad((outputs * weights).sum(), leaves) for outputs in (found, expected)), strict=True
    ):
        close(one, other, 1e-4)


def test_functions_begin_as_nearly_straight_lines():
    torch.manual_seed(0)
    layer = HyMaTEChannelStatistics(tiny_config(num_statistic_bins=4))
    layer.init_weights()
    slopes = layer.knots.view(layer.num_functions, 5, -1).diff(dim=1)
    assert slopes.std(1).mean() < 2 * slopes.mean(1).abs().mean()
    assert 0.1 < layer.knots.abs().mean() < 0.3


def test_gradients_reach_every_value_and_stay_finite():
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2, num_labels=2, num_mamba_layers=0)
    inputs = random_batch(model.config)
    inputs["values"].requires_grad_()
    model(**inputs).logits[:, 1].sum().backward()
    assert inputs["values"].grad.isfinite().all()
    seen = inputs["attention_mask"] & inputs["value_mask"]
    assert (inputs["values"].grad[seen] != 0).all()
    assert (inputs["values"].grad[~seen] == 0).all()


def test_statistics_need_tokens_of_variables():
    with pytest.raises(Exception, match=r"num_statistic_bins.*attention_axis"):
        tiny_config(num_statistic_bins=2, attention_axis="event")
