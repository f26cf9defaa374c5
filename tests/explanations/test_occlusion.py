"""Records without some of their events: versions that share work say what each says on its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hymate_native
from hymate_training.explanations.occlusion import logits_without, logits_without_reference, shares_work
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import close, make_model, random_batch

needs_kernels = pytest.mark.skipif(
    not hymate_native.runnable_builds(), reason="the native kernels are not built: no C++ compiler"
)
ONE_LAYER = {"num_mamba_layers": 1}
SHARED = [
    {},
    {"num_pooling_queries": 4, "num_statistic_bins": 2},
    {"num_static_features": 0, "num_attention_layers": 0, "conv_kernel": 2, "use_conv_bias": False},
    {"hidden_size": 24, "state_size": 5, "expand": 2, "conv_kernel": 6, "num_statistic_bins": 1, "use_bias": True},
]
ALONE = [{"num_mamba_layers": 2}, {"num_mamba_layers": 0}, {"attention_axis": "event"}]


def versions_of(inputs: dict, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Versions of records: without nothing, everything, a variable, a stretch of time, and events at random."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = inputs["values"].shape
    records = torch.randint(0, batch, (count,), generator=generator).sort().values
    at_random = torch.rand(count, length, generator=generator) < torch.rand(count, 1, generator=generator)
    of_variable = inputs["variable_ids"][records] == torch.randint(0, 6, (count, 1), generator=generator)
    times = inputs["times"][records]
    begin = times.gather(1, torch.randint(0, length, (count, 1), generator=generator))
    of_time = (times >= begin) & (times < begin + 0.3)
    choices = torch.stack([at_random, of_variable, of_time, at_random & False, at_random | True])
    kind = torch.randint(0, len(choices), (count,), generator=generator)
    return records, choices[kind, torch.arange(count)]


@pytest.mark.parametrize("shape", [*SHARED, *ALONE], ids=str)
def test_versions_say_what_they_say_alone(shape):
    model = make_model(HyMaTEForSequenceClassification, **ONE_LAYER | shape)
    is_shared = shape in SHARED and bool(hymate_native.runnable_builds())

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10**6), length=st.sampled_from([1, 7, 40, 170]), count=st.integers(1, 12))
    @torch.no_grad()
    def check(seed, length, count):
        inputs = random_batch(model.config, batch=3, length=length, seed=seed)
        inputs["attention_mask"][0, 0] = bool(seed % 2)
        records, absent = versions_of(inputs, count, seed)
        assert shares_work(model, inputs["values"]) == is_shared
        found = logits_without(model, inputs, records, absent)
        close(found, logits_without_reference(model, inputs, records, absent), 1e-5)

    check()


@needs_kernels
@torch.no_grad()
def test_every_build_says_the_same(monkeypatch):
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2, **ONE_LAYER)
    inputs = random_batch(model.config, batch=4, length=150, seed=3)
    records, absent = versions_of(inputs, 40, 3)
    expected = logits_without_reference(model, inputs, records, absent)
    for build in hymate_native.runnable_builds():
        monkeypatch.setenv("HYMATE_NATIVE_ISA", build)
        for threads in (1, 3):
            monkeypatch.setattr(hymate_native.library, "threads", lambda threads=threads: threads)
            close(logits_without(model, inputs, records, absent), expected, 1e-5)


@needs_kernels
@torch.no_grad()
def test_versions_must_be_in_the_order_of_their_records():
    model = make_model(HyMaTEForSequenceClassification, **ONE_LAYER)
    inputs = random_batch(model.config, batch=2, length=5)
    absent = torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="records must ascend"):
        logits_without(model, inputs, torch.tensor([1, 0]), absent)
