"""The state of a run that is not over, from which it continues exactly: safetensors and JSON, never a pickle.

    state/current                   names the latest complete state and the SHA-256 of its state.json
    state/000007/state.json         options, progress, what of optimizer and scheduler are numbers; the SHA-256 of:
    state/000007/tensors.safetensors    weights, their moving average, the optimizer's averages
    state/000007/random-0.json          random generators of process 0, and so on

A state goes into a new folder and is flushed to the disk, then `current` is replaced in one step, and only then are
older states deleted. So whenever a process is killed, `current` names a complete state, or there is none yet.
"""

import base64
import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from hymate_training.files import write_json, writing_file
from hymate_training.fitting.sharding import gather, share_out

STATE_FOLDER = "state"
POINTER = "current"
NOT_COMPARED = ("save_steps", "report_to", "dataloader_num_workers")  # options that change nothing about the weights


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs that are over.
        batches_seen: batches of the current epoch, in this process.
        epoch_steps: optimizer steps of the current epoch.
        epoch_loss: sum of their losses.
        step: optimizer steps of the run.
        best_score: largest selection score so far.
        best_step: when it was reached.
        epochs_without_improvement: epochs since then.
        history: metrics of each epoch.
    """

    epoch: int = 0
    batches_seen: int = 0
    epoch_steps: int = 0
    epoch_loss: float = 0.0
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    epochs_without_improvement: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RunState:
    """Everything that changes while a model is trained, to be saved and restored."""

    accelerator: Accelerator
    model: nn.Module
    average: AveragedModel | None
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    progress: Progress

    def save(self, output: Path, account: dict[str, Any]) -> None:
        """Saves the state of the run in `output`; the previous state stays until this one is complete.

        Args:
            output: the run's folder.
            account: what must be the same when the run is resumed.
        """
        accelerator = self.accelerator
        folder = output / STATE_FOLDER / _next_name(output / STATE_FOLDER)
        accelerator.wait_for_everyone()  # everyone has seen which names are taken
        if accelerator.is_main_process:
            folder.mkdir(parents=True)
        accelerator.wait_for_everyone()
        write_json(folder / _random_file(accelerator.process_index), _random_state(accelerator.device))
        optimizer = self.optimizer.state_dict()
        tensors = gather(self._tensors(optimizer), torch.device("cpu"), keep=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with writing_file(folder / "tensors.safetensors") as incoming:
                save_file(tensors, incoming)
            self._save_numbers(folder, account, optimizer)
            _point_to(folder)
        accelerator.wait_for_everyone()

    def load(self, output: Path, account: dict[str, Any]) -> None:
        """Restores the state of the interrupted run in `output`.

        Raises:
            ValueError: if the run had other options or other data, naming the first; if a file of the state is
                missing or damaged.
        """
        folder, content = _read_state(output)
        check_account(content["account"], account, output)
        tensors = load_file(folder / "tensors.safetensors")
        _load_weights(self.model, _part(tensors, "model"))
        if self.average is not None:
            _load_weights(self.average, _part(tensors, "average"))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        averages: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer").items():
            index, key = name.split(".", 1)
            parameter = parameters[int(index)]
            own = share_out(tensor, parameter) if tensor.shape == parameter.shape else tensor
            averages.setdefault(int(index), {})[key] = own
        groups = [{**group, "betas": tuple(group["betas"])} for group in content["optimizer"]]
        self.optimizer.load_state_dict({"state": averages, "param_groups": groups})
        self.scheduler.load_state_dict(content["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        vars(self.progress).update(content["progress"])
        random_file = folder / _random_file(self.accelerator.process_index)
        _restore_random_state(json.loads(random_file.read_text(encoding="utf-8")), self.accelerator.device)

    def _tensors(self, optimizer: dict[str, Any]) -> dict[str, torch.Tensor]:
        """All tensors of the state, by the names they are saved under."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, averages in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in averages.items()}
        return tensors

    def _save_numbers(self, folder: Path, account: dict[str, Any], optimizer: dict[str, Any]) -> None:
        scaler = self.accelerator.scaler
        content = {
            "account": account,
            "progress": asdict(self.progress),
            "optimizer": optimizer["param_groups"],
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "sha256": {path.name: _digest(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / "state.json", content)


def has_state(output: Path) -> bool:
    """Whether a run in `output` was interrupted after it had saved a state."""
    return (output / STATE_FOLDER / POINTER).is_file()


def check_account(saved: dict[str, Any], account: dict[str, Any], output: Path) -> None:
    """Raises ValueError if the run in `output` had other options or other data, naming the first."""
    for name, value in account.items():
        if name not in NOT_COMPARED and saved.get(name) != value:
            raise ValueError(
                f"--resume: {name} was {saved.get(name)!r} in the run that {output} holds, and is {value!r} now"
            )


def remove_state(output: Path) -> None:
    """Removes the training state of a run whose results are all there."""
    (output / STATE_FOLDER / POINTER).unlink(missing_ok=True)  # first, so that it never names half a state
    shutil.rmtree(output / STATE_FOLDER, ignore_errors=True)


def _next_name(folder: Path) -> str:
    taken = [int(path.name) for path in folder.glob("*") if re.fullmatch(r"\d{6}", path.name)]
    return f"{max(taken, default=0) + 1:06d}"


def _point_to(folder: Path) -> None:
    """Makes `folder` the current state and deletes the others."""
    write_json(folder.with_name(POINTER), {"state": folder.name, "sha256": _digest(folder / "state.json")})
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _read_state(output: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the current state and what its state.json holds, all of its files verified."""
    pointer = output / STATE_FOLDER / POINTER
    try:
        found = json.loads(pointer.read_text(encoding="utf-8"))
        name, expected = str(found["state"]), {"state.json": found["sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{pointer} does not name a saved state: {error!r}") from error
    if not re.fullmatch(r"\d{6}", name):
        raise ValueError(f"{pointer} does not name a saved state, but {name!r}")
    folder = pointer.with_name(name)
    _verify(folder, expected)
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    _verify(folder, content["sha256"])
    return folder, content


def _verify(folder: Path, expected: dict[str, str]) -> None:
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file() or _digest(path) != digest:
            state = "damaged" if path.is_file() else "missing"
            raise ValueError(f"--resume: {path} is {state}; the run cannot continue exactly. Start it anew elsewhere")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_weights(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    held = model.state_dict()
    model.load_state_dict({name: share_out(tensor, held.get(name, tensor)) for name, tensor in tensors.items()})


def _part(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _random_file(rank: int) -> str:
    return f"random-{rank}.json"


def _random_state(device: torch.device) -> dict[str, Any]:
    """States of all random generators of this process, as JSON can hold them."""
    numbers: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one's
    words = numbers["state"] | {"key": numbers["state"]["key"].tolist()}
    return {
        "python": random.getstate(),
        "numpy": numbers | {"state": words},
        **{kind: base64.b64encode(get().numpy().tobytes()).decode() for kind, get, _ in _torch_generators(device)},
    }


def _restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state(state["numpy"] | {"state": state["numpy"]["state"] | {"key": keys}})  # noqa: NPY002 - as above
    for kind, _, set_ in _torch_generators(device):
        set_(torch.frombuffer(bytearray(base64.b64decode(state[kind])), dtype=torch.uint8))


def _torch_generators(device: torch.device) -> Iterator[tuple]:
    yield "torch", torch.get_rng_state, torch.set_rng_state
    if device.type != "cpu":
        module = torch.get_device_module(device)
        yield device.type, module.get_rng_state, module.set_rng_state
