"""Dropout of whole features, and before a head."""

import torch
from torch import nn

from .configuration_hymate import HyMaTEConfig


class FeatureDropout(nn.Dropout):
    """Drops a feature in all events of a record together (Gal and Ghahramani, arXiv 1512.05287).

    One number per record and feature is drawn, not one per event, which on CPUs would take a third of a training step.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same shape"""
        factors = self.factors(states)
        return states if factors is None else states * factors.unsqueeze(1)

    def factors(self, states: torch.Tensor) -> torch.Tensor | None:
        """What the features of each record are multiplied with, `(batch, hidden_size)`; None where nothing drops."""
        if not self.training or self.p == 0:
            return None
        return nn.functional.dropout(states.new_ones(states.shape[0], states.shape[-1]), self.p)


def head_dropout(config: HyMaTEConfig) -> nn.Dropout:
    """Dropout before a head."""
    return nn.Dropout(config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout)
