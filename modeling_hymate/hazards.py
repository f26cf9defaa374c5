"""Discrete-time hazards: when something happens, from the chance that it does in each of a few bins of time.

A bin ends at each of `config.time_bins`, hours after the prediction time, and the first begins there. Logit k is that
of the hazard: the probability of the event in bin k, given that it did not come before (Gensheimer and Narasimhan,
2019, arXiv 1805.00917). Within a bin the hazard per hour is constant, so that survival is known at any hour, and who
is lost from sight within a bin counts for the part of it that was seen.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .constants import constants


def exposure(hours: torch.Tensor, time_bins: Sequence[float]) -> torch.Tensor:
    """The share of each bin that is over after some hours, between 0 and 1: `(...)` -> `(..., bins)`."""
    ends = constants(time_bins, hours, torch.float32)
    starts = F.pad(ends[:-1], (1, 0))
    return ((hours.float().unsqueeze(-1) - starts) / (ends - starts)).clamp(0, 1)


def hazard_loss(logits: torch.Tensor, labels: torch.Tensor, time_bins: Sequence[float]) -> torch.Tensor:
    """Negative log-likelihood of each record's outcome.

    Args:
        logits: of the hazards, `(..., bins)`, float32.
        labels: hours from the prediction time to the event, or until which there was none, and 1 or 0 for whether the
            event was observed, `(..., 2)`. An event beyond the last bin counts as none until its end.
        time_bins: where the bins end, hours.

    Returns:
        `(...)`.
    """
    hours, observed = labels.float().unbind(-1)
    seen = exposure(hours, time_bins)
    ends = constants(time_bins, hours)
    place = (hours.unsqueeze(-1) > ends).sum(-1)  # of the bin that the time is in, its end included
    happened = F.one_hot(place, len(time_bins) + 1)[..., :-1] * observed.unsqueeze(-1)
    # -log(1 - hazard) of what was survived, and -log(hazard) where it happened
    return (seen * (1 - happened) * F.softplus(logits) + happened * F.softplus(-logits)).sum(-1)


def event_risk(logits: torch.Tensor, time_bins: Sequence[float], hours: Sequence[float]) -> torch.Tensor:
    """The probability of the event within some hours of the prediction time: `(..., bins)` -> `(..., hours)`."""
    seen = exposure(constants(hours, logits, torch.float32), time_bins)  # (hours, bins)
    return -torch.expm1(-F.softplus(logits) @ seen.mT)


def check_horizons(hours: Sequence[float], time_bins: Sequence[float]) -> None:
    """Raises ValueError for hours at which bins say nothing."""
    if not hours or not all(0 < hour <= time_bins[-1] for hour in hours):
        raise ValueError(f"horizons must be hours above 0 and at most {time_bins[-1]:g}, got {list(hours)}")


def risk_name(event: str, hours: float) -> str:
    """What the risk of an event within some hours is called, such as `death within 7 days`."""
    count, unit = (hours / 24, "day") if hours >= 72 and hours % 24 == 0 else (hours, "hour")
    return f"{event} within {count:g} {unit}{'' if count == 1 else 's'}"
