"""A Space of a checkpoint: the page of `hymate_training.publishing.space`, and the name of what it shows.

Nothing of this machine is in it: its code is that of the installed package, and the checkpoint is one that is on the
Hub already.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from hymate_training.inference.checkpoints import CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE, read_json
from hymate_training.publishing import schemas, space
from hymate_training.publishing.hub import CARD, REQUIREMENTS, Plan
from modeling_hymate import HyMaTEForSequenceClassification
from modeling_hymate.pipeline_hymate import CUSTOM_PIPELINES, TASK

SETTINGS = "space.json"  # which checkpoint the page shows
APP = b'"""What the Space runs."""\n\nfrom space.app import main\n\nmain()\n'
SDK_VERSION = "6.31.0"  # of Gradio; the one that the page is tested with
PYTHON_VERSION = "3.11"
# the first line makes PyTorch a tenth of its size with CUDA
NEEDS = ("--extra-index-url https://download.pytorch.org/whl/cpu", *REQUIREMENTS, "pandas>=2.2", "matplotlib>=3.8")
TEMPLATE = "space_card.md.j2"
CODE = f"{str(CUSTOM_PIPELINES[TASK]['impl']).partition('.')[0]}.py"


def plan_space(checkpoint: str, private: bool) -> Plan:
    """Decides what a Space of a checkpoint is made of.

    The page's code from the installed package, `requirements.txt`, a card, and `space.json`, which names the
    checkpoint and the commit of it that the page shows.

    Args:
        checkpoint: name of a fine-tuned model on the Hub, ORG/NAME, pushed with its code.
        private: only you and your organization may see the Space; a must for a private checkpoint.

    Raises:
        ValueError: if there is no such model on the Hub, it is no classifier of HyMaTE or lacks its code, or it is
            private and the Space would not be.
    """
    settings, hidden = _find(checkpoint)
    if hidden and not private:
        raise ValueError(
            f"{checkpoint} is private or gated, and a public Space would give its answers to anyone: give --private"
        )
    if problem := schemas.schema_problem(settings, schemas.SPACE):
        raise ValueError(f"{SETTINGS}: {problem}")
    uploaded: dict[str, Path | bytes] = {
        CARD: _card(checkpoint, hidden).encode(),
        "app.py": APP,
        "requirements.txt": "".join(f"{line}\n" for line in NEEDS).encode(),
        SETTINGS: f"{json.dumps(settings, indent=2)}\n".encode(),
        **space_code(),
    }
    return Plan(checkpoint, "space", uploaded)


def space_code() -> dict[str, Path]:
    """The page's own code, which needs nothing else of this package: path in the Space -> file."""
    return {f"space/{path.name}": path for path in sorted(Path(str(space.__file__)).parent.glob("*.py"))}


def _find(checkpoint: str) -> tuple[dict[str, Any], bool]:
    """The settings of a Space of a checkpoint on the Hub, and whether not everyone may see that."""
    if Path(checkpoint).is_dir():
        raise ValueError(
            f"a Space loads its checkpoint from the Hub: push {checkpoint} there first, then give its name"
        )
    validate_repo_id(checkpoint)
    if "/" not in checkpoint:
        raise ValueError(f"the checkpoint of a Space must have the form ORG/NAME, got {checkpoint!r}")
    try:
        found = HfApi().model_info(checkpoint)
        names = {file.rfilename for file in found.siblings or ()}
        if missing := {CONFIG_FILE, EXTRACTOR_FILE, WEIGHTS_FILE, CODE} - names:
            raise ValueError(f"{checkpoint} lacks {min(missing)}: push it with `hymate push --checkpoint DIR`")
        config = read_json(Path(hf_hub_download(checkpoint, CONFIG_FILE, revision=found.sha)))
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{checkpoint} cannot be read from the Hub: {reason}") from error
    if config.get("architectures") != [HyMaTEForSequenceClassification.__name__]:
        raise ValueError(f"{checkpoint} is no classifier of HyMaTE, and has no answers to show: fine-tune it first")
    return {"checkpoint": checkpoint, "revision": found.sha}, bool(found.private or found.gated)


def _card(checkpoint: str, hidden: bool) -> str:
    header = SpaceCardData(
        title=f"Try {checkpoint.partition('/')[2]}"[:60],
        emoji="🫀",
        colorFrom="green",
        colorTo="blue",
        sdk="gradio",
        sdk_version=SDK_VERSION,
        python_version=PYTHON_VERSION,
        app_file="app.py",
        license="apache-2.0",
        models=[checkpoint],
        tags=["hymate", "electronic-health-records"],
        short_description="Risk over a simulated hospital stay. Not a medical device.",
    )
    template = (
        resources.files("hymate_training.publishing").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
    )
    environment = Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    return environment.from_string(template).render(
        card_data=header.to_yaml(), checkpoint=checkpoint, hidden=hidden, settings=SETTINGS
    )
