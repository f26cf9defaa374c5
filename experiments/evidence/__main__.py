"""`make evidence`: cross-validates HyMaTE, its ablations and the baselines, into docs/evidence.md.

    python -m experiments.evidence --study mortality --raw DIR

Metrics of finished units lie in experiments/evidence/results and are never computed twice; an interrupted unit goes
on where it stopped. Units are independent, so several processes may share them out: `--models`, `--folds`.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.evidence.studies import STUDIES
from experiments.evidence.tables import write_page
from experiments.evidence.units import RESULTS, open_place, run_unit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.evidence", description=__doc__)
    parser.add_argument("--study", choices=STUDIES, default="mortality", help="What to measure (default: mortality).")
    parser.add_argument(
        "--raw",
        type=Path,
        required=True,
        help="Download of the study's data: PhysioNet 2012 (sets b and c) for mortality, PhysioNet 2019 for the rest.",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="Prepared folds and unfinished runs.")
    parser.add_argument("--models", nargs="+", help="Names of the study's models to run (default: all).")
    parser.add_argument("--percent", nargs="+", type=int, help="Percentages of the labels to train on (default: all).")
    parser.add_argument("--folds", nargs="+", type=int, help="Folds to run (default: all).")
    parser.add_argument("--threads", type=int, help="Threads of each model (default: PyTorch's).")
    parser.add_argument(
        "--quick", action="store_true", help="One epoch of one fold, results into --work, to see that it runs."
    )
    args = parser.parse_args()
    study = STUDIES[args.study]
    if unknown := sorted(set(args.models or []) - set(study.models)):
        parser.error(f"--models: the study {study.name} has {', '.join(study.models)}, not {', '.join(unknown)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    place = open_place(study, args.raw, args.work, args.quick)
    folds = [0] if args.quick else args.folds or range(len(place.folds))
    chosen = [
        (name, percent)
        for name, percent in study.units
        if name in (args.models or [name]) and percent in (args.percent or [percent])
    ]
    for name, percent, fold in tqdm(
        [(name, percent, fold) for name, percent in chosen for fold in folds], desc="evidence", unit="unit"
    ):
        run_unit(name, percent, fold, place)
        if not args.quick:
            write_page(RESULTS)


if __name__ == "__main__":
    main()
