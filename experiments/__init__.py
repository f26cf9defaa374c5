"""What produces the figures of the documentation: cross-validation, releases, runs on each source."""
