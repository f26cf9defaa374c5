"""`make evidence`: cross-validates HyMaTE, its ablations and the baselines on PhysioNet 2012, into docs/evidence.md.

    python -m experiments.evidence --raw DIR

Metrics of finished units lie in experiments/evidence/results and are never computed twice; an interrupted unit goes
on where it stopped. Units are independent, so several processes may share them out: `--models`, `--folds`.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.evidence.folds import NUM_FOLDS, assign_folds
from experiments.evidence.models import MODELS, UNITS
from experiments.evidence.tables import read_results, write_page
from experiments.evidence.units import run_unit
from hymate_training.readers import READERS

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.evidence", description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="Download of PhysioNet 2012, sets b and c.")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="Prepared folds and unfinished runs.")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="Models to run (default: all)."
    )
    parser.add_argument("--percent", nargs="+", type=int, help="Percentages of the labels to train on (default: all).")
    parser.add_argument(
        "--folds", nargs="+", type=int, default=list(range(NUM_FOLDS)), help="Folds to run (default: all)."
    )
    parser.add_argument("--threads", type=int, help="Threads of each model (default: PyTorch's).")
    parser.add_argument(
        "--quick", action="store_true", help="One epoch of one fold, results into --work, to see that it runs."
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:  # apart, so that nothing of it is taken for a finished run
        args.work = args.work / "quick"
    results = args.work / "figures" if args.quick else HERE / "results"
    prepared = args.work / "data" / "all"
    if not prepared.is_dir():
        READERS["physionet2012"].prepare(args.raw, prepared)
    folds = assign_folds(prepared, args.work / "folds.json" if args.quick else HERE / "folds.json")
    chosen = [
        (name, percent) for name, percent in UNITS if name in args.models and percent in (args.percent or [percent])
    ]
    units = [(name, percent, fold) for name, percent in chosen for fold in ([0] if args.quick else args.folds)]
    for name, percent, fold in tqdm(units, desc="evidence", unit="unit"):
        run_unit(name, percent, fold, prepared, folds, args.work, results, args.quick)
        if not args.quick:
            write_page(read_results(results))


if __name__ == "__main__":
    main()
