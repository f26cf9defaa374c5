"""What the documentation shows works, and the site builds without a warning."""

import importlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from hymate_training.cli.main import COMMANDS, main
from tests.docs.pages import QUICK, ROOT, blocks, commands, run, trim_physionet2012

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
REAL_DATA = "tutorials/physionet2012.md"
# pages whose code runs from top to bottom, as a reader would run it
EXECUTED = ["index.md", "tutorials/first-model.md", "concepts/model.md", "how-to/own-data.md", "how-to/trainer.md"]
EXECUTED += ["how-to/concepts.md", "how-to/hospital-exports.md", "how-to/explain.md", "reference/training.md"]
EXECUTED += ["reference/prepared-folder.md", "how-to/export.md", "how-to/follow-a-stay.md", "how-to/serve.md"]
EXECUTED += ["how-to/scikit-learn.md", "how-to/decisions.md", "how-to/when-will-it-happen.md"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """An empty working directory with the released checkpoints, as in a clone."""
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.parametrize("page", EXECUTED)
def test_examples_run(page, clone, monkeypatch):
    monkeypatch.setattr("hymate_training.cli.serve.serve", lambda *_, **__: None)  # which would not return
    run(DOCS / page)


def test_the_tutorial_on_real_data_runs(shared_data, clone):
    trim_physionet2012(shared_data("physionet2012"), clone / "downloads" / "physionet2012", stays=90)
    shown = run(DOCS / REAL_DATA, QUICK)
    assert 0 < shown["evaluation"]["metrics"]["auroc"] < 1
    assert sum(shown["answer"]["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert (clone / "runs" / "mortality-report" / "index.html").is_file()


def test_all_python_is_executed():
    """A page that shows code either runs here or says in its block that it cannot."""
    shown = {page for page in PAGES for language, _ in blocks(DOCS / page) if language == "python"}
    assert shown == {*EXECUTED, REAL_DATA}


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, monkeypatch):
    parsed = []
    for language, content in blocks(DOCS / page):
        for command in commands(content) if language.startswith("bash") else []:
            while command and "=" in command[0]:
                command = command[1:]  # noqa: PLW2901 - variables of the environment come before the command
            if command[:1] in (["torchrun"], ["accelerate"]):
                command = ["hymate", *command[command.index("hymate_training") + 1 :]]  # noqa: PLW2901
            if command[:1] == ["hymate"]:
                assert command[1] in COMMANDS
                module = importlib.import_module(f"hymate_training.cli.{command[1]}")
                monkeypatch.setattr(module, "run", lambda args: parsed.append(args) or "")
                assert main(command[1:]) == 0, command
            if command[:1] == ["python"] and command[1].endswith(".py"):
                script = (ROOT / command[1]).read_text(encoding="utf-8")
                for flag in (word for word in command if word.startswith("--")):
                    assert f'"{flag}"' in script, (command, flag)


def test_every_public_name_has_a_page(site):
    hymate = importlib.import_module("hymate")
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    missing = [name for name in hymate.__all__ if name != "__version__" and f'id="hymate.{name}"' not in pages]
    assert not missing


def test_the_page_of_commands_shows_every_option(site):
    page = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "{{" not in page
    for command in COMMANDS:
        assert f"usage: hymate {command}" in page


def test_pages_are_whole_and_need_no_network(site):
    """No script, style, font or picture of the site needs a network; and no block of code was taken for prose."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "```" not in text, page
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]*rel=\"(?:stylesheet|icon|preconnect)\"[^>]*href=\"([^\"]+)\"", text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page


def test_search_works_from_disk(site):
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    address = f"{(site / 'index.html').as_uri()}?q=selective_scan"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    results = re.findall(r'<a href="([^"]+)"[^>]*class="md-search-result__link"', done.stdout)
    assert any("reference/selective_scan.html" in result for result in results), results
