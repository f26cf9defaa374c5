"""`hymate pretrain`: pretrains an encoder."""

import argparse
from pathlib import Path

from hymate_training.cli.options import add_option_flags, read_options
from hymate_training.fitting.pretraining import PretrainOptions, pretrain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        action="append",
        help="The prepared folder. Once per folder for several, all prepared with --concepts.",
    )
    parser.add_argument("--output", type=Path, required=True, help="New folder of the run and its best checkpoint.")
    parser.add_argument("--resume", action="store_true", help="Continue the run in --output where it stopped.")
    add_option_flags(parser, PretrainOptions)


def run(args: argparse.Namespace) -> str:
    """Pretrains; returns how well the best weights forecast."""
    options = read_options(PretrainOptions, "pretrain", args)
    result = pretrain(args.data, args.output, options, args.resume, command=args.command_line)
    shares = [
        f"{source['source']}: {source['num_records']['train']:,} records, {source['share_of_epoch']:.0%} of an epoch; "
        f"{source['num_shared_variables']} of its {source['num_variables']} variables are in another source."
        for source in result.sources
    ]
    error, carried = result.best["forecast_error"], result.best["carried_forward_error"]
    lines = [
        f"Mean squared error of the forecast on the validation split: {error:.4f}, of carrying the last value "
        f"forward: {carried:.4f} (standardized units)."
    ]
    for hours in options.forecast_horizons if len(options.forecast_horizons) > 1 else ():
        found = (result.best[f"{name}_{hours:g}h"] for name in ("forecast_error", "carried_forward_error"))
        lines.append("Within {:g} hours: {:.4f}, of the last value: {:.4f}.".format(hours, *found))
    if error >= carried:
        lines.append(
            "The forecast is no better than the last value yet, as is usual after few epochs on few records; what the "
            "encoder has learned of the records can still help fine-tuning. Train for more epochs to improve it."
        )
    return "\n".join([*shares, *lines, "", str(result.output)])
