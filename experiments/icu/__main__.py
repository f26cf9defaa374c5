"""Does pretraining on other sources pay? Leaves one source out at a time, into docs/evidence.md.

    python -m experiments.icu --data DIR

On each target, an encoder that never saw its source is fine-tuned on 1 to 100% of the labels, beside the same model
from scratch, one that was pretrained on the source's own training records, and XGBoost; five folds. Results of
finished cells lie in experiments/icu/results and are never computed twice; an interrupted cell goes on where it
stopped. Cells are independent once the encoders are there, so several processes may share them out: `--targets`,
`--folds`.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.evidence.folds import NUM_FOLDS
from experiments.icu.cells import Cell, Workplace, run_cell
from experiments.icu.tables import RESULTS, read_results, write_page
from experiments.icu.targets import ARMS, PERCENTAGES, TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.icu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the downloads")
    parser.add_argument("--work", type=Path, default=Path("runs/icu"), help="prepared data, folds, unfinished runs")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="these alone")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="these alone")
    parser.add_argument("--percent", nargs="+", type=int, choices=PERCENTAGES, default=list(PERCENTAGES))
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(NUM_FOLDS)), help="these alone")
    parser.add_argument("--threads", type=int, help="of each model (default: PyTorch's)")
    parser.add_argument("--quick", action="store_true", help="one epoch of each, results into --work: does it run?")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    work = args.work / "quick" if args.quick else args.work
    place = Workplace(args.data, work, work / "results" if args.quick else RESULTS, args.quick)
    cells = [
        Cell(target, arm, percent, fold)
        for target in args.targets
        for fold in args.folds
        for percent in args.percent
        for arm in args.arms
    ]
    for cell in tqdm(cells, desc="transfer", unit="cell"):
        run_cell(cell, place)
        if not args.quick:
            write_page(read_results(place.results))


if __name__ == "__main__":
    main()
