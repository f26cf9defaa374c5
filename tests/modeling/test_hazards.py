"""The time-to-event head: its likelihood and risks by their definitions, and the contracts of every head."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st

from modeling_hymate import HyMaTEForSequenceClassification
from modeling_hymate.hazards import event_risk, hazard_loss, risk_name
from tests.support.helpers import close, make_model, random_batch, tiny_config

BINS = [6.0, 24.0, 48.0, 100.0]
SETTINGS = {
    "problem_type": "time_to_event",
    "time_bins": BINS,
    "horizons": [24.0, 72.0],
    "event": "death",
    "num_labels": 2,
}


def plain_loss(logits: list[float], hours: float, observed: float) -> float:
    """Minus the log of the probability of what was seen, bin by bin."""
    loss, start = 0.0, 0.0
    for logit, end in zip(logits, BINS, strict=True):
        hazard = 1 / (1 + math.exp(-logit))
        if hours > end:
            loss -= math.log(1 - hazard)
        elif observed:
            return loss - math.log(hazard)
        else:
            return loss - (hours - start) / (end - start) * math.log(1 - hazard)
        start = end
    return loss


def plain_risk(logits: list[float], hours: float) -> float:
    """One minus the survival, whose hazard per hour is constant within a bin."""
    survival, start = 1.0, 0.0
    for logit, end in zip(logits, BINS, strict=True):
        hazard = 1 / (1 + math.exp(-logit))
        survival *= (1 - hazard) ** (min(max(hours - start, 0), end - start) / (end - start))
        start = end
    return 1 - survival


outcomes = st.tuples(st.floats(0.0009765625, 200, width=32), st.sampled_from([0.0, 1.0]))
scores = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


@given(scores, outcomes)
def test_the_loss_is_the_likelihood_bin_by_bin(logits, outcome):
    found = hazard_loss(torch.tensor(logits), torch.tensor(outcome), BINS)
    assert found.item() == pytest.approx(plain_loss(logits, *outcome), abs=1e-4, rel=1e-5)


@given(scores, st.floats(0.0, 100.0))
def test_risks_are_what_the_hazards_say(logits, hours):
    found = event_risk(torch.tensor(logits), BINS, [hours])
    assert found.item() == pytest.approx(plain_risk(logits, hours), abs=1e-5)


@pytest.mark.parametrize("edge", BINS)
def test_an_event_at_the_end_of_a_bin_is_in_it(edge):
    logits = torch.tensor([0.3, -1.0, 0.5, 2.0])
    labels = torch.tensor([[edge, 1.0], [edge + 0.01, 1.0], [edge, 0.0]])
    for found, (hours, observed) in zip(hazard_loss(logits, labels, BINS), labels.tolist(), strict=True):
        assert found.item() == pytest.approx(plain_loss(logits.tolist(), hours, observed), rel=1e-5)


def test_who_is_censored_at_once_teaches_nothing():
    logits = torch.randn(4, requires_grad=True)
    loss = hazard_loss(logits, torch.tensor([0.0, 0.0]), BINS)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_gradients():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[3.0, 1], [3, 0], [24, 1], [24, 0], [500, 1], [0, 0]])
    assert torch.autograd.gradcheck(lambda scores: hazard_loss(scores, labels, BINS), logits)


def test_risk_grows_with_the_horizon_and_the_likelihood_finds_the_hazards():
    """Without inputs, the hazards of the highest likelihood are those of the life table."""
    logits = torch.zeros(4, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    hours = -50 * torch.rand(20_000, generator=generator).log()  # exponential, of mean 50
    until = 150 * torch.rand(20_000, generator=generator)
    labels = torch.stack([torch.minimum(hours, until), (hours <= until).float()], dim=1)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = hazard_loss(logits.expand(20_000, 4), labels, BINS).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    asked = [3.0, 6.0, 20.0, 48.0, 90.0]
    risks = event_risk(logits, BINS, asked)
    assert (risks.diff() > 0).all()
    close(risks, 1 - torch.exp(-torch.tensor(asked) / 50), 0.02)


def test_every_prediction_has_its_own_curve_and_padding_does_not_count():
    model = make_model(HyMaTEForSequenceClassification, **SETTINGS)
    inputs = random_batch(model.config)
    asked = torch.tensor([[0.5, 1.0], [0.2, 1.4], [1.0, 9.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    labels = torch.tensor([[[3.0, 1], [1, 1]], [[50, 0], [40, 0]], [[0, 0], [math.nan, math.nan]]])
    outputs = model(**inputs, prediction_times=asked, prediction_mask=mask, labels=labels)
    assert outputs.logits.shape == (3, 2, 4)
    assert model.predictions(outputs.logits).shape == (3, 2, 2)
    expected = hazard_loss(outputs.logits[mask], labels[mask], BINS).mean()
    close(outputs.loss, expected)
    for place in range(2):  # the prefix contract: what comes later in the record changes nothing
        times, real = inputs["times"], inputs["attention_mask"]
        cut = inputs | {"attention_mask": real & (times <= asked[:, place, None])}
        alone = model(**cut, prediction_times=asked[:, place : place + 1])
        kept = cut["attention_mask"].any(1) & mask[:, place]
        close(alone.logits[kept, 0], outputs.logits[kept, place])


def test_a_saved_model_says_the_same(tmp_path):
    model = make_model(HyMaTEForSequenceClassification, **SETTINGS)
    model.save_pretrained(tmp_path)
    loaded = HyMaTEForSequenceClassification.from_pretrained(tmp_path)
    inputs = random_batch(model.config)
    found, expected = (one.predictions(one(**inputs).logits) for one in (loaded, model))
    assert torch.equal(found, expected)
    assert loaded.config.time_bins == BINS
    assert loaded.config.event == "death"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(3, 3), r"labels for time_to_event must have shape \(3, 2\), got \(3, 3\)"),
        (torch.tensor([[1.0, 1], [-2, 0], [1, 1]]), "must be hours from 0 on .* got -2"),
        (torch.tensor([[1.0, 1], [0, 1], [1, 1]]), "must be hours from 0 on"),
        (torch.tensor([[1.0, 1], [1, 0.5], [1, 1]]), "1 or 0 for an event"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, message):
    model = make_model(HyMaTEForSequenceClassification, **SETTINGS)
    with pytest.raises(ValueError, match=message):
        model(**random_batch(model.config), labels=labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_bins": None}, "time_bins must be ascending hours above 0"),
        ({"time_bins": [6.0, 6.0]}, "time_bins must be ascending hours above 0"),
        ({"horizons": [24.0]}, "one number of hours per label"),
        ({"horizons": [24.0, 101.0]}, r"at most the end of time_bins \(100\)"),
        ({"pos_weight": 2.0}, "pos_weight applies to classification"),
        ({"problem_type": "regression"}, "belong to problem_type 'time_to_event'"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**SETTINGS | changes)


def test_horizons_beyond_what_a_model_knows_are_refused():
    model = make_model(HyMaTEForSequenceClassification, **SETTINGS)
    logits = model(**random_batch(model.config)).logits
    close(model.predictions(logits, [24.0, 72.0]), model.predictions(logits))
    with pytest.raises(ValueError, match="horizons must be hours above 0 and at most 100"):
        model.predictions(logits, [101.0])
    other = make_model(HyMaTEForSequenceClassification, num_labels=2)
    with pytest.raises(ValueError, match="horizons are for time-to-event models"):
        other.predictions(torch.zeros(1, 2), [24.0])


def test_names_of_risks():
    assert [risk_name("death", hours) for hours in (1, 24, 72, 100, 720)] == [
        *("death within 1 hour", "death within 24 hours", "death within 3 days", "death within 100 hours"),
        "death within 30 days",
    ]
