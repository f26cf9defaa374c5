"""Constants that GPUs keep; here a CPU takes the part of one."""

import torch

from modeling_hymate import HyMaTEForSequenceClassification, constants
from tests.support.helpers import gradients_of, make_model, random_batch


def test_kept_constants_change_nothing(monkeypatch):
    """Also where inference made them and training uses them, and where batches differ in their size."""
    monkeypatch.setenv("HYMATE_SCAN_BACKEND", "chunked")
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2, num_labels=2, pos_weight=2.0)
    batches = [random_batch(model.config, batch=size) | {"labels": torch.arange(size) % 2} for size in (2, 3)]
    expected = [gradients_of(model, model(**batch).loss) for batch in batches]
    monkeypatch.setattr(constants, "GPUS", ("cpu",))
    monkeypatch.setattr(constants, "_kept", {})
    with torch.inference_mode():
        model(**batches[0])
    for batch, gradients in zip(batches, expected, strict=True):
        for name, gradient in gradients_of(model, model(**batch).loss).items():
            assert torch.equal(gradient, gradients[name]), name
    number = len(constants._kept)
    assert number == 7  # six for statistics (half-lives among them), and the weight of positives
    model(**batches[0])
    assert len(constants._kept) == number
