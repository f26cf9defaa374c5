"""A report's pages as a person sees them: in a browser, on a laptop, on a phone and on paper."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.explanations.report import build_report
from hymate_training.monitoring.monitor import monitor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TASK = "in_hospital_mortality"
LAPTOP, PHONE = 1366, 390
SMALLEST_LETTER = 10  # CSS pixels, of a figure's letters as they are shown

PROBE = """<script>addEventListener("load", () => {
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  const shown = [...document.images].filter((image) => image.getBoundingClientRect().width > 0);
  document.documentElement.setAttribute("data-probe", JSON.stringify({
    requests: loaded.filter((name) => !name.startsWith("data:")),
    broken: shown.filter((image) => !image.complete || !image.naturalWidth).length,
    shown: shown.length,
    scales: shown.map((image) => image.getBoundingClientRect().width / image.naturalWidth),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    hidden: [...document.querySelectorAll("main table")].filter((table) => !table.closest("details"))
      .map((table) => table.parentElement.scrollWidth - table.parentElement.clientWidth),
    text: parseFloat(getComputedStyle(document.body).fontSize),
    reached: [...document.querySelectorAll("a, summary, [tabindex]")].filter((e) => e.tabIndex >= 0).length,
  }));
});</script>"""


@pytest.fixture(scope="module")
def pages(evaluated, synthetic_folder, tmp_path_factory) -> dict[str, Path]:
    """Reports on a cohort and on patients of a model of many hours, and the page of a monitor."""
    folder = tmp_path_factory.mktemp("pages")
    data = PreparedFolder(synthetic_folder)
    ids = data.record_ids["validation"][:2]
    (folder / "start.csv").write_text(f"record_id,start\n{ids[0]},2031-03-05 14:20\n")
    options = {"data": data, "task": TASK, "window_hours": 24, "record_ids": ids, "num_records": 20}
    report = build_report(evaluated, folder / "report", start=folder / "start.csv", **options)
    events, names = data.events("validation"), data.info.variables
    frame = pl.DataFrame(
        {
            "record_id": pl.Series(events.record_ids)[events.rows],
            "time": events.times,
            "variable": [names[index] for index in events.variable_ids],
            "value": pl.Series(events.values).fill_nan(None),
        }
    )
    monitor(evaluated, frame, output=folder / "monitor")
    patient, clockless = report.patients.values()
    return {
        "cohort": report.page,
        "patient": patient,
        "patient without a clock": clockless,
        "list of patients": patient.parent / "index.html",
        "monitor": folder / "monitor" / "index.html",
    }


PAGES = ["cohort", "patient", "patient without a clock", "list of patients", "monitor"]


def browse(profile: Path, *arguments: str) -> subprocess.CompletedProcess:
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    flags = [
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-extensions"]
    command = [CHROMIUM, *flags, *quiet, f"--user-data-dir={profile}", "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_in_a_browser(name, width, pages, tmp_path):
    """Whole, alone, without a scroll bar below, and with letters that can be read."""
    # a window of Chromium is never narrower than 500 pixels: a frame is
    framed = tmp_path / "page.html"
    framed.write_text(pages[name].read_text().replace("</head>", f"{PROBE}</head>"))
    outer = tmp_path / "frame.html"
    outer.write_text(
        f'<iframe id="page" src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>addEventListener('load', () => document.documentElement.setAttribute('data-probe',"
        "document.getElementById('page').contentDocument.documentElement.getAttribute('data-probe')))</script>"
    )
    opened = browse(
        tmp_path / "profile",
        "--allow-file-access-from-files",
        f"--window-size={width + 100},900",
        "--dump-dom",
        outer.as_uri(),
    )
    probe = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', opened.stdout)[1]))
    assert probe["requests"] == []
    assert probe["broken"] == 0
    assert probe["shown"] == pages[name].read_text().count("<figure>\n<img")
    assert probe["overflow"] <= 0
    assert min(probe["scales"], default=1) * 8.5 * 96 / 72 >= SMALLEST_LETTER
    if name.startswith("patient"):
        assert max(probe["hidden"]) <= 0  # no column is cut off, on a phone neither
    assert probe["text"] >= 16
    assert probe["reached"] > 1
    assert "CONSOLE" not in opened.stderr


@pytest.mark.parametrize(("name", "most"), [("patient", 1), ("patient without a clock", 1), ("cohort", 8)])
def test_a_page_prints(name, most, pages, tmp_path):
    """A patient on one sheet, whatever there is to be said of him."""
    pdf = tmp_path / "page.pdf"
    browse(tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={pdf}", pages[name].as_uri())
    printed = pdf.read_bytes()
    assert printed.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= most
