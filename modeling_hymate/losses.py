"""Labels of records: the loss of each problem type, and what its logits say."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from .configuration_hymate import HyMaTEConfig
from .constants import constants
from .hazards import check_horizons, event_risk, hazard_loss
from .inputs import is_readable

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification", "time_to_event"]


def is_regression(config: HyMaTEConfig) -> bool:
    """Whether the outputs are numbers: said so, or one output and nothing said."""
    return config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)


def label_loss(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None, config: HyMaTEConfig
) -> torch.Tensor:
    """The loss of `config.problem_type`, averaged over records, or over all real predictions of all records.

    Args:
        logits: `(batch, [predictions,] num_labels)`, float32.
        labels: as in `HyMaTEForSequenceClassification.forward`.
        mask: 1 or true at real predictions, `(batch, predictions)`; labels elsewhere are not looked at.
        config: the model's.

    Raises:
        ValueError: for labels whose shape, and on CPUs also whose values, do not fit the problem type.
    """
    problem_type = _problem_type(labels, config)
    is_class = problem_type == "single_label_classification"
    own = {"single_label_classification": (), "time_to_event": (2,)}.get(problem_type, logits.shape[-1:])
    expected = (*logits.shape[:-1], *own)
    if config.num_labels == 1 and not is_class and labels.dim() == logits.dim() - 1:
        labels = labels.unsqueeze(-1)
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels for {problem_type} must have shape {expected}, got {tuple(labels.shape)}")
    if mask is not None:
        mask = mask.bool()
        labels = labels.masked_fill(~(mask if is_class else mask.unsqueeze(-1)), 0)
    if is_readable(labels):
        _check_labels(labels, problem_type, config.num_labels)
    weight = _positive_weight(problem_type, config, logits)
    if problem_type == "regression":
        losses = (logits - labels.float()).square().mean(-1) / config.label_deviation**2
    elif is_class:
        losses = F.cross_entropy(logits.flatten(0, -2), labels.long().flatten(), reduction="none").view(expected)
        # Averaged over records, not over their weights, so that the size of a batch does not change its gradient.
        losses = losses if weight is None else losses * weight[labels.long()]
    elif config.time_bins is not None:
        losses = hazard_loss(logits, labels, config.time_bins)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weight, reduction="none")
        losses = losses.mean(-1)
    if mask is None:
        return losses.mean()
    return losses.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def label_predictions(logits: torch.Tensor, config: HyMaTEConfig, horizons: Sequence[float] | None) -> torch.Tensor:
    """As `HyMaTEForSequenceClassification.predictions`, of logits in float32."""
    if config.time_bins is not None:
        hours = (config.horizons or []) if horizons is None else horizons
        check_horizons(hours, config.time_bins)
        return event_risk(logits, config.time_bins, hours)
    if horizons is not None:
        raise ValueError(
            f"horizons are for time-to-event models, and this one's problem type is {config.problem_type}"
        )
    if is_regression(config):
        return logits
    calibrated = calibrated_logits(logits, config)
    multilabel = config.problem_type == "multi_label_classification"
    return calibrated.sigmoid() if multilabel else calibrated.softmax(-1)


def calibrated_logits(logits: torch.Tensor, config: HyMaTEConfig) -> torch.Tensor:
    """Logits of a classifier, `(..., num_labels)`, shifted and divided by the temperature as `config` says."""
    shifted = logits if config.logit_shift is None else logits + constants(config.logit_shift, logits)
    return shifted / config.temperature


def _problem_type(labels: torch.Tensor, config: HyMaTEConfig) -> ProblemType:
    if is_regression(config):
        return "regression"
    if config.problem_type is None:
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    return config.problem_type


def _positive_weight(problem_type: ProblemType, config: HyMaTEConfig, logits: torch.Tensor) -> torch.Tensor | None:
    weight = config.pos_weight
    if weight is None:
        return None
    if not isinstance(weight, list):
        weight = [1.0, weight] if problem_type == "single_label_classification" else [weight] * config.num_labels
    return constants(weight, logits)


def _check_labels(labels: torch.Tensor, problem_type: ProblemType, num_labels: int):
    labels = labels.double()
    if problem_type == "regression":
        bad, rule = ~labels.isfinite(), "finite numbers"
    elif problem_type == "time_to_event":
        hours, observed = labels[..., :1], labels[..., 1:]
        known = (hours >= 0) & hours.isfinite() & ((observed == 0) | ((observed == 1) & (hours > 0)))
        bad = ~known.expand_as(labels)
        rule = "hours from 0 on and 1 or 0 for an event that was observed, after hour 0, or was not"
    elif problem_type == "single_label_classification":
        bad = (labels < 0) | (labels >= num_labels) | (labels != labels.floor())
        rule = f"whole numbers in [0, {num_labels})"
    else:
        bad, rule = ~((labels >= 0) & (labels <= 1)), "numbers from 0 to 1"
    if bad.any():
        raise ValueError(f"labels for {problem_type} must be {rule}, got {labels[bad][0].item():g}")
