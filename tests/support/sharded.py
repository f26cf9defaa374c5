"""`hymate` in processes on CPUs that share out a model, which PyTorch can do and Accelerate leaves to GPUs.

    accelerate launch --config_file ... tests/support/sharded.py runs.json

The file lists runs, one after the other, each with the `arguments` of the command and, where it is to be broken off
without a word, the number of steps to `stop_after`. Beside it, `plan.json` says how a model that transformers shards
by `base_model_fsdp_plan` compares with a whole one.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from hymate_training.cli.main import main
from hymate_training.files import write_json
from hymate_training.fitting.loop import TrainingLoop
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import random_batch, tiny_config


class StoppedError(Exception):
    """As if all processes had been killed."""


def shard_on_cpus() -> None:
    original = AcceleratorState.__init__

    def initialize(self, *args, fsdp_plugin=None, **options):
        original(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)

    AcceleratorState.__init__ = initialize


def run(arguments: list[str], stop_after: int | None = None) -> None:
    original = TrainingLoop._step

    def step(self, *args):
        original(self, *args)
        if self.progress.step == stop_after:
            raise StoppedError

    TrainingLoop._step = step
    try:
        if main(arguments):
            raise SystemExit(f"hymate {' '.join(arguments)} failed")
    except StoppedError:
        pass
    finally:
        TrainingLoop._step = original


def compare_plan(folder: Path) -> None:
    from transformers.distributed import DistributedConfig  # noqa: PLC0415 - newer than the oldest that we allow

    config = tiny_config(num_labels=2, hidden_dropout=0.0, attention_dropout=0.0)
    if torch.distributed.get_rank() == 0:
        torch.manual_seed(0)
        HyMaTEForSequenceClassification(config).save_pretrained(folder / "model")
    torch.distributed.barrier()
    sharding = DistributedConfig(fsdp_size=torch.distributed.get_world_size())
    whole = HyMaTEForSequenceClassification.from_pretrained(folder / "model")
    sharded = HyMaTEForSequenceClassification.from_pretrained(folder / "model", distributed_config=sharding)
    batch = random_batch(config) | {"labels": torch.tensor([0, 1, 1])}
    losses = [model(**batch).loss for model in (whole, sharded)]
    for loss in losses:
        loss.backward()
    errors = [
        float((shard.grad.full_tensor() - parameter.grad).abs().max())
        for parameter, shard in zip(whole.parameters(), sharded.parameters(), strict=True)
    ]
    layers = [type(module).__name__ for module in sharded.modules() if type(module).__name__.startswith("FSDP")]
    found = {"losses": [loss.item() for loss in losses], "gradient_error": max(errors), "sharded": layers}
    if torch.distributed.get_rank() == 0:
        write_json(folder / "plan.json", found)


if __name__ == "__main__":
    shard_on_cpus()
    Accelerator.end_training = lambda self: None  # it would part the processes after the first run
    listed = Path(sys.argv[1])
    for kwargs in json.loads(listed.read_text()):
        run(**kwargs)
    compare_plan(listed.parent)
