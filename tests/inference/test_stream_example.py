"""examples/stream_a_stay.py on a stay of the MIMIC-IV demo: what it prints after each event is the model's answer."""

import re

import pytest
import stream_a_stay
import torch

from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.readers import mimic_iv
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import perturbed, tiny_config

LINE = re.compile(r"^ *([\d.]+) h  (.*?) +(\S*)  died ([01]\.\d+)$")


def test_a_real_stay_is_streamed_event_by_event(shared_data, tmp_path, capsys):
    folder = tmp_path / "prepared"
    mimic_iv.prepare(shared_data("mimic-iv-demo-2.2"), folder)
    extractor = fit_feature_extractor(PreparedFolder(folder))
    config = tiny_config(
        num_variables=extractor.num_variables,
        num_static_features=len(extractor.static_feature_names),
        num_labels=2,
        id2label={0: "survived", 1: "died"},
        problem_type="single_label_classification",
        time_scale=extractor.time_scale,
    )
    model = perturbed(HyMaTEForSequenceClassification(config)).eval()
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    paths = ["--checkpoint", str(tmp_path / "model"), "--data", str(folder)]
    stream_a_stay.main([*paths, "--split", "train", "--max-events", "60"])
    title, *lines, last = capsys.readouterr().out.splitlines()
    found = [LINE.match(line).groups() for line in lines]
    assert len(found) == 60
    assert last.startswith("60 events, ")
    stay = PreparedFolder(folder).events("train", extractor.variables).take([0])
    assert stay.record_ids[0] in title
    with torch.no_grad():
        outputs = model(**extractor.encode(stay, prediction_times=stay.times[:60]))
    risks = model.predictions(outputs.logits)[0, :, 1]
    for number, (hour, variable, _, risk) in enumerate(found):
        assert float(hour) == pytest.approx(stay.times[number], abs=0.006)
        assert extractor.variables[stay.variable_ids[number]].startswith(variable)
        if stay.times[number] < stay.times[number + 1]:  # the last of its time, after which nothing more may come
            assert float(risk) == pytest.approx(float(risks[number]), abs=6e-4)
    with pytest.raises(SystemExit):
        stream_a_stay.main([*paths, "--record-id", "nobody"])
    assert "'nobody' is not in the split" in capsys.readouterr().err
