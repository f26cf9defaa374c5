"""Shared concepts: a vocabulary of what hospitals measure, and how the variables of a source become it."""
