"""What produces the numbers in the documentation: cross-validation, releases, runs on each source."""
