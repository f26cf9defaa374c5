"""What runs in the process of a Hub's client: huggingface_hub reads HF_ENDPOINT and its like once, when imported."""

import os
from collections.abc import Callable
from typing import Any

from tests.support.hub_server import card_session


class ClientError(Exception):
    """What a function raised in the client's process, as text."""


def prepare_client():
    import time  # noqa: PLC0415 - of that process

    import huggingface_hub.repocard  # noqa: PLC0415 - likewise, and only now that the environment is set

    assert os.environ["HF_ENDPOINT"] == huggingface_hub.constants.ENDPOINT
    huggingface_hub.repocard.get_session = card_session(huggingface_hub.constants.ENDPOINT)
    time.sleep = lambda seconds: None  # between the client's own retries


def attempt(function: Callable, *arguments) -> dict[str, Any]:
    try:
        return {"result": function(*arguments)}
    except Exception as error:  # many of the client's exceptions cannot be sent back
        return {"error": f"{type(error).__name__}: {error}"}
