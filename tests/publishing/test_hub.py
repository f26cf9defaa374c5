"""Round trips between the real client libraries and a loopback Hub: pushes, downloads, and what goes wrong on the way.

Clients run in a process of their own, one for the whole file, since huggingface_hub reads HF_ENDPOINT and its like
once, when it is imported.
"""

import resource
import shutil
import signal
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.support.helpers import tiny_config
from tests.support.hub_client import ClientError
from tests.support.hub_server import OWNER

REPO = f"{OWNER}/model"
RECORDS = [
    {"time": [0.0, 2.0], "variable": ["HR", "GCS"], "value": [90.0, 14.0], "Age": 60.0},
    {"time": [1.0], "variable": ["HR"], "value": [120.0], "Age": None},
]
ADDED = {".gitattributes", "handler.py", "requirements.txt"}  # by the Hub, and for its Inference Endpoints
DISK_LIMIT = 20_000  # bytes


@pytest.fixture(scope="module")
def folder(pool, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    pool.submit(save_checkpoint, path, 0).result(timeout=120)
    return path


# ------------------------------------------------------------------------------------------- in the client's process


def save_checkpoint(path: Path, seed: int):
    import torch  # noqa: PLC0415

    from hymate_training.publishing.cards import write_model_card  # noqa: PLC0415
    from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification  # noqa: PLC0415

    torch.manual_seed(seed)
    extractor = HyMaTEFeatureExtractor.fit(RECORDS, ["HR", "GCS"], numeric_columns=["Age"])
    config = tiny_config(num_variables=2, num_static_features=2, time_scale=extractor.time_scale)
    HyMaTEForSequenceClassification(config).save_pretrained(path)
    extractor.save_pretrained(path)
    write_model_card(path)


def names_in_checkpoint(cache: Path, place: str) -> list[str]:
    """The files that `--checkpoint` finds under a name."""
    from hymate_training.inference.checkpoints import checkpoint_folder  # noqa: PLC0415

    return sorted(path.name for path in checkpoint_folder(place).iterdir())


def logits_of(cache: Path, place: str, options: dict | None = None) -> list:
    """What the model at a repository or in a folder makes of the records."""
    import torch  # noqa: PLC0415
    from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification  # noqa: PLC0415

    import modeling_hymate  # noqa: F401, PLC0415

    options = {"cache_dir": cache, **(options or {})}
    features = AutoFeatureExtractor.from_pretrained(place, **options)(RECORDS)
    model = AutoModelForSequenceClassification.from_pretrained(place, **options).eval()
    with torch.no_grad():
        return model(**features).logits.tolist()


def push_with_transformers(cache: Path, path: Path, repo: str, options: dict):
    from huggingface_hub import ModelCard  # noqa: PLC0415
    from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification  # noqa: PLC0415

    import modeling_hymate  # noqa: F401, PLC0415

    AutoModelForSequenceClassification.from_pretrained(path).push_to_hub(repo, **options)
    AutoFeatureExtractor.from_pretrained(path).push_to_hub(repo, **options)
    ModelCard.load(path / "README.md").push_to_hub(repo)


def push_checkpoint(cache: Path, path: Path, repo: str, private: bool = False, dry_run: bool = False) -> str | None:
    """Pushes, and returns the commit's address."""
    from hymate_training.publishing.push import push  # noqa: PLC0415

    return push(repo, checkpoint=path, private=private, dry_run=dry_run).commit


def push_with(cache: Path, path: Path, repo: str, options: dict) -> str | None:
    from hymate_training.publishing.push import push  # noqa: PLC0415

    return push(repo, checkpoint=path, **options).commit


def create_tag(cache: Path, repo: str, tag: str):
    from huggingface_hub import HfApi  # noqa: PLC0415

    HfApi().create_tag(repo, tag=tag)


def save_newer(cache: Path, path: Path):
    save_checkpoint(path, 1)


def with_small_disk(cache: Path, place: str) -> list:
    """Downloads with no file allowed to grow beyond DISK_LIMIT, which fails as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_LIMIT, hard))
    try:
        return logits_of(cache, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_pipeline(cache: Path, repo: str) -> list:
    from transformers import pipeline  # noqa: PLC0415

    import modeling_hymate  # noqa: F401, PLC0415

    return pipeline("ehr-classification", model=repo, device="cpu", model_kwargs={"cache_dir": cache})(RECORDS)


# ----------------------------------------------------------------------------------------------------- round trips


def test_push_to_hub_and_back(hub, client, folder):
    client(push_with_transformers, folder, REPO, {"private": False})
    stored = hub.repo(REPO).files()
    for path in folder.iterdir():
        assert stored[path.name] == path.read_bytes(), path.name
    assert client(logits_of, REPO) == client(logits_of, str(folder))
    assert client(run_pipeline, REPO)[0]["record_id"] == "0"


def test_command_pushes_everything_in_one_commit(hub, client, folder):
    commit = client(push_checkpoint, folder, REPO)
    repo = hub.repo(REPO)
    assert [commit.title for commit in repo.commits] == ["initial commit", "Upload a HyMaTE checkpoint"]
    assert {path.name for path in folder.iterdir()} | ADDED == set(repo.files())
    assert f'place = "{REPO}"' in repo.files()["README.md"].decode()
    assert repo.commits[-1].oid in commit
    assert not repo.private
    assert client(logits_of, REPO) == client(logits_of, str(folder))


def test_the_card_names_what_the_model_comes_from(hub, client, folder):
    client(push_with, folder, REPO, {"base_model": "org/encoder", "datasets": ["org/stays", "org/more"]})
    card = ModelCard(hub.repo(REPO).files()["README.md"].decode())
    assert card.data.base_model == "org/encoder"
    assert card.data.datasets == ["org/stays", "org/more"]
    plain = ModelCard.load(folder / "README.md")
    added = {"base_model", "datasets"}
    assert {key: value for key, value in card.data.to_dict().items() if key not in added} == plain.data.to_dict()
    assert card.text == plain.text.replace('place = "checkpoint"  # the folder of this card', f'place = "{REPO}"')
    with pytest.raises(ClientError, match="ORG/NAME, got 'stays'"):
        client(push_with, folder, REPO, {"datasets": ["stays"]})


@pytest.mark.parametrize("gated", ["manual", "auto"])
def test_a_gated_model_asks_before_any_file_is_there(hub, client, folder, gated):
    client(push_with, folder, REPO, {"gated": gated})
    assert hub.repo(REPO).gated == gated
    made, closed, filled = (
        next(at for at, (_, route) in enumerate(hub.requests) if part in route)
        for part in ("/repos/create", f"{REPO}/settings", f"{REPO}/commit/")
    )
    assert made < closed < filled
    header = ModelCard(hub.repo(REPO).files()["README.md"].decode()).data.to_dict()
    assert "not a medical device" in header["extra_gated_prompt"]
    assert "I will not try to identify patients" in header["extra_gated_fields"]
    with pytest.raises(ClientError, match="--gated is for public models"):
        client(push_with, folder, REPO, {"gated": gated, "private": True})


def test_a_gate_that_cannot_be_set_stops_the_upload(hub, client, folder):
    with hub.fault("PUT", "/settings", status=500), pytest.raises(ClientError, match="the upload to org/model failed"):
        client(push_with, folder, REPO, {"gated": "manual"})
    assert not hub.repos


def test_commands_take_a_checkpoint_by_its_name(hub, client, folder):
    client(push_checkpoint, folder, REPO)
    kept = [path.name for path in folder.iterdir() if path.suffix != ".py"]  # no code is downloaded
    assert client(names_in_checkpoint, REPO) == sorted(kept)
    with pytest.raises(ClientError, match=f"{OWNER}/absent is not a folder, and cannot be loaded from the Hub"):
        client(names_in_checkpoint, f"{OWNER}/absent")


def test_revision_names_a_version(hub, client, folder, tmp_path):
    client(push_checkpoint, folder, REPO)
    client(create_tag, REPO, "v1")
    newer = tmp_path / "newer"
    client(save_newer, newer)
    client(push_checkpoint, newer, REPO)
    old, new = client(logits_of, str(folder)), client(logits_of, str(newer))
    assert old != new
    assert client(logits_of, REPO) == new
    assert client(logits_of, REPO, {"revision": "v1"}) == old
    assert client(logits_of, REPO, {"revision": hub.repo(REPO).commits[1].oid}) == old
    with pytest.raises(ClientError, match="v9 is not a valid git identifier"):
        client(logits_of, REPO, {"revision": "v9"})


def test_private_repository_asks_for_a_token(hub, client, folder):
    assert client(push_checkpoint, folder, REPO, True, True) is None
    assert not hub.repos
    client(push_checkpoint, folder, REPO, True)
    assert hub.repo(REPO).private
    with pytest.raises(ClientError, match=r"is not a local folder and is not a valid model identifier[\s\S]*token"):
        client(logits_of, REPO, {"token": False})
    assert client(logits_of, REPO) == client(logits_of, str(folder))


def test_missing_repository(hub, client):
    with pytest.raises(ClientError, match=f"{OWNER}/absent is not a local folder and is not a valid model identifier"):
        client(logits_of, f"{OWNER}/absent")


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_private_push_to_a_public_repository_is_refused(hub, client, folder):
    client(push_checkpoint, folder, REPO)
    commits = len(hub.repo(REPO).commits)
    with pytest.raises(ClientError, match="ValueError: org/model exists and is public"):
        client(push_checkpoint, folder, REPO, True)
    assert len(hub.repo(REPO).commits) == commits


@pytest.mark.parametrize("status", [401, 403])
def test_push_without_permission_says_how_to_log_in(hub, client, folder, status):
    with (
        hub.fault("POST", "/api/repos/create", status=status),
        pytest.raises(ClientError, match=r"ValueError: .*hf auth login.*HF_TOKEN"),
    ):
        client(push_checkpoint, folder, REPO)
    assert not hub.repos
    with pytest.raises(ClientError, match=r"ValueError: .*write to someone/model"):
        client(push_checkpoint, folder, "someone/model")


@pytest.mark.parametrize(
    ("method", "pattern", "how"),
    [
        ("POST", "/api/repos/create", {"cut_after": 0}),
        ("POST", "/preupload/", {"status": 404}),
        ("POST", "/objects/batch", {"cut_after": 0}),
        ("PUT", "/lfs/", {"cut_after": 0}),
        ("PUT", "/lfs/", {"status": 500}),
        ("POST", "/commit/", {"cut_after": 0}),
        ("POST", "/commit/", {"status": 503}),
    ],
)
def test_upload_that_breaks_off_shows_nothing(hub, client, folder, method, pattern, how):
    with (
        hub.fault(method, pattern, **how) as fault,
        pytest.raises(ClientError, match=r"ValueError: the upload to org/model failed \(.+\)\. Files appear"),
    ):
        client(push_checkpoint, folder, REPO)
    assert fault.met
    assert not hub.repos  # the one that was made is removed again
    client(push_checkpoint, folder, REPO)
    assert set(hub.repo(REPO).files()) == {path.name for path in folder.iterdir()} | ADDED


def test_an_upload_that_fails_leaves_an_older_repository_alone(hub, client, folder):
    client(push_checkpoint, folder, REPO)
    before = hub.repo(REPO).files()
    with hub.fault("POST", "/commit/", status=503), pytest.raises(ClientError, match="failed"):
        client(push_checkpoint, folder, REPO)
    assert hub.repo(REPO).files() == before


def test_a_repository_that_cannot_be_removed_is_named(hub, client, folder):
    with (
        hub.fault("POST", "/commit/", status=503),
        hub.fault("DELETE", "/repos/delete", status=403),
        pytest.raises(ClientError, match=r"The empty repository org/model.*delete it in its settings"),
    ):
        client(push_checkpoint, folder, REPO)
    assert set(hub.repo(REPO).files()) == {".gitattributes"}


def test_card_with_wrong_metadata_is_refused_before_the_upload(hub, client, folder, tmp_path):
    spoiled = Path(shutil.copytree(folder, tmp_path / "spoiled"))
    card = spoiled / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: free-as-in-beer"))
    with pytest.raises(ClientError, match=r"(?s)ValueError: .*license"):
        client(push_checkpoint, spoiled, REPO)
    assert not hub.repos
    assert not hub.blobs


def test_download_that_breaks_off_once_is_resumed(hub, client, folder):
    client(push_checkpoint, folder, REPO)
    with hub.fault("GET", "model.safetensors", cut_after=10_000, times=1) as fault:
        assert client(logits_of, REPO) == client(logits_of, str(folder))
    assert fault.met == 1


def test_download_that_breaks_off_leaves_no_model_that_loads(hub, client, folder):
    client(push_checkpoint, folder, REPO)
    with hub.fault("GET", "model.safetensors", cut_after=0), pytest.raises(ClientError, match=r"\S+: .*\S"):
        client(logits_of, REPO)
    with pytest.raises(ClientError, match=r"OSError: .*model\.safetensors"):
        client(logits_of, REPO, {"local_files_only": True})
    assert client(logits_of, REPO) == client(logits_of, str(folder))


def test_full_disk_leaves_no_model_that_loads(hub, client, folder):
    client(push_checkpoint, folder, REPO)
    assert (folder / "model.safetensors").stat().st_size > DISK_LIMIT
    with pytest.raises(ClientError, match="File too large"):
        client(with_small_disk, REPO)
    with pytest.raises(ClientError, match=r"OSError: .*model\.safetensors"):
        client(logits_of, REPO, {"local_files_only": True})
    assert client(logits_of, REPO) == client(logits_of, str(folder))
