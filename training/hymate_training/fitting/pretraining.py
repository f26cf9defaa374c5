"""`hymate pretrain`: trains an encoder to forecast the next hours' values."""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hymate_training.cli.options import add_option_flags, option, read_options
from hymate_training.data.collation import ForecastCollator, fit_feature_extractor, load_forecast
from hymate_training.data.prepared_folder import data_fingerprint
from hymate_training.fitting import loop
from hymate_training.fitting.finetuning import describe_data, make_config
from hymate_training.publishing.cards import write_model_card
from modeling_hymate import HyMaTEForPreTraining


@dataclass
class PretrainOptions(loop.LoopOptions):
    """Hyper-parameters of forecast pretraining."""

    min_observed_hours: float = option(12.0, "a record is cut after at least this time")
    forecast_hours: float = option(2.0, "the values to forecast lie within this time after the cut")

    cut_by: str = option(
        "time", "what the cut is uniform over: 'time', or 'event' for records of years with long gaps"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.cut_by not in ("time", "event"):
            raise ValueError(f"cut_by must be 'time' or 'event', got {self.cut_by!r}")
        if self.min_observed_hours < 0:
            raise ValueError(f"min_observed_hours must not be negative, got {self.min_observed_hours}")
        if not self.forecast_hours > 0:
            raise ValueError(f"forecast_hours must be positive, got {self.forecast_hours}")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run and its best checkpoint")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output where it stopped")
    add_option_flags(parser, PretrainOptions)


def run(args: argparse.Namespace) -> str:
    """Pretrains; returns the validation figures to print."""
    options = read_options(PretrainOptions, "pretrain", args)
    accelerator = loop.start(options, args.output)
    extractor = fit_feature_extractor(args.data)
    datasets = {
        split: load_forecast(args.data, split, extractor.variables, options.min_observed_hours)
        for split in ("train", "validation")
    }
    fields = {"forecast_horizons": [options.forecast_hours], **options.model}
    model = HyMaTEForPreTraining(make_config(extractor, fields))
    collator = partial(
        ForecastCollator,
        extractor,
        options.min_observed_hours,
        options.forecast_hours,
        options.max_events,
        seed=options.seed,
        cut_by=options.cut_by,
    )

    def validate(candidate: HyMaTEForPreTraining) -> dict[str, float]:
        errors = forecast_errors(
            candidate, datasets["validation"], collator(fixed_cuts=True), options.batch_size, accelerator
        )
        return errors | {"score": -errors["forecast_error"]}

    def save(candidate: HyMaTEForPreTraining, folder: Path):
        candidate.save_pretrained(folder)
        extractor.save_pretrained(folder)

    loop.from_main(accelerator, partial(loop.prepare_output, args.output, args.resume))
    progress = loop.train(
        accelerator,
        model,
        datasets["train"],
        collator(variable_dropout=options.variable_dropout, event_dropout=options.event_dropout),
        validate,
        save,
        options,
        args.output,
        args.resume,
        identity={"data": data_fingerprint(args.data)},
    )
    if not accelerator.is_main_process:
        return ""
    account = loop.describe_run(accelerator, model, options, progress) | {
        "kind": "pretrain",
        **describe_data(args.data, None, extractor, datasets),
    }
    loop.write_json(args.output / loop.RUN_FILE, account)
    write_model_card(args.output)
    loop.finish(args.output)
    best = max(progress.history, key=lambda figures: figures["score"])
    return (
        f"masked squared error of the forecast, validation split: {best['forecast_error']:.4f} "
        f"(last value carried forward: {best['carried_forward_error']:.4f})\n\n{args.output}"
    )


@torch.no_grad()
def forecast_errors(model, dataset, collator, batch_size, accelerator) -> dict[str, float]:
    """Mean squared error of the forecast over all measured values, and of two forecasts anyone can make.

    `carried_forward_error` forecasts a variable's last value, or its mean where there is none yet; `mean_error` always
    forecasts the mean. All in standardized units.
    """
    model.eval()
    order = np.argsort(dataset.lengths, kind="stable")
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    sums = np.zeros(4)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        features = collator(dataset.__getitems__(batch))
        arguments = {name: tensor.to(model.device) for name, tensor in features.items()}
        forecast = model(**arguments).logits.float().cpu()
        mask, target = features["forecast_mask"], features["forecast_values"]
        candidates = (forecast, last_values(features, target.shape[2]).unsqueeze(1), torch.zeros_like(target))
        errors = [float((candidate - target)[mask].double().square().sum()) for candidate in candidates]
        sums += [*errors, int(mask.sum())]
    total = accelerator.reduce(torch.from_numpy(sums).to(accelerator.device)).cpu().numpy()
    names = ("forecast_error", "carried_forward_error", "mean_error")
    return {name: float(error / max(1.0, total[-1])) for name, error in zip(names, total, strict=False)}


def last_values(features, num_variables: int) -> torch.Tensor:
    """Each variable's last value in the input, `(batch, num_variables)`; 0, the mean, where it has none."""
    last = np.zeros((len(features["values"]), num_variables), dtype=np.float32)
    rows, from_end = np.nonzero((features["attention_mask"] & features["value_mask"]).numpy()[:, ::-1])
    columns = features["values"].shape[1] - 1 - from_end  # each record's events from last to first
    variable_ids = features["variable_ids"].numpy()[rows, columns]
    _, latest = np.unique(rows * num_variables + variable_ids, return_index=True)
    last[rows[latest], variable_ids[latest]] = features["values"].numpy()[rows[latest], columns[latest]]
    return torch.from_numpy(last)
