"""Pretraining and fine-tuning as the commands leave them: the cards, what a push takes, and the upload elsewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hymate_training.cli.main import main
from hymate_training.publishing.hub import Plan
from hymate_training.publishing.push import endpoint_code, package_code, plan_push
from tests.support import remote_client

TASK = "in_hospital_mortality"
SIZES = ["hidden_size=8", "num_mamba_layers=1", "num_attention_heads=2", "num_pooling_queries=2", "state_size=4"]
OPTIONS = ["--epochs", "1", "--model", *SIZES]


@pytest.fixture(scope="module")
def runs(synthetic_folder, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    pretrained, finetuned = folder / "pretrained", folder / "mortality"
    data = ["--data", str(synthetic_folder)]
    assert main(["pretrain", *data, "--output", str(pretrained), *OPTIONS]) == 0
    start = ["--task", TASK, "--checkpoint", str(pretrained)]
    assert main(["finetune", *data, *start, "--output", str(finetuned), "--epochs", "1"]) == 0
    return {"pretrain": pretrained, "finetune": finetuned}


def write_upload(plan: Plan, folder: Path) -> Path:
    """What a visitor of the Hub would download."""
    folder.mkdir(parents=True)
    for name in plan.uploaded:
        (folder / name).write_bytes(plan.read(name))
    return folder


def test_a_run_may_be_pushed_as_it_is(runs):
    for kind, run in runs.items():
        plan = plan_push(run)
        expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_run.json"}
        of_classifiers = {"evaluation.json", "monitoring.json", *endpoint_code()} if kind == "finetune" else set()
        assert expected | set(package_code()) | of_classifiers == set(plan.uploaded)
        assert all(name.startswith("last/") or name.endswith(".png") for name in plan.left)


def test_the_card_says_what_the_run_found(runs):
    card = ModelCard.load(runs["finetune"] / "README.md")
    evaluation = json.loads((runs["finetune"] / "evaluation.json").read_text())
    shown = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert shown["roc_auc"] == pytest.approx(evaluation["metrics"]["auroc"], rel=1e-3)
    assert evaluation["split_fingerprint"] in card.text
    assert "0 to 44" in card.text
    assert re.search(r"forecast \d\.\d+; last value carried forward", (runs["pretrain"] / "README.md").read_text())


def test_the_cards_example_runs_on_the_upload_where_our_packages_are_missing(runs, tmp_path):
    """And the code of the folder, which is tampered with, goes nowhere."""
    for path in runs["finetune"].glob("*.py"):
        path.write_text("raise RuntimeError('code of the folder')")
    upload = write_upload(plan_push(runs["finetune"]), tmp_path / "mortality")
    (snippet,) = re.findall(r"```python\n(.*?)```", (upload / "README.md").read_text(), re.DOTALL)
    client = Path(remote_client.__file__)
    script = tmp_path / "script.py"
    script.write_text(
        f"import runpy, sys\nclient = runpy.run_path({str(client)!r})\n"
        f"sys.meta_path.insert(0, client['Absent'](client['OURS']))\n{snippet}"
    )
    done = subprocess.run(
        [sys.executable, "-I", script.name],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HYMATE_SCAN_BACKEND": "chunked"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\{'survived': 0\.\d+, 'died': 0\.\d+\}", done.stdout)
