"""Dropout of whole features."""

import torch
from torch import nn


class FeatureDropout(nn.Dropout):
    """Drops a feature in all events of a record together (Gal and Ghahramani, arXiv 1512.05287).

    One number a record and feature is drawn, not one an event, which on CPUs would take a third of a training step.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same shape"""
        if not self.training or self.p == 0:
            return states
        ones = states.new_ones(states.shape[0], 1, states.shape[2])
        return states * nn.functional.dropout(ones, self.p)
