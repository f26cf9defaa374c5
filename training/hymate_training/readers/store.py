"""Events on their way from a source's tables to shards, when they are too many for memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl
import pyarrow as pa

RECORDS_A_BLOCK = 1000
MOST_BLOCKS = 256  # files open at a time
SCHEMA = pa.schema([("record", pa.uint32()), ("seconds", pa.float64()), ("key", pa.uint32()), ("value", pa.float32())])


class EventStore:
    """Keeps events on disk by block of records, and numbers what they are events of.

        with EventStore(scratch, num_records, ("domain", "concept", "unit")) as store:
            store.add(events)            # record, seconds, value, domain, concept, unit; as often as needed
        for block in store.blocks():     # record, seconds, key, value

    Attributes:
        keys: what each key stands for, a tuple per number.
        rows: events of each key.
    """

    def __init__(self, folder: Path, num_records: int, key_columns: Sequence[str]) -> None:
        self.keys: list[tuple] = []
        self.rows: Counter[int] = Counter()
        self._number: dict[tuple, int] = {}
        self._columns = list(key_columns)
        self._size = max(RECORDS_A_BLOCK, -(-num_records // MOST_BLOCKS))
        self._paths = [folder / f"{block}.arrow" for block in range(max(1, -(-num_records // self._size)))]
        self._stack = ExitStack()

    def __enter__(self) -> "EventStore":
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._files = [
            self._stack.enter_context(pa.ipc.new_file(str(path), SCHEMA, options=options)) for path in self._paths
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, events: pl.DataFrame) -> None:
        """Keep events: `record` (number), `seconds` (of any clock), `value` (null: none) and the key columns."""
        numbered = self._numbered(events)
        block = (numbered["record"] // self._size).alias("block")
        parts = numbered.with_columns(block).partition_by("block", as_dict=True, include_key=False)
        for (number,), part in parts.items():
            self._files[number].write_table(part.to_arrow().cast(SCHEMA))

    def _numbered(self, events: pl.DataFrame) -> pl.DataFrame:
        met = events.group_by(self._columns).len().sort(self._columns)
        found = []
        for *key, rows in met.iter_rows():
            number = self._number.setdefault(tuple(key), len(self._number))
            if number == len(self.keys):
                self.keys.append(tuple(key))
            self.rows[number] += rows
            found.append(number)
        met = met.select(self._columns).with_columns(key=pl.Series(found, dtype=pl.UInt32))
        return events.join(met, on=self._columns, how="left", nulls_equal=True).select(SCHEMA.names)

    def blocks(self) -> Iterator[pl.DataFrame]:
        """The events of one block of records after the other: record, seconds, key, value."""
        for path in self._paths:
            yield pl.scan_ipc(path, glob=False).collect()

    def records_with(self, training: pl.Series) -> np.ndarray:
        """In how many of the records `training` each key occurs, `(keys,)`."""
        counts = np.zeros(len(self.keys), dtype=np.int64)
        for block in self.blocks():
            chosen = block.filter(pl.col("record").is_in(training.implode())).select("record", "key").unique()
            counts += np.bincount(chosen["key"], minlength=len(self.keys))
        return counts


def name_with_units(named: Sequence[tuple[tuple, str, str | None, str]]) -> list[tuple[str, str, str]]:
    """Names that no two things share, and the unit of each.

    Args:
        named: of each key what it is an event of (its kind first), its name, its unit and its code in the source. What
            is reported in several units gets the unit behind its name, things of several kinds that share a name get
            the kind, and what is still alike its code.

    Returns:
        Name, unit ("" where there is none) and code of each key. A row without a unit is taken to be in the unit that
        all others of its thing have.
    """
    units: dict[tuple, set[str]] = {}
    of_name: dict[str, set[tuple]] = {}
    for thing, name, unit, _ in named:
        of_name.setdefault(name, set()).add(thing)
        if unit is not None:
            units.setdefault(thing, set()).add(unit)
    result = []
    for thing, name, unit, code in named:
        alike, own = of_name[name], sorted(units.get(thing, ()))
        if len(alike) > 1:
            same_kind = len({other[0] for other in alike}) < len(alike)
            name = f"{name} ({thing[0]}{f' {thing[1]}' if same_kind else ''})"  # noqa: PLW2901 - the name grows
        if len(own) > 1:
            result.append((f"{name} [{unit or 'no unit'}]", unit or "", code))
        else:
            result.append((name, own[0] if own else "", code))
    return result
