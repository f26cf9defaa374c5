"""The examples with the plain `transformers.Trainer` and with peft, on a few simulated stays."""

import json
import sys
from pathlib import Path

import finetune_with_trainer
import lora
import pytest
import torch
from finetune_with_trainer import make_trainer
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.metrics import compute_metrics
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict_examples
from modeling_hymate import HyMaTEForPreTraining, HyMaTEForSequenceClassification
from tests.support.helpers import close, tiny_config
from tests.support.hub_server import OWNER, TOKEN, HubServer

TASK = "in_hospital_mortality"


@pytest.fixture(scope="module")
def extractor(synthetic_folder):
    return fit_feature_extractor(PreparedFolder(synthetic_folder))


@pytest.fixture
def make(synthetic_folder, extractor, tmp_path):
    """`make(**settings)` is a Trainer of the example with an output folder of its own."""

    def trainer(output="run", dropout=0.0, **settings):
        set_seed(0)
        folder = PreparedFolder(synthetic_folder)
        task = folder.info.task(TASK)
        sizes = {"num_variables": extractor.num_variables, "num_static_features": len(extractor.static_feature_names)}
        config = tiny_config(
            **sizes,
            time_scale=extractor.time_scale,
            num_mamba_layers=1,
            hidden_dropout=dropout,
            attention_dropout=dropout,
        )
        model = HyMaTEForSequenceClassification(config)
        return make_trainer(model, extractor, folder, task, tmp_path / output, **{"disable_tqdm": True} | settings)

    return trainer


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step, as they are before it."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})


def test_accumulated_gradients_are_those_of_one_large_batch(make):
    """Also of an epoch's last step, for which fewer batches are left."""
    found = {}
    for size, accumulated in ((56, 1), (14, 4)):
        trainer = make(
            f"by{accumulated}",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            num_train_epochs=1,
            learning_rate=1e-9,  # so that both see the same weights in every step
            max_grad_norm=0.0,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            metric_for_best_model=None,
        )
        trainer.remove_callback(EarlyStoppingCallback)  # it needs evaluation
        found[accumulated] = Gradients()
        trainer.add_callback(found[accumulated])
        assert len(trainer.train_dataset) == 140  # 2 full steps and a half one
        trainer.train()
    assert len(found[1].steps) == len(found[4].steps) == 3
    for large, small in zip(found[1].steps, found[4].steps, strict=True):
        for name, gradient in large.items():
            close(small[name], gradient, 1e-5)


def test_run_resumes_where_it_stopped(make):
    """A run that is broken off after its second epoch and resumed ends with the weights of one that never stopped."""

    class StopAfter(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= 2

    settings = {
        "num_train_epochs": 3,
        "load_best_model_at_end": False,
        "per_device_train_batch_size": 70,
        "dropout": 0.2,
    }
    whole = make("whole", **settings)
    whole.train()
    broken = make("broken", **settings)
    broken.add_callback(StopAfter)
    broken.train()
    assert broken.state.epoch == 2
    resumed = make("broken", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.epoch == 3
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_stops_early_and_keeps_the_best(make, monkeypatch):
    monkeypatch.setattr(finetune_with_trainer, "PATIENCE", 1)
    trainer = make(num_train_epochs=20, learning_rate=1e-12, per_device_train_batch_size=140)
    trainer.train()  # nothing improves at this learning rate
    assert trainer.state.epoch == 2
    scores = [entry["eval_auroc"] for entry in trainer.state.log_history if "eval_auroc" in entry]
    assert trainer.evaluate()["eval_auroc"] == trainer.state.best_metric == max(scores)


def test_script_leaves_a_checkpoint_and_pushes_it(synthetic_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    with HubServer() as hub:
        # huggingface_hub read its environment when it was imported
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        run(
            finetune_with_trainer,
            monkeypatch,
            f"--data {synthetic_folder} --output {output} --epochs 1 --push-to {OWNER}/model --private",
        )
        stored = hub.repo(f"{OWNER}/model")
    assert stored.private
    checkpoint = load_checkpoint(output)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "modeling_hymate.py"):
        assert stored.files()[name] == (output / name).read_bytes(), name
    printed = capsys.readouterr().out
    task = load_task(PreparedFolder(synthetic_folder), TASK, "validation", checkpoint.extractor.variables)
    predicted = predict_examples(checkpoint.model, task, TaskCollator(checkpoint.extractor))
    metrics = compute_metrics(LabeledPredictions("binary", task.labels, predicted.values[:, 1]))
    assert f"'eval_auroc': {metrics['auroc']:.4g}"[:-1] in printed


# peft 0.21 still reads the attribute by the name that it had before transformers renamed it
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_trains_adapters_and_merges_them(synthetic_folder, extractor, tmp_path, monkeypatch, capsys):
    checkpoint, output = tmp_path / "pretrained", tmp_path / "lora"
    sizes = {"num_variables": extractor.num_variables, "num_static_features": len(extractor.static_feature_names)}
    pretrained = HyMaTEForPreTraining(tiny_config(**sizes, time_scale=extractor.time_scale))
    pretrained.save_pretrained(checkpoint)
    extractor.save_pretrained(checkpoint)
    arguments = f"--checkpoint {checkpoint} --data {synthetic_folder} --output {output} --epochs 2 --rank 2"
    run(lora, monkeypatch, arguments)
    assert "trainable%" in capsys.readouterr().out

    adapted = json.loads((output / "adapter_config.json").read_text())
    wrapped = {name.rpartition(".")[2] for name in adapted["target_modules"]}
    assert {"in_proj", "x_proj", "dt_proj", "out_proj"} <= wrapped
    base = HyMaTEForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    reopened = lora.PeftModel.from_pretrained(base, output).eval()
    merged = load_checkpoint(output / "merged").model
    task = load_task(PreparedFolder(synthetic_folder), TASK, "validation", extractor.variables)
    features = TaskCollator(extractor)(task.__getitems__(range(8)))
    with torch.no_grad():
        close(merged(**features).logits, reopened(**features).logits, 1e-5)
    frozen, trained = pretrained.hymate.state_dict(), merged.hymate.state_dict()
    for name in frozen:
        layer = name.split(".")[-2]
        assert torch.equal(frozen[name], trained[name]) == (
            not name.endswith(f"{layer}.weight") or layer not in wrapped
        )


def run(script, monkeypatch, arguments: str):
    monkeypatch.setattr(sys, "argv", [Path(script.__file__).name, *arguments.split()])
    script.main()
