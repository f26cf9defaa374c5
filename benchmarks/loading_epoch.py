"""An epoch of batches of a prepared MEDS data set, no model behind them: its program for one process, as JSON.

python benchmarks/loading_epoch.py hymate|meds-torch-data FOLDER

It imports what it is asked for alone, since meds-torch-data is installed in an environment of its own.
"""

# ruff: noqa: PLC0415 - each library is in an environment of its own
import json
import resource
import sys
import time

import numpy as np
from torch.utils.data import DataLoader

EPOCHS = 5
BATCH_SIZE = 64
EVENTS = 512  # of each record, the latest


def hymate(folder: str):
    from hymate_training.data.collators import TaskCollator, fit_feature_extractor
    from hymate_training.data.examples import ExampleDataset, last_times
    from hymate_training.data.prepared_folder import PreparedFolder

    prepared = PreparedFolder(folder)
    records = prepared.events("train")
    dataset = ExampleDataset(records, np.arange(len(records)), last_times(records))
    collator = TaskCollator(fit_feature_extractor(prepared), EVENTS)
    return DataLoader(dataset, BATCH_SIZE, shuffle=True, collate_fn=collator), lambda batch: batch["attention_mask"]


def meds_torch_data(folder: str):
    from meds_torchdata import MEDSPytorchDataset, MEDSTorchDataConfig

    settings = MEDSTorchDataConfig(tensorized_cohort_dir=folder, max_seq_len=EVENTS, seq_sampling_strategy="to_end")
    dataset = MEDSPytorchDataset(settings, split="train")
    return DataLoader(dataset, BATCH_SIZE, shuffle=True, collate_fn=dataset.collate), lambda batch: batch.code != 0


def main():
    _, library, folder = sys.argv
    loader, real = {"hymate": hymate, "meds-torch-data": meds_torch_data}[library](folder)
    seconds, count = [], 0
    for _ in range(EPOCHS):
        started = time.process_time()
        count = sum(int(real(batch).sum()) for batch in loader)
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        json.dumps({"events": count, "records": len(loader.dataset), "cpu_seconds": min(seconds), "gigabytes": peak})
    )


if __name__ == "__main__":
    main()
