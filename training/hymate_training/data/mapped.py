"""What has one entry per event or per record of a data set, held so that it takes no memory of the process's own."""

import mmap
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from weakref import WeakSet

import numpy as np
import pyarrow as pa

BLOCK = 1 << 20  # entries that are worked on at a time
AT_HAND = 1 << 28  # bytes of mapped files whose pages the process keeps; of more it gives them back
BYTES_AT_ONCE = 1 << 16  # Linux keeps a file in pieces as large as it was written: who looks at a byte maps a piece
SECONDS_KEPT = 0.05  # by a page that is to be given back


class MappedArray:
    """An array that is written part by part to a file without a name, and then mapped.

    The system keeps of the file what it has memory for and reads the rest when it is asked for. Where such arrays
    together exceed `AT_HAND`, what was looked at does not stay resident in the process. The file goes with the array,
    or with the process. It lies in `folder`, beside the data that it is made of, where files may be written, or else
    where temporary files go (TMPDIR).
    """

    def __init__(self, dtype: Any, folder: Path) -> None:
        self.dtype = np.dtype(dtype)
        try:
            self._file = TemporaryFile(dir=folder, buffering=BYTES_AT_ONCE)  # noqa: SIM115 - closed by `finish`
        except OSError:
            self._file = TemporaryFile(buffering=BYTES_AT_ONCE)  # noqa: SIM115 - the same

    def append(self, part: np.ndarray) -> None:
        """Writes what comes next, `(entries,)`."""
        written = np.ascontiguousarray(part, dtype=self.dtype).view(np.uint8)
        for at in range(0, len(written), BYTES_AT_ONCE):
            self._file.write(written[at : at + BYTES_AT_ONCE].data)

    def finish(self) -> np.ndarray:
        """All of it, for reading alone."""
        with self._file as file:
            if not file.tell():  # nothing, which cannot be mapped
                return np.zeros(0, dtype=self.dtype)
            file.flush()
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _residents.add(pages)
            return np.frombuffer(pages, dtype=self.dtype)


class _Residents:
    """Maps of files whose pages a thread gives back to the system while they are too large to be kept.

    Without it all that was ever looked at counts as memory of the process, although the system may take it back, and
    limits of containers and batch systems are kept by that count.
    """

    def __init__(self) -> None:
        self.maps: WeakSet[mmap.mmap] = WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, pages: mmap.mmap) -> None:
        with self._lock:
            self.maps.add(pages)
            if self._exceed() and self._thread is None:
                self._thread = threading.Thread(target=self._go_on, name="mapped files", daemon=True)
                self._thread.start()

    def _exceed(self) -> bool:
        return sum(map(len, self.maps)) > AT_HAND

    def _go_on(self) -> None:
        while True:
            self.give_back()
            time.sleep(SECONDS_KEPT)
            with self._lock:
                if not self._exceed():
                    self._thread = None
                    return

    def give_back(self) -> None:
        if self._exceed() and hasattr(mmap, "MADV_DONTNEED"):
            for pages in list(self.maps):
                pages.madvise(mmap.MADV_DONTNEED)  # of a file they are read again when they are looked at


_residents = _Residents()


def give_back() -> None:
    """Gives the pages of mapped arrays back to the system at once, where these are too large to be kept."""
    _residents.give_back()


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
