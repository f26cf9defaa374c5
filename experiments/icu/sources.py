"""The sources that one encoder is pretrained on, each prepared by concepts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hymate_training.cli.main import main as hymate


@dataclass(frozen=True)
class Source:
    """A reader and the folders of its download; of a file that is in several, the first folder's counts."""

    reader: str
    folders: tuple[str, ...]


# the whole eICU demo comes without laboratory values, which the one of 100 of its patients has
SOURCES = {
    "p12": Source("physionet2012", ("physionet2012",)),
    "p19": Source("physionet2019", ("physionet2019",)),
    "eicu": Source("eicu", ("eicu-demo-2.0.1", "eicu-demo")),
    "mimic3": Source("mimic-iii", ("mimic-iii-demo-1.4",)),
    "mimic4": Source("mimic-iv", ("mimic-iv-demo-2.2",)),
}


def prepare_sources(names: Iterable[str], data: Path, output: Path) -> dict[str, Path]:
    """Prepares by concepts what is not prepared yet.

    Args:
        names: of `SOURCES`.
        data: folder of the downloads.
        output: folder of the prepared folders.

    Returns:
        The prepared folder of each source.

    Raises:
        SystemExit: if a source cannot be prepared.
    """
    folders = {}
    for name in names:
        folders[name] = output / name
        if not folders[name].is_dir():
            raw = _raw(name, data, output / "raw")
            command = [
                "prepare",
                SOURCES[name].reader,
                "--raw",
                str(raw),
                "--concepts",
                "--output",
                str(output / name),
            ]
            if code := hymate(command):
                raise SystemExit(code)
    return folders


def _raw(name: str, data: Path, scratch: Path) -> Path:
    """The folder of a download, or one of links to the files of several."""
    first, *others = (data / folder for folder in SOURCES[name].folders)
    if not others:
        return first
    linked = scratch / name
    linked.mkdir(parents=True, exist_ok=True)
    for folder in (first, *others):
        for path in folder.iterdir():
            if not (linked / path.name).exists():
                (linked / path.name).symlink_to(path.resolve())
    return linked
