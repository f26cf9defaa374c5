"""Long runs: steps without NaN, half precision beside float32, many records in flat memory, threads beside one."""

import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import close, gradients_of, make_model, random_batch

pytestmark = pytest.mark.timeout(3600)
STEPS, RATE = 10_000, 2e-3  # the recipe's learning rate, tried as it is and at ten times as much
RECORDS, BATCH = 100_000, 500


@pytest.mark.parametrize("rate", [RATE, 10 * RATE])
def test_ten_thousand_steps_without_a_nan(rate):
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(STEPS):
        inputs = random_batch(model.config, batch=4, seed=step % 50)
        loss = model(**inputs, labels=(inputs["values"][:, 0] > 0).long()).loss
        assert loss.isfinite(), step
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert norm.isfinite(), step
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("axis", ["channel", "event"])
def test_half_precision_stays_near(axis, dtype, tolerance):
    whole = make_model(HyMaTEForSequenceClassification, attention_axis=axis)
    half = make_model(HyMaTEForSequenceClassification, attention_axis=axis)
    for seed in range(20):
        inputs, labels = random_batch(whole.config, seed=seed), torch.tensor([0, 1, 1])
        with torch.autocast("cpu", dtype):
            found = half(**inputs, labels=labels)
        expected = whole(**inputs, labels=labels)
        scale = expected.logits.detach().abs().max()
        assert (found.logits.float() - expected.logits).abs().max() <= tolerance * scale
        assert (found.loss.float() - expected.loss).abs() <= tolerance * max(1.0, float(scale))
        wanted, own = gradients_of(whole, expected.loss), gradients_of(half, found.loss)
        for name, gradient in wanted.items():
            difference = (own[name].float() - gradient).norm()
            assert difference <= 3 * tolerance * max(gradient.norm(), torch.tensor(1e-2)), name


@torch.no_grad()
def test_extremes_stay_finite():
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    for value in (0.0, 1e-30, 1e6, -1e6):
        for time in (0.0, 1e-6, 1e6):
            inputs = random_batch(model.config)
            inputs["values"].fill_(value)
            inputs["times"].fill_(time)
            assert model(**inputs).logits.isfinite().all(), (value, time)


@torch.no_grad()
def test_many_records_in_flat_memory():
    model = make_model(HyMaTEForSequenceClassification)
    unit = 1024 if sys.platform == "linux" else 1
    after_a_tenth = 0
    for number in range(RECORDS // BATCH):
        model(**random_batch(model.config, batch=BATCH, length=20 + number % 30, seed=number))
        if number == RECORDS // BATCH // 10:
            after_a_tenth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - after_a_tenth < 64 << 20


def test_four_threads_give_the_answers_of_one():
    model = make_model(HyMaTEForSequenceClassification)
    batches = [random_batch(model.config, batch=1 + seed % 7, length=1 + seed % 40, seed=seed) for seed in range(200)]

    def answer(inputs):
        with torch.no_grad():
            return model(**inputs).logits

    expected = [answer(inputs) for inputs in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(answer, batches * 5), expected * 5, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_number_of_threads_changes_little(threads):
    model, before = make_model(HyMaTEForSequenceClassification), torch.get_num_threads()
    inputs = random_batch(model.config, batch=16, length=100)
    expected = model(**inputs).logits
    try:
        torch.set_num_threads(threads)
        close(model(**inputs).logits, expected)
    finally:
        torch.set_num_threads(before)
