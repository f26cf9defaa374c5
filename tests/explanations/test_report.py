"""`hymate explain` end to end: what the report holds, what it must not hold, and how it opens in a browser."""

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread

from hymate_training.cli.main import main
from hymate_training.data.collation import fit_feature_extractor, read_events
from hymate_training.data.prepared_folder import read_info
from hymate_training.explanations.attribution import METHODS
from hymate_training.explanations.figures import cluster_order
from hymate_training.explanations.report import table_html
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.push import plan_push
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import perturbed, tiny_config

TASK = "in_hospital_mortality"
PATIENT = "stay-0000005"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def checkpoint(synthetic_folder, tmp_path_factory) -> Path:
    """An untrained classifier of the simulated stays."""
    folder = tmp_path_factory.mktemp("classifier")
    extractor = fit_feature_extractor(synthetic_folder)
    config = tiny_config(
        num_variables=extractor.num_variables,
        num_static_features=len(extractor.static_feature_names),
        num_labels=2,
        id2label={0: "survived", 1: "died"},
        problem_type="single_label_classification",
    )
    perturbed(HyMaTEForSequenceClassification(config)).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def explain(checkpoint: Path, output: Path, *arguments: object) -> int:
    options = ["--window-hours", "48", "--max-events", "16", "--seed", "1"]
    return main(["explain", "--checkpoint", str(checkpoint), "--output", str(output), *options, *map(str, arguments)])


@pytest.fixture(scope="module")
def data(synthetic_folder) -> list[object]:
    return ["--data", synthetic_folder, "--task", TASK, "--split", "train", "--num-records", 90]


@pytest.fixture(scope="module")
def report(checkpoint, data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("explained") / "report"
    assert explain(checkpoint, output, *data, "--record-id", PATIENT) == 0
    return output


class Page(HTMLParser):
    """What of a page matters to those who do not see it."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, *names: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag in names]


def test_pages_reach_everyone_and_nothing_else(report):
    for path in (report / "index.html", report / "patients" / f"{PATIENT}.html"):
        text = path.read_text()
        page = Page(text)
        headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert headings.count(1) == 1
        assert headings[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
        assert page.all("html")[0]["lang"] == "en"
        pictures = page.all("img")
        assert len(pictures) >= 4
        for picture in pictures:
            assert len(picture["alt"]) > 40
            assert picture["src"].startswith("data:image/svg+xml;base64,")
        assert (
            len(page.all("figure"))
            == len(pictures)
            == text.count("as a table</summary>") - ("All events" in text and path.parent.name == "patients")
        )
        assert len(page.all("caption")) == len(page.all("table"))
        assert all(header["scope"] in ("col", "row") for header in page.all("th"))
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for link in page.all("a"):
            target = link["href"]
            assert target[1:] in ids if target.startswith("#") else (path.parent / target).is_file()
        assert not page.all("script", "iframe", "object", "embed")
        assert not re.search(r"(https?:)?//|url\(|@import", re.sub(r"base64,[^\"]*", "", text))


def test_figures_are_files_too(report):
    names = {path.stem for path in (report / "figures").iterdir()}
    assert names >= {"variables", "by_outcome", "by_sex", "hours", "responses", "curves", "attention_map"}
    for name in names:
        assert imread(report / "figures" / f"{name}.png")[..., :3].std() > 0.01
        assert (report / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_the_cohort_page_tells_nothing_of_single_patients(report, checkpoint, data, tmp_path, synthetic_folder):
    """And the report without patient pages is, but for the link, the same again."""
    again = tmp_path / "again"
    assert explain(checkpoint, again, *data) == 0
    assert not (again / "patients").exists()
    shared = [path for path in again.rglob("*") if path.is_file() and path.name != "index.html"]
    assert {path.relative_to(again) for path in shared} == {
        path.relative_to(report)
        for path in report.rglob("*")
        if path.is_file() and path.name != "index.html" and "patients" not in path.parts
    }
    for path in shared:
        assert path.read_bytes() == (report / path.relative_to(again)).read_bytes(), path.name
    record_ids = read_events(synthetic_folder, "train", read_info(synthetic_folder).variables).record_ids
    for text in (path.read_text() for path in again.rglob("*") if path.suffix in (".html", ".json")):
        assert not [name for name in record_ids if name in text]
    with_patient = (report / "index.html").read_text()
    assert [name for name in record_ids if name in with_patient] == [PATIENT]


def test_figures_in_json_agree_with_the_page(report):
    content = json.loads((report / "explanation.json").read_text())
    page = html.unescape((report / "index.html").read_text())
    assert content["num_records"] == 90
    for method, verdict in content["verdicts"].items():
        shares = [share["mean"] for share in content["variable_shares"][method].values()]
        assert sum(shares) == pytest.approx(1)
        area = content["perturbation"]["deletion"][method]["over_random"]["mean"] * content["scale"]
        assert f"{area:+.2f} [" in page
        assert f": {verdict}</strong>" in page
    assert set(content["drivers"]["occlusion"]["ranks"]) == {
        "lactate",
        "mean_arterial_pressure",
        "glasgow_coma_scale",
        "creatinine",
    }


def test_the_model_card_says_whether_explanations_are_faithful(checkpoint, data, report, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    few = [*data[:-1], 10]
    assert explain(folder, tmp_path / "report", *few, "--card") == 0
    card = (folder / "README.md").read_text()
    content = json.loads((tmp_path / "report" / "explanation.json").read_text())
    for method, verdict in content["verdicts"].items():
        assert f"**{METHODS[method].capitalize()}: {verdict}.**" in card
        area = content["perturbation"]["insertion"][method]["over_random"]["mean"] * content["scale"]
        assert f"{area:+.2f} [" in card
    assert "for 10 records: in hospital mortality, train split of synthetic ICU stays" in card
    plan = plan_push(folder)
    assert "faithfulness.json" in plan.left
    assert "README.md" in plan.uploaded
    assert "faithful" not in write_model_card(shutil.copytree(checkpoint, tmp_path / "plain")).read_text()


def test_patient_page_holds_the_record(report, synthetic_folder):
    info = read_info(synthetic_folder)
    events = read_events(synthetic_folder, "train", info.variables)
    record = events.take(np.array([events.record_ids.index(PATIENT)])).latest(16)
    text = (report / "patients" / f"{PATIENT}.html").read_text()
    table = text[text.index("All events and their") :]
    assert table.count("<tr>") == 1 + len(record.times)
    for time, variable, value in zip(record.times[-3:], record.variable_ids[-3:], record.values[-3:], strict=True):
        name = info.variables[variable].replace("_", " ")
        assert f'<th scope="row">{time:.2f}</th><td>{name}</td><td class="number">{value:.4g}</td>' in table
    assert "confidential" in text


def test_events_of_a_file(checkpoint, synthetic_folder, tmp_path):
    """Fewer records than a cohort needs: patient pages only. Their ids may be anything."""
    info = read_info(synthetic_folder)
    names = ["a/<b>", "a_<b>"]
    frame = pl.DataFrame(
        {
            "record_id": np.repeat(names, 3),
            "time": [0.0, 1.5, 4.0] * 2,
            "variable": info.variables[:3] * 2,
            "value": [90.0, 70.0, 20.0, 110.0, 55.0, None],
        }
    )
    frame.write_parquet(tmp_path / "events.parquet")
    output = tmp_path / "report"
    arguments = ["--events", tmp_path / "events.parquet", "--record-id", *names]
    assert explain(checkpoint, output, *arguments) == 0
    page = Page((output / "index.html").read_text())
    assert not page.all("img")
    assert "Fewer than 10 records" in (output / "index.html").read_text()
    assert "perturbation" not in json.loads((output / "explanation.json").read_text())
    links = [link["href"] for link in page.all("a") if link["href"].startswith("patients/")]
    assert len(set(links)) == 2
    for name, link in zip(names, links, strict=True):
        assert f"Record {html.escape(name)}" in (output / link).read_text()


def test_mistakes_leave_everything_as_it_was(report, checkpoint, data, tmp_path, capsys):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert explain(checkpoint, report, *data, "--record-id", "nobody") == 2
    assert "'nobody' is not among the 140 records" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before
    (tmp_path / "thesis.txt").write_text("x")
    assert explain(checkpoint, tmp_path, *data) == 2
    assert "holds something else than a report" in capsys.readouterr().err
    assert explain(checkpoint, tmp_path / "new", *data[:2]) == 2
    assert "--data needs --task" in capsys.readouterr().err
    assert explain(checkpoint, tmp_path / "new", *data, "--label", "cured") == 2
    assert "it predicts survived, died" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


def test_clusters_stand_together():
    rng = np.random.default_rng(0)
    group = np.array([0, 1, 0, 1, 0, 1])
    matrix = (group[:, None] == group) + 0.01 * rng.random((6, 6))
    ordered = group[cluster_order(matrix)]
    assert (np.diff(ordered) != 0).sum() == 1


def test_tables_escape_what_records_say():
    assert "<b>" not in table_html([("<b>", "x"), ("<b>", "<b>")], "<b>")


# --------------------------------------------------------------------------------------------------------- a browser

PROBE = """<script>addEventListener("load", () => {
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  document.documentElement.setAttribute("data-probe", JSON.stringify({
    requests: loaded.filter((name) => !name.startsWith("data:")),
    broken: [...document.images].filter((image) => !image.complete || !image.naturalWidth).length,
    narrowest: Math.min(...[...document.images].map((image) => image.getBoundingClientRect().width)),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    text: parseFloat(getComputedStyle(document.body).fontSize),
    reached: [...document.querySelectorAll("a, summary, [tabindex]")].filter((e) => e.tabIndex >= 0).length,
    folded: document.querySelectorAll("summary").length,
  }));
});</script>"""


def browse(*arguments: str) -> subprocess.CompletedProcess:
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-extensions"]
    command = [CHROMIUM, *flags, *quiet, "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("width", [1366, 390])
def test_the_report_opens_in_a_browser(width, report, tmp_path):
    page = tmp_path / "probed.html"
    page.write_text((report / "index.html").read_text().replace("</head>", f"{PROBE}</head>"))
    opened = browse(f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900", "--dump-dom", page.as_uri())
    probe = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', opened.stdout)[1]))
    assert probe["requests"] == []
    assert probe["broken"] == 0
    assert probe["overflow"] <= 0
    assert probe["narrowest"] > (500 if width > 1000 else 200)
    assert probe["text"] >= 16
    assert probe["reached"] > probe["folded"] >= 7
    assert "CONSOLE" not in opened.stderr


def test_the_report_prints(report, tmp_path):
    for name in ("index.html", f"patients/{PATIENT}.html"):
        pdf = tmp_path / "page.pdf"
        browse(f"--user-data-dir={tmp_path}/profile", f"--print-to-pdf={pdf}", (report / name).as_uri())
        printed = pdf.read_bytes()
        assert printed.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
