"""Forecast pretraining: trains an encoder to forecast the next hours' values."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from hymate_training.data.collators import ForecastCollator, fit_feature_extractor
from hymate_training.data.examples import ExampleDataset, load_forecast
from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.fitting.loop import TrainingLoop, from_main, start
from hymate_training.fitting.options import LoopOptions, option
from hymate_training.fitting.run import (
    describe_data,
    describe_run,
    finish,
    finished_run,
    make_config,
    prepare_output,
)
from hymate_training.inference.checkpoints import save_checkpoint
from modeling_hymate import HyMaTEForPreTraining, HyMaTEForPreTrainingOutput

SHOWN = {"forecast_error": "forecast error", "carried_forward_error": "error of the last value carried forward"}


@dataclass
class PretrainOptions(LoopOptions):
    """Hyper-parameters of forecast pretraining."""

    min_observed_hours: float = option(12.0, "A record is cut after at least this many hours.")
    cuts_per_record: int = option(8, "Times at which each record is cut per epoch, all in one pass.")
    forecast_horizons: list[float] = option(  # noqa: RUF009 - makes a field with a factory
        [2.0], "Hours after a cut within which each variable's next value is forecast, and whether there is one."
    )
    forecast_hours: float | None = option(None, "One horizon, in place of forecast_horizons.")
    cut_by: str = option(
        "time", "What the cut is uniform over: 'time', or 'event' for records of years with long gaps."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut_by not in ("time", "event"):
            raise ValueError(f"cut_by must be 'time' or 'event', got {self.cut_by!r}")
        if not self.min_observed_hours >= 0:
            raise ValueError(f"min_observed_hours must not be negative, got {self.min_observed_hours}")
        if self.forecast_hours is not None:
            self.forecast_horizons = [self.forecast_hours]
        if not self.forecast_horizons or not all(hours > 0 for hours in self.forecast_horizons):
            raise ValueError(f"forecast_horizons must be positive hours, got {self.forecast_horizons}")
        if self.cuts_per_record < 1:
            raise ValueError(f"cuts_per_record must be at least 1, got {self.cuts_per_record}")
        if "forecast_horizons" in self.model:
            raise ValueError("forecast_horizons is an option of its own, not one of the model's fields")


@dataclass(frozen=True, eq=False)
class PretrainResult:
    """What a pretraining run left.

    Attributes:
        output: the run's folder, which is the checkpoint of the best weights.
        history: metrics of each epoch.
    """

    output: Path
    history: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """The metrics of the epoch whose weights were kept."""
        return max(self.history, key=lambda metrics: metrics["score"])


def pretrain(
    data: str | Path | PreparedFolder,
    output: str | Path,
    options: PretrainOptions | None = None,
    resume: bool = False,
    *,
    command: str | None = None,
) -> PretrainResult:
    """Pretrains an encoder by forecasting, and writes its card.

    Args:
        data: prepared folder; its labels are not used.
        output: new folder of the run, which becomes the checkpoint of the best weights.
        options: hyper-parameters; their defaults where absent.
        resume: continue the interrupted run in `output` exactly where it stopped.
        command: the command line that asks for this, for the card.

    Returns:
        The checkpoint's folder and the metrics of each epoch.

    Raises:
        ValueError: if the data are not there or hold no record that is long enough, if `output` holds something else,
            and for options that cannot be combined.
        InterruptedRunError: after SIGINT or SIGTERM, once the state is saved.
    """
    options, output, folder = options or PretrainOptions(), Path(output), open_prepared(data)
    accelerator = start(options, output)
    if resume and (account := from_main(accelerator, partial(finished_run, output, options))):
        return PretrainResult(output, account["history"])
    extractor = fit_feature_extractor(folder)
    datasets = {
        split: load_forecast(folder, split, extractor.variables, options.min_observed_hours)
        for split in ("train", "validation")
    }
    fields = {**options.model, "forecast_horizons": options.forecast_horizons}
    model = HyMaTEForPreTraining(make_config(extractor, fields))
    extractor.trained_hours = None
    collator = partial(
        ForecastCollator,
        extractor,
        options.min_observed_hours,
        options.forecast_horizons,
        options.cuts_per_record,
        options.max_events,
        seed=options.seed,
        cut_by=options.cut_by,
    )
    train_collator = collator(variable_dropout=options.variable_dropout, event_dropout=options.event_dropout)

    def validate(candidate: nn.Module) -> dict[str, float]:
        validation = (datasets["validation"], collator(fixed_cuts=True), options.batch_size, accelerator)
        errors = forecast_errors(candidate, *validation)
        return errors | {"score": -errors["forecast_error"]}

    def save(candidate: nn.Module, place: Path) -> None:
        save_checkpoint(candidate, extractor, place)

    has_state = from_main(accelerator, partial(prepare_output, output, resume))
    identity = {"data": folder.fingerprint}
    progress = TrainingLoop(
        accelerator, model, datasets["train"], train_collator, validate, save, options, output, identity, SHOWN
    ).run(has_state)
    if accelerator.is_main_process:
        account = describe_run(accelerator, model, options, progress) | {
            "command": command,
            "kind": "pretrain",
            **describe_data(folder, None, extractor, datasets),
        }
        finish(output, account, folder)
    return PretrainResult(output, progress.history)


@torch.no_grad()
def forecast_errors(
    model: nn.Module,
    dataset: ExampleDataset,
    collator: ForecastCollator,
    batch_size: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Mean squared error of the forecast over all measured values, and of two forecasts anyone can make.

    `carried_forward_error` forecasts a variable's last value, or its mean where there is none yet; `mean_error` always
    forecasts the mean. All in standardized units, over all horizons, and where there are several also within each,
    such as `forecast_error_6h`.
    """
    model.eval()
    order = np.argsort(dataset.lengths, kind="stable")
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    horizons = collator.forecast_horizons
    sums = torch.zeros(4, len(horizons), dtype=torch.float64)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        features = collator(dataset.__getitems__(batch.tolist()))
        outputs = model(**send_to_device(features, accelerator.device))
        mask, target = features["forecast_mask"], features["forecast_values"]
        candidates = (outputs.logits.float().cpu(), last_values(outputs, target.shape[-1]), torch.zeros_like(target))
        errors = [((candidate - target).double().square() * mask).sum((0, 1, 3)) for candidate in candidates]
        sums += torch.stack([*errors, mask.sum((0, 1, 3)).double()])
    totals = accelerator.reduce(sums.to(accelerator.device)).cpu()
    names = ("forecast_error", "carried_forward_error", "mean_error")
    metrics = {
        name: float(error.sum() / totals[-1].sum().clamp(min=1)) for name, error in zip(names, totals, strict=False)
    }
    if len(horizons) > 1:
        for at, hours in enumerate(horizons):
            errors = totals[:3, at] / totals[-1, at].clamp(min=1)
            metrics |= {f"{name}_{hours:g}h": float(error) for name, error in zip(names, errors, strict=True)}
    return metrics


def last_values(outputs: HyMaTEForPreTrainingOutput, num_variables: int) -> torch.Tensor:
    """Each variable's last value at each prediction, `(batch, predictions, 1, num_variables)`; 0, the mean, where it
    has none."""
    last, columns = (cast(torch.Tensor, found).cpu() for found in (outputs.channel_last_values, outputs.channel_ids))
    last = last.float()
    columns = columns.masked_fill(columns < 0, num_variables).unsqueeze(1).expand_as(last)
    by_variable = last.new_zeros(*last.shape[:2], num_variables + 1).scatter(-1, columns, last)
    return by_variable[..., :num_variables].unsqueeze(2)
