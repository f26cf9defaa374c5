"""Several prepared folders as one: their records after each other, with the union of their variables."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from hymate_training.data.mapped import Names, mapped
from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.data.schema import DatasetInfo, StaticColumn
from modeling_hymate import Events


@dataclass(frozen=True)
class Overlap:
    """How much of a source others know.

    Attributes:
        source: its name.
        variables: its number of variables.
        shared: how many of them another source of the pool has too.
    """

    source: str
    variables: int
    shared: int


class FolderPool:
    """Prepared folders that are trained on together, opened once.

        pool = FolderPool(["runs/physionet2012", "runs/eicu"])  # both prepared with --concepts
        pool.info.variables                                     # concepts of either
        pool.events("train")                                    # the records of one after those of the other

    A variable or static column is the same in two folders where its name is, which is what concepts are for: unless
    there is but one folder, all must have been prepared with them. A static column that a folder lacks is unknown for
    its records.

    Attributes:
        folders: the folders, opened, in the order given.

    Raises:
        ValueError: naming the folder that is no prepared one, was not prepared with concepts or with those of another
            vocabulary, is given twice, or shares no concept with the others.
    """

    def __init__(self, data: Iterable[str | Path | PreparedFolder]) -> None:
        self.folders = tuple(map(open_prepared, data))
        if not self.folders:
            raise ValueError("data: name at least one prepared folder")
        self._events: dict[tuple[str, tuple[str, ...]], Events] = {}
        if len(self.folders) > 1:
            self._check()

    @cached_property
    def info(self) -> DatasetInfo:
        """What the pool holds: the description of a single folder, or that of several as one."""
        infos = [folder.info for folder in self.folders]
        if len(infos) == 1:
            return infos[0]
        columns: dict[str, StaticColumn] = {}
        for info in infos:
            columns |= {column.name: column for column in info.static_columns if column.name not in columns}
        units = {name: unit for info in reversed(infos) for name, unit in info.extra.get("units", {}).items()}
        return DatasetInfo(
            source=_joined(info.source for info in infos),
            variables=tuple(dict.fromkeys(name for info in infos for name in info.variables)),
            static_columns=tuple(columns.values()),
            tasks=(),
            dropped={},
            split_description="Each source's own.",
            license=_joined(info.license for info in infos),
            citation="\n\n".join(dict.fromkeys(info.citation for info in infos)),
            seed=None,
            extra={"units": units} if units else {},
        )

    @cached_property
    def fingerprints(self) -> list[str]:
        """Name exactly what each folder holds."""
        return [folder.fingerprint for folder in self.folders]

    def events(self, split: str, variables: Sequence[str] | None = None) -> Events:
        """All records of a split as flat arrays, in clinical units; arguments and errors as of a single folder."""
        wanted = tuple(self.info.variables if variables is None else variables)
        parts = [folder.events(split, wanted) for folder in self.folders]
        if len(parts) == 1:
            return parts[0]
        if (split, wanted) not in self._events:
            self._events[split, wanted] = concatenated(parts, self.info.static_columns, self.folders[0].path)
        return self._events[split, wanted]

    def origins(self, split: str) -> np.ndarray:
        """Which folder each record of `events(split)` is from, `(records,)`."""
        return np.repeat(np.arange(len(self.folders)), [len(folder.events(split)) for folder in self.folders])

    @cached_property
    def overlaps(self) -> list[Overlap]:
        """How much of each folder the others know."""
        held = Counter(name for folder in self.folders for name in folder.info.variables)
        return [
            Overlap(info.source, len(info.variables), sum(held[name] > 1 for name in info.variables))
            for info in (folder.info for folder in self.folders)
        ]

    def _check(self) -> None:
        vocabularies = {}
        for folder in self.folders:
            concepts = folder.info.extra.get("concepts")
            if concepts is None:
                raise ValueError(
                    f"{folder.path} was not prepared with --concepts: its variables need not mean what those of the "
                    "same names mean in other folders; run `hymate prepare` again with --concepts"
                )
            vocabularies[folder.path] = concepts["vocabulary"]
        first, *others = self.folders
        for folder in others:
            if vocabularies[folder.path] != vocabularies[first.path]:
                raise ValueError(
                    f"{folder.path} was prepared with another vocabulary of concepts than {first.path}; run "
                    "`hymate prepare` again for the older of them"
                )
        for at, name in enumerate(self.fingerprints):
            if name in self.fingerprints[:at]:
                raise ValueError(f"{self.folders[at].path} holds what another of the folders holds; name it once")
        for folder, overlap in zip(self.folders, self.overlaps, strict=True):
            if not overlap.shared:
                raise ValueError(f"{folder.path} shares no concept with the other folders: train on it by itself")


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def concatenated(parts: Sequence[Events], columns: Sequence[StaticColumn], folder: Path) -> Events:
    """Records of all parts, one part after the other, in mapped files of `folder`."""
    ends = np.cumsum([0, *(len(part.times) for part in parts)])
    offsets = [part.offsets[:-1] + begin for part, begin in zip(parts, ends, strict=False)]
    return Events(
        offsets=np.concatenate([*offsets, ends[-1:]]),
        times=mapped((part.times for part in parts), np.float32, folder),
        variable_ids=mapped((part.variable_ids for part in parts), np.int32, folder),
        values=mapped((part.values for part in parts), np.float32, folder),
        static={
            column.name: np.concatenate([part.static.get(column.name, _unknown(column, part)) for part in parts])
            for column in columns
        },
        record_ids=Names(pa.array(part.record_ids, pa.string()) for part in parts),  # type: ignore[arg-type]
    )


def _unknown(column: StaticColumn, events: Events) -> np.ndarray:
    return np.full(len(events), np.nan) if column.kind == "numeric" else np.full(len(events), None, dtype=object)
