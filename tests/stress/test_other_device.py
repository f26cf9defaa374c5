"""What trains and asks models, on a device that is not the processor: no tensor is left behind on the other side."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parents[2]
ROOMS = {
    "inference": ["tests/inference/test_prediction.py", "tests/inference/test_embedding.py"],
    "hours": ["tests/inference/test_hours.py", "tests/fitting/test_hours.py"],
    "explanations": [
        f"tests/explanations/test_{name}.py" for name in ("explain", "occlusion", "integrated_gradients")
    ],
    "report": ["tests/explanations/test_faithfulness.py", "tests/explanations/test_report.py"],
    "serving": ["tests/serving/test_predictions.py", "tests/serving/test_streams.py"],
    "evaluation": ["tests/evaluation/test_evaluation.py", "tests/monitoring"],
    "fitting": [
        f"tests/fitting/test_{name}.py" for name in ("finetuning", "pretraining", "time_to_event", "transfer")
    ],
}
# tests that hold tensors of the processor themselves, or read a file straight to a device that safetensors knows
ON_THE_PROCESSOR = (
    "test_predictions_come_in_the_order_of_the_data_set",
    "test_the_classifier_starts_from_them",
    "test_every_hour_is_that_of_the_record_cut_there",
    "test_a_table_of_times_is_answered_row_by_row",
    "test_streams_of_another_model_are_refused",
    "test_carrying_forward_takes_each_variables_last_value_before_each_cut",
)


@pytest.fixture(scope="module")
def extension(tmp_path_factory) -> Path:
    if shutil.which("c++") is None or shutil.which("ninja") is None:
        pytest.skip("the device is built with c++ and ninja")
    return tmp_path_factory.mktemp("other-device")


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_left_behind_on_the_processor(room, extension):
    others = " and ".join(f"not {name}" for name in ON_THE_PROCESSOR)
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.other_device", "-q", "-n", "0", *ROOMS[room]]
    done = subprocess.run(
        [*command, "-k", others, "--tb", "short"],
        cwd=ROOT,
        env=os.environ | {"HYMATE_OTHER_DEVICE": str(extension)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
