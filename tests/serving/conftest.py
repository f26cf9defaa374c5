from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from hymate_training.serving.guard import ServeLimits
from hymate_training.serving.service import create_app

FOLDER = Path(__file__).parents[1] / "checkpoints" / "classification"


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """A tiny classifier of HR, GCS and Ward, with an Age. Read it only."""
    return load_checkpoint(FOLDER)


@pytest.fixture(scope="module")
def client(checkpoint: Checkpoint) -> Iterator[TestClient]:
    """A client of a service without a token, a file of streams or a limit of requests per second."""
    with TestClient(create_app(checkpoint, ServeLimits(requests_per_second=1e6))) as client:
        yield client
