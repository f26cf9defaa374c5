"""`hymate push`: a checkpoint or a prepared folder to the Hugging Face Hub, and nothing else.

What belongs to either is on a list. What may tell about a single patient stops the push of a checkpoint; a data set is
made of patients, so there its license decides.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm
from transformers.dynamic_module_utils import get_relative_imports

import modeling_hymate
from hymate_training.data.prepared_folder import read_info
from hymate_training.data.schema import SPLITS
from hymate_training.publishing.cards import PLACE

REQUIRED = ("config.json", "preprocessor_config.json")
WEIGHTS = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors")
PLOTS = ("roc", "precision_recall", "reliability", "confusion", "predicted_versus_true")
# what a checkpoint consists of, besides the code that save_pretrained copies; all of it at the top of the folder
ALLOWED = re.compile(
    rf"{WEIGHTS.pattern}|model\.safetensors\.index\.json|adapter_config\.json|config\.json|preprocessor_config\.json"
    rf"|README\.md|LICENSE|\w+_({'|'.join(PLOTS)})\.png"
)
# what a prepared folder consists of, tasks that its metadata names
PREPARED = re.compile(
    rf"README\.md|LICENSE|metadata\.json|records/({'|'.join(SPLITS)})-\d{{5}}\.parquet"
    rf"|tasks/(?P<task>[^/]+)/({'|'.join(SPLITS)})\.parquet"
)
UNKNOWN_LICENSES = {"other", "unknown"}  # of the Hub's identifiers
CODE = {path.name for path in Path(modeling_hymate.__file__).parent.glob("*.py")} - {"__init__.py"}

TABLES = {"csv", "tsv", "jsonl", "ndjson", "parquet", "arrow", "feather", "orc", "xls", "xlsx", "dta", "sas7bdat"}
DATABASES = {"db", "sqlite", "sqlite3", "duckdb"}
OBJECTS = {"pkl", "pickle", "joblib", "pt", "pth", "bin", "ckpt", "npy", "npz", "h5", "hdf5", "msgpack", "safetensors"}
ARCHIVES = {"gz", "zip", "tar", "tgz", "bz2", "xz", "zst", "7z"}
STATE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|trainer_state|training_args|training_state"
    r"|custom_checkpoint)\b.*"
)
SINGLE_RECORDS = re.compile(
    r"(?i).*(prediction|attention|explanation|attribution|saliency|event_weights|record|patient).*"
)

IDENTIFIER = r"\w*(?:record|subject|patient|person|stay|hadm|admission|encounter|visit|case)[ _-]?ids?|mrns?"
IDENTIFIER_NAME = re.compile(rf"(?i)(?:{IDENTIFIER})")
# an identifier with something after it, as in `record_id: 7`, `"record_id": [...]`, a table's head or a CSV file's
IDENTIFIED_TEXT = re.compile(rf"(?i)\b(?:{IDENTIFIER})\b[\"'`*]*(?:\s*[:=|]\s*|,)[\"'`*\[({{]*\w")
NAMED_RECORD = re.compile(r"(?i)\b(?:record|patient|subject|stay)\s+(?:no\.?\s*|#\s*)?\d{4,}\b")
RECORD_VALUES = re.compile(
    r"(?i)(predictions?|predicted|probabilit(y|ies)|logits|scores|labels|y_?(true|pred|score|prob)|targets|attentions?"
    r"|attention_weights|event_weights|channel_weights|top_events|embeddings|pooler_output|last_hidden_state)"
)
LARGEST_TEXT = 20_000_000  # bytes; what is longer and not on the list is no text that we write


@dataclass(frozen=True)
class Plan:
    """What would happen to a folder's files, each named by its path inside the folder."""

    uploaded: tuple[str, ...]
    left: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser):
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of a model")
    what.add_argument("--data", type=Path, metavar="DIR", help="prepared folder, pushed as a data set")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository on the Hub, made if need be")
    parser.add_argument("--private", action="store_true", help="only you and your organization may see it")
    parser.add_argument(
        "--acknowledge-credentialed",
        action="store_true",
        help="with --data and --private, for sources that only credentialed users may see: you have checked that "
        "everyone with access to the repository has signed the source's data use agreement, and that it lets you "
        "keep the data on the Hub",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and stop")


def run(args: argparse.Namespace) -> str:
    """Pushes a checkpoint or a data set in one commit; returns what to print."""
    validate_repo_id(args.repo)
    if "/" not in args.repo:
        raise ValueError(f"--repo must have the form ORG/NAME, got {args.repo!r}")
    if args.data is not None:
        folder, kind = args.data, "dataset"
        plan = plan_data_push(folder, args.private, args.acknowledge_credentialed)
    else:
        folder, kind = args.checkpoint, "model"
        plan = plan_push(folder)
    api = HfApi()
    place = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{args.repo}"
    shown = describe(plan, folder, f"{place}{' (private)' if args.private else ''}")
    if args.dry_run:
        return f"{shown}\n\nnothing was uploaded: --dry-run"
    tqdm.write(shown, file=sys.stderr)
    return f"{len(plan.uploaded)} files -> {push(api, plan, folder, args.repo, args.private, kind)}"


def plan_push(folder: str | Path) -> Plan:
    """Decides what of a checkpoint's folder may be uploaded.

    Raises:
        ValueError: if the folder is no complete checkpoint, or holds anything that may tell about a single patient:
            identifiers, tables, predictions or attention of records, training state, pickles. Names every such file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files = sorted(_files(folder))
    uploaded = tuple(name for name in files if ALLOWED.fullmatch(name) or name in CODE)
    found = {name: reason for name in files if (reason := patient_level(folder / name, name in uploaded))}
    if found:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in found.items())
        raise ValueError(
            f"{folder} is not pushed, since it holds what may tell about single patients:\n{listed}\n"
            "Move these files elsewhere, or save the model and its feature extractor to a folder of their own."
        )
    missing = [name for name in (*REQUIRED, *_code_of(folder)) if name not in uploaded]
    if not any(WEIGHTS.fullmatch(name) for name in uploaded):
        missing.append("model.safetensors")
    if missing:
        raise ValueError(f"{folder} is not a complete checkpoint: it lacks {', '.join(missing)}")
    return Plan(uploaded, tuple(name for name in files if name not in uploaded))


def plan_data_push(folder: str | Path, private: bool, acknowledged: bool = False) -> Plan:
    """Decides what of a prepared folder may be uploaded.

    Raises:
        ValueError: if the folder is no complete prepared one; if only credentialed users may see its source, unless
            the repository is `private` and the terms are `acknowledged`; if its license is unknown, unless `private`.
    """
    folder = Path(folder)
    info = read_info(folder)
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
    uploaded = tuple(name for name, match in found.items() if match and match["task"] in {None, *tasks})
    missing = [name for name in ("README.md", "metadata.json") if name not in uploaded]
    missing += [f"tasks/{task}/" for task in sorted(tasks) if not any(f"tasks/{task}/" in name for name in uploaded)]
    if not any(name.startswith("records/") for name in uploaded):
        missing.append("records/")
    if missing:
        raise ValueError(f"{folder} is not a complete prepared folder: it lacks {', '.join(missing)}")
    return Plan(uploaded, tuple(name for name in files if name not in uploaded))


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _code_of(folder: Path) -> list[str]:
    """Files of code that config.json and preprocessor_config.json name, and those that they import."""
    waiting = set()
    for name in REQUIRED:
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            classes = [*content.get("auto_map", {}).values()]
            classes += [task["impl"] for task in content.get("custom_pipelines", {}).values()]
            waiting |= {f"{reference.rpartition('.')[0]}.py" for reference in classes}
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        if (folder / name).is_file():
            waiting |= {f"{module}.py" for module in get_relative_imports(folder / name)} - found
    return sorted(found)


def describe(plan: Plan, folder: Path, destination: str) -> str:
    """What is uploaded and what stays, for a person to look at."""
    width = max(map(len, plan.uploaded))
    lines = [f"  {name:<{width}}  {(folder / name).stat().st_size:>12,} bytes" for name in plan.uploaded]
    shown = [f"{folder} -> {destination}", *lines]
    if plan.left:
        shown.append(f"not uploaded, as no part of it: {', '.join(plan.left)}")
    if "README.md" not in plan.uploaded:
        shown.append("there is no model card (README.md): `hymate pretrain` and `hymate finetune` write one")
    return "\n".join(shown)


def push(api: HfApi, plan: Plan, folder: Path, repo: str, private: bool, kind: str = "model") -> str:
    """Uploads in one commit, so that the repository never shows half of it; returns the commit's address. `kind`:
    model or dataset.

    Raises:
        ValueError: if the Hub refuses, the connection breaks, or `private` is asked of a public repository.
    """
    try:
        try:
            exists_publicly = not api.repo_info(repo, repo_type=kind).private
        except RepositoryNotFoundError:
            exists_publicly = False
            api.create_repo(repo, private=private, exist_ok=True, repo_type=kind)
        if private and exists_publicly:
            raise ValueError(f"{repo} exists and is public: make it private in its settings, or choose another --repo")
        operations = [CommitOperationAdd(name, _content(folder / name, repo)) for name in plan.uploaded]
        message = "Upload a HyMaTE checkpoint" if kind == "model" else "Upload a prepared data set"
        return str(api.create_commit(repo, operations, commit_message=message, repo_type=kind).commit_url)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise ValueError(
                f"the Hub does not let you write to {repo}: log in with `hf auth login`, or set HF_TOKEN to a token "
                "that may write there"
            ) from error
        raise ValueError(_broken(repo, error)) from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(_broken(repo, error)) from error


def _content(path: Path, repo: str) -> Path | bytes:
    """A file as it is, but a card whose example names the repository."""
    if path.name != "README.md":
        return path
    return PLACE.sub(f"place = {json.dumps(repo)}", path.read_text(encoding="utf-8")).encode()


def _broken(repo: str, error: Exception) -> str:
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error  # what a thread met
    lines = str(cause).strip().splitlines()
    return (
        f"the upload to {repo} failed ({type(cause).__name__}: {lines[0] if lines else 'no message'}). Files appear "
        "there all at once or not at all; run the command again"
    )


# ------------------------------------------------------------------------------------------------ what stops a push


def patient_level(path: Path, allowed: bool = False) -> str | None:
    """Why a file may tell about single patients; None if nothing says so. `allowed`: it is on the list of uploads."""
    name = path.name.lower()
    suffixes = {suffix.lstrip(".") for suffix in Path(name).suffixes}
    if not allowed:
        if STATE.fullmatch(name):
            return "training state"
        if suffixes & (TABLES | DATABASES):
            return "a table, which may hold records or predictions"
        # weights in a folder below, such as those of a run's last epoch, are no more of a record than the others
        if suffixes & OBJECTS and not WEIGHTS.fullmatch(name):
            return "pickled objects or arrays, which may hold training state, attention or predictions of records"
        if suffixes & ARCHIVES:
            return "an archive, whose content is not looked into"
        if SINGLE_RECORDS.fullmatch(name) and "py" not in suffixes:
            return "by its name, predictions or attention of single records"
    if path.is_symlink() and not path.is_file():
        return "a link that leads nowhere"
    if suffixes & {"py", "safetensors", "png"} or path.stat().st_size > LARGEST_TEXT:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return _patient_level_text(text, suffixes)


def _patient_level_text(text: str, suffixes: set[str]) -> str | None:
    structured: Any = None
    try:
        if "json" in suffixes:
            return _patient_level_json(json.loads(text))
        if suffixes & {"yaml", "yml"}:
            structured = yaml.safe_load(text)
        elif front := re.match(r"---\n(.*?)\n---\n", text, re.DOTALL):
            structured = yaml.safe_load(front[1])
    except (ValueError, yaml.YAMLError) as error:
        return f"it cannot be read, and so not be checked: {error}"
    if reason := _patient_level_json(structured):
        return reason
    if found := IDENTIFIED_TEXT.search(text) or NAMED_RECORD.search(text):
        line = text.count("\n", 0, found.start()) + 1
        return f"line {line} holds what looks like a record's identifier: {found[0].strip()!r}"
    return None


def _patient_level_json(content: Any, where: str = "") -> str | None:
    if isinstance(content, dict):
        for key, value in content.items():
            place = f"{where}.{key}" if where else str(key)
            if IDENTIFIER_NAME.fullmatch(str(key)):
                return f"{place!r} holds identifiers of records"
            if RECORD_VALUES.fullmatch(str(key)) and isinstance(value, list | dict) and _holds_numbers(value):
                return f"{place!r} holds numbers of single records"
            if reason := _patient_level_json(value, place):
                return reason
    elif isinstance(content, list):
        for value in content:
            if reason := _patient_level_json(value, where):
                return reason
    elif isinstance(content, str):
        if IDENTIFIER_NAME.fullmatch(content):
            return f"{where!r} names a column of identifiers: {content!r}"
        if found := IDENTIFIED_TEXT.search(content) or NAMED_RECORD.search(content):
            return f"{where!r} holds what looks like a record's identifier: {found[0]!r}"
    return None


def _holds_numbers(content: Any) -> bool:
    if isinstance(content, dict):
        return any(map(_holds_numbers, content.values()))
    if isinstance(content, list):
        return any(map(_holds_numbers, content))
    return isinstance(content, int | float)
