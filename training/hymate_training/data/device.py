"""Batches on their way to a GPU."""

from collections.abc import Mapping
from typing import Any

import torch


def on_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A batch with its tensors on a device. The batch itself stays where it is, which `BatchFeature.to` would move, so
    that what is read off it afterwards still fits what has come back."""
    return {name: part.to(device) if torch.is_tensor(part) else part for name, part in batch.items()}
