"""Benchmarks of the kernels and the model; `python -m benchmarks` is `make bench`."""
