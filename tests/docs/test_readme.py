"""What the README shows works."""

import re
import shlex
from pathlib import Path

import pytest

from hymate_training.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_example_runs(synthetic_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finetune = ["finetune", "--data", str(synthetic_folder), "--task", "in_hospital_mortality", "--epochs", "1"]
    assert main([*finetune, "--output", "runs/demo/mortality", "--model", "hidden_size=8", "num_mamba_layers=1"]) == 0
    capsys.readouterr()
    example, _ = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    probabilities = [float(number) for number in re.findall(r"(?:survived|died)': ([0-9.e-]+)", printed)]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    weights = [float(number) for number in re.findall(r"[0-9.]+", printed.split("tensor(")[1])]
    assert sum(weights) == pytest.approx(1, abs=1e-3)


def test_commands_parse():
    commands = [
        shlex.split(line) for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines() if line
    ]
    for command in commands:
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), command
        if command[0] == "hymate":
            assert command[1] in COMMANDS
            with pytest.raises(SystemExit) as end:
                main([*command[1:2], "--help"])
            assert end.value.code == 0


def test_oldest_versions_stated_are_those_tested():
    """`make test-floor` runs with what setup.cfg and the README call the oldest versions."""
    tested = dict(re.findall(r"^(\w+)==(.+)$", (ROOT / "constraints-floor.txt").read_text(), flags=re.MULTILINE))
    stated = dict(re.findall(r"^ +(\w+)>=([\d.]+)$", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE))
    for name in ("transformers", "huggingface_hub"):
        assert tested[name] == f"{stated[name]}.0"
    assert f"transformers {stated['transformers']}." in README


def test_shown_commands_run_in_order(shared_data, tmp_path, monkeypatch):
    """The commands for PhysioNet 2012, with fewer epochs and a smaller model than the recipe's."""
    raw = shared_data("physionet2012")
    trimmed = tmp_path / "raw"
    trimmed.mkdir()
    trim_download(raw, trimmed, stays=150)
    monkeypatch.chdir(tmp_path)
    block = next(block for block in blocks("bash") if "hymate prepare physionet2012" in block)
    small = ["--epochs", "1", "--model", "hidden_size=8", "num_mamba_layers=1"]
    for line in block.replace("\\\n", " ").splitlines():
        command = shlex.split(line.replace("path/to/download", "raw"))[1:]
        if command[0] == "predict":
            (tmp_path / "events.csv").write_text(
                "record_id,time,variable,value\n1,0.5,HR,92\n1,2,Lactate,\n2,1,pH,7.3\n"
            )
            (tmp_path / "static.csv").write_text("record_id,Age,Gender,Height,ICUType\n1,71,,,\n2,50,,,\n")
        assert main([*command, *(small if command[0] in ("pretrain", "finetune") else [])]) == 0
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 3


def trim_download(raw, output, stays):
    """The first stays of set b, as a download of its own."""
    import tarfile  # noqa: PLC0415 - used here only

    with tarfile.open(raw / "set-b.tar.gz") as archive:
        members = [member for member in archive if member.isfile()][:stays]
        folder = output / "set-b"
        folder.mkdir()
        for member in members:
            (folder / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    kept = {Path(member.name).stem for member in members}
    lines = (raw / "Outcomes-b.txt").read_text().splitlines()
    chosen = [lines[0], *(line for line in lines[1:] if line.split(",")[0] in kept)]
    (output / "Outcomes-b.txt").write_text("\n".join(chosen) + "\n")
