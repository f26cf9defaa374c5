"""What pretraining and fine-tuning share around the loop: their folder, their configuration, their account."""

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from hymate_training.data.examples import ExampleDataset
from hymate_training.data.schema import DatasetInfo
from hymate_training.files import locked, write_json
from hymate_training.fitting.loop import from_main
from hymate_training.fitting.options import LoopOptions
from hymate_training.fitting.state import STATE_FOLDER, Progress, check_account, has_state, remove_state
from hymate_training.inference.checkpoints import EXPORT_FILE, RUN_FILE
from hymate_training.publishing.cards import write_model_card
from hymate_training.versions import installed_versions
from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor

PACKAGES = ("hymate", "torch", "transformers", "accelerate", "datasets", "numpy")
DEBRIS = {STATE_FOLDER, "logs"}  # what a run leaves that was killed before it had any result


@contextmanager
def run_folder(accelerator: Accelerator, output: Path, resume: bool) -> Iterator[bool]:
    """The folder of a run, kept to it while the block runs; see `prepare_output`, whose answer every process gets.

    Raises:
        ValueError: also if another run is writing to it.
    """
    with locked(output) if accelerator.is_main_process else nullcontext():
        yield from_main(accelerator, partial(prepare_output, output, resume))


def prepare_output(output: Path, resume: bool) -> bool:
    """Makes the folder of a run, or finds that of an interrupted one.

    Args:
        output: a new or empty folder, or with `resume` that of an interrupted run.
        resume: continue what is there.

    Returns:
        Whether there is a saved state to continue from; a run that was killed before its first begins anew.

    Raises:
        ValueError: if the folder holds something else.
    """
    unfinished = (output / STATE_FOLDER).is_dir()
    if resume and not unfinished:
        raise ValueError(f"--resume: {output} holds no interrupted run ({STATE_FOLDER}/)")
    if not resume and output.exists():
        if not output.is_dir():
            raise ValueError(f"{output} is not a folder")
        held = {path.name for path in output.iterdir()}
        if has_state(output) or not held <= DEBRIS or (held and not unfinished):
            hint = "; --resume continues the run in it" if unfinished else ""
            raise ValueError(f"{output} exists and is not empty: choose another --output{hint}")
        shutil.rmtree(output / STATE_FOLDER, ignore_errors=True)
    (output / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    for path in output.glob(".*.incoming-*"):  # what a process left that was killed while it wrote
        path.unlink()
    return resume and has_state(output)


def finished_run(output: Path, options: LoopOptions, task: str | None = None) -> dict[str, Any] | None:
    """The account of a run in `output` that is over, what its last moment left behind cleared away; None otherwise.

    Raises:
        ValueError: if it had other options or another task.
    """
    if has_state(output) or not (output / RUN_FILE).is_file():
        return None
    account = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    had = {"task": (account.get("task") or {}).get("name"), **account.get("recipe", {})}
    check_account(had, {"task": task, **asdict(options)}, output)
    remove_state(output)
    return account


def finish(output: Path, account: dict[str, Any], info: DatasetInfo) -> None:
    """Ends a run: leaves its account, the card made from it and how its data were read, and nothing to resume."""
    read = {key: info.extra[key] for key in ("layout", "concepts") if key in info.extra}
    if "concepts" in read:  # what no concept means is the hospital's own
        read["concepts"] = {key: read["concepts"][key] for key in ("vocabulary", "map")}
    if read:
        write_json(output / EXPORT_FILE, read)
    write_json(output / RUN_FILE, account)
    write_model_card(output)
    remove_state(output)


def make_config(extractor: HyMaTEFeatureExtractor, fields: dict[str, Any]) -> HyMaTEConfig:
    """A configuration for the extractor's variables and static features.

    Raises:
        ValueError: for fields that HyMaTEConfig does not have, or values it refuses.
    """
    sizes = {
        "num_variables": extractor.num_variables,
        "num_static_features": len(extractor.static_feature_names),
        "time_scale": extractor.time_scale,
    }
    for name in fields:
        if name in sizes:
            raise ValueError(f"model options: {name} follows from the data and cannot be set")
        if not hasattr(HyMaTEConfig(), name) or isinstance(getattr(HyMaTEConfig, name, None), property):
            raise ValueError(f"HyMaTEConfig has no field {name!r} to be set")
    try:
        return HyMaTEConfig(**sizes, **fields)
    except StrictDataclassError as error:
        raise ValueError(f"model options: {error}") from error


def describe_run(
    accelerator: Accelerator, model: PreTrainedModel, options: LoopOptions, progress: Progress
) -> dict[str, Any]:
    """What a model card says about how a model came about."""
    return {
        "recipe": asdict(options),
        "seed": options.seed,
        "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)},
        "hardware": {
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": progress.epoch,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "history": progress.history,
    }


def describe_source(info: DatasetInfo) -> dict[str, Any]:
    """What a model card says about where data come from."""
    return {
        "source": info.source,
        "license": info.license,
        "citation": info.citation,
        "description": info.extra.get("description"),
        "split_description": info.split_description,
        "dropped": info.dropped,
    }


def describe_data(
    info: DatasetInfo,
    split_fingerprints: Mapping[str, str],
    extractor: HyMaTEFeatureExtractor,
    datasets: Mapping[str, ExampleDataset],
) -> dict[str, Any]:
    """What a model card says about the data a model was trained on."""
    return {
        "data": describe_source(info),
        "split_fingerprints": dict(split_fingerprints),
        "num_records": {split: len(set(dataset.rows.tolist())) for split, dataset in datasets.items()},
        "num_examples": {split: len(dataset) for split, dataset in datasets.items()},
        "preprocessing": {
            "num_variables": extractor.num_variables,
            "num_logarithmic": sum(median is not None for median in extractor.value_medians),
            "static_features": extractor.static_feature_names,
            "time_scale_hours": extractor.time_scale,
        },
    }
