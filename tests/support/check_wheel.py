"""Whether an installed wheel works: a script for an environment that has the wheel and what it depends on.

    python tests/support/check_wheel.py

Loads the test checkpoint beside it, and compares the kernels of the wheel with plain PyTorch.
"""

import os
from importlib.metadata import distribution
from pathlib import Path

import torch
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification

import hymate
import hymate_native

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "classification"
RECORD = {"time": [0.0, 1.5, 30.0], "variable": ["HR", "GCS", "Ward"], "value": [88, 15, None], "Age": 71}


def logits(backend: str) -> torch.Tensor:
    os.environ["HYMATE_SCAN_BACKEND"] = backend
    model = AutoModelForSequenceClassification.from_pretrained(CHECKPOINT).eval()
    with torch.no_grad():
        return model(**AutoFeatureExtractor.from_pretrained(CHECKPOINT)([RECORD])).logits


installed = distribution("hymate")
is_for_one_platform = "-none-any" not in (installed.read_text("WHEEL") or "")
expected = logits("reference")
if is_for_one_platform:
    torch.testing.assert_close(logits("native"), expected, rtol=1e-5, atol=1e-5)
build = hymate_native.selected_build() if is_for_one_platform else "none in this wheel"
print(f"hymate {hymate.__version__} from {Path(hymate.__file__).parent}, kernels: {build}")  # noqa: T201
