"""A checkpoint for other variables: what both know computes the same, what is new is new, and nothing is mixed up."""

import numpy as np
import pytest
import torch

from hymate_training.fitting.transfer import (
    compare_variables,
    merge_extractors,
    transfer_weights,
    transferred_config,
)
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForPreTraining, HyMaTEForSequenceClassification
from tests.support.helpers import close, perturbed, tiny_config

KNOWN = ["heart_rate", "sodium", "lactate", "creatinine", "glucose"]
OTHER = ["creatinine", "ph", "heart_rate", "lactate", "platelets", "sodium"]


def records(variables: list[str], count: int = 8, shift: float = 0.0, seed: int = 0) -> list[dict]:
    generator = np.random.default_rng(seed)
    return [
        {
            "time": np.sort(generator.uniform(0, 30, 20)).tolist(),
            "variable": [variables[index] for index in generator.integers(0, len(variables), 20)],
            "value": (generator.gamma(3, 2, 20) + shift).tolist(),
            "age": float(generator.integers(30, 90)),
            "sex": ["female", "male"][int(generator.integers(2))],
        }
        for _ in range(count)
    ]


def extractor(variables: list[str], shift: float = 0.0, static: bool = True, **columns) -> HyMaTEFeatureExtractor:
    columns = {"numeric_columns": ["age"], "categorical_columns": {"sex": ["female", "male"]}, **columns}
    found = records(variables, 40, shift, seed=1)
    if "weight" in columns["numeric_columns"]:
        found = [record | {"weight": 80.0 + index} for index, record in enumerate(found)]
    return HyMaTEFeatureExtractor.fit(found, variables, **(columns if static else {}))


def checkpoint(head, known: HyMaTEFeatureExtractor, **changes):
    torch.manual_seed(0)
    return perturbed(head(transferred_config(tiny_config(), known, **changes))).eval()


@pytest.mark.parametrize("head", [HyMaTEForPreTraining, HyMaTEForSequenceClassification])
def test_records_of_shared_variables_give_the_same_output(head):
    """The order of the variables, new ones and those that are gone change nothing of what both know."""
    known, fitted = extractor(KNOWN), extractor(OTHER, shift=3)
    old = checkpoint(head, known)
    known.units, fitted.units = {"lactate": "mg/dL", KNOWN[0]: "a"}, {"lactate": "mmol/L", OTHER[-1]: "b"}
    merged = merge_extractors(known, fitted)
    assert merged.units["lactate"] == "mg/dL"  # in which the weights know it
    assert set(merged.units) <= set(merged.variables)
    new = head(transferred_config(old.config, merged)).eval()
    transfer = transfer_weights(new, old.state_dict(), known, merged)
    assert transfer.shared == ("creatinine", "heart_rate", "lactate", "sodium")
    shared = records(list(transfer.shared))
    with torch.no_grad():
        before, after = old(**known(shared)), new(**merged(shared))
    close(after.pooler_output, before.pooler_output)
    if head is HyMaTEForPreTraining:
        places = [known.variables.index(name) for name in transfer.shared]
        here = [merged.variables.index(name) for name in transfer.shared]
        close(after.logits[..., here], before.logits[..., places])
    else:
        close(after.logits, before.logits)


def test_new_variables_keep_their_initial_weights():
    known, fitted = extractor(KNOWN), extractor(OTHER)
    old = checkpoint(HyMaTEForPreTraining, known)
    new = HyMaTEForPreTraining(transferred_config(old.config, fitted))
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    transfer_weights(new, old.state_dict(), known, merge_extractors(known, fitted))
    weight = "hymate.embedding.variable_embedding.weight"
    for name in ("ph", "platelets"):
        close(new.state_dict()[weight][OTHER.index(name)], before[weight][OTHER.index(name)])
    assert not torch.equal(new.state_dict()[weight][0], before[weight][0])


def test_statistics_of_the_checkpoint_win_where_both_know_a_variable():
    known, fitted = extractor(KNOWN), extractor(OTHER, shift=3)
    merged = merge_extractors(known, fitted)
    assert merged.variables == OTHER
    assert merged.time_scale == known.time_scale
    assert merged.value_means[OTHER.index("sodium")] == known.value_means[KNOWN.index("sodium")]
    assert merged.value_means[OTHER.index("ph")] == fitted.value_means[OTHER.index("ph")]
    assert merged.static_columns[0]["mean"] == known.static_columns[0]["mean"]


def test_static_columns_are_matched_by_name():
    """A new column is new, a category that the checkpoint does not know too, and what is gone is gone."""
    known = extractor(KNOWN)
    fitted = extractor(
        KNOWN, numeric_columns=["weight", "age"], categorical_columns={"sex": ["female", "male", "other"]}
    )
    old = checkpoint(HyMaTEForSequenceClassification, known)
    merged = merge_extractors(known, fitted)
    new = HyMaTEForSequenceClassification(transferred_config(old.config, merged)).eval()
    transfer_weights(new, old.state_dict(), known, merged)
    name = "hymate.static_embedding.layers.0.weight"
    columns = [merged.static_feature_names.index(feature) for feature in known.static_feature_names]
    close(new.state_dict()[name][:, columns], old.state_dict()[name])
    assert "sex=other" in merged.static_feature_names


def test_data_without_static_columns_take_the_checkpoints_as_unknown():
    known, bare = extractor(KNOWN), extractor(KNOWN, static=False)
    old = checkpoint(HyMaTEForSequenceClassification, known)
    merged = merge_extractors(known, bare)
    assert merged.static_columns == known.static_columns
    assert compare_variables(known, KNOWN, []).left_columns == tuple(column["name"] for column in known.static_columns)
    new = HyMaTEForSequenceClassification(transferred_config(old.config, merged)).eval()
    transfer_weights(new, old.state_dict(), known, merged)
    given = records(KNOWN)
    close(new(**merged(given)).logits, old(**known(given)).logits)


def test_a_head_of_other_labels_starts_fresh():
    known, fitted = extractor(KNOWN), extractor(OTHER)
    old = checkpoint(HyMaTEForPreTraining, known)
    merged = merge_extractors(known, fitted)
    new = HyMaTEForSequenceClassification(transferred_config(old.config, merged, num_labels=3))
    before = new.classifier.weight.clone()
    transfer_weights(new, old.state_dict(), known, merged)
    assert torch.equal(new.classifier.weight, before)


def test_the_summary_says_how_many_of_each():
    transfer = compare_variables(extractor(KNOWN), OTHER, ["age", "sex"])
    assert transfer.summary == (
        "variables that keep the checkpoint's weights: 4, that start fresh: 2 (ph, platelets), "
        "that the data lack: 1 (glucose)"
    )


def test_what_cannot_be_transferred_is_refused():
    known = extractor(KNOWN)
    with pytest.raises(ValueError, match=r"shares no variable .* --concepts"):
        merge_extractors(known, extractor(["HR", "Na"]))
    with pytest.raises(ValueError, match="the data has static columns and the checkpoint has none"):
        merge_extractors(extractor(OTHER, static=False), known)
    old = checkpoint(HyMaTEForPreTraining, known)
    merged = merge_extractors(known, extractor(OTHER))
    wider = HyMaTEForPreTraining(transferred_config(old.config, merged, hidden_size=32))
    with pytest.raises(ValueError, match=r"is \(.*\) in the checkpoint and \(.*\) in the model"):
        transfer_weights(wider, old.state_dict(), known, merged)
