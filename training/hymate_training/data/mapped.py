"""What has one entry per event or per record of a data set, held so that it takes no memory of the process's own."""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa

BLOCK = 1 << 20  # entries that are worked on at a time


class MappedArray:
    """An array that is written part by part to a file without a name, and then mapped.

    The system keeps of the file what it has memory for and reads the rest when it is asked for. The file goes with the
    array, or with the process. It lies in `folder`, beside the data that it is made of, where files may be written, or
    else where temporary files go (TMPDIR).
    """

    def __init__(self, dtype: Any, folder: Path) -> None:
        self.dtype = np.dtype(dtype)
        try:
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `finish`
        except OSError:
            self._file = TemporaryFile()  # noqa: SIM115 - the same

    def append(self, part: np.ndarray) -> None:
        """Writes what comes next, `(entries,)`."""
        self._file.write(np.ascontiguousarray(part, dtype=self.dtype).data)

    def finish(self) -> np.ndarray:
        """All of it, for reading alone."""
        with self._file as file:
            if not file.tell():  # nothing, which cannot be mapped
                return np.zeros(0, dtype=self.dtype)
            file.flush()
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=self.dtype)


def mapped(parts: Iterable[np.ndarray], dtype: Any, folder: Path) -> np.ndarray:
    """Arrays one after the other, as a `MappedArray`."""
    whole = MappedArray(dtype, folder)
    for part in parts:
        whole.append(part)
    return whole.finish()


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in parts of `BLOCK` entries."""
    return (array[at : at + BLOCK] for at in range(0, len(array), BLOCK))


class Names(Sequence[str]):
    """Names of records: a sequence of text, held as Arrow does, without a Python object for each."""

    def __init__(self, parts: Iterable[pa.Array | pa.ChunkedArray]) -> None:
        chunks = [chunk for part in parts for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
        self.array = pa.chunked_array(chunks, pa.string()).combine_chunks()

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, at: Any) -> Any:
        return self.array[at].to_pylist() if isinstance(at, slice) else self.array[int(at)].as_py()

    def __iter__(self) -> Iterator[str]:
        for at in range(0, len(self), BLOCK):
            yield from self.array.slice(at, BLOCK).to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self.array if type is None else self.array.cast(type)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array.to_numpy(zero_copy_only=False)
