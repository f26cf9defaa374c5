"""The prepared folder: what it holds, how it is written, opened, split and turned into tensors."""
