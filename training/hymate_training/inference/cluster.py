"""Prediction on several machines: each takes parts of a table of events, on Ray (extra `[ray]`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hymate_training.files import refuse_existing, writing_file, writing_folder
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
from hymate_training.machines import import_ray, on_machines

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
    """Holds the model in a worker, and predicts the parts that it is handed, each with the file of its predictions."""

    def __init__(self, checkpoint: str, names: Part, questions: Questions) -> None:
        self.checkpoint, self.names, self.questions = load_checkpoint(checkpoint), names, questions

    def __call__(self, item: tuple[Part, Path]) -> Findings:
        """Predicts a part and writes its file, the same whoever does it and however often; what was found."""
        part, output = item
        asked = read_part(self.checkpoint, part, self.names, True, self.questions)
        frame, findings = answer(self.checkpoint, asked, self.questions)
        with writing_file(output) as incoming:
            frame.write_parquet(incoming)
        return findings


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
    import_ray()  # or say that it is missing, before the work
    output, opened = Path(output).absolute(), load_checkpoint(checkpoint)
    refuse_existing(output, overwrite)
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
        parts = add_tables(split_records(files, scratch, events_per_part), static, at, scratch)
        items = [(part, incoming / f"part-{number:05d}.parquet") for number, part in enumerate(parts)]
        found, machines = on_machines(PartPredictor, (str(opened.path.absolute()), names, asked), items, address)
        findings = Findings.join(found)
        refuse_all_unknown(findings, opened.extractor, names.events)
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
    return ClusterPredictions(output, findings, findings.sentences(opened.extractor), [], dict(machines))
