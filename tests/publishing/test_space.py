"""The push of a Space, and what its page makes of a stay. `test_space_page.py` opens it in a browser."""

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import SpaceCard

from hymate_training.cli.main import main
from hymate_training.explanations.attribution import Explainer
from hymate_training.explanations.trajectory import risk_trajectory
from hymate_training.publishing import schemas, spaces
from hymate_training.publishing.space.answers import answer_html, follow
from hymate_training.publishing.space.checkpoint import Shown, load
from hymate_training.publishing.space.plots import ABOVE, HEIGHT, WIDTH, raised
from hymate_training.publishing.space.stays import LONGEST, Stay, checked, read_stays, simulate
from tests.support.hub_client import ClientError
from tests.support.hub_server import OWNER

MODEL, SPACE = f"{OWNER}/mortality", f"{OWNER}/try-mortality"
RELEASED = Path(__file__).resolve().parents[2] / "model_cards" / "hymate-physionet2012-mortality"
# what a Space has, beside the standard library
THERE = {"gradio", "huggingface_hub", "matplotlib", "numpy", "pandas", "transformers"}


# ------------------------------------------------------------------------------------------- in the client's process


def push_model(cache: Path, path: Path, private: bool = False, repo: str = MODEL) -> str | None:
    from hymate_training.publishing.push import push  # noqa: PLC0415

    return push(repo, checkpoint=path, private=private).commit


def push_space(cache: Path, checkpoint: str, private: bool = False) -> str | None:
    from hymate_training.publishing.push import push  # noqa: PLC0415

    return push(SPACE, space=True, checkpoint=checkpoint, private=private).commit


# ---------------------------------------------------------------------------------------------------------- the push


def test_a_space_holds_the_page_and_the_name_of_its_checkpoint(hub, client, saved):
    client(push_model, saved)
    commit = client(push_space, MODEL)
    repo = hub.repo(SPACE, "spaces")
    assert repo.sdk == "gradio"
    assert repo.commits[-1].oid in commit
    stored = repo.files()
    code = spaces.space_code()
    assert set(stored) == {".gitattributes", "README.md", "app.py", "requirements.txt", "space.json", *code}
    assert all(stored[name] == path.read_bytes() for name, path in code.items())
    settings = json.loads(stored["space.json"])
    assert settings == {"checkpoint": MODEL, "revision": hub.repo(MODEL).commits[-1].oid}
    assert schemas.schema_problem(settings, schemas.SPACE) is None
    header = SpaceCard(stored["README.md"].decode()).data.to_dict()
    assert header["models"] == [MODEL]
    assert header["app_file"] == "app.py"
    assert "Not a medical device" in stored["README.md"].decode()


def test_a_private_checkpoint_has_a_private_space(hub, client, saved):
    client(push_model, saved, True)
    with pytest.raises(ClientError, match=r"is private or gated.*--private"):
        client(push_space, MODEL)
    assert ("spaces", SPACE) not in hub.repos
    client(push_space, MODEL, True)
    assert hub.repo(SPACE, "spaces").private
    assert "secret `HF_TOKEN`" in hub.repo(SPACE, "spaces").files()["README.md"].decode()


def test_what_has_no_answers_has_no_space(hub, client, saved):
    spoiled = f"{OWNER}/spoiled"  # a name of its own: what is downloaded of a commit is kept
    with pytest.raises(ClientError, match=f"{spoiled} cannot be read from the Hub"):
        client(push_space, spoiled)
    with pytest.raises(ClientError, match=r"push .* there first"):
        client(push_space, str(saved))
    client(push_model, saved, False, spoiled)
    files = hub.repo(spoiled).commits[-1].files
    code = files.pop("pipeline_hymate.py")
    with pytest.raises(ClientError, match=r"lacks pipeline_hymate\.py: push it with"):
        client(push_space, spoiled)
    files["pipeline_hymate.py"] = code
    files["config.json"] = files["config.json"].replace(b"HyMaTEForSequenceClassification", b"HyMaTEForPreTraining")
    with pytest.raises(ClientError, match="is no classifier of HyMaTE"):
        client(push_space, spoiled)
    assert ("spaces", SPACE) not in hub.repos


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--data", "prepared"], "a Space shows a checkpoint"),
        (["--checkpoint", MODEL, "--gated"], "--gated is for public models"),
        (["--checkpoint", MODEL, "--dataset", "org/stays"], "--base-model and --dataset go with"),
        (["--checkpoint", "mortality"], "form ORG/NAME, got 'mortality'"),
    ],
)
def test_options_that_do_not_go_with_a_space_are_refused(options, reason, capsys):
    assert main(["push", "--space", SPACE, *options, "--dry-run"]) == 2
    assert reason in capsys.readouterr().err


def test_the_page_needs_nothing_that_a_space_does_not_have():
    """No package of ours: a Space has none, and its model brings its own code."""
    for path in spaces.space_code().values():
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module for node in imports if isinstance(node, ast.ImportFrom) and not node.level}
        assert {name.partition(".")[0] for name in names} <= THERE | sys.stdlib_module_names, path
    listed = {line.partition(">=")[0] for line in spaces.NEEDS if not line.startswith("--")} | {"gradio", "torch"}
    assert listed >= THERE


# ------------------------------------------------------------------------------------------------------- the answers


@pytest.fixture(scope="module")
def shown() -> Shown:
    return load(str(RELEASED))


def test_the_card_is_read_in_sections(shown):
    assert "AUROC" in shown.card["Model facts"]
    assert "must **not** be used" in shown.card["Intended use"]
    assert "![" not in shown.card["Evaluation"]
    assert len(shown.plots) == 4
    assert shown.default_label == "died"


def test_the_course_is_that_of_the_patient_page(shown):
    """Two implementations, since a Space has no package of ours."""
    stay = simulate(shown, "died", "rising", seed=3)
    course = follow(shown, stay, "died")
    explainer = Explainer(shown.classify.model, shown.extractor, "died")
    record = shown.extractor.parse(stay.record())
    trajectory = risk_trajectory(explainer, record, max_times=len(course.times)).predictions
    np.testing.assert_allclose(course.times, trajectory["time"], rtol=1e-6)
    np.testing.assert_allclose(course.answers, trajectory["prediction"], atol=1e-5)
    assert course.trained.tolist() == trajectory["trained"].to_list()


def test_what_moved_an_answer_is_what_it_lacks_without(shown):
    stay = simulate(shown, "died", "rising", seed=3)
    course = follow(shown, stay, "died")
    explainer = Explainer(shown.classify.model, shown.extractor, "died")
    assert course.movers["change"].abs().is_monotonic_decreasing
    for mover in course.movers.head(3).itertuples():
        events = stay.events
        same = (events["time"] == mover.time) & (events["variable"] == mover.variable)
        assert same.sum() == 1
        hour = np.array([mover.time])
        answers = [
            explainer.predictions(explainer.scores_until(shown.extractor.parse(given.record()), hour))[0]
            for given in (stay, Stay(events[~same], stay.static))
        ]
        assert mover.change == pytest.approx(answers[0] - answers[1], abs=1e-5)


def test_a_model_of_many_outputs_shows_them_all(shown):
    stay = simulate(shown, "died", "rising", seed=1)
    course = follow(shown, stay, "died")
    assert course.latest["died"] == course.answers[-1]
    assert "Every answer" not in answer_html(course)  # of two classes one says the other
    horizons = {f"death within {hours} hours": hours / 1000 for hours in (12, 24, 48)}
    page = answer_html(replace(course, label="death within 12 hours", latest=horizons))
    assert "<td>death within 48 hours</td><td>4.8%</td>" in page


def test_small_changes_are_not_said_to_be_none(shown):
    course = follow(shown, simulate(shown, "died", "rising", seed=1), "died")
    assert [course.change_text(change) for change in (0.163, -0.0003, 0.0)] == ["+16.3", "-0.03", "+0"]


def test_no_number_covers_another():
    rng = np.random.default_rng(0)
    for spread in (20, 100, 400):
        points = rng.uniform(0, spread, (6, 2))
        heights = raised(points)
        assert min(heights) >= ABOVE - 1e-9
        tops = points[:, 1] + heights
        for one in range(6):
            for other in range(one):
                apart = abs(points[one] - points[other])[0] >= WIDTH
                assert apart or abs(tops[one] - tops[other]) >= HEIGHT - 1e-9
    far = np.array([[0.0, 5.0], [100.0, 5.0]])
    assert raised(far) == [ABOVE, ABOVE]


def test_a_simulated_stay_goes_where_it_is_told(shown):
    ends = {
        course: np.mean(
            [follow(shown, simulate(shown, "died", course, seed), "died").answers[-1] for seed in range(3)]
        )
        for course in ("falling", "steady", "rising")
    }
    assert ends["falling"] < ends["steady"] < ends["rising"]
    stay = simulate(shown, "died", "steady", seed=0)
    pd.testing.assert_frame_equal(stay.events, simulate(shown, "died", "steady", seed=0).events)
    assert stay.events["time"].is_monotonic_increasing
    assert stay.events["time"].max() < LONGEST
    assert set(stay.static) == {"Age", "Height", "Gender", "ICUType"}


CSV = "record_id,time,variable,value,Age,Gender\n7,30,Lactate,6.3,71,male\n7,0.5,HR,92,,male\n8,1,GCS,,30,female\n"


def test_a_file_holds_stays(shown, tmp_path):
    (tmp_path / "stays.csv").write_text(CSV)
    stays = read_stays(tmp_path / "stays.csv", shown)
    assert list(stays) == ["7", "8"]
    assert stays["7"].record() == {
        "time": [0.5, 30.0],
        "variable": ["HR", "Lactate"],
        "value": [92.0, 6.3],
        "Age": 71.0,
        "Gender": "male",
    }
    assert stays["8"].record()["value"] == [None]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("time,value\n1,2\n", "lacks the column 'variable'"),
        ("time,variable,value\n", "has no rows"),
        ("", "not a CSV table"),
        ("time,variable,value\n1,HR,90\n2,HR,high\n", "row 2, column value: 'high' is not a number"),
        ("time,variable,value\n1,,90\n", "row 1, column variable"),
        ("time,variable,value\n,HR,90\n", "row 1, column time"),
        (CSV.replace("92,,male", "92,,female"), "record 7: column Gender must say the same"),
    ],
)
def test_a_wrong_file_is_refused_by_name(shown, tmp_path, content, reason):
    (tmp_path / "stays.csv").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_stays(tmp_path / "stays.csv", shown)


@pytest.mark.parametrize(
    ("row", "reason"), [((1.0, "Pulse", 90.0), "Pulse"), ((-1.0, "HR", 90.0), "time"), ((1.0, "HR", np.inf), "value")]
)
def test_what_the_model_does_not_take_is_refused(shown, row, reason):
    with pytest.raises(ValueError, match=reason):
        follow(shown, checked(pd.DataFrame([row], columns=["time", "variable", "value"]), {}), "died")
