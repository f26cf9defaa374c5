"""Cross-validated evidence on PhysioNet 2012: `make evidence`."""
