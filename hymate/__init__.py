"""HyMaTE, a hybrid Mamba and Transformer encoder for electronic health records.

    import hymate
    from transformers import AutoModel                      # knows HyMaTE's checkpoints from now on

    hymate.finetune("runs/data", "in_hospital_mortality", "runs/mortality")

Importing this package is cheap: PyTorch, transformers and everything else are imported when a name is first used. The
Auto classes of transformers are told of HyMaTE as soon as they are imported themselves.
"""

import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from configuration_hymate import HyMaTEConfig
    from hymate_training.data.prepared_folder import PreparedFolder
    from hymate_training.evaluation.comparison import compare
    from hymate_training.evaluation.evaluation import evaluate
    from hymate_training.explanations.attribution import explain
    from hymate_training.explanations.report import build_report
    from hymate_training.fitting.estimator import HyMaTEClassifier
    from hymate_training.fitting.finetuning import FinetuneOptions, finetune
    from hymate_training.fitting.pretraining import PretrainOptions, pretrain
    from hymate_training.inference.checkpoints import load_checkpoint
    from hymate_training.inference.embedding import embed
    from hymate_training.inference.export import export
    from hymate_training.inference.meds_labels import predict_labels
    from hymate_training.inference.prediction import predict
    from hymate_training.inference.prepared import predict_split
    from hymate_training.monitoring.monitor import monitor
    from hymate_training.publishing.push import push
    from hymate_training.serving.guard import ServeLimits
    from hymate_training.serving.service import serve
    from modeling_hymate import (
        Events,
        HyMaTEFeatureExtractor,
        HyMaTEForPreTraining,
        HyMaTEForSequenceClassification,
        HyMaTEModel,
        HyMaTEPipeline,
        Stream,
    )

    __version__: str

__all__ = [
    "Events",
    "FinetuneOptions",
    "HyMaTEClassifier",
    "HyMaTEConfig",
    "HyMaTEFeatureExtractor",
    "HyMaTEForPreTraining",
    "HyMaTEForSequenceClassification",
    "HyMaTEModel",
    "HyMaTEPipeline",
    "PreparedFolder",
    "PretrainOptions",
    "ServeLimits",
    "Stream",
    "__version__",
    "build_report",
    "compare",
    "embed",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "load_checkpoint",
    "monitor",
    "predict",
    "predict_labels",
    "predict_split",
    "pretrain",
    "push",
    "serve",
]

_HOMES = {
    "configuration_hymate": ("HyMaTEConfig",),
    "modeling_hymate": (
        "Events",
        "HyMaTEFeatureExtractor",
        "HyMaTEForPreTraining",
        "HyMaTEForSequenceClassification",
        "HyMaTEModel",
        "HyMaTEPipeline",
        "Stream",
    ),
    "hymate_training.explanations.attribution": ("explain",),
    "hymate_training.explanations.report": ("build_report",),
    "hymate_training.monitoring.monitor": ("monitor",),
    "hymate_training.publishing.push": ("push",),
    "hymate_training.data.prepared_folder": ("PreparedFolder",),
    "hymate_training.evaluation.comparison": ("compare",),
    "hymate_training.evaluation.evaluation": ("evaluate",),
    "hymate_training.fitting.estimator": ("HyMaTEClassifier",),
    "hymate_training.fitting.finetuning": ("FinetuneOptions", "finetune"),
    "hymate_training.fitting.pretraining": ("PretrainOptions", "pretrain"),
    "hymate_training.inference.checkpoints": ("load_checkpoint",),
    "hymate_training.inference.export": ("export",),
    "hymate_training.inference.meds_labels": ("predict_labels",),
    "hymate_training.inference.embedding": ("embed",),
    "hymate_training.inference.prediction": ("predict",),
    "hymate_training.inference.prepared": ("predict_split",),
    "hymate_training.serving.guard": ("ServeLimits",),
    "hymate_training.serving.service": ("serve",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# of what needs more than `hymate[train]`
_EXTRAS = {
    "build_report": "train,explain",
    "explain": "train,explain",
    "ServeLimits": "train,serve",
    "serve": "train,serve",
}
# where transformers looks models, feature extractors and pipelines up
_REGISTRIES = (
    "transformers.models.auto.configuration_auto",
    "transformers.models.auto.feature_extraction_auto",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.pipelines",
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from hymate_training.versions import installed_version  # noqa: PLC0415 - importlib.metadata is not for free

        value: Any = installed_version("hymate") or "unknown"
    elif name in _HOME_OF:
        try:
            value = getattr(importlib.import_module(_HOME_OF[name]), name)
        except ModuleNotFoundError as error:
            extras = _EXTRAS.get(name, "train")
            raise ImportError(f"hymate.{name} needs {error.name}: pip install 'hymate[{extras}]'") from error
    else:
        raise AttributeError(f"module 'hymate' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Registration:
    """On `sys.meta_path`: imports `modeling_hymate`, which registers itself, once transformers has a registry.

    It waits until no module of transformers is half imported, since `modeling_hymate` builds on several of them.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if not fullname.startswith("transformers."):
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: "ModuleType") -> None:
            self._thread.depth = getattr(self._thread, "depth", 0) + 1
            try:
                execute(module)
            finally:
                self._thread.depth -= 1
            if not self._thread.depth and any(name in sys.modules for name in _REGISTRIES):
                self.register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # of this one import
        return spec

    def register(self) -> None:
        """Registers the model, and is done."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module("modeling_hymate")


if any(name in sys.modules for name in _REGISTRIES):
    importlib.import_module("modeling_hymate")
else:
    sys.meta_path.insert(0, _Registration())
