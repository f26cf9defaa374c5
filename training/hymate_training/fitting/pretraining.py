"""Forecast pretraining: trains an encoder to forecast the next hours' values, of one source or of several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from hymate_training.data.collators import ForecastCollator, fit_feature_extractor, prediction_mask
from hymate_training.data.device import on_device
from hymate_training.data.examples import ForecastDataset, SampledDataset, load_forecast
from hymate_training.data.pool import FolderPool
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.loop import TrainingLoop, from_main, start
from hymate_training.fitting.options import LoopOptions, option
from hymate_training.fitting.run import (
    describe_data,
    describe_run,
    describe_source,
    finish,
    finished_run,
    make_config,
    run_folder,
)
from hymate_training.inference.checkpoints import save_checkpoint
from hymate_training.publishing.schemas import FORECAST_ERRORS
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForPreTraining, HyMaTEForPreTrainingOutput

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
    source_temperature: float = option(
        2.0,
        "Of several sources, one of n records has a share of each epoch that grows as n ** (1 / temperature): 1 draws "
        "in proportion to size, more evens sources out.",
    )
    cut_by: str = option(
        "time", "What the cut is uniform over: 'time', or 'event' for records of years with long gaps."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut_by not in ("time", "event"):
            raise ValueError(f"cut_by must be 'time' or 'event', got {self.cut_by!r}")
        if not 0 <= self.min_observed_hours < math.inf:
            raise ValueError(f"min_observed_hours must not be negative, got {self.min_observed_hours}")
        if self.forecast_hours is not None:
            self.forecast_horizons = [self.forecast_hours]
        horizons = self.forecast_horizons
        if not horizons or not all(type(hours) in (int, float) and 0 < hours < math.inf for hours in horizons):
            raise ValueError(f"forecast_horizons must be positive hours, got {horizons}")
        if not 1 <= self.source_temperature < math.inf:
            raise ValueError(f"source_temperature must be at least 1, got {self.source_temperature}")
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
        sources: what the account says of each of several sources; empty where there is but one.
    """

    output: Path
    history: list[dict[str, Any]]
    sources: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """The metrics of the epoch whose weights were kept."""
        return max(self.history, key=lambda metrics: metrics["score"])


def pretrain(
    data: str | Path | PreparedFolder | Sequence[str | Path | PreparedFolder],
    output: str | Path,
    options: PretrainOptions | None = None,
    resume: bool = False,
    *,
    command: str | None = None,
) -> PretrainResult:
    """Pretrains an encoder by forecasting, and writes its card.

    Args:
        data: prepared folder, or several that were prepared with concepts, which make one encoder for all of them;
            labels are not used.
        output: new folder of the run, which becomes the checkpoint of the best weights.
        options: hyper-parameters; their defaults where absent.
        resume: continue the interrupted run in `output` exactly where it stopped.
        command: the command line that asks for this, for the card.

    Returns:
        The checkpoint's folder and the metrics of each epoch.

    Raises:
        ValueError: if the data are not there or hold no record that is long enough, if several folders were not all
            prepared with concepts or share none, if `output` holds something else, and for options that cannot be
            combined.
        InterruptedRunError: after SIGINT or SIGTERM, once the state is saved.
    """
    options, output = options or PretrainOptions(), Path(output)
    pool = FolderPool([data] if isinstance(data, str | Path | PreparedFolder) else data)
    accelerator = start(options, output)
    if resume and (account := from_main(accelerator, partial(finished_run, output, options))):
        return PretrainResult(output, account["history"], account["sources"])
    extractor = fit_feature_extractor(pool)
    datasets = {
        split: load_forecast(pool, split, extractor.variables, options.min_observed_hours)
        for split in ("train", "validation")
    }
    drawn = SampledDataset(datasets["train"], options.source_temperature, options.seed)
    fields = {**options.model, "forecast_horizons": options.forecast_horizons}
    model = HyMaTEForPreTraining(make_config(extractor, fields))
    extractor.trained_hours = None
    train_collator = _make_collator(
        extractor, options, variable_dropout=options.variable_dropout, event_dropout=options.event_dropout
    )

    def validate(candidate: nn.Module) -> dict[str, float]:
        collator = _make_collator(extractor, options, fixed_cuts=True)
        validation = (datasets["validation"], collator, options.batch_size, accelerator)
        errors = forecast_errors(candidate, *validation)
        return errors | {"score": -errors["forecast_error"]}

    def save(candidate: nn.Module, place: Path) -> None:
        save_checkpoint(candidate, extractor, place)

    identity = {"data": pool.fingerprints}
    with run_folder(accelerator, output, resume) as has_state:
        progress = TrainingLoop(
            accelerator, model, drawn, train_collator, validate, save, options, output, identity, SHOWN
        ).run(has_state)
        sources = describe_sources(pool, datasets, drawn.shares) if len(pool.folders) > 1 else []
        if accelerator.is_main_process:
            account = describe_run(accelerator, model, options, progress) | {
                "command": command,
                "kind": "pretrain",
                **describe_data(pool.info, {}, extractor, datasets),
                "sources": sources,
            }
            finish(output, account, pool.info)
    return PretrainResult(output, progress.history, sources)


def _make_collator(extractor: HyMaTEFeatureExtractor, options: PretrainOptions, **others: Any) -> ForecastCollator:
    """Cuts records as the options say; `others` are further arguments of `ForecastCollator`."""
    return ForecastCollator(
        extractor,
        options.min_observed_hours,
        options.forecast_horizons,
        options.cuts_per_record,
        options.max_events,
        seed=options.seed,
        cut_by=options.cut_by,
        **others,
    )


def describe_sources(
    pool: FolderPool, datasets: Mapping[str, ForecastDataset], shares: np.ndarray
) -> list[dict[str, Any]]:
    """What a model card says about each of several sources: what it is, how much of it is used, and what is shared."""
    return [
        describe_source(folder.info)
        | {
            "fingerprint": folder.fingerprint,
            "num_records": {split: int((dataset.origins == at).sum()) for split, dataset in datasets.items()},
            "share_of_epoch": float(shares[at]),
            "num_variables": overlap.variables,
            "num_shared_variables": overlap.shared,
        }
        for at, (folder, overlap) in enumerate(zip(pool.folders, pool.overlaps, strict=True))
    ]


@torch.no_grad()
def forecast_errors(
    model: nn.Module,
    dataset: ForecastDataset,
    collator: ForecastCollator,
    batch_size: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Mean squared error of the forecast over all measured values, and of two forecasts anyone can make.

    `carried_forward_error` forecasts a variable's last value, or its mean where there is none yet; `mean_error` always
    forecasts the mean. All in standardized units, over all horizons, and where there are several also within each,
    such as `forecast_error_6h`. Where the data set has several sources, also within each, such as
    `forecast_error_source2` of the second.
    """
    model.eval()
    order = np.argsort(dataset.lengths, kind="stable")
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    horizons = collator.forecast_horizons
    num_sources = int(dataset.origins.max()) + 1
    sums = torch.zeros(4, num_sources, len(horizons), dtype=torch.float64)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        examples = dataset.__getitems__(batch.tolist())
        features = collator(examples)
        outputs = model(**on_device(features, accelerator.device))
        mask, target = features["forecast_mask"], features["forecast_values"]
        candidates = (outputs.logits.float().cpu(), last_values(outputs, target.shape[-1]), torch.zeros_like(target))
        errors = [((candidate - target).double().square() * mask).sum(3) for candidate in candidates]
        real = prediction_mask(features)
        found = torch.stack([*errors, mask.sum(3).double()])[:, real]  # (4, predictions, horizons)
        sources = np.repeat(dataset.origins[examples.indices], collator.cuts_per_record)
        sums.index_add_(1, torch.from_numpy(sources), found)
    totals = accelerator.reduce(sums.to(accelerator.device)).cpu()
    metrics = mean_errors(totals.sum((1, 2)))
    if len(horizons) > 1:
        for at, hours in enumerate(horizons):
            metrics |= mean_errors(totals[:, :, at].sum(1), f"_{hours:g}h")
    if num_sources > 1:
        for at in range(num_sources):
            metrics |= mean_errors(totals[:, at].sum(1), f"_source{at + 1}")
    return metrics


def mean_errors(totals: torch.Tensor, ending: str = "") -> dict[str, float]:
    """The mean of each of `FORECAST_ERRORS` by its name, from their sums and the number of values, `(4,)`."""
    means = totals[:-1] / totals[-1].clamp(min=1)
    return {f"{name}{ending}": float(error) for name, error in zip(FORECAST_ERRORS, means, strict=True)}


def last_values(outputs: HyMaTEForPreTrainingOutput, num_variables: int) -> torch.Tensor:
    """Each variable's last value at each prediction, `(batch, predictions, 1, num_variables)`; 0, the mean, where it
    has none."""
    last, columns = (cast(torch.Tensor, found).cpu() for found in (outputs.channel_last_values, outputs.channel_ids))
    last = last.float()
    columns = columns.masked_fill(columns < 0, num_variables).unsqueeze(1).expand_as(last)
    by_variable = last.new_zeros(*last.shape[:2], num_variables + 1).scatter(-1, columns, last)
    return by_variable[..., :num_variables].unsqueeze(2)
