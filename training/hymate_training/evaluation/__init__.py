"""Metrics with intervals, alarm utility, subgroups and plots of a model's predictions."""
