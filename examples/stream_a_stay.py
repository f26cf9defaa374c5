"""Streams a stay of a prepared folder: event by event, as at a bedside, with the risk after each.

    hymate prepare mimic-iv --raw mimic-iv-demo-2.2 --output prepared
    hymate finetune --data prepared --task in_hospital_mortality_24h --output model --prediction-times 8
    python examples/stream_a_stay.py --checkpoint model --data prepared --split test

The state that is kept does not grow with the stay, nor does the time that an event takes.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import hymate
from hymate_training.data.schema import SPLITS


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a classifier, trained with --prediction-times")
    parser.add_argument("--data", type=Path, required=True, help="the prepared folder")
    parser.add_argument("--split", default="test", choices=SPLITS, help="split of the stay (default: test)")
    parser.add_argument("--record-id", help="the stay (default: the first of the split)")
    parser.add_argument("--max-events", type=int, help="stop after so many events")
    args = parser.parse_args(arguments)
    checkpoint = hymate.load_checkpoint(args.checkpoint)
    variables = checkpoint.extractor.variables
    records = hymate.PreparedFolder(args.data).events(args.split, variables)
    names = list(records.record_ids)
    if args.record_id is not None and args.record_id not in names:
        parser.error(f"record {args.record_id!r} is not in the split {args.split}")
    stay = records.take(np.array([names.index(args.record_id) if args.record_id else 0]))
    static = {name: column[0] for name, column in stay.static.items()}
    stream = hymate.Stream(checkpoint.model, checkpoint.extractor, static=static)
    label = checkpoint.label_names[-1]
    print(f"stay {stay.record_ids[0]}: {', '.join(f'{name} {value}' for name, value in static.items())}")
    spent = []
    for hour, variable, value in list(zip(stay.times, stay.variable_ids, stay.values, strict=True))[: args.max_events]:
        event = {"time": float(hour), "variable": variables[variable], "value": None if np.isnan(value) else value}
        began = time.perf_counter()
        answer = stream.add(event)
        spent.append(time.perf_counter() - began)
        number = "" if np.isnan(value) else f"{value:g}"
        print(f"{hour:8.2f} h  {variables[variable]:<40.40} {number:>10}  {label} {answer['scores'][label]:.3f}")
    print(f"{len(spent)} events, {1e3 * np.median(spent):.2f} ms each (median)")


if __name__ == "__main__":
    main()
