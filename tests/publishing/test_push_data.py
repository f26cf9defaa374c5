"""`hymate push --data`: prepared folders to the Hub, and back through `datasets`; what may not be shared stays."""

import json
import shutil
from pathlib import Path

import pytest

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.publishing import push
from tests.support.hub_client import ClientError
from tests.support.hub_server import OWNER

REPO = f"{OWNER}/stays"
TASK = "in_hospital_mortality"


@pytest.fixture
def folder(synthetic_folder, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(synthetic_folder, tmp_path / "prepared"))


# ------------------------------------------------------------------------------------------- in the client's process


def push_folder(cache: Path, path: Path, repo: str, private: bool = False, acknowledged: bool = False) -> str | None:
    """Pushes, and returns the commit's address."""
    return push.push(repo, data=path, private=private, acknowledge_credentialed=acknowledged).commit


def load(cache: Path, place: str, config: str, split: str, streaming: bool = False, token: bool | None = None) -> list:
    from datasets import load_dataset  # noqa: PLC0415 - likewise

    return list(load_dataset(place, config, split=split, streaming=streaming, cache_dir=str(cache), token=token))


# ------------------------------------------------------------------------------------------------------- round trips


def test_pushed_folder_loads_as_it_was(hub, client, folder):
    commit = client(push_folder, folder, REPO)
    repo = hub.repo(REPO, "datasets")
    assert [commit.title for commit in repo.commits] == ["initial commit", "Upload a prepared data set"]
    assert repo.commits[-1].oid in commit
    assert not repo.private
    stored = repo.files()
    local = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: body for name, body in stored.items() if name != ".gitattributes"} == local
    for split in SPLITS:
        assert client(load, REPO, TASK, split) == PreparedFolder(folder).task(TASK, split).to_pylist()
    records = PreparedFolder(folder).records("validation").to_pylist()
    assert client(load, REPO, "records", "validation") == records
    assert client(load, REPO, "records", "validation", True) == records


def test_private_data_set_asks_for_a_token(hub, client, folder):
    client(push_folder, folder, REPO, True)
    assert hub.repo(REPO, "datasets").private
    with pytest.raises(ClientError, match=f"{REPO}"):
        client(load, REPO, TASK, "test", False, False)
    assert client(load, REPO, TASK, "test") == PreparedFolder(folder).task(TASK, "test").to_pylist()


def push_gated(cache: Path, path: Path, repo: str) -> str | None:
    return push.push(repo, data=path, gated="manual").commit


def test_gated_data_set_loads_as_an_open_one(hub, client, folder):
    client(push_gated, folder, REPO)
    assert hub.repo(REPO, "datasets").gated == "manual"
    assert "extra_gated_prompt" in hub.repo(REPO, "datasets").files()["README.md"].decode()
    assert client(load, REPO, TASK, "test") == PreparedFolder(folder).task(TASK, "test").to_pylist()


def test_upload_that_breaks_off_shows_nothing(hub, client, folder):
    with hub.fault("PUT", "/lfs/", status=500), pytest.raises(ClientError, match="the upload to org/stays failed"):
        client(push_folder, folder, REPO)
    assert not hub.repos
    client(push_folder, folder, REPO)
    assert "metadata.json" in hub.repo(REPO, "datasets").files()


# -------------------------------------------------------------------------------------------------- what may not go


def describe_as(folder: Path, license_name: str = "apache-2.0", **extra):
    path = folder / "metadata.json"
    content = json.loads(path.read_text())
    content["license"] = license_name
    content["extra"] |= extra
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("given", [(False, False), (True, False), (False, True)])
def test_credentialed_source_needs_both_flags(hub, client, folder, given):
    describe_as(folder, credentialed=True)
    with pytest.raises(ClientError, match=r"both --private and --acknowledge-credentialed"):
        client(push_folder, folder, REPO, *given)
    assert not hub.requests
    client(push_folder, folder, REPO, True, True)
    assert hub.repo(REPO, "datasets").private


@pytest.mark.parametrize("license_name", ["other", "unknown"])
def test_data_of_unknown_license_is_private(folder, license_name):
    describe_as(folder, license_name)
    with pytest.raises(ValueError, match=f"license: {license_name}.*--private"):
        push.plan_data_push(folder, private=False)
    assert push.plan_data_push(folder, private=True).uploaded


def test_only_what_belongs_to_a_prepared_folder_goes(folder):
    strange = ("ids.csv", "records/train.parquet", "tasks/other/train.parquet", "records/deep/train-00000.parquet")
    for name in strange:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"PAR1")
    plan = push.plan_data_push(folder, private=False)
    assert set(plan.left) == set(strange)


@pytest.mark.parametrize("name", ["README.md", "records", f"tasks/{TASK}"])
def test_incomplete_folder_is_refused(folder, name):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=f"lacks {name}"):
        push.plan_data_push(folder, private=False)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a prepared folder"):
        push.plan_data_push(tmp_path, private=False)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    path = folder / "records" / "train-00001.parquet"
    (tmp_path / "elsewhere.parquet").write_bytes(b"PAR1")
    path.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match=r"train-00001\.parquet is a link that leads out"):
        push.plan_data_push(folder, private=True)
