import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.fitting.pretraining import PretrainOptions, pretrain
from hymate_training.readers import synthetic
from tests.support.runs import TASK, TINY_MODEL

DATA = Path(os.environ.get("HYMATE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("physionet2012")` is the folder of that data set; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        folder = DATA / name
        if not folder.is_dir():
            pytest.skip(f"needs the data set {name} in {DATA}; HYMATE_TEST_DATA names another folder")
        return folder

    return find


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 200 simulated stays. Read it only: every test of the session shares it."""
    folder = tmp_path_factory.mktemp("synthetic") / "prepared"
    synthetic.prepare(folder, num_records=200, seed=0)
    return folder


@pytest.fixture(scope="session")
def pretrained(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, pretrained for an epoch. Read it only."""
    options = PretrainOptions(epochs=1, batch_size=16, model=TINY_MODEL)
    return pretrain(synthetic_folder, tmp_path_factory.mktemp("pretrained") / "run", options).output


@pytest.fixture(scope="session")
def finetuned(synthetic_folder: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of in-hospital mortality, fine-tuned from `pretrained` for two epochs. Read it only."""
    options = FinetuneOptions(epochs=2, batch_size=16, ema_decay=0.9)
    output = tmp_path_factory.mktemp("finetuned") / "run"
    return finetune(synthetic_folder, TASK, output, options, pretrained).output


class Deprecations(logging.Handler):
    """Collects what libraries log about deprecated uses."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord):
        if "deprecat" in record.getMessage().lower():
            self.messages.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def _deprecations_are_errors() -> Iterator[None]:
    """Fails a test in which one of Hugging Face's libraries logs a deprecation; see filterwarnings for warnings."""
    handler = Deprecations()
    loggers = [logging.getLogger(name) for name in ("transformers", "datasets", "accelerate", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    assert not handler.messages
