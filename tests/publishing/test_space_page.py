"""The page of a Space in a browser: served by what a push would upload, where our packages are missing."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import socket
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from hymate_training.publishing import spaces
from hymate_training.publishing.push import plan_push

pytest.importorskip("gradio", minversion="6", reason="needs gradio, which wants an older pillow: make test-space")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-space")

RELEASED = Path(__file__).resolve().parents[2] / "model_cards" / "hymate-physionet2012-mortality"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENS = {"laptop": (1366, 768), "phone": (390, 844)}
PATIENCE = 120  # seconds
STAYS = "record_id,time,variable,value,Age\n7,0.5,HR,92,71\n7,30,Lactate,6.3,71\n8,1,HR,60,30\n8,20,GCS,15,30\n"
# what a Space has not
ABSENT = """
import sys
OURS = {"hymate", "hymate_training", "hymate_native", "modeling_hymate", "configuration_hymate"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv.pop(1))
import runpy
runpy.run_path(sys.path[0] + "/app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of the page, served from a folder that has what the Hub would have."""
    model, place = (tmp_path_factory.mktemp(name) for name in ("model", "space"))
    for folder, plan in ((model, plan_push(RELEASED)), (place, None)):
        contents = (
            {name: plan.read(name) for name in plan.uploaded}
            if plan
            else {
                "app.py": spaces.APP,
                "space.json": json.dumps({"checkpoint": str(model), "revision": "0" * 40}).encode(),
                **{name: path.read_bytes() for name, path in spaces.space_code().items()},
            }
        )
        for name, content in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "HF_HOME": str(place / "hf"),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(place / "uploads"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    command = [sys.executable, "-c", ABSENT, str(place), "--port", str(port)]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _once_up(f"http://127.0.0.1:{port}", process, place / "log")
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in (place / "log").read_text()
    assert not list((place / "uploads").rglob("*.csv"))  # a file is deleted once it is read


def _once_up(address: str, process: subprocess.Popen, log: Path) -> str:
    for _ in range(PATIENCE):
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(address, timeout=5):
                return address
        except (URLError, TimeoutError):
            time.sleep(1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=SCREENS)
def page(request, address, browser):
    """The page, with the answer about a simulated stay in sight."""
    width, height = SCREENS[request.param]
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.set_default_timeout(1000 * PATIENCE)
    elsewhere, wrong = [], []
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else elsewhere.append(asked.url),
    )
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#answer img")
    yield opened
    opened.close()
    assert not elsewhere  # nothing of a visitor goes to anyone else
    assert not wrong


def answered(page) -> str:
    return page.inner_text("#answer .latest")


def wait_for_another(page, before: str) -> str:
    page.wait_for_function("before => document.querySelector('#answer .latest')?.innerText !== before", arg=before)
    return answered(page)


def test_a_visitor_sees_the_answer_and_the_limits(page):
    assert re.fullmatch(r"died: \d+\.\d% at hour [\d.]+", answered(page))
    assert page.evaluate("document.querySelector('#answer img').naturalWidth") > 0
    assert re.match(r"died over the stay: .*% at hour", page.get_attribute("#answer img", "alt"))
    assert page.locator("#answer td").count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing is cut off at the side
    assert page.get_by_text("must not be used").count()
    assert "AUROC" in page.inner_text("body")
    page.mouse.wheel(0, 10_000)
    assert playwright.expect(page.locator("#warning")).to_be_in_viewport() is None
    assert "Not a medical device" in page.inner_text("#warning")


def test_a_visitor_types_and_the_answer_changes(page):
    before = answered(page)
    page.fill("#static-Age input", "88")
    before = wait_for_another(page, before)
    page.fill("#new-time input", "47.9")
    page.fill("#new-value input", "3")
    page.click("#add")
    assert wait_for_another(page, before).endswith("at hour 47.9")
    page.fill("#new-time input", "-1")
    page.click("#add")
    page.wait_for_selector("#problem:has-text('negative')")
    assert not page.locator("#answer .latest").count()  # nothing that belongs to another stay
    page.click("#draw")
    page.wait_for_selector("#answer .latest")
    page.wait_for_selector("#problem", state="hidden")


def test_a_visitor_uploads_a_file(page, tmp_path):
    (tmp_path / "stays.csv").write_text(STAYS)
    before = answered(page)
    page.get_by_role("tab", name="A CSV file").click()
    page.set_input_files("#file input[type=file]", tmp_path / "stays.csv")
    assert wait_for_another(page, before).endswith("at hour 30")
    before = answered(page)
    page.click("#chosen input")
    page.get_by_role("option", name="8").click()
    assert wait_for_another(page, before).endswith("at hour 20")


def test_a_wrong_file_is_refused_in_words(page, tmp_path):
    (tmp_path / "labels.csv").write_text("record_id,died\n7,1\n")
    page.get_by_role("tab", name="A CSV file").click()
    page.set_input_files("#file input[type=file]", tmp_path / "labels.csv")
    page.wait_for_selector("#problem:has-text(\"lacks the column 'time'\")")
