"""What the README shows works, and what it states is so."""

import ast
import re

import pytest

from hymate_training.cli.main import COMMANDS, main
from tests.docs.pages import ROOT, blocks, commands, trim_physionet2012

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
SHELL = [command for language, content in blocks(README) if language == "bash" for command in commands(content)]


def test_first_example_runs_in_a_clone(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = [content for language, content in blocks(README) if language == "python"]
    exec(compile(example, "README.md", "exec"), {})
    answer = ast.literal_eval(capsys.readouterr().out)
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert sum(event["weight"] for event in answer["top_events"]) == pytest.approx(1, abs=1e-5)


def test_commands_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in SHELL:
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, flags=re.MULTILINE), command
        if command[0] == "hymate":
            assert command[1] in COMMANDS


def test_links_lead_somewhere():
    for page in (README, *ROOT.glob("[A-Z]*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), (page.name, target)


def test_results_are_those_of_the_evidence():
    """Each number of the README's table is the evidence's, rounded."""
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    known = {tuple(round(float(number), 3) for number in found) for found in re.findall(INTERVAL, evidence)}
    shown = [tuple(map(float, found)) for found in re.findall(INTERVAL, TEXT)]
    assert len(shown) == 6
    assert set(shown) <= known


INTERVAL = r"(0\.\d+) \[(0\.\d+), (0\.\d+)\]"


def test_oldest_versions_stated_are_those_tested():
    """`make test-floor` runs with what setup.cfg and the README call the oldest versions."""
    tested = dict(re.findall(r"^(\w+)==(.+)$", (ROOT / "constraints-floor.txt").read_text(), flags=re.MULTILINE))
    stated = dict(re.findall(r"^ +(\w+)>=([\d.]+)$", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE))
    for name in ("transformers", "huggingface_hub"):
        assert tested[name] == f"{stated[name]}.0"
    assert re.search(rf"transformers\s+{re.escape(stated['transformers'])}\.", TEXT)


def test_shown_commands_run_in_order(shared_data, tmp_path, monkeypatch):
    """The commands for PhysioNet 2012, with fewer epochs and a smaller model than the recipe's."""
    trim_physionet2012(shared_data("physionet2012"), tmp_path / "path" / "to" / "download", stays=150)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.csv").write_text("record_id,time,variable,value\n1,0.5,HR,92\n1,2,Lactate,\n2,1,pH,7.3\n")
    (tmp_path / "static.csv").write_text("record_id,Age,Gender,Height,ICUType\n1,71,,,\n2,50,,,\n")
    small = ["--epochs", "1", "--model", "hidden_size=8", "num_mamba_layers=1"]
    shown = [command[1:] for command in SHELL if command[0] == "hymate"]
    for command in shown:
        assert main([*command, *(small if command[0] in ("pretrain", "finetune") else [])]) == 0
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 3
