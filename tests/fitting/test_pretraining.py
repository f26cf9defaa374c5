"""Forecast pretraining: what it is compared with, and what it says."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hymate_training.cli.main import main
from hymate_training.data.collators import ForecastCollator, fit_feature_extractor
from hymate_training.data.examples import load_forecast
from hymate_training.data.pool import FolderPool
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.pretraining import PretrainOptions, forecast_errors
from hymate_training.fitting.run import make_config
from modeling_hymate import HyMaTEForPreTraining
from tests.support.runs import TINY, TINY_MODEL


def test_carrying_forward_takes_each_variables_last_value_before_each_cut(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_forecast(FolderPool([folder]), "train", extractor.variables, 12.0)
    collator = ForecastCollator(extractor, forecast_horizons=(2.0, 6.0), cuts_per_record=3, fixed_cuts=True)
    fields = TINY_MODEL | {"forecast_horizons": [2.0, 6.0]}
    model = HyMaTEForPreTraining(make_config(extractor, fields)).eval()
    metrics = forecast_errors(model, dataset, collator, 16, Accelerator())
    sums, counts = np.zeros(2), np.zeros(2)
    for index in range(len(dataset)):
        features = collator(dataset.__getitems__([index]))
        for at, cut in enumerate(features["prediction_times"][0]):
            last = torch.zeros(extractor.num_variables)
            for time, variable, value, known in zip(
                *(features[name][0] for name in ("times", "variable_ids", "values", "value_mask")), strict=True
            ):
                if time <= cut and known:
                    last[variable] = value
            mask, target = features["forecast_mask"][0, at], features["forecast_values"][0, at]
            sums += ((last - target).square() * mask).sum(-1).numpy()
            counts += mask.sum(-1).numpy()
    assert metrics["carried_forward_error_2h"] == pytest.approx(sums[0] / counts[0], rel=1e-5)
    assert metrics["carried_forward_error_6h"] == pytest.approx(sums[1] / counts[1], rel=1e-5)
    assert metrics["carried_forward_error"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)


def test_one_horizon_can_be_named_alone():
    assert PretrainOptions(forecast_hours=4.0).forecast_horizons == [4.0]
    with pytest.raises(ValueError, match="forecast_horizons must be positive"):
        PretrainOptions(forecast_horizons=[2.0, 0.0])
    with pytest.raises(ValueError, match="cuts_per_record"):
        PretrainOptions(cuts_per_record=0)


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
