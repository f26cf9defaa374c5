"""`import hymate`: quick, complete, and enough for transformers to know the model."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hymate

CHECKPOINT = Path(__file__).parent / "checkpoints" / "classification"


def run(code: str) -> dict:
    """What `code` in a fresh process leaves in `result`."""
    program = f"result = {{}}\n{code}\nimport json\nprint(json.dumps(result))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=240)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def test_importing_costs_little():
    result = run(
        "import sys, time\n"
        "start = time.perf_counter()\nimport hymate\nresult['hymate'] = time.perf_counter() - start\n"
        "heavy = ('torch', 'transformers', 'numpy', 'polars', 'hymate_training', 'modeling_hymate')\n"
        "result['imported'] = [name for name in heavy if name in sys.modules]\n"
        "start = time.perf_counter()\nimport transformers\nresult['transformers'] = time.perf_counter() - start\n"
    )
    assert result["imported"] == []
    assert result["hymate"] < result["transformers"] / 5


@pytest.mark.parametrize("name", hymate.__all__)
def test_every_name_is_there(name):
    assert getattr(hymate, name) is getattr(hymate, name)
    assert name in dir(hymate)


def test_the_lists_of_names_agree():
    """`__all__`, the table of where names live, and what type checkers are told."""
    tree = ast.parse(Path(hymate.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0].endswith(("hymate", "hymate_training"))
        for alias in node.names
    }
    assert told == hymate._HOME_OF
    assert sorted({*told, "__version__"}) == hymate.__all__


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'hymate' has no attribute 'finetuen'"):
        hymate.finetuen  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForSequenceClassification",
        "from transformers import AutoFeatureExtractor",
        "from transformers import pipeline",
        "from transformers import Trainer",
        "import transformers.models.auto.modeling_auto",
        "hymate.HyMaTEConfig",
    ],
)
def test_the_auto_classes_know_the_model_whatever_is_imported_first(first):
    result = run(
        f"import hymate\n{first}\n"
        "from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification, pipeline\n"
        f"place = {str(CHECKPOINT)!r}\n"
        "model = AutoModelForSequenceClassification.from_pretrained(place)\n"
        "result['model'] = type(model) is hymate.HyMaTEForSequenceClassification\n"
        "extractor = AutoFeatureExtractor.from_pretrained(place)\n"
        "result['extractor'] = type(extractor) is hymate.HyMaTEFeatureExtractor\n"
        "classify = pipeline('ehr-classification', model=model, feature_extractor=extractor)\n"
        "result['pipeline'] = type(classify) is hymate.HyMaTEPipeline\n"
    )
    assert result == {"model": True, "extractor": True, "pipeline": True}


def test_the_auto_classes_know_the_model_where_they_were_imported_before():
    result = run(
        "from transformers import AutoConfig\nimport hymate\n"
        f"result['type'] = type(AutoConfig.from_pretrained({str(CHECKPOINT)!r})).__name__\n"
    )
    assert result == {"type": "HyMaTEConfig"}


def test_a_missing_extra_is_named():
    result = run(
        "import sys\nsys.modules['polars'] = None\nimport hymate\n"
        "try:\n    hymate.finetune\nexcept ImportError as error:\n    result['error'] = str(error)\n"
        "result['model'] = hymate.HyMaTEModel.__name__\n"
    )
    assert result == {"error": "hymate.finetune needs polars: pip install 'hymate[train]'", "model": "HyMaTEModel"}
