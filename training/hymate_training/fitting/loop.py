"""The one training loop, on Accelerate: any model whose forward returns a loss, any data set of examples."""

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler

from hymate_training.data.collators import prediction_mask
from hymate_training.data.device import on_device
from hymate_training.data.examples import ExampleDataset
from hymate_training.files import writing_file
from hymate_training.fitting.batches import EpochLoader
from hymate_training.fitting.graphs import GraphedPasses
from hymate_training.fitting.options import LoopOptions
from hymate_training.fitting.sharding import (
    assemble,
    check_launcher,
    configure_sharding,
    empty_copy,
    name_layers,
    own_shards,
    share_out_copy,
)
from hymate_training.fitting.state import Progress, RunState

LAST_FOLDER = "last"  # checkpoint of a run that is over, as the last epoch left it


class InterruptedRunError(KeyboardInterrupt):
    """A signal asked the run to stop; its state is saved."""


def start(options: LoopOptions, output: Path) -> Accelerator:
    """The Accelerator of a run, with all random generators seeded.

    Raises:
        ValueError: if the tracker that `options.report_to` names is not installed; if the launcher asks for what the
            loop does not do.
    """
    if options.report_to and find_spec(options.report_to) is None:
        raise ValueError(f"report_to={options.report_to!r}: pip install {options.report_to}")
    check_launcher(options.mixed_precision)
    if options.cuda_graphs and not torch.cuda.is_available():
        raise ValueError("cuda_graphs needs a GPU that PyTorch knows as cuda: leave it out")
    AcceleratorState._reset_state()  # of an earlier run in this process, whose precision may differ
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        log_with=options.report_to,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
    )
    if options.cuda_graphs and accelerator.num_processes > 1:
        raise ValueError("cuda_graphs is for one process: leave it out with several")
    configure_sharding(accelerator)
    set_seed(options.seed)
    return accelerator


@dataclass
class TrainingLoop:
    """Trains until the epochs are over or `validate` stops improving, and keeps the best weights.

    Attributes:
        accelerator: as `start` returns it.
        model: its forward returns an output with `loss`.
        dataset: training examples.
        collator: turns a batch of them into the model's arguments.
        validate: metrics of a model, among them `score`, of which more is better. Called in every process. None: the
            last weights are those that count.
        save: writes a complete checkpoint of a model into a folder. Called in the main process.
        options: hyper-parameters.
        output: the run's folder: the best checkpoint, in `state/` what a resumed run needs, and once the run is over
            the last checkpoint in `last/`.
        identity: what besides the options must be the same when the run is resumed, such as a fingerprint of the data.
        shown: metrics of `validate` that are printed after each epoch, and their titles.
        stop_after: epochs after which training ends, earlier than the schedule, which is made for `options.epochs`.
    """

    accelerator: Accelerator
    model: nn.Module
    dataset: ExampleDataset
    collator: Callable
    validate: Callable[[nn.Module], dict[str, float]] | None
    save: Callable[[nn.Module, Path], None]
    options: LoopOptions
    output: Path
    identity: Mapping[str, Any]
    shown: Mapping[str, str]
    stop_after: int | None = None
    progress: Progress = field(default_factory=Progress, init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.num_epochs = self.stop_after or options.epochs
        self.loader = EpochLoader(self.dataset, self.collator, options, self.accelerator)
        self.model = self.model.to(self.accelerator.device)  # before the optimizer, which keeps its parameters
        groups = parameter_groups(self.model, options.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
        steps = math.ceil(len(self.loader) / options.gradient_accumulation_steps) * options.epochs
        self.scheduler = get_scheduler(options.schedule, optimizer, min(options.warmup_steps, steps // 2), steps)
        if options.gradient_checkpointing:
            checkpoint_activations(self.model)
        self.average = averaged(self.model, options.ema_decay) if options.ema_decay else None
        self.empty = None
        if self.accelerator.is_fsdp2:
            self.empty = empty_copy(self.model)
            name_layers(self.accelerator, self.model)
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        if self.average is not None:
            share_out_copy(self.average.module, self.model)
        self.graphed = GraphedPasses(self._pass, self.accelerator.device) if options.cuda_graphs else None
        self.state = RunState(
            self.accelerator, self.model, self.average, self.optimizer, self.scheduler, self.progress
        )
        self.account = {**self.identity, "processes": self.accelerator.num_processes, **asdict(options)}

    def candidate(self) -> nn.Module:
        """The weights that are validated and saved, whole in every process. All processes call this at once."""
        model = self.average.module if self.average is not None else self.model
        return model if self.empty is None else assemble(self.empty, model, self.accelerator.device)

    def run(self, resume: bool = False) -> Progress:
        """Trains, from the saved state of the run in `output` on where `resume` says so.

        Returns:
            The run's progress, with its history.

        Raises:
            InterruptedRunError: after SIGINT or SIGTERM, once the state is saved.
            ValueError: if the loss is not finite; if the saved state is damaged or that of another run.
        """
        progress, options = self.progress, self.options
        if resume:
            self.state.load(self.output, self.account)
        if options.report_to:
            self.accelerator.init_trackers("hymate", config=tracked_options(options))
        with stop_signals() as stop:
            while progress.epoch < self.num_epochs and progress.epochs_without_improvement < options.patience:
                self._run_epoch(stop)
        self.accelerator.wait_for_everyone()
        last = self.candidate()
        if self.accelerator.is_main_process:
            write_checkpoint(last, self.save, self.output / LAST_FOLDER if self.validate else self.output)
        # without freeing first, processes at times hang here
        self.accelerator.free_memory()
        self.accelerator.end_training()
        return progress

    def _run_epoch(self, stop: "StopRequest") -> None:
        progress = self.progress
        started = time.perf_counter()
        self._train_epoch(stop)
        seconds = time.perf_counter() - started
        metrics = self._validate_and_keep()
        entry = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": progress.epoch_loss / progress.epoch_steps,
            "seconds": round(seconds, 2),
            **metrics,
        }
        progress.history.append(entry)
        progress.epoch += 1
        progress.batches_seen, progress.epoch_steps, progress.epoch_loss = 0, 0, 0.0
        if self.accelerator.is_main_process:
            is_best = progress.best_step == progress.step
            tqdm.write(describe_epoch(entry, self.num_epochs, self.shown, is_best), file=sys.stderr)
        if self.options.report_to:
            tracked = {f"validation/{name}": value for name, value in metrics.items()}
            self.accelerator.log(tracked, progress.step)
        self.state.save(self.output, self.account)

    def _train_epoch(self, stop: "StopRequest") -> None:
        """The steps of what is left of the current epoch."""
        progress, options = self.progress, self.options
        self.prepared.train()
        with tqdm(
            total=len(self.loader),
            initial=progress.batches_seen,
            desc=f"epoch {progress.epoch + 1}/{options.epochs}",
            unit="batch",
            disable=None if self.accelerator.is_main_process else True,
            leave=False,
        ) as bar:
            for batches, weight in self.loader.steps(progress.epoch, progress.batches_seen):
                self._step(batches, weight)
                bar.update(len(batches))
                bar.set_postfix(loss=f"{progress.epoch_loss / progress.epoch_steps:.4f}")
                if stop.requested:
                    self.state.save(self.output, self.account)
                    raise InterruptedRunError(f"stopped at step {progress.step}; --resume continues")
                if options.save_steps and progress.step % options.save_steps == 0:
                    self.state.save(self.output, self.account)

    def _step(self, batches: list[dict[str, torch.Tensor]], weight: float) -> None:
        """One optimizer step over `batches`, each weighted by its number of predictions, so that the gradient is that
        of one large batch, whichever processes share it, times the step's own weight."""
        accelerator = self.accelerator
        sizes = [int(prediction_mask(batch).sum()) for batch in batches]
        share = mean_over_processes(accelerator, float(sum(sizes)))
        losses = []
        for position, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            of_batch = weight * size / share
            last = position == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.prepared):
                if self.graphed is not None:
                    losses.append(self.graphed(batch, of_batch))
                else:
                    losses.append(self._pass(on_device(batch, accelerator.device), of_batch))
        accelerator.clip_grad_norm_(self.prepared.parameters(), self.options.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.graphed is None)
        # read after all that follows has been launched: a GPU would wait for it
        total = mean_over_processes(accelerator, float(sum(map(float, losses))))
        if not math.isfinite(total):
            raise ValueError(
                "the training loss is not finite: lower learning_rate, or use mixed_precision bf16 in place of fp16"
            )
        if not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.progress.step += 1
        self.progress.batches_seen += len(batches)
        self.progress.epoch_steps += 1
        self.progress.epoch_loss += total
        if self.options.report_to:
            tracked = {"train/loss": total, "train/learning_rate": self.scheduler.get_last_lr()[0]}
            accelerator.log(tracked, self.progress.step)

    def _pass(self, arguments: dict[str, Any], weight: float | torch.Tensor) -> torch.Tensor:
        """Adds the gradients of a batch that is on the device; returns its weighted loss."""
        with self.accelerator.autocast():
            loss = self.prepared(**arguments).loss * weight
        self.accelerator.backward(loss)
        return loss.detach()

    def _validate_and_keep(self) -> dict[str, float]:
        """Metrics of the weights as they are, which become the run's checkpoint if none were better."""
        if self.validate is None:
            return {}
        progress, candidate = self.progress, self.candidate()
        candidate.eval()
        metrics = self.validate(candidate)
        if progress.best_score is None or metrics["score"] > progress.best_score:
            progress.best_score, progress.best_step = metrics["score"], progress.step
            progress.epochs_without_improvement = 0
            if self.accelerator.is_main_process:
                write_checkpoint(candidate, self.save, self.output)
        else:
            progress.epochs_without_improvement += 1
        return metrics


def describe_epoch(entry: Mapping[str, Any], epochs: int, shown: Mapping[str, str], is_best: bool) -> str:
    """A sentence about an epoch: its training loss and the metrics of the validation split, if there are any."""
    metrics = ", ".join(f"{title} {entry[name]:.4f}" for name, title in shown.items() if entry.get(name) is not None)
    validated = f"; on the validation split {metrics}" if metrics else ""
    best = ", the best so far" if is_best else ""
    return (
        f"Epoch {entry['epoch']} of {epochs}: training loss {entry['train_loss']:.4f}{validated}{best} "
        f"({entry['seconds']:.1f} s)."
    )


def tracked_options(options: LoopOptions) -> dict[str, Any]:
    """The options in the flat form that trackers take."""
    flat = {name: value for name, value in asdict(options).items() if name != "model"}
    flat |= {f"model.{name}": value for name, value in options.model.items()}
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in flat.items()}


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights and buffers, of which each process updates what it holds."""
    update = get_ema_multi_avg_fn(decay)

    def update_own(averages, current, num_averaged):
        update(own_shards(averages), own_shards(current), num_averaged)

    return AveragedModel(model, multi_avg_fn=update_own, use_buffers=True)


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


def checkpoint_activations(model: nn.Module) -> None:
    """Lets every Mamba and attention layer keep its inputs alone for the backward pass."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            # its name in newer transformers, and that in the oldest one that setup.cfg allows
            getattr(module, "activation_checkpointing_enable", module.gradient_checkpointing_enable)()


def write_checkpoint(model: nn.Module, save: Callable[[nn.Module, Path], None], output: Path) -> None:
    """Writes a checkpoint beside its place and moves it there file by file, so that none is ever half-written.

    Weights come last: where there are any, what they need is there as well.
    """
    incoming = output / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    save(model, incoming)
    for path in sorted(incoming.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name)):
        with writing_file(output / path.name) as flushed:
            os.replace(path, flushed)
    incoming.rmdir()


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


def mean_over_processes(accelerator: Accelerator, number: float) -> float:
    """The mean of a number of each process. All processes call this at once."""
    if accelerator.num_processes == 1:
        return number
    return float(accelerator.reduce(torch.tensor(number, dtype=torch.float64, device=accelerator.device), "mean"))


def from_main(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """What `make` returns in the main process, in every process."""
    held = [make() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(held)
    return held[0]
