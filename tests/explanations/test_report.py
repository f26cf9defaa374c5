"""`hymate explain` end to end: what the report holds, what it must not hold, and how it opens in a browser."""

import html
import itertools
import json
import re
import shutil
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from markupsafe import Markup
from matplotlib.image import imread

from hymate_training.cli.main import main
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.explanations import figures
from hymate_training.explanations.attribution import METHODS, Explanation
from hymate_training.explanations.figures import cluster_order
from hymate_training.explanations.markup import table_html
from hymate_training.explanations.patient_figures import timeline_figure, trajectory_figure
from hymate_training.explanations.pictures import Picture
from hymate_training.explanations.trajectory import Trajectory
from hymate_training.files import locked
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.push import plan_push

TASK = "in_hospital_mortality"
PATIENT = "stay-0000005"
MAX_EVENTS = 8
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def explain(checkpoint: Path, output: Path, *arguments: object) -> int:
    options = ["--window-hours", "48", "--max-events", str(MAX_EVENTS), "--seed", "1"]
    return main(["explain", "--checkpoint", str(checkpoint), "--output", str(output), *options, *map(str, arguments)])


@pytest.fixture(scope="module")
def data(synthetic_folder) -> list[object]:
    return ["--data", synthetic_folder, "--task", TASK, "--split", "train", "--num-records", 90]


def undrawn(picture: Picture, *_: Path) -> Markup:
    """A picture's text and numbers: drawing it takes most of a report's time."""
    return table_html(picture.table, picture.text)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Picture, "save", undrawn)
    patch.setattr(Picture, "html", undrawn)


@pytest.fixture(scope="module")
def report(checkpoint, data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("explained") / "report"
    assert explain(checkpoint, output, *data, "--record-id", PATIENT) == 0
    return output


@pytest.fixture(scope="module")
def carded(checkpoint, data, tmp_path_factory) -> tuple[Path, Path]:
    """A report on ten records, undrawn, and the checkpoint whose card tells of it."""
    folder = tmp_path_factory.mktemp("carded")
    copy = Path(shutil.copytree(checkpoint, folder / checkpoint.name))
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        assert explain(copy, folder / "report", *data[:-1], 10, "--card") == 0
    return folder / "report", copy


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
        assert [picture["class"] for picture in pictures] == ["wide", "narrow"] * (len(pictures) // 2)
        for picture in pictures:
            assert len(picture["alt"]) > 40
            assert picture["src"].startswith("data:image/svg+xml;base64,")
        assert (
            len(page.all("figure"))
            == len(pictures) / 2
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


def test_the_cohort_page_tells_nothing_of_single_patients(report, synthetic_folder):
    """Nor is any named there, but in the folder of patients alone."""
    record_ids = PreparedFolder(synthetic_folder).events("train").record_ids
    texts = {name: (report / name).read_text() for name in ("index.html", "explanation.json")}
    named = {name: [record_id for record_id in record_ids if record_id in text] for name, text in texts.items()}
    assert named == {"index.html": [], "explanation.json": []}
    assert PATIENT in (report / "patients" / "index.html").read_text()


def test_patient_pages_change_nothing_of_the_cohorts(checkpoint, data, carded, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    assert explain(checkpoint, tmp_path / "report", *data[:-1], 10, "--record-id", PATIENT) == 0
    assert not (carded[0] / "patients").exists()
    content = [(folder / "explanation.json").read_bytes() for folder in (tmp_path / "report", carded[0])]
    assert content[0] == content[1]


def test_the_same_figure_gives_the_same_files(tmp_path):
    def drawn(folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        estimates = tuple(np.array([share, share / 2]) for share in (0.3, 0.2, 0.4))
        draw = partial(figures.shares_figure, ["lactate", "glucose"], {"attention": {"all": estimates}})
        Picture("shares", draw, "Shares.", [("variable", "share"), ("lactate", 0.3)]).save(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert drawn(tmp_path / "first") == drawn(tmp_path / "second")


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


def test_the_model_card_says_whether_explanations_are_faithful(checkpoint, carded, tmp_path):
    report, folder = carded
    card = (folder / "README.md").read_text()
    content = json.loads((report / "explanation.json").read_text())
    for method, verdict in content["verdicts"].items():
        assert f"**{METHODS[method].capitalize()}: {verdict}.**" in card
        area = content["perturbation"]["insertion"][method]["over_random"]["mean"] * content["scale"]
        assert f"{area:+.2f} [" in card
    assert "for 10 records: in hospital mortality, train split of synthetic ICU stays" in card
    assert {"faithfulness.json", "README.md"} <= set(plan_push(folder).uploaded)
    assert "faithful" not in write_model_card(shutil.copytree(checkpoint, tmp_path / "plain")).read_text()


def test_patient_page_holds_the_record(report, synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    info, events = folder.info, folder.events("train")
    record = events.take(np.array([events.record_ids.index(PATIENT)])).latest(MAX_EVENTS)
    text = (report / "patients" / f"{PATIENT}.html").read_text()
    table = text[text.index("All events and their") :]
    assert table.count("<tr>") == 1 + len(record.times)
    for time, variable, value in zip(record.times[-3:], record.variable_ids[-3:], record.values[-3:], strict=True):
        name = f"{info.variables[variable].replace('_', ' ')} {info.extra['units'].get(info.variables[variable], '')}"
        row = f'<th scope="row">{time:.2f}</th><td>{name.strip()}</td><td class="number">{value:.4g}</td>'
        assert row in table
    assert "confidential" in text
    assert "Gray and dashed: the model was trained at the end of each record alone" in text
    assert "hymate finetune --prediction-times" in text


def test_events_of_a_file(checkpoint, synthetic_folder, tmp_path, monkeypatch):
    """Fewer records than a cohort needs: patient pages only. Their ids may be anything."""
    draw_nothing(monkeypatch)
    info = PreparedFolder(synthetic_folder).info
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
    assert "No cohort was explained" in (output / "index.html").read_text()
    assert "perturbation" not in json.loads((output / "explanation.json").read_text())
    assert "patients/index.html" in [link["href"] for link in page.all("a")]
    listed = Page((output / "patients" / "index.html").read_text())
    links = {link["href"] for link in listed.all("a") if link["href"].endswith(".html")} - {"../index.html"}
    headings = {re.search("<h1>(.*)</h1>", (output / "patients" / link).read_text())[1] for link in links}
    assert headings == {f"Record {html.escape(name)}" for name in names}
    units = {info.extra["units"][name] for name in info.variables[:3]} - {""}
    assert units, "of which the checkpoint knows no more than its training data"
    page = (output / "patients" / next(iter(links))).read_text()
    assert all(html.escape(unit) in page for unit in units)


def test_mistakes_leave_everything_as_it_was(report, checkpoint, data, tmp_path, capsys):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert explain(checkpoint, report, *data, "--record-id", "nobody") == 2
    assert "'nobody' is not among the 140 records" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before
    (tmp_path / "thesis.txt").write_text("x")
    for arguments, message in (
        (data[:2], "data needs a task"),
        ([*data, "--label", "cured"], "it predicts survived, died"),
        ([*data, "--window-hours", "0"], "window_hours must be positive"),
        ([*data, "--num-records", "0"], "num_records must be at least 1"),
        ([*data[:-1], "9"], "could tell about a single one"),
        ([*data[:-1], "9", "--card"], "a model card needs at least 10 records"),
    ):
        assert explain(checkpoint, tmp_path / "new", *arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


def test_outputs_that_would_destroy_something_are_refused(
    report, checkpoint, data, synthetic_folder, tmp_path, capsys
):
    """The user's own files, the checkpoint, the data, and what lies around or within them."""
    (tmp_path / "thesis.txt").write_text("x")
    shutil.copytree(report, tmp_path / "annotated")
    (tmp_path / "annotated" / "figures" / "mine.txt").write_text("x")
    (tmp_path / "link").symlink_to(checkpoint)
    for output, message in (
        (tmp_path, "holds something other than a report (annotated/"),
        (tmp_path / "annotated", "holds something other than a report (figures/mine.txt)"),
        (tmp_path / "thesis.txt", "is a file"),
        (checkpoint, "lies where the model or the records are read from"),
        (checkpoint / "report", "lies where the model or the records are read from"),
        (tmp_path / "link", "lies where the model or the records are read from"),
        (synthetic_folder, "lies where the model or the records are read from"),
        (synthetic_folder.parent, "which the report reads"),
    ):
        assert explain(checkpoint, output, *data) == 2
        assert message in capsys.readouterr().err


def test_a_second_run_into_a_folder_is_refused_while_the_first_writes(checkpoint, data, tmp_path, capsys):
    with locked(tmp_path / "report"):
        assert explain(checkpoint, tmp_path / "report", *data) == 2
    assert "another process is writing to" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


ODD_NAMES = ["$", "cost$ of $care", r"\frac{1}{2}$", "a" * 300, "<b>&amp;", "_hidden", "two\nlines", "血圧", "%d {0}"]


@pytest.mark.filterwarnings("ignore:Glyph")  # of a script that the usual font lacks
@pytest.mark.parametrize("narrow", [False, True])
def test_names_of_any_kind_can_be_drawn(narrow):
    """Dollar signs start no formula, and names of any length leave room for the data."""
    ones = np.ones(len(ODD_NAMES)) / len(ODD_NAMES)
    units = {name: "$/l" for name in ODD_NAMES}
    events = pl.DataFrame(
        {
            "record_id": "r",
            "time": np.arange(len(ODD_NAMES)) / 2,
            "variable": ODD_NAMES,
            "value": ones,
            "attribution": ones,
        }
    )
    variables = events.select("record_id", "variable", "attribution", events=1)
    explanation = Explanation("occlusion", "$a$ b$", events, events, variables, events)
    responses = pl.DataFrame({"variable": ODD_NAMES * 2, "value": 1.0, "attribution": 1.0, "low": 0.0, "high": 2.0})
    pairs = pl.DataFrame(
        {"variable": ODD_NAMES, "attended": ODD_NAMES[::-1], "ratio": 1.0, "records": 20, "weight": 0.1}
    )
    moves = pl.DataFrame({"time": [1.0], "variable": ["$"], "value": [1.0], "change": [0.1]})
    trajectory = Trajectory(
        pl.DataFrame({"time": [0.0, 1.0], "prediction": [0.1, 0.2], "trained": [False, True]}), moves
    )
    shares = {"attention": {name: (ones, ones, ones) for name in ODD_NAMES}}
    for draw in (
        partial(figures.shares_figure, ODD_NAMES, shares, ["$"]),
        partial(timeline_figure, explanation, units),
        partial(figures.responses_figure, responses, units),
        partial(figures.attention_map_figure, pairs),
        partial(trajectory_figure, trajectory, "$a$ b$", True),
    ):
        draw(narrow=narrow).draw_without_rendering()


def test_clusters_stand_together():
    rng = np.random.default_rng(0)
    group = np.array([0, 1, 0, 1, 0, 1])
    matrix = (group[:, None] == group) + 0.01 * rng.random((6, 6))
    ordered = group[cluster_order(matrix)]
    assert (np.diff(ordered) != 0).sum() == 1


def test_tables_escape_what_records_say():
    assert "<b>" not in table_html([("<b>", "x"), ("<b>", "<b>")], "<b>")
