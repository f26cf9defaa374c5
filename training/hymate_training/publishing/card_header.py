"""The YAML header of a model card: what the Hub reads of it, metrics in the form of `model-index` among it."""

import re
from collections.abc import Iterable, Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData

from hymate_training.evaluation.metrics import metric_titles
from hymate_training.inference.checkpoints import HUB_NAME
from hymate_training.publishing.card_text import interval_text, level_text

LICENSE = "apache-2.0"  # of the code and, unless you say otherwise in your repository, of the weights
PIPELINE_TAGS = {"regression": "tabular-regression", None: "feature-extraction"}
# our names of metrics -> those of the metrics on the Hub, where there is one
HUB_METRICS = {
    "auroc": "roc_auc",
    "auroc_macro": "roc_auc",
    "auroc_micro": "roc_auc",
    "auprc": "average_precision",
    "auprc_macro": "average_precision",
    "brier": "brier_score",
    "r2": "r_squared",
    "spearman": "spearmanr",
}


def card_data(
    title: str, problem_type: str | None, evaluations: Sequence[Mapping], start: str | None
) -> ModelCardData:
    """The header; `start` is the checkpoint from which the training started, named in it where that is on the Hub."""
    results = [result for evaluation in evaluations for result in _eval_results(evaluation)]
    return ModelCardData(
        license=LICENSE,
        library_name="transformers",
        base_model=start if start and HUB_NAME.fullmatch(start) else None,
        pipeline_tag=PIPELINE_TAGS.get(problem_type, "tabular-classification"),
        tags=["hymate", "mamba", "electronic-health-records", "clinical-time-series", "custom_code"],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=title,
        eval_results=results or None,
    )


def _eval_results(evaluation: Mapping) -> Iterable[EvalResult]:
    source = str(evaluation.get("source", "unknown data"))
    for name, value in evaluation["metrics"].items():
        if value is None:
            continue
        interval = evaluation["confidence_intervals"].get(name)
        bootstrap = evaluation.get("bootstrap", {})
        shown = metric_titles(evaluation["problem_type"])[name]
        yield EvalResult(
            task_type="tabular-regression" if evaluation["problem_type"] == "regression" else "tabular-classification",
            task_name=evaluation.get("task"),
            dataset_type=re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-"),
            dataset_name=source,
            dataset_config=evaluation.get("task"),
            dataset_split=evaluation.get("split"),
            dataset_args={"fingerprint": evaluation["split_fingerprint"]}
            if evaluation.get("split_fingerprint")
            else None,
            metric_type=HUB_METRICS.get(name, name),
            metric_name=shown
            if interval is None
            else f"{shown} ({level_text(bootstrap)} interval {interval_text(interval)})",
            metric_value=_rounded(value),
        )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
