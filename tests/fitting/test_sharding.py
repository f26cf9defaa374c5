"""Training whose weights are shared out to processes (FSDP2): two processes on a CPU, launched as the docs say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from hymate_training.cli.main import main
from hymate_training.fitting.auxiliary import AuxiliaryModel
from hymate_training.fitting.loop import start
from hymate_training.fitting.options import LoopOptions
from hymate_training.fitting.sharding import configure_sharding, name_layers
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import tiny_config
from tests.support.runs import TASK, TINY_MODEL, assert_same_weights, weights

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "examples" / "accelerate"
FINETUNE = ["finetune", "--task", TASK, "--epochs", "2", "--ema-decay", "0.9", "--auxiliary-tasks", "length_of_stay"]
PRETRAIN = ["pretrain", "--recipe", "large", "--epochs", "2", "--warmup-steps", "1", "--learning-rate", "1e-3"]
EXACT = ["--variable-dropout", "0"]  # and no dropout, which processes draw apart


def model(**fields) -> list[str]:
    return ["--model", *(f"{name}={value}" for name, value in {**TINY_MODEL, **fields}.items())]


WITHOUT_DROPOUT = model(hidden_dropout=0, attention_dropout=0)


@pytest.fixture(scope="module")
def runs(synthetic_folder, tmp_path_factory) -> Path:
    """The folder of all runs of two processes: `equal` and `large` are compared with one process; `whole` with
    `stopped`, which is broken off in its second epoch after a saved step and resumed."""
    folder = tmp_path_factory.mktemp("sharded")
    data = ["--data", str(synthetic_folder)]
    exact = [*data, *EXACT, *WITHOUT_DROPOUT, "--batch-size"]
    resumable = [*FINETUNE, *data, *model(), "--batch-size", "14", "--save-steps", "3", "--output"]
    stopped = str(folder / "stopped")
    listed = [
        {
            "arguments": [
                *FINETUNE,
                "--gradient-accumulation-steps",
                "2",
                *exact,
                "7",
                "--output",
                str(folder / "equal"),
            ]
        },
        {"arguments": [*PRETRAIN, *exact, "14", "--output", str(folder / "large")]},
        {"arguments": [*resumable, str(folder / "whole")]},
        {"arguments": [*resumable, stopped], "stop_after": 8},
        {"arguments": [*resumable, stopped, "--resume"]},
    ]
    (folder / "runs.json").write_text(json.dumps(listed))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGURATIONS / "fsdp2.yaml"]
    command += ["--num_processes", "2", "--main_process_port", "0", "tests/support/sharded.py", folder / "runs.json"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "training")])
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


def history(run: Path) -> list[dict]:
    account = json.loads((run / "training_run.json").read_text())
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in account["history"]]


def assert_close_runs(one: Path, other: Path, tolerance: float) -> None:
    """Asserts that two runs have the same curves, and checkpoints of the same files, names, shapes and types."""
    for first, second in zip(history(one), history(other), strict=True):
        assert first == pytest.approx(second, abs=tolerance)
    for place in (".", "last"):
        found, expected = weights(one / place), weights(other / place)
        assert {path.name for path in (one / place).iterdir()} == {path.name for path in (other / place).iterdir()}
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            torch.testing.assert_close(found[name], tensor, atol=10 * tolerance, rtol=0, msg=name)


def one_process(arguments: list[str], data: Path, output: Path) -> Path:
    assert main([*arguments, "--data", str(data), *EXACT, *WITHOUT_DROPOUT, "--output", str(output)]) == 0
    return output


@pytest.mark.timeout(600)
def test_sharded_training_equals_one_process(runs, synthetic_folder, tmp_path):
    """Accumulated gradients, a moving average, auxiliary heads: the curve within 1e-5."""
    arguments = [*FINETUNE, "--batch-size", "7", "--gradient-accumulation-steps", "4"]
    assert_close_runs(runs / "equal", one_process(arguments, synthetic_folder, tmp_path / "run"), 1e-5)
    account = json.loads((runs / "equal" / "training_run.json").read_text())
    assert account["hardware"]["processes"] == 2
    assert account["parameters"] == sum(tensor.numel() for tensor in weights(runs / "equal").values())


@pytest.mark.timeout(600)
def test_large_models_recipe_equals_one_process(runs, synthetic_folder, tmp_path):
    """bfloat16 with checkpointed activations. Decay rates that were gathered in bfloat16 would give another loss."""
    arguments = [*PRETRAIN, "--batch-size", "14", "--gradient-accumulation-steps", "2"]
    assert_close_runs(runs / "large", one_process(arguments, synthetic_folder, tmp_path / "run"), 1e-3)
    assert all(tensor.dtype == torch.float32 for tensor in weights(runs / "large").values())


@pytest.mark.timeout(600)
def test_a_sharded_run_resumes_exactly(runs):
    assert_same_weights(runs / "whole", runs / "stopped")
    assert_same_weights(runs / "whole" / "last", runs / "stopped" / "last")
    assert history(runs / "whole") == history(runs / "stopped")


@pytest.mark.timeout(600)
def test_transformers_shards_by_the_models_plan(runs):
    found = json.loads((runs / "plan.json").read_text())
    assert found["losses"][0] == pytest.approx(found["losses"][1], abs=1e-6)
    assert found["gradient_error"] < 1e-6
    assert {"FSDPHyMaTEMambaLayer", "FSDPHyMaTEAttentionLayer"} <= set(found["sharded"])


def launched(name: str, prepare, monkeypatch) -> None:
    """The environment that `accelerate launch` makes of an example."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGURATIONS / name), "script.py"])
    arguments, *_ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ""  # as the command sets it, which hands on no more than these
    for variable, value in prepare(arguments).items():
        monkeypatch.setenv(variable, value)


def test_the_example_of_fsdp_is_accepted(monkeypatch):
    launched("fsdp2.yaml", prepare_multi_gpu_env, monkeypatch)
    accelerator = stand_in()
    configure_sharding(accelerator)
    for fields in ({}, {"num_attention_layers": 0}):
        plugin = accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        wrapped = AuxiliaryModel(HyMaTEForSequenceClassification(tiny_config(**fields)), torch.ones(1).numpy(), 1.0)
        name_layers(accelerator, wrapped)
        plugin.set_auto_wrap_policy(wrapped)
        expected = {"HyMaTEMambaLayer"} | (set() if fields else {"HyMaTEAttentionLayer"})
        assert {layer.__name__ for layer in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} == expected


def stand_in(mixed_precision: str = "no", kind: DistributedType = DistributedType.FSDP, **options) -> SimpleNamespace:
    """What `configure_sharding` looks at of an Accelerator; `options` are those of FSDP."""
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**options), dynamo_plugin=TorchDynamoPlugin())
    place = {"device": torch.device("cpu"), "num_processes": 2, "distributed_type": kind}
    return SimpleNamespace(state=state, mixed_precision=mixed_precision, **place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_version must be 2"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading must be false"),
        ({"cpu_offload": True}, "fsdp_offload_params must be false"),
        ({"activation_checkpointing": True}, "use --gradient-checkpointing"),
        ({"ignored_modules": "hymate.fusion"}, "fsdp_ignored_modules must be left out"),
        ({"mixed_precision": "fp16"}, "mixed_precision must be bf16 or no"),
        ({"kind": DistributedType.MULTI_CPU}, "on GPUs alone; here it found 2 on cpu"),
    ],
)
def test_what_sharding_refuses(options, message, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which the plugin sets for transformers
    accelerator = stand_in(**{"fsdp_version": 2, **options})
    configure_sharding(accelerator)  # nobody asked for FSDP
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=message):
        configure_sharding(accelerator)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed trains HyMaTE with transformers' Trainer only"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "leave parallelism_config out"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "give --mixed-precision bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "give --gradient-accumulation-steps"),
        ("ACCELERATE_USE_FSDP", "true", "here it found 1 on"),
    ],
)
def test_what_a_launcher_may_not_ask_for(variable, value, message, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        start(LoopOptions(), tmp_path)


def test_a_launchers_precision_may_be_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start(LoopOptions(mixed_precision="bf16"), tmp_path).mixed_precision == "bf16"


def test_the_example_of_deepspeed_is_understood(monkeypatch):
    """As far as Accelerate reads it; training with it needs DeepSpeed and GPUs."""
    launched("deepspeed.yaml", lambda arguments: prepare_deepspeed_cmd_env(arguments)[1], monkeypatch)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 2
    assert plugin.deepspeed_config["zero_optimization"]["stage"] == 2
