"""The one training loop, on Accelerate: any model whose forward returns a loss, any data set of examples."""

import json
import logging
import math
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler

from hymate_training.cli.options import option
from hymate_training.data.collation import ExampleDataset
from hymate_training.files import replace_folder

logger = logging.getLogger(__name__)

STATE_FOLDER = "state"  # of a run that is not over: optimizer, random states, progress
OPTIONS_FILE = "options.json"  # in the state
LAST_FOLDER = "last"  # checkpoint of a run that is over, as the last epoch left it
RUN_FILE = "training_run.json"
MEGA_BATCH = 32  # batches whose examples are sorted by length together


@dataclass
class LoopOptions:
    """Hyper-parameters of the loop, shared by pretraining and fine-tuning."""

    epochs: int = option(20, "passes over the training data")
    batch_size: int = option(32, "examples a step and process")
    gradient_accumulation_steps: int = option(1, "batches that make up one optimizer step")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    weight_decay: float = option(0.01, "weight decay of matrices; vectors, decay rates and embeddings have none")
    warmup_steps: int = option(100, "optimizer steps over which the learning rate rises")
    schedule: str = option("cosine", "learning rate after warm-up: cosine, linear or constant_with_warmup")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    ema_decay: float = option(0.0, "decay of the averaged weights that are validated and saved; 0 turns averaging off")
    patience: int = option(10, "epochs without improvement before stopping early")
    variable_dropout: float = option(0.2, "share of a record's variables left out in training, as augmentation")
    event_dropout: float = option(
        0.0, "a share of each record's events, drawn between 0 and this, is left out in training, as augmentation"
    )
    max_events: int | None = option(None, "keep the latest events of longer records")
    examples_per_record: int | None = option(None, "draw at most so many of a record's examples for each epoch")
    mixed_precision: str = option("no", "no, bf16 or fp16")
    seed: int = option(0, "of initialization, order of the examples, dropout and augmentation")
    save_steps: int | None = option(None, "save the training state every so many steps, besides every epoch")
    report_to: str | None = option(None, "tracker: tensorboard, wandb or trackio")
    model: dict = option({}, "fields of HyMaTEConfig")  # noqa: RUF009 - makes a field with a factory

    def __post_init__(self):
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "patience", "examples_per_record"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("ema_decay", "variable_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.event_dropout <= 1:
            raise ValueError(f"event_dropout must lie in [0, 1], got {self.event_dropout}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        choices = {
            "mixed_precision": ("no", "bf16", "fp16"),
            "schedule": ("cosine", "linear", "constant_with_warmup"),
            "report_to": (None, "tensorboard", "wandb", "trackio"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


@dataclass
class Progress:
    """Where a run stands; saved and restored with the training state."""

    epoch: int = 0
    batches_seen: int = 0  # of the current epoch, in this process
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    epochs_without_improvement: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]):
        vars(self).update(state)


class InterruptedRunError(KeyboardInterrupt):
    """A signal asked the run to stop; its state is saved."""


def start(options: LoopOptions, output: Path) -> Accelerator:
    """The Accelerator of a run, with all random states seeded.

    Raises:
        ValueError: if the tracker that `options.report_to` names is not installed.
    """
    if options.report_to:
        package = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}[options.report_to]
        try:
            version(package)
        except PackageNotFoundError:
            raise ValueError(f"report_to={options.report_to!r}: pip install {package}") from None
    AcceleratorState._reset_state()  # of an earlier run in this process, whose precision may differ
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        log_with=options.report_to,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
    )
    set_seed(options.seed)
    return accelerator


def prepare_output(output: Path, resume: bool):
    """Checks that a run may write to `output`: a new folder, or with `resume` that of an interrupted run.

    Raises:
        ValueError: if the folder holds something else.
    """
    has_state = (output / STATE_FOLDER).is_dir()
    if resume and not has_state:
        raise ValueError(f"--resume: {output} holds no interrupted run ({STATE_FOLDER}/)")
    if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
        hint = "; --resume continues the run in it" if has_state else ""
        raise ValueError(f"{output} exists and is not empty: choose another --output{hint}")
    output.mkdir(parents=True, exist_ok=True)


def train(
    accelerator: Accelerator,
    model: PreTrainedModel,
    dataset: ExampleDataset,
    collator: Callable,
    validate: Callable[..., dict[str, float]],
    save: Callable[..., None],
    options: LoopOptions,
    output: Path,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
) -> Progress:
    """Trains until the epochs are over or `validate` stops improving; leaves the best weights in `output`.

    Args:
        accelerator: of `start`.
        model: returns an output with `loss`.
        dataset: training examples.
        collator: turns a batch of them into the model's arguments.
        validate: returns figures, among them `score`, of which more is better. Called in every process.
        save: writes a complete checkpoint into a folder; called in the main process.
        options: hyper-parameters.
        output: the run's folder: the best checkpoint, in `state/` what `resume` needs, and once it is over the last
            checkpoint in `last/`. The caller ends with `finish`.
        resume: continue the run whose state lies in `output`, exactly where it stopped.
        identity: what else must be the same for that, such as a fingerprint of the data.

    Returns:
        The run's progress, with its history.

    Raises:
        InterruptedRunError: after SIGINT or SIGTERM, once the state is saved.
    """
    loader = EpochLoader(dataset, collator, options, accelerator)
    optimizer = torch.optim.AdamW(parameter_groups(model, options.weight_decay), lr=options.learning_rate)
    steps_per_epoch = math.ceil(len(loader) / options.gradient_accumulation_steps)
    total_steps = steps_per_epoch * options.epochs
    scheduler = get_scheduler(options.schedule, optimizer, min(options.warmup_steps, total_steps // 2), total_steps)
    trained = model.to(accelerator.device)
    averaged = None
    if options.ema_decay:
        averaged = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay), use_buffers=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress()
    account = {**(identity or {}), **asdict(options)}
    for stateful in (scheduler, progress, *([averaged] if averaged else [])):
        accelerator.register_for_checkpointing(stateful)
    if resume:
        check_account(account, output)
        accelerator.load_state(str(output / STATE_FOLDER))
    if options.report_to:
        accelerator.init_trackers("hymate", config=tracked_options(options))

    def validate_and_keep() -> dict[str, float]:
        candidate = averaged.module if averaged else trained
        candidate.eval()
        figures = validate(candidate)
        if progress.best_score is None or figures["score"] > progress.best_score:
            progress.best_score, progress.best_step = figures["score"], progress.step
            progress.epochs_without_improvement = 0
            if accelerator.is_main_process:
                write_checkpoint(candidate, save, output)
        else:
            progress.epochs_without_improvement += 1
        return figures

    with stop_signals() as stop:
        while progress.epoch < options.epochs and progress.epochs_without_improvement < options.patience:
            started = time.perf_counter()
            losses = []
            bar = tqdm(
                total=len(loader),
                initial=progress.batches_seen,
                desc=f"epoch {progress.epoch + 1}/{options.epochs}",
                unit="batch",
                disable=not accelerator.is_main_process,
                leave=False,
            )
            model.train()
            examples = 0
            for batches in loader.steps(progress.epoch, progress.batches_seen):
                loss = _step(accelerator, model, optimizer, batches, options)
                if not accelerator.optimizer_step_was_skipped:
                    scheduler.step()
                if averaged:
                    averaged.update_parameters(trained)
                progress.step += 1
                progress.batches_seen += len(batches)
                losses.append(loss)
                examples += sum(len(batch["values"]) for batch in batches) * accelerator.num_processes
                bar.update(len(batches))
                bar.set_postfix(
                    loss=f"{np.mean(losses[-50:]):.4f}",
                    examples_per_second=f"{examples / (time.perf_counter() - started):.0f}",
                )
                if options.report_to:
                    accelerator.log(
                        {"train/loss": loss, "train/learning_rate": scheduler.get_last_lr()[0]}, progress.step
                    )
                if stop.requested:
                    bar.close()
                    save_state(accelerator, output, account)
                    raise InterruptedRunError(f"stopped at step {progress.step}; --resume continues")
                if options.save_steps and progress.step % options.save_steps == 0:
                    save_state(accelerator, output, account)
            bar.close()
            seconds = time.perf_counter() - started
            figures = validate_and_keep()
            progress.epoch += 1
            progress.batches_seen = 0
            entry = {
                "epoch": progress.epoch,
                "step": progress.step,
                "train_loss": float(np.mean(losses)) if losses else None,
                "seconds": round(seconds, 2),
                **figures,
            }
            progress.history.append(entry)
            shown = {name: round(value, 4) for name, value in entry.items() if isinstance(value, float)}
            if accelerator.is_main_process:
                tqdm.write(f"epoch {progress.epoch}: {json.dumps(shown)}", file=sys.stderr)
            if options.report_to:
                accelerator.log({f"validation/{name}": value for name, value in figures.items()}, progress.step)
            save_state(accelerator, output, account)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_checkpoint(averaged.module if averaged else trained, save, output / LAST_FOLDER)
    # without freeing first, processes at times hang here
    accelerator.free_memory()
    accelerator.end_training()
    return progress


def tracked_options(options: LoopOptions) -> dict[str, Any]:
    """The options in the flat form that trackers take."""
    flat = {name: value for name, value in asdict(options).items() if name != "model"}
    flat |= {f"model.{name}": value for name, value in options.model.items()}
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in flat.items()}


def _step(accelerator, model, optimizer, batches, options) -> float:
    """One optimizer step over `batches`, each weighted by its number of examples, so that the gradient is that of
    one large batch."""
    sizes = [len(batch["values"]) for batch in batches]
    total = 0.0
    for position, batch in enumerate(batches):
        arguments = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        last = position == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            loss = model(**arguments).loss * (sizes[position] / sum(sizes))
            accelerator.backward(loss)
        total += float(loss.detach())
    if not math.isfinite(total):
        raise ValueError(
            "the training loss is not finite: lower learning_rate, or use mixed_precision bf16 in place of fp16"
        )
    accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


class EpochLoader:
    """Batches of similar lengths in an order that depends on the seed and the epoch alone, shared out to processes.

    Every process gets the same number of batches, so that none waits for another; what does not divide evenly is
    made up for with the epoch's first batches.
    """

    def __init__(self, dataset: ExampleDataset, collator: Callable, options: LoopOptions, accelerator: Accelerator):
        self.dataset = dataset
        self.collator = collator
        self.options = options
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        if not len(dataset):
            raise ValueError("the training data holds no example")

    def __len__(self) -> int:
        size = len(self._examples(np.random.default_rng(0)))
        return math.ceil(math.ceil(size / self.options.batch_size) / self.world)

    def _examples(self, rng: np.random.Generator) -> np.ndarray:
        """The examples of an epoch in random order, of each record at most `options.examples_per_record`."""
        order = rng.permutation(len(self.dataset))
        most = self.options.examples_per_record
        if most is None:
            return order
        rows = self.dataset.rows[order]
        grouped = np.argsort(rows, kind="stable")
        starts = np.flatnonzero(np.diff(rows[grouped], prepend=-1))
        rank = np.empty(len(order), dtype=np.int64)
        rank[grouped] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        return order[rank < most]

    def batches(self, epoch: int) -> list[list[int]]:
        """Indices of the examples of each of this process's batches."""
        rng = np.random.default_rng([self.options.seed, epoch])
        lengths, size = self.dataset.lengths, self.options.batch_size
        order = self._examples(rng)
        blocks = [order[at : at + MEGA_BATCH * size] for at in range(0, len(order), MEGA_BATCH * size)]
        order = np.concatenate([block[np.argsort(lengths[block], kind="stable")] for block in blocks])
        batches = [order[at : at + size].tolist() for at in range(0, len(order), size)]
        batches = [batches[at] for at in rng.permutation(len(batches))]
        shared = [batches[at % len(batches)] for at in range(len(self) * self.world)]
        return shared[self.rank :: self.world]

    def steps(self, epoch: int, batches_seen: int) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The epoch's batches after the first `batches_seen`, in groups that make up one optimizer step."""
        self.dataset.set_epoch(epoch)
        remaining = self.batches(epoch)[batches_seen:]
        group = []
        loader = DataLoader(
            self.dataset,
            batch_sampler=remaining,
            collate_fn=self.collator,
            generator=torch.Generator(),  # it draws a number, which must not come from the one behind dropout
        )
        for position, batch in enumerate(loader, start=1):
            group.append(batch)
            if len(group) == self.options.gradient_accumulation_steps or position == len(remaining):
                yield group
                group = []


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay (matrices) and without (vectors, decay rates, embeddings)."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.dim() >= 2 and id(parameter) not in embeddings and not name.endswith("A_log")
            (decayed if plain else rest).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def write_checkpoint(model: nn.Module, save: Callable[..., None], output: Path):
    """Writes a checkpoint beside its place and moves it there file by file, so that none is ever half-written."""
    incoming = output / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    save(model, incoming)
    for path in sorted(incoming.iterdir()):
        os.replace(path, output / path.name)
    incoming.rmdir()


def write_json(path: Path, content: Any):
    """Writes JSON under a temporary name and renames it."""
    incoming = path.with_name(f".{path.name}.incoming")
    incoming.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(incoming, path)


def check_account(account: dict[str, Any], output: Path):
    """Raises ValueError if the interrupted run in `output` had other options or other data, naming the first."""
    saved = json.loads((output / STATE_FOLDER / OPTIONS_FILE).read_text(encoding="utf-8"))
    for name, value in account.items():
        if name not in ("save_steps", "report_to") and saved.get(name) != value:
            raise ValueError(
                f"--resume: {name} was {saved.get(name)!r} in the run that {output} holds, and is {value!r} now"
            )


def save_state(accelerator: Accelerator, output: Path, account: dict[str, Any]):
    """Saves everything that `resume` needs; the previous state stays until the new one is complete."""
    incoming = output / f".{STATE_FOLDER}.incoming"
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(incoming, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(incoming))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(incoming / OPTIONS_FILE, account)
        replace_folder(incoming, output / STATE_FOLDER)
    accelerator.wait_for_everyone()


def finish(output: Path):
    """Removes the training state of a run whose results all stand."""
    shutil.rmtree(output / STATE_FOLDER, ignore_errors=True)


@dataclass
class StopRequest:
    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request to stop after the current step; a second one stops at once.

    Left alone with several processes: they would stop at different steps. Those resume from their last saved state.
    """
    stop = StopRequest()
    handlers: dict[int, Any] = {}

    def request(number, frame):
        stop.requested = True
        signal.signal(number, handlers[number])

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    try:
        if alone:
            for caught in (signal.SIGINT, signal.SIGTERM):
                handlers[caught] = signal.getsignal(caught)
                signal.signal(caught, request)
    except ValueError:  # not in the main thread, where no handler can be set
        pass
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def gather_predictions(accelerator: Accelerator, indices: np.ndarray, predictions: np.ndarray) -> tuple:
    """Brings every process's share of (indices, predictions) together, in every process."""
    if accelerator.num_processes == 1:
        return indices, predictions
    shares = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(shares, (indices, predictions))
    return tuple(np.concatenate(parts) for parts in zip(*shares, strict=True))


def from_main(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """What `make` returns in the main process, in every process."""
    held = [make() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(held)
    return held[0]


def describe_run(accelerator: Accelerator, model: PreTrainedModel, options: LoopOptions, progress: Progress) -> dict:
    """What a model card says about how a model came about."""
    packages = ("hymate", "torch", "transformers", "accelerate", "datasets", "numpy")
    return {
        "command": " ".join(["hymate", *sys.argv[1:]]),
        "recipe": asdict(options),
        "seed": options.seed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
