"""Prediction on several machines: each takes parts of a table of events, on Ray (extra `[ray]`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hymate_training.files import writing_file, writing_folder
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from hymate_training.inference.conformal import ALL, kept_thresholds
from hymate_training.inference.findings import Findings
from hymate_training.inference.parts import EVENTS_PER_PART, Part, add_tables, names_of, plain_events, split_records
from hymate_training.inference.prediction import (
    Questions,
    RecordPredictions,
    answer,
    read_part,
    reads_plainly,
    refuse_all_unknown,
)

PARTS_FOLDER = ".parts"


@dataclass(frozen=True, eq=False)
class ClusterPredictions(RecordPredictions):
    """What a model says of new records, and who worked it out.

    Attributes, beside those of `RecordPredictions`:
        machines: how many parts each machine predicted, by Ray's name of it; those of a lost one count where they were
            predicted anew.
    """

    machines: dict[str, int]


class PartPredictor:
    """Holds the model in a worker, and predicts the parts that it is handed."""

    def __init__(self, checkpoint: str, names: Part, questions: Questions) -> None:
        self.checkpoint, self.names, self.questions = load_checkpoint(checkpoint), names, questions

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predicts the part of a batch of one and writes its file, the same whoever does it and however often; returns
        what was found, and on which machine."""
        events, static, times, output = (str(batch[name][0]) for name in ("events", "static", "times", "output"))
        part = Part(Path(events), Path(static) if static else None, Path(times) if times else None)
        asked = read_part(self.checkpoint, part, self.names, True, self.questions)
        frame, findings = answer(self.checkpoint, asked, self.questions)
        with writing_file(output) as incoming:
            frame.write_parquet(incoming)
        found = np.empty(1, dtype=object)
        found[0] = findings
        return {"findings": found, "number": batch["number"], "node": np.array([_node()])}


def predict_on_ray(
    checkpoint: str | Path | Checkpoint,
    events: str | Path | Sequence[str | Path],
    static: Any,
    output: str | Path,
    *,
    at: Any = None,
    address: str | None = None,
    conformal: float | None = None,
    conformal_by: str = ALL,
    events_per_part: int = EVENTS_PER_PART,
    overwrite: bool = False,
    **questions: Any,
) -> ClusterPredictions:
    """Predicts the records of a table on the machines of a Ray cluster, as `predict` does on one.

    The table is split into parts of whole records in a hidden folder beside `output`, which all machines must be able
    to read and write, as they must the checkpoint. A part whose worker is lost is predicted anew by another.

    Args:
        checkpoint: as of `predict`.
        events: Parquet files or folders, or CSV, of `record_id`, `time` (hours), `variable` and `value` (a number).
        static: as of `predict`.
        output: new folder, with one Parquet file of predictions per part.
        at: as of `predict`.
        address: of the cluster, such as `auto` or `ray://HOST:10001`; one is started on this machine where absent.
        events_per_part: more where one record alone has more.
        conformal: as of `predict`.
        conformal_by: the same.
        overwrite: replace an `output` that is there already.
        questions: `every`, `untrained_hours`, `max_events`, `batch_size` and `ignore_unknown_variables` of `predict`.

    Raises:
        ValueError: if Ray is not installed, for another table, for an output that is there already, and as `predict`.
    """
    ray = _ray()
    output, opened = Path(output).absolute(), load_checkpoint(checkpoint)
    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already: name another folder, or replace it (overwrite, --overwrite)")
    thresholds = None if conformal is None else kept_thresholds(opened, conformal, conformal_by)
    asked = Questions(thresholds=thresholds, conformal_by=conformal_by, **questions)
    paths = [Path(path) for path in ([events] if isinstance(events, str | Path) else events)]
    names = names_of(paths, static, at)
    with writing_folder(output) as incoming:
        scratch = incoming / PARTS_FOLDER
        scratch.mkdir()
        files = plain_events(paths, scratch) if reads_plainly(opened) else None
        if files is None:
            raise ValueError(
                f"{names.events}: the engine ray takes Parquet, or CSV with commas, of record_id, time (hours), "
                "variable and value (a number); leave --engine out for other tables"
            )
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        parts = add_tables(split_records(files, scratch, events_per_part), static, at, scratch)
        rows = [
            {
                "number": number,
                "events": str(part.events),
                "static": str(part.static or ""),
                "times": str(part.times or ""),
                "output": str(incoming / f"part-{number:05d}.parquet"),
            }
            for number, part in enumerate(parts)
        ]
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            PartPredictor,
            batch_size=1,
            fn_constructor_args=(str(opened.path.absolute()), names, asked),
            compute=ray.data.ActorPoolStrategy(min_size=min(len(rows), cores), max_size=len(rows)),
            num_cpus=1,
        )
        done = sorted(found.take_all(), key=lambda row: row["number"])
        findings = Findings.join([row["findings"] for row in done])
        refuse_all_unknown(findings, opened.extractor, names.events)
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
    machines = Counter(str(row["node"]) for row in done)
    return ClusterPredictions(output, findings, findings.sentences(opened.extractor), [], dict(machines))


def _node() -> str:
    return _ray().get_runtime_context().get_node_id()


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra of its own
        import ray.data  # noqa: PLC0415 - the same
    except ImportError as error:
        raise ValueError("the engine ray needs Ray: pip install 'hymate[ray]'") from error
    return ray
