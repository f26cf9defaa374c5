"""What a push uploads, decided beforehand, and the upload itself: one commit, or nothing."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

from hymate_training.publishing.cards import PLACE

CARD = "README.md"
# kind of repository, as the Hub calls it -> where those of a kind are, and the message of a commit
ADDRESSES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
MESSAGES = {
    "model": "Upload a HyMaTE checkpoint",
    "dataset": "Upload a prepared data set",
    "space": "Upload a Space of a HyMaTE checkpoint",
}
HEADER_BOUND = re.compile(r"^---\n", re.MULTILINE)  # before and after a card's YAML
Gate = Literal["auto", "manual"]
# of the code of a model
REQUIREMENTS = ("torch>=2.7", "transformers>=5.11", "safetensors>=0.4.3", "huggingface_hub>=1.20", "numpy>=1.26")


@dataclass(frozen=True)
class Plan:
    """What would be uploaded.

    Attributes:
        source: folder of a checkpoint, a prepared folder, or the name of the checkpoint that a Space shows.
        kind: `"model"`, `"dataset"` or `"space"`, as the Hub calls repositories.
        uploaded: path in the repository -> the file to upload, or its content where that is made for it.
        left: what stays, by path inside the folder.
    """

    source: Path | str
    kind: Literal["model", "dataset", "space"]
    uploaded: Mapping[str, Path | bytes]
    left: tuple[str, ...] = ()

    def describe(self, destination: str) -> str:
        """What is uploaded to a destination and what stays, for a person to look at."""
        width = max(map(len, self.uploaded))
        lines = [f"  {name:<{width}}  {_size(content):>12,} bytes" for name, content in self.uploaded.items()]
        shown = [f"{self.source} -> {destination}", *lines]
        if self.left:
            shown.append(f"not uploaded: {', '.join(self.left)}")
        return "\n".join(shown)

    def read(self, name: str) -> bytes:
        """The content of what is uploaded under a name."""
        content = self.uploaded[name]
        return content.read_bytes() if isinstance(content, Path) else content

    def with_header(self, fields: Mapping[str, Any]) -> "Plan":
        """The same with further fields in the YAML header of its card, in place of those of the same name."""
        if not fields:
            return self
        _, header, text = HEADER_BOUND.split(self.read(CARD).decode(), maxsplit=2)
        header = yaml.safe_dump(yaml.safe_load(header) | dict(fields), sort_keys=False, allow_unicode=True)
        return replace(self, uploaded={**self.uploaded, CARD: f"---\n{header}---\n{text}".encode()})

    def naming(self, repo: str) -> "Plan":
        """The same with the repository in the example of a model's card."""
        if self.kind != "model":
            return self
        card = PLACE.sub(f"place = {json.dumps(repo)}", self.read(CARD).decode())
        return replace(self, uploaded={**self.uploaded, CARD: card.encode()})


def upload(api: HfApi, plan: Plan, repo: str, private: bool, gated: Gate | None = None) -> str:
    """Uploads in one commit, so that the repository never shows half of it; returns the commit's address.

    A repository that was made for an upload that fails is removed again.

    Args:
        api: client of the Hub.
        plan: what to upload.
        repo: the repository, ORG/NAME; it is made if need be.
        private: only you and your organization may see it.
        gated: who wants its files has to ask, and is let in at once or by you; set before any file is there.

    Raises:
        ValueError: if the Hub refuses, the connection breaks, or `private` is asked of a public repository.
    """
    made = False
    try:
        made = _find_or_make(api, plan.kind, repo, private)
        if gated:
            api.update_repo_settings(repo, gated=gated, repo_type=plan.kind)
        operations = [CommitOperationAdd(name, content) for name, content in plan.uploaded.items()]
        commit = api.create_commit(repo, operations, commit_message=MESSAGES[plan.kind], repo_type=plan.kind)
        return str(commit.commit_url)
    except BaseException as error:
        remains = _remove(api, plan.kind, repo) if made else ""
        if isinstance(error, HTTPError | OSError | RuntimeError):
            raise ValueError(_reason(repo, error) + remains) from error
        if remains:
            error.add_note(remains.strip())
        raise


def _find_or_make(api: HfApi, kind: str, repo: str, private: bool) -> bool:
    """Whether the repository had to be made."""
    try:
        found = api.repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
        return True
    if private and not found.private:
        raise ValueError(f"{repo} exists and is public: make it private in its settings, or choose another one")
    return False


def _remove(api: HfApi, kind: str, repo: str) -> str:
    """What to say of a repository that was made and is empty, where it cannot be removed."""
    try:
        api.delete_repo(repo, repo_type=kind)
    except (HTTPError, OSError, RuntimeError):
        return f". The empty repository {repo}, made for this upload, could not be removed: delete it in its settings"
    return ""


def _reason(repo: str, error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code in {401, 403}:
        return (
            f"the Hub does not let you write to {repo}: log in with `hf auth login`, or set HF_TOKEN to a token that "
            "may write there"
        )
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error  # what a thread met
    lines = str(cause).strip().splitlines()
    return (
        f"the upload to {repo} failed ({type(cause).__name__}: {lines[0] if lines else 'no message'}). Files appear "
        "there all at once or not at all; run the command again"
    )


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)
