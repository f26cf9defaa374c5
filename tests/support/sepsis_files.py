"""Small downloads in the form of PhysioNet 2019."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np

from hymate_training.readers.physionet2019 import COLUMNS

Patients = dict[str, list[dict[str, str]]]  # record id -> its rows, column -> cell


def make_patient(index: int, hours: int, begins: int = 1, turns: int | None = None) -> list[dict[str, str]]:
    """Rows of a patient: heart rate every hour but the first, lactate every fourth; positive from hour `turns` on."""
    generator = np.random.default_rng(index)
    rows = []
    for hour in range(begins, begins + hours):
        near = turns is not None and hour >= turns - 4
        row = dict.fromkeys(COLUMNS, "NaN")
        row |= {"Age": f"{50 + index % 40}", "Gender": str(index % 2), "HospAdmTime": f"-{index}.25"}
        if index % 3:
            row |= {"Unit1": str(int(index % 3 == 1)), "Unit2": str(int(index % 3 == 2))}
        if hour > begins:
            row["HR"] = f"{generator.normal(110 if near else 80, 5):.1f}"
        if hour % 4 == 0:
            row |= {"Lactate": f"{generator.gamma(4, 1 if near else 0.4):.2f}", "BaseExcess": "-3.5"}
        row |= {"ICULOS": str(hour), "SepsisLabel": str(int(turns is not None and hour >= turns))}
        rows.append(row)
    return rows


def make_hospital(letter: str, count: int = 30) -> Patients:
    """Every third patient becomes septic, at an hour that differs; stays last 12 to 30 hours."""
    start = {"A": 1, "B": 100_001}[letter]
    patients = {}
    for index in range(count):
        hours = 12 + 7 * index % 19
        turns = 5 + index % 6 if index % 3 == 0 else None
        patients[f"p{start + index:06d}"] = make_patient(start + index, hours, 1 + index % 2, turns)
    return patients


def psv(rows: list[dict[str, str]]) -> str:
    names = list(rows[0])
    return "\n".join(["|".join(names), *("|".join(row[name] for name in names) for row in rows)]) + "\n"


def write_hospital(raw: Path, letter: str, patients: Patients, form: str = "folder") -> Path:
    """The patients as `training_set?` in `raw`: a folder, zip or tar.gz."""
    folder = raw / f"training_set{letter}"
    folder.mkdir(parents=True)
    for record_id, rows in patients.items():
        (folder / f"{record_id}.psv").write_text(psv(rows))
    if form != "folder":
        archive = raw / f"{folder.name}.{form}"
        if form == "zip":
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
                for path in folder.iterdir():
                    file.write(path, f"{folder.name}/{path.name}")
        else:
            with tarfile.open(archive, "w:gz") as file:
                file.add(folder, folder.name)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return raw
