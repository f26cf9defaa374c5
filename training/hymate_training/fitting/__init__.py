"""The training loop, pretraining, fine-tuning, auxiliary targets and calibration."""
