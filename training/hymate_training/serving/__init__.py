"""The service: a checkpoint behind HTTP."""
