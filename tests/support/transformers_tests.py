"""transformers' own common tests, from its source distribution, which `make common-tests` unpacks into build/."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers

FOLDER = Path(__file__).resolve().parents[2] / "build" / f"transformers-{transformers.__version__}" / "tests"
PACKAGE = "transformers_tests"

# The source distribution has the files of tests/ and not its folders. These are what the files want of the folders.
MIXINS_LEFT_OUT = {
    "exporters.test_export": "ExportTesterMixin",  # tests/inference/test_export.py is ours
    "generation.test_utils": "GenerationTesterMixin",  # nothing is generated
}
CONFIGURATION_ARGUMENTS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "architectures": ["HyMaTEModel"],
    "problem_type": "regression",
    "id2label": {0: "survived", 1: "died", 2: "transferred"},
    "label2id": {"survived": 0, "died": 1, "transferred": 2},
}


def common_tests(name: str) -> ModuleType:
    """A module of transformers' tests; the module that calls this is skipped where they were not downloaded."""
    if not FOLDER.is_dir():
        pytest.skip("needs transformers' own tests: make common-tests downloads them", allow_module_level=True)
    if PACKAGE not in sys.modules:
        _module(PACKAGE, __path__=[str(FOLDER)])
        for left_out, mixin in MIXINS_LEFT_OUT.items():
            _module(f"{PACKAGE}.{left_out}", **{mixin: type(mixin, (), {})})
        _module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIGURATION_ARGUMENTS)
    return importlib.import_module(f"{PACKAGE}.{name}")


def _module(name: str, **attributes: object) -> None:
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:
        _module(parent, __path__=[])
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(attributes)
