"""A checkpoint, a prepared folder or a Space to the Hugging Face Hub, and nothing else.

Of a checkpoint goes what is allowed: the files of the list below, each checked by `privacy`, and the code of the
installed package, never that of the folder. A data set is made of patients, so there its license decides. A Space is
code of the installed package and the name of a checkpoint that is on the Hub already.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

import configuration_hymate
import modeling_hymate
from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.data.schema import SPLITS
from hymate_training.files import followed
from hymate_training.inference.checkpoints import (
    CONFIG_FILE,
    EXPORT_FILE,
    EXTRACTOR_FILE,
    MONITORING_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    read_json,
)
from hymate_training.publishing import privacy
from hymate_training.publishing.cards import card_difference, model_card
from hymate_training.publishing.hub import ADDRESSES, CARD, REQUIREMENTS, Gate, Plan, upload
from hymate_training.publishing.privacy import Refused
from hymate_training.publishing.spaces import plan_space
from modeling_hymate import HyMaTEForSequenceClassification

REQUIRED = (CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE)
# what of a checkpoint's folder goes, besides its card
UPLOADED = re.compile(
    "|".join(
        [
            *map(
                re.escape,
                (*REQUIRED, RUN_FILE, MONITORING_FILE, privacy.FAITHFULNESS_FILE, privacy.NOTES_FILE, "LICENSE"),
            ),
            privacy.EVALUATIONS.pattern,
            privacy.PLOTS.pattern,
        ]
    )
)
# what may lie in it and stays: code and what it needs, which come from the package; logs; a hospital's names for its
# data; the weights of a run's last epoch, and the checkpoint that chose how long to refit; what git, the Hub's client
# and file managers leave
STAYS = re.compile(
    rf"(validated/)?(\w+\.py|requirements\.txt|logs/.*|{re.escape(EXPORT_FILE)}"
    rf"|last/(\w+\.py|{'|'.join(map(re.escape, REQUIRED))}))|validated/({UPLOADED.pattern}|{re.escape(CARD)})"
    r"|\.git(/.*|attributes|ignore)?|\.cache/huggingface/.*|\.DS_Store"
)
# what a prepared folder consists of, tasks that its metadata names
PREPARED = re.compile(
    rf"README\.md|LICENSE|metadata\.json|records/({'|'.join(SPLITS)})-\d{{5}}\.parquet"
    rf"|tasks/(?P<task>[^/]+)/({'|'.join(SPLITS)})\.parquet"
)
HANDLER = "handler.py"  # what an Inference Endpoint calls
UNKNOWN_LICENSES = {"other", "unknown"}  # of the Hub's identifiers
# what a gated repository asks of those who want its files
GATE: dict[str, Any] = {
    "extra_gated_heading": "Ask for access",
    "extra_gated_prompt": "This is for research on retrospective data. It is not a medical device.",
    "extra_gated_fields": {
        "Affiliation": "text",
        "Purpose": "text",
        "I will not use it to diagnose, treat or triage patients": "checkbox",
        "I will not try to identify patients": "checkbox",
    },
}


@dataclass(frozen=True)
class Push:
    """A push as it was done.

    Attributes:
        plan: what was uploaded and what was not.
        destination: address of the repository.
        commit: address of the commit; None for a dry run.
    """

    plan: Plan
    destination: str
    commit: str | None


def push(
    repo: str,
    *,
    checkpoint: str | Path | None = None,
    data: PreparedFolder | str | Path | None = None,
    space: bool = False,
    private: bool = False,
    gated: Gate | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    acknowledge_credentialed: bool = False,
    dry_run: bool = False,
) -> Push:
    """Pushes a checkpoint as a model, a prepared folder as a data set, or a Space, to the Hugging Face Hub.

        push("org/mortality", checkpoint="runs/mortality", private=True)
        push("org/try-mortality", space=True, checkpoint="org/mortality", private=True)

    Args:
        repo: the repository, ORG/NAME; it is made if need be, and removed again if the upload fails. All files appear
            in one commit.
        checkpoint: folder of a model; see `plan_push` for what of it goes. Of a Space, its name on the Hub.
        data: a prepared folder; see `plan_data_push`.
        space: push a page on which to try the checkpoint of that name; see `plan_space`.
        private: only you and your organization may see the repository.
        gated: anyone sees the card, and has to ask for the files: `"manual"`, you look at each request, or `"auto"`,
            who answers the card's questions is let in.
        base_model: of a checkpoint, name on the Hub of the model from which its training started; by default what its
            run was given by name.
        datasets: of a checkpoint, names on the Hub of the data sets that it was trained on.
        acknowledge_credentialed: of data that only credentialed users may see: you have checked that everyone with
            access to the repository has signed the source's data use agreement, and that it lets you keep the data
            on the Hub.
        dry_run: decide what would be uploaded, and stop.

    Raises:
        ValueError: unless exactly one of `checkpoint` and `data` is given; for an option of something else, and for a
            name that is not ORG/NAME; if what is given may not be pushed; if the Hub refuses, the connection breaks,
            or `private` is asked of a public repository.
    """
    for name in (repo, *([] if base_model is None else [base_model]), *datasets):
        validate_repo_id(name)
        if "/" not in name:
            raise ValueError(f"the repository must have the form ORG/NAME, got {name!r}")
    if (checkpoint is None) == (data is None):
        raise ValueError("give either checkpoint or data")
    if gated and (private or space):
        raise ValueError(
            f"--gated is for public models and data sets: leave out --{'private' if private else 'gated'}"
        )
    if (base_model or datasets) and (data is not None or space):
        raise ValueError("--base-model and --dataset go with a checkpoint's folder, whose card names them")
    if data is not None:
        if space:
            raise ValueError("a Space shows a checkpoint, not data: give --checkpoint")
        plan = plan_data_push(data, private, acknowledge_credentialed)
    elif space:
        plan = plan_space(str(checkpoint), private)
    else:
        plan = plan_push(str(checkpoint)).naming(repo)
    header = {"base_model": base_model, "datasets": list(datasets), **(GATE if gated else {})}
    plan = plan.with_header({name: value for name, value in header.items() if value})
    api = HfApi()
    destination = f"{api.endpoint}/{ADDRESSES[plan.kind]}{repo}"
    return Push(plan, destination, None if dry_run else upload(api, plan, repo, private, gated))


def plan_push(folder: str | Path) -> Plan:
    """Decides what of a checkpoint's folder is uploaded.

    The weights, `config.json` and `preprocessor_config.json`; the account of the training, evaluations and their
    plots, without numbers of small groups; the model card, freshly rendered where there is none; `notes.md`, which
    the card takes in, and `LICENSE`; the code of the installed package; and of a classifier `handler.py` and
    `requirements.txt`, with which it answers as an Inference Endpoint.

    Raises:
        ValueError: if the folder is no complete checkpoint, or any file in it is not known to belong to one, or holds
            anything but what is allowed there: unknown keys, identifiers, other tensors, metadata, edits of the card.
            Names every such file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files = sorted(_files(folder))
    if missing := [name for name in REQUIRED if name not in files]:
        raise ValueError(f"{folder} is not a complete checkpoint: it lacks {', '.join(missing)}")
    problems: dict[str, str] = {}
    uploaded = _inspect(folder, files, problems)
    if problems:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(problems.items()))
        raise ValueError(
            f"{folder} is not pushed, since some of its files may tell about single patients:\n{listed}\n"
            "Move these files elsewhere, or save the model and its feature extractor to a folder of their own."
        )
    uploaded |= package_code()
    if read_json(folder / CONFIG_FILE)["architectures"] == [HyMaTEForSequenceClassification.__name__]:
        uploaded |= endpoint_code()
    left = tuple(name for name in files if name not in uploaded)
    return Plan(folder, "model", dict(sorted(uploaded.items())), left)


def _inspect(folder: Path, files: list[str], problems: dict[str, str]) -> dict[str, Path | bytes]:
    """What of the files would go; enters into `problems` what is wrong with any."""

    @contextmanager
    def noting(name: str) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            problems[name] = str(error)

    uploaded: dict[str, Path | bytes] = {}
    plots: dict[str, bool] = {}  # those of evaluations, and whether they may be published
    for name in sorted(files, key=lambda name: (name.endswith(".png"), name)):  # evaluations before their plots
        with noting(name):
            if UPLOADED.fullmatch(name):
                privacy.check_place(folder, name)
                if plots.get(name, True):
                    uploaded[name] = _content(folder / name, plots)
            elif name != CARD and not STAYS.fullmatch(name):
                raise Refused("is not part of a checkpoint")
    if problems.keys() & set(REQUIRED):
        return uploaded
    with noting(CONFIG_FILE):
        weights = privacy.described_weights(folder)
        with noting(WEIGHTS_FILE):
            privacy.check_weights(folder / WEIGHTS_FILE, weights)
        with noting(EXTRACTOR_FILE):
            extractor = privacy.fitting_extractor(folder)
            for name in uploaded:
                if name in (RUN_FILE, MONITORING_FILE) or privacy.EVALUATIONS.fullmatch(name):
                    with noting(name):
                        privacy.check_names(read_json(folder / name), extractor)
    if not problems:
        with noting(CARD):
            uploaded[CARD] = _card(folder, CARD in files)
    return uploaded


def _content(path: Path, plots: dict[str, bool]) -> Path | bytes:
    """One of a checkpoint's files as it is published; an evaluation enters its plots into `plots`."""
    if path.suffix == ".json":
        content = privacy.check_json(path)
        public = privacy.published(path.name, content)
        plots |= {name: name in public["plots"] for name in content.get("plots", [])}
        return f"{json.dumps(public, indent=2, ensure_ascii=False)}\n".encode()  # what was read, and nothing beside it
    if path.suffix == ".png":
        if path.name not in plots:
            raise Refused("is not the plot of an evaluation in this folder")
        privacy.check_png(path)
    elif path.suffix != ".safetensors":
        privacy.check_text(path)
    return path


def _card(folder: Path, exists: bool) -> bytes:
    """The card as it is published; Refused if the folder's own is not the rendered one with the edits allowed."""
    try:
        rendered = str(model_card(folder))
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"cannot be rendered, since a file beside it lacks something ({error!r})") from error
    if not exists:
        return rendered.encode()
    privacy.check_place(folder, CARD)
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused("is not UTF-8 text") from error
    if line := card_difference(text, rendered):
        raise Refused(
            f"line {line} is not what the files beside it say. Write what you have to add into {privacy.NOTES_FILE}, "
            "which the card takes in, and delete this file: a push renders it"
        )
    return text.encode()


def package_code() -> dict[str, Path]:
    """The code that a checkpoint needs where this package is missing: flat, as `save_pretrained` copies it."""
    packages = (modeling_hymate, configuration_hymate)  # the second holds the configuration that the first hands on
    paths = [path for package in packages for path in sorted(Path(str(package.__file__)).parent.glob("*.py"))]
    return {path.name: path for path in paths if path.name != "__init__.py"}


def endpoint_code() -> dict[str, Path | bytes]:
    """What makes a repository an Inference Endpoint, besides the code of the model."""
    needs = "".join(f"{line}\n" for line in REQUIREMENTS)
    return {HANDLER: Path(__file__).with_name(HANDLER), "requirements.txt": needs.encode()}


def write_without_code(plan: Plan, folder: Path) -> None:
    """Writes what would be uploaded into a folder, without the code, which a repository of code has already."""
    for name in plan.uploaded:
        if name not in package_code() | endpoint_code():
            (folder / name).write_bytes(plan.read(name))


def plan_data_push(data: PreparedFolder | str | Path, private: bool, acknowledged: bool = False) -> Plan:
    """Decides what of a prepared folder is uploaded.

    Raises:
        ValueError: if the folder is no complete prepared one, or a link in it leads out of it; if only credentialed
            users may see its source, unless the repository is `private` and the terms are `acknowledged`; if its
            license is unknown, unless `private`.
    """
    opened = open_prepared(data)
    folder, info = opened.path, opened.info
    if info.extra.get("credentialed") and not (private and acknowledged):
        raise ValueError(
            f"{folder} is not pushed: {info.source} is for credentialed users only, whose data use agreement forbids "
            "sharing it. If everyone with access to the repository has signed it, and it lets you keep the data on "
            "the Hub, give both --private and --acknowledge-credentialed"
        )
    if info.license in UNKNOWN_LICENSES and not private:
        raise ValueError(
            f"{folder} is not pushed: nothing says that {info.source} may be published (license: {info.license}). "
            'Give --private; or, if you may publish it, say so: set "license" in its metadata.json'
        )
    files = sorted(_files(folder))
    found = {name: PREPARED.fullmatch(name) for name in files}
    tasks = {task.name for task in info.tasks}
    uploaded = [name for name, match in found.items() if match and match["task"] in {None, *tasks}]
    for name in uploaded:
        if followed(folder) not in followed(folder / name).parents or not (folder / name).is_file():
            raise ValueError(
                f"{folder} is not pushed: {name} is a link that leads out of it, or is not a regular file"
            )
    missing = [name for name in (CARD, "metadata.json") if name not in uploaded]
    missing += [f"tasks/{task}/" for task in sorted(tasks) if not any(f"tasks/{task}/" in name for name in uploaded)]
    if not any(name.startswith("records/") for name in uploaded):
        missing.append("records/")
    if missing:
        raise ValueError(f"{folder} is not a complete prepared folder: it lacks {', '.join(missing)}")
    left = tuple(name for name in files if name not in uploaded)
    return Plan(folder, "dataset", {name: folder / name for name in uploaded}, left)


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        linked = [name for name in folders if Path(parent, name).is_symlink()]  # which are not walked
        for name in (*names, *linked):
            yield Path(parent, name).relative_to(folder).as_posix()
