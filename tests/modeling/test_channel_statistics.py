"""Statistics in the tokens: against a loop over events, and their piecewise-linear functions."""

import math

import pytest
import torch

from modeling_hymate import HyMaTEForSequenceClassification
from modeling_hymate.attention import ChannelIndex
from modeling_hymate.channel_statistics import BOUND, STATISTICS, HyMaTEChannelStatistics, channel_statistics
from tests.support.helpers import close, make_model, random_batch, tiny_config


def sorted_batch(seed: int = 0):
    """Values, times in ascending order, mask of numbers and the channels of a few random records."""
    inputs = random_batch(tiny_config(), batch=4, length=40, seed=seed)
    times = inputs["times"].sort(1).values
    mask = inputs["attention_mask"]
    channels = ChannelIndex(inputs["variable_ids"], mask, 6)
    return inputs["values"], times, inputs["value_mask"], channels, inputs["variable_ids"], mask


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_a_loop_over_events(seed):
    values, times, value_mask, channels, variable_ids, mask = sorted_batch(seed)
    found, present = channel_statistics(values, times, value_mask, channels)
    for row in range(len(values)):
        half = times[row][mask[row]].max() / 2
        for slot, variable in enumerate(channels.channel_ids[row].tolist()):
            chosen = mask[row] & value_mask[row] & (variable_ids[row] == variable)
            numbers, when = values[row][chosen], times[row][chosen]
            assert present[row, slot] == (len(numbers) > 0)
            if not len(numbers):
                assert (found[row, slot] == 0).all()
                continue
            early = numbers[when <= half]
            expected = {
                "first": numbers[0],
                "last": numbers[-1],
                "min": numbers.min(),
                "max": numbers.max(),
                "mean": numbers.mean(),
                "early_mean": early.mean() if len(early) else numbers[0],
                "deviation": 2 * numbers.var(correction=0).clamp(min=1e-6).sqrt() - BOUND,
                "count": math.log1p(len(numbers)) - BOUND,
                "first_time": 2 * BOUND * when[0] - BOUND,
                "last_time": 2 * BOUND * when[-1] - BOUND,
            }
            close(found[row, slot], torch.tensor([float(expected[name]) for name in STATISTICS]), 1e-4)


def test_functions_pass_through_their_knots_and_are_straight_between():
    values, times, value_mask, channels, *_ = sorted_batch()
    layer = HyMaTEChannelStatistics(tiny_config(num_statistic_bins=4))
    layer.init_weights()
    statistics, present = channel_statistics(values, times, value_mask, channels)
    found = layer(values, times, value_mask, channels)
    knots = layer.knots.view(6, len(STATISTICS), 5, -1)
    at = torch.linspace(-BOUND, BOUND, 5)
    row, slot = present.nonzero()[0].tolist()
    expected = torch.zeros(16)
    for index, value in enumerate(statistics[row, slot].clamp(-4, 4).tolist()):
        vectors = knots[channels.channel_ids[row, slot], index]
        left = min(3, max(0, int((torch.tensor(value) >= at).sum()) - 1))
        share = (value - at[left]) / (at[left + 1] - at[left])
        expected = expected + (1 - share) * vectors[left] + share * vectors[left + 1]
    close(found[row, slot], expected, 1e-4)


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
