"""Forecast pretraining: what it is compared with, and what it says."""

import numpy as np
import torch

from hymate_training.cli.main import main
from hymate_training.fitting.pretraining import last_values
from tests.support.runs import TINY


def test_carrying_forward_takes_each_variables_last_value():
    rng = np.random.default_rng(0)
    shape = (6, 40)
    features = {
        "values": torch.from_numpy(rng.normal(size=shape).astype(np.float32)),
        "variable_ids": torch.from_numpy(rng.integers(0, 4, size=shape)),
        "attention_mask": torch.from_numpy(np.arange(40) < rng.integers(1, 40, size=(6, 1))),
        "value_mask": torch.from_numpy(rng.random(shape) < 0.7),
    }
    expected = torch.zeros(6, 4)
    for row in range(6):
        for at in range(40):
            if features["attention_mask"][row, at] and features["value_mask"][row, at]:
                expected[row, features["variable_ids"][row, at]] = features["values"][row, at]
    assert torch.equal(last_values(features, 4), expected)


def test_a_forecast_worse_than_the_last_value_is_explained(synthetic_folder, tmp_path, capsys):
    arguments = ["pretrain", "--data", synthetic_folder, "--output", tmp_path / "run", "--epochs", "1", *TINY]
    assert main(list(map(str, arguments))) == 0
    captured = capsys.readouterr()
    assert "of carrying the last value forward" in captured.out
    assert "no better than the last value yet" in captured.out
    # sentences on stderr, without bars and without reports of loading: it is no terminal
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("Epoch 1 of 1: training loss ")
    assert "on the validation split forecast error " in line
