"""Files and folders that are whole or not there, JSON, fingerprints, and the one Markdown table.

Whatever is written goes to a hidden sibling first, is flushed to the disk, and then takes its name in one step. A
process that is killed, or a disk that is full, leaves what was there before; an exception leaves no sibling behind.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
from filelock import FileLock, Timeout
from safetensors import SafetensorError

EXCHANGE = 2  # RENAME_EXCHANGE of renameat2 (Linux), RENAME_SWAP of renamex_np (macOS)
AT_FDCWD = -100


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8, its line ends as they are) or bytes; a file of that name is replaced once all is written."""
    with writing_file(path) as incoming:
        incoming.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, indented, ending in a new line; see `write_file`."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def writing_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the name `path` when the block ends and disappears when the block raises.

        with writing_file("predictions.parquet") as incoming:
            frame.write_parquet(incoming)

    Folders that are missing are made. A link is followed: what it points to is replaced, the link stays.

    Raises:
        ValueError: if `path` is there and is not a file.
    """
    path = followed(path)
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; name a file to write")
    with _parents_made(path):
        incoming = _sibling(path)
        try:
            with tensors_written(path):
                yield incoming
            _flush(incoming)
            os.replace(incoming, path)
        finally:
            incoming.unlink(missing_ok=True)
        _flush(path.parent)


@contextlib.contextmanager
def tensors_written(path: str | Path) -> Iterator[None]:
    """Turns what safetensors raises where a disk is full or read-only into OSError that names `path`."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def regular(path: Path) -> Path:
    """The path; ValueError if it is there and neither a file nor a folder: reading a pipe would wait forever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is not a regular file")
    return path


def check_place(path: str | Path) -> None:
    """Raises OSError unless something of that name can be written: for before the work, not after it."""
    path = followed(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(path.lstat().st_mode):  # which also complains of a name that is too long
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    with contextlib.suppress(_Tried), writing_folder(path.with_name(f"{path.name[:48]}.try")):
        raise _Tried


def json_object(values: dict[str, Any] | None = None, /, **properties: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an object that holds these properties, and whose others are `values`; any where absent."""
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return schema if values is None else schema | {"additionalProperties": values}


def json_problem(content: Any, schema: dict[str, Any]) -> str | None:
    """Where and how a content leaves a JSON Schema, in a line that quotes it; None where it does not."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(content))
    if error is None:
        return None
    message = " ".join(error.message.split())
    place = ".".join(map(str, error.absolute_path))
    return ": ".join(filter(None, (place, message if len(message) <= 200 else f"{message[:99]} … {message[-99:]}")))


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raises ValueError if `output` is there already and may not be replaced: the rule of all that is asked for."""
    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already: name another output, or replace it (overwrite, --overwrite)")


class _Tried(Exception):  # noqa: N818 - nothing is wrong
    """Takes back what `check_place` wrote."""


@contextlib.contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the name `path` when the block ends and disappears when it raises.

    A folder of that name is replaced, with all that it holds; whether it may be is for the caller to check. Folders
    above it that are missing are made, and a link is followed.
    """
    path = followed(path)
    with _parents_made(path):
        incoming = _sibling(path)
        try:
            incoming.mkdir()
            yield incoming
            replace_folder(incoming, path)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


@contextlib.contextmanager
def locked(output: str | Path) -> Iterator[None]:
    """Keeps `output` to this process while the block runs; a process that is killed leaves nothing locked.

    Raises:
        ValueError: if another process holds it.
    """
    output = followed(Path(output))
    with _parents_made(output):
        lock = FileLock(output.with_name(f".{output.name[:48]}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"another process is writing to {output}: wait until it is done") from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows deletes no open file
                Path(lock.lock_file).unlink()
            lock.release()


def replace_folder(new: Path, output: Path) -> None:
    """Flush the folder `new` to the disk and give it the name `output`; an older `output` goes.

    Linux and macOS exchange the two in one step. Elsewhere, and on file systems that cannot, the older folder is
    called `.NAME.replaced` for the moment between two renames.
    """
    for folder, _, names in os.walk(new):
        for name in names:
            _flush(Path(folder, name))
        _flush(Path(folder))
    if not output.exists():
        new.rename(output)
    elif _exchange(new, output):
        shutil.rmtree(new)
    else:
        old = output.with_name(f".{output.name}.replaced")
        output.rename(old)
        try:
            new.rename(output)
        except BaseException:
            old.rename(output)
            raise
        shutil.rmtree(old)
    _flush(output.parent)


def fingerprint(content: bytes) -> str:
    """Names a content: 16 hex digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown: headings first, then one line per row; no new line at its end."""
    head, *body = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", r"\|").splitlines())


def followed(path: str | Path) -> Path:
    """Where a path leads, links followed; one that leads to itself stays, and is neither a file nor a folder."""
    return Path(os.path.realpath(path))


def _sibling(path: Path) -> Path:
    """A hidden name in the same folder that nothing else has, short enough wherever `path` itself is."""
    return path.with_name(f".{path.name[:48]}.incoming-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def _parents_made(path: Path) -> Iterator[None]:
    """Make the folders above `path`; where the block raises, those that were made and are empty go again."""
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for parent in made:  # innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _flush(path: Path) -> None:
    """Have the system write a file or the names in a folder to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems know no fsync on a folder
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False where the system or the file system cannot."""
    if sys.platform not in ("linux", "darwin"):
        return False
    library = ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renameat2"):
        return library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], ctypes.c_uint(EXCHANGE)) == 0
    return hasattr(library, "renamex_np") and library.renamex_np(*names, ctypes.c_uint(EXCHANGE)) == 0
