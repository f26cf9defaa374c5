"""Comparing new records with the training data, and the page that shows it."""
