"""The models: the contracts of the design, saving and loading, precision, compilation."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from modeling_hymate import HyMaTEForPreTraining, HyMaTEForSequenceClassification, HyMaTEModel
from tests.support.helpers import (
    close,
    event_inputs,
    gradients_of,
    make_model,
    random_batch,
    select_events,
    tiny_config,
)

ABLATIONS = [
    {"attention_axis": axis, "num_mamba_layers": mamba, "num_attention_layers": attention}
    for axis in ("channel", "event")
    for mamba, attention in ((2, 1), (0, 2), (2, 0), (0, 0))
] + [{"num_statistic_bins": 3}]
ablations = pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda a: "-".join(map(str, a.values())))
both_axes = pytest.mark.parametrize("axis", ["channel", "event"])
A_RECORD = ("pooler_output",)
AN_EVENT = ("last_hidden_state", "event_weights")


def by_channel(outputs, row):
    """The real channels of a record: variable -> (token, weight)."""
    ids = outputs.channel_ids[row]
    return {
        int(ids[slot]): (outputs.channel_hidden_state[row, slot], outputs.channel_weights[row, slot])
        for slot in range(len(ids))
        if ids[slot] >= 0
    }


def assert_same_record(found, row, expected, expected_row, events=slice(None), expected_events=slice(None)):
    """A record's outputs are equal, its events compared at the places given."""
    close(found.pooler_output[row], expected.pooler_output[expected_row])
    for name in AN_EVENT:
        close(found[name][row, events], expected[name][expected_row, expected_events])
    channels, expected_channels = by_channel(found, row), by_channel(expected, expected_row)
    assert channels.keys() == expected_channels.keys()
    for variable, pair in channels.items():
        for tensor, expected_tensor in zip(pair, expected_channels[variable], strict=True):
            close(tensor, expected_tensor)


@ablations
@torch.no_grad()
def test_padding_and_batch_composition_change_nothing(ablation):
    model = make_model(**ablation)
    inputs = random_batch(model.config, batch=4, length=9)
    whole = model(**inputs)
    for row in range(4):
        alone = model(**{name: tensor[row : row + 1] for name, tensor in inputs.items()})
        assert_same_record(alone, 0, whole, row)
        real = inputs["attention_mask"][row].nonzero().squeeze(-1)
        stripped = model(**select_events({name: tensor[row : row + 1] for name, tensor in inputs.items()}, real))
        assert_same_record(stripped, 0, whole, row, expected_events=real)
    padded = {name: F.pad(tensor, (0, 40)) for name, tensor in event_inputs(inputs).items()}
    longer = model(**inputs | padded)
    for row in range(4):
        assert_same_record(longer, row, whole, row, events=slice(9))
    assert not longer.event_weights[:, 9:].any()
    assert not longer.last_hidden_state[:, 9:].any()


@ablations
@torch.no_grad()
def test_order_of_events_changes_nothing(ablation):
    model = make_model(**ablation)

    @settings(max_examples=6, deadline=None)
    @given(order=st.permutations(range(12)), seed=st.integers(0, 100))
    def check(order, seed):
        inputs = random_batch(model.config, batch=2, length=12, seed=seed)
        # ties in time, of one variable, and of a zero with a missing number
        inputs["times"][:, :6] = 0.25
        inputs["variable_ids"][:, :4] = 1
        inputs["values"][:, :2] = 0.0
        inputs["attention_mask"][:, :4] = True
        # (events equal in time, variable and value are one another's twins: the first may stand for the second)
        inputs["value_mask"][:] = torch.arange(12) != 1
        expected, found = model(**inputs), model(**select_events(inputs, list(order)))
        for row in range(2):
            assert_same_record(found, row, expected, row, expected_events=list(order))

    check()


@ablations
@torch.no_grad()
def test_twin_events_may_trade_places(ablation):
    model = make_model(**ablation)
    inputs = random_batch(model.config, batch=2, length=8)
    twins = {name: torch.cat([tensor, tensor], 1) for name, tensor in event_inputs(inputs).items()}
    expected = model(**inputs | twins)
    found = model(**select_events(inputs | twins, torch.randperm(16)))
    close(found.pooler_output, expected.pooler_output)
    close(found.channel_weights, expected.channel_weights)


@ablations
@torch.no_grad()
def test_masked_events_change_nothing_whatever_they_hold(ablation):
    model = make_model(**ablation)
    inputs = random_batch(model.config, batch=3, length=10)
    expected = model(**inputs)
    hidden = ~inputs["attention_mask"]
    for value, time, variable in ((math.nan, math.nan, 5), (math.inf, -1e30, -7), (1e30, 1e30, 10**9)):
        dirty = inputs | {
            "values": inputs["values"].masked_fill(hidden, value),
            "times": inputs["times"].masked_fill(hidden, time),
            "variable_ids": inputs["variable_ids"].masked_fill(hidden, variable),
            "value_mask": inputs["value_mask"] | hidden,
        }
        found = model(**dirty)
        for row in range(3):
            assert_same_record(found, row, expected, row)
    no_number = inputs["values"].masked_fill(~inputs["value_mask"], math.nan)
    found = model(**inputs | {"values": no_number})
    close(found.pooler_output, expected.pooler_output)


@both_axes
def test_garbage_at_masked_events_leaves_gradients_finite(axis):
    model = make_model(attention_axis=axis)
    inputs = random_batch(model.config)
    inputs["values"] = inputs["values"].masked_fill(~inputs["attention_mask"] | ~inputs["value_mask"], math.nan)
    inputs["times"] = inputs["times"].masked_fill(~inputs["attention_mask"], math.nan)
    model(**inputs).pooler_output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_missing_numbers_are_told_from_zeros():
    model = make_model()
    inputs = random_batch(model.config)
    inputs["values"][:] = 0.0
    with_zeros = model(**inputs | {"value_mask": torch.ones_like(inputs["value_mask"])})
    without_numbers = model(**inputs | {"value_mask": torch.zeros_like(inputs["value_mask"])})
    assert (with_zeros.pooler_output - without_numbers.pooler_output).abs().max() > 1e-3
    del inputs["value_mask"]
    as_nan = model(**inputs | {"values": torch.full_like(inputs["values"], math.nan)})
    close(as_nan.pooler_output, without_numbers.pooler_output)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
@torch.no_grad()
def test_kinds_of_masks_and_ids(kind):
    model = make_model()
    inputs = random_batch(model.config)
    masks = {name: inputs[name].to(kind) for name in ("attention_mask", "value_mask")}
    found = model(**inputs | masks | {"variable_ids": inputs["variable_ids"].int(), "times": inputs["times"].double()})
    close(found.pooler_output, model(**inputs).pooler_output)


@both_axes
@torch.no_grad()
def test_temporal_encoder_is_causal(axis):
    model = make_model(attention_axis=axis)
    inputs = random_batch(model.config, length=12)
    earlier = inputs["times"] < 0.5
    expected = model(**inputs).last_hidden_state
    # later events are removed, changed, or added in front of the others in the tensor
    removed = model(**inputs | {"attention_mask": inputs["attention_mask"] & earlier}).last_hidden_state
    close(removed[earlier], expected[earlier])
    later = ~earlier
    changed = {
        "values": inputs["values"].masked_fill(later, 3.0),
        "times": torch.where(later, inputs["times"] + 2, inputs["times"]),
        "variable_ids": inputs["variable_ids"].masked_fill(later, 2),
    }
    found = model(**inputs | changed).last_hidden_state
    close(found[earlier], expected[earlier])
    assert (found[later] - expected[later]).abs().max() > 1e-3
    added = {name: torch.cat([tensor[:, :5], tensor], 1) for name, tensor in event_inputs(inputs).items()}
    added["times"][:, :5] = 9.0
    close(model(**inputs | added).last_hidden_state[:, 5:], expected)
    # and an earlier event does reach a later one
    moved = model(**inputs | {"values": inputs["values"] + 5 * earlier}).last_hidden_state
    assert (moved[later] - expected[later]).abs().max() > 1e-4


@torch.no_grad()
def test_negative_times_come_first():
    model = make_model(num_attention_layers=0)
    times = torch.tensor([[0.5, -0.25, 0.0, -1.0]])
    order = times.argsort(1)
    inputs = {"values": torch.randn(1, 4), "variable_ids": torch.tensor([[0, 1, 2, 3]])}
    static = {"static_values": torch.zeros(1, 3)}
    for kept in range(1, 4):  # causal in this order: what comes later may go
        mask = torch.zeros(1, 4, dtype=torch.bool).scatter(1, order[:, :kept], True)
        whole, part = (
            model(**inputs, **static, times=times, attention_mask=m).last_hidden_state
            for m in (torch.ones_like(mask), mask)
        )
        close(part[mask], whole[mask])


@ablations
@torch.no_grad()
def test_weights_are_shares(ablation):
    model = make_model(**ablation)
    inputs = random_batch(model.config, batch=4, length=11)
    mask = inputs["attention_mask"]
    outputs = model(**inputs)
    assert (outputs.event_weights >= 0).all()
    assert not outputs.event_weights[~mask].any()
    close(outputs.event_weights.sum(1), torch.ones(4))
    close(outputs.channel_weights.sum(1), torch.ones(4))
    for row in range(4):
        observed = inputs["variable_ids"][row][mask[row]].unique()
        channels = by_channel(outputs, row)
        assert list(channels) == observed.tolist()  # ascending
        for variable, (_, weight) in channels.items():
            events = mask[row] & (inputs["variable_ids"][row] == variable)
            close(outputs.event_weights[row][events].sum(), weight)
    padding = outputs.channel_ids < 0
    assert not outputs.channel_weights[padding].any()
    assert not outputs.channel_hidden_state[padding].any()
    assert outputs.channel_hidden_state.shape == (*outputs.channel_ids.shape, 16)


@both_axes
@torch.no_grad()
def test_event_tokens_of_a_channel_average_to_it(axis):
    model = make_model(attention_axis=axis, num_attention_layers=0)
    inputs = random_batch(model.config)
    outputs = model(**inputs)
    if axis == "event":
        weighted = outputs.last_hidden_state * outputs.event_weights.unsqueeze(-1)
        for row in range(3):
            for variable, (token, weight) in by_channel(outputs, row).items():
                events = inputs["variable_ids"][row] == variable
                close(weighted[row][events].sum(0) / weight, token)
    else:
        # the pooled vector is the weighted mean of the normalized tokens
        tokens = model.fusion.norm(outputs.channel_hidden_state)
        pooled = (tokens * outputs.channel_weights.unsqueeze(-1)).sum(1)
        last = inputs["times"].masked_fill(~inputs["attention_mask"], -math.inf).amax(1, keepdim=True)
        asked = model.prediction_time_embedding(last, torch.float32).squeeze(1)
        close(pooled + asked, outputs.pooler_output[:, :16])


@ablations
def test_empty_records_stay_finite(ablation):
    model = make_model(**ablation)
    inputs = random_batch(model.config)
    inputs["attention_mask"][1] = False
    outputs = model(**inputs)
    for name, tensor in outputs.items():
        assert tensor.isfinite().all(), name
    assert not outputs.event_weights[1].any()
    assert (outputs.channel_ids[1] == -1).all()
    with torch.no_grad():
        others = model(**{name: tensor[[0, 2]] for name, tensor in inputs.items()})
    close(outputs.pooler_output[[0, 2]], others.pooler_output)
    inputs["attention_mask"][:] = False
    outputs = model(**inputs)
    outputs.pooler_output.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@both_axes
def test_gradient_checkpointing_gives_the_same(axis):
    model = make_model(HyMaTEForSequenceClassification, attention_axis=axis).train()
    inputs = random_batch(model.config) | {"labels": torch.tensor([0, 1, 1])}
    loss = model(**inputs).loss
    expected = gradients_of(model, loss)
    # its name in newer transformers, and that in the oldest one that setup.cfg allows
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert all(layer.gradient_checkpointing for layer in model.hymate.mamba_layers)
    assert all(layer.gradient_checkpointing for layer in model.hymate.attention_layers)
    checkpointed = model(**inputs).loss
    close(checkpointed, loss, 0)
    for name, gradient in gradients_of(model, checkpointed).items():
        close(gradient, expected[name], 1e-6)


@both_axes
@torch.no_grad()
def test_eager_attention_equals_sdpa_and_shows_its_weights(axis):
    model = make_model(attention_axis=axis, num_attention_layers=2, attn_implementation="sdpa")
    inputs = random_batch(model.config)
    inputs["attention_mask"][2, 1:] = False
    sdpa = model(**inputs)
    model.set_attn_implementation("eager")
    eager = model(**inputs, output_attentions=True)
    for row in range(3):
        assert_same_record(eager, row, sdpa, row)
    tokens = eager.channel_ids.shape[1] if axis == "channel" else 9
    assert [weights.shape for weights in eager.attentions] == [(3, 2, tokens, tokens)] * 2
    close(eager.attentions[0].sum(-1), torch.ones(3, 2, tokens))
    if axis == "channel":
        padding = (eager.channel_ids < 0)[:, None, None].expand_as(eager.attentions[0])
        assert not eager.attentions[0][padding].any()


@torch.no_grad()
def test_hidden_states_are_those_of_the_layers():
    model = make_model(HyMaTEForSequenceClassification)
    inputs = random_batch(model.config)
    assert model(**inputs).hidden_states is None
    outputs = model(**inputs, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3  # embeddings and two Mamba layers
    close(outputs.hidden_states[-1], outputs.last_hidden_state, 0)
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == 3


@both_axes
def test_hidden_states_have_gradients(axis):
    model = make_model(HyMaTEForSequenceClassification, attention_axis=axis)
    inputs = random_batch(model.config)
    outputs = model(**inputs, output_hidden_states=True)
    close(outputs.logits, model(**inputs).logits, 0)
    gradients = torch.autograd.grad(outputs.logits.sum(), outputs.hidden_states)
    for gradient in gradients:
        assert (gradient.abs().sum(-1) > 0).equal(inputs["attention_mask"])


@pytest.mark.parametrize("head", [HyMaTEModel, HyMaTEForPreTraining, HyMaTEForSequenceClassification])
@torch.no_grad()
def test_tuples_hold_what_the_outputs_hold(head):
    model = make_model(head)
    inputs = random_batch(model.config)
    if head is HyMaTEForPreTraining:
        inputs |= {"forecast_values": torch.zeros(3, 1, 6), "forecast_mask": torch.ones(3, 1, 6)}
    if head is HyMaTEForSequenceClassification:
        inputs |= {"labels": torch.tensor([0, 1, 1])}
    outputs, values = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(values, tuple)
    for found, expected in zip(values, outputs.to_tuple(), strict=True):
        close(found, expected, 0)
    if head is not HyMaTEModel:
        assert list(outputs)[:2] == ["loss", "logits"]  # where Trainer and its users look for them


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both_axes
@torch.no_grad()
def test_half_precision(dtype, axis, tmp_path):
    make_model(attention_axis=axis).save_pretrained(tmp_path)
    full, half = (HyMaTEModel.from_pretrained(tmp_path, dtype=kind) for kind in (torch.float32, dtype))
    kept = {"A_log", "D", "dt_proj.bias"}
    for name, parameter in half.named_parameters():
        is_kept = any(name.endswith(f"mixer.{ending}") for ending in kept)
        assert parameter.dtype == (torch.float32 if is_kept else dtype), name
    inputs = random_batch(full.config, length=40)
    expected, found = full(**inputs), half(**inputs)
    assert found.pooler_output.dtype == dtype
    assert found.event_weights.dtype == torch.float32
    tolerance = 0.15 if dtype == torch.bfloat16 else 0.02
    for name in ("pooler_output", "last_hidden_state", "channel_hidden_state"):
        assert (found[name].float() - expected[name]).abs().max() < tolerance * expected[name].abs().max(), name


@both_axes
def test_autocast(axis):
    model = make_model(HyMaTEForSequenceClassification, attention_axis=axis).train()
    inputs = random_batch(model.config) | {"labels": torch.tensor([0, 1, 1])}
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs)
    assert outputs.loss.dtype == torch.float32
    close(outputs.loss, model(**inputs).loss, 0.1)
    for name, gradient in gradients_of(model, outputs.loss).items():
        assert gradient.isfinite().all(), name


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("head", [HyMaTEModel, HyMaTEForPreTraining, HyMaTEForSequenceClassification])
@both_axes
def test_saving_and_loading_is_bit_equal(head, axis, tmp_path):
    model = make_model(head, attention_axis=axis, num_labels=3, num_statistic_bins=2 * (axis == "channel"))
    model.save_pretrained(tmp_path / "first")
    torch.manual_seed(1)
    loaded, info = head.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    inputs = random_batch(model.config)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).pooler_output, model(**inputs).pooler_output)
    loaded.save_pretrained(tmp_path / "second")
    assert files(tmp_path / "second") == files(tmp_path / "first")


def test_every_checkpoint_opens_with_every_auto_class(tmp_path):
    make_model(HyMaTEForPreTraining).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.to_dict().keys() >= {"attention_axis", "auto_map"}
    inputs = random_batch(config)
    pretrained = AutoModelForPreTraining.from_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert isinstance(pretrained, HyMaTEForPreTraining)
    assert isinstance(encoder, HyMaTEModel)
    with torch.no_grad():
        assert torch.equal(encoder(**inputs).pooler_output, pretrained(**inputs).pooler_output)


def test_a_missing_head_is_initialized_and_the_rest_is_loaded(tmp_path):
    pretrained = make_model(HyMaTEForPreTraining)
    pretrained.save_pretrained(tmp_path)

    def load(seed):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4)

    first, again, other = load(0), load(0), load(1)
    bound = 1 / math.sqrt(first.classifier.in_features)
    for parameter in first.classifier.parameters():
        assert parameter.device.type == "cpu"
        assert 0 < parameter.abs().max() <= bound
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    expected = pretrained.hymate.state_dict()
    for name, tensor in first.hymate.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_missing_mixers_are_initialized_from_the_meta_device(tmp_path):
    make_model(num_mamba_layers=1).save_pretrained(tmp_path)
    model = HyMaTEModel.from_pretrained(tmp_path, num_mamba_layers=2)
    mixer = model.mamba_layers[1].mixer
    close(mixer.A_log.exp(), torch.arange(1.0, 5.0).expand(32, 4))
    assert (mixer.D == 1).all()
    steps = F.softplus(mixer.dt_proj.bias)
    assert 0.0009 < steps.min() < steps.max() < 0.11
    for name, parameter in model.mamba_layers[1].named_parameters():
        assert parameter.isfinite().all(), name


def test_a_partly_missing_mixer_keeps_what_was_loaded(tmp_path):
    # transformers initializes a module again as soon as one of its parameters is missing
    model = make_model()
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("mixer.D")}
    model.save_pretrained(tmp_path, state_dict=dict(kept))  # a copy: transformers empties it
    loaded = HyMaTEModel.from_pretrained(tmp_path).state_dict()
    for name, tensor in kept.items():
        assert torch.equal(loaded[name], tensor), name
    assert all((tensor == 1).all() for name, tensor in loaded.items() if name not in kept)


def test_initialization_is_set_by_the_seed_and_sensible():
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(HyMaTEForSequenceClassification(tiny_config()))
    first, again, other = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    for name, parameter in first.items():
        assert parameter.isfinite().all(), name
        assert parameter.abs().max() < 8, name
    spread = first["hymate.embedding.missing_value"].std() / models[0].config.initializer_range
    assert 0.5 < spread < 2
    assert models[0](**random_batch(tiny_config())).logits.abs().max() < 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(3)}, r"values must be \(batch, length\)"),
        ({"values": torch.zeros(3, 0)}, "values must be .* at least 1"),
        ({"values": torch.zeros(0, 9)}, "values must be .* at least 1"),
        ({"times": torch.zeros(3, 8)}, "times must have the shape of values"),
        ({"attention_mask": torch.ones(3, 8)}, "attention_mask must have the shape of values"),
        ({"value_mask": torch.ones(3, 8)}, "value_mask must have the shape of values"),
        ({"variable_ids": torch.zeros(3, 9)}, "variable_ids must be integers, got torch.float32"),
        ({"variable_ids": torch.full((3, 9), 6)}, r"variable_ids must lie in \[0, 6\), got 6 to 6"),
        ({"variable_ids": torch.full((3, 9), -1)}, "variable_ids must lie in"),
        ({"times": torch.full((3, 9), math.nan)}, "times must be finite"),
        ({"values": torch.full((3, 9), math.inf)}, "values must be finite"),
        ({"static_values": None}, "static_values is required: .*num_static_features=3"),
        ({"static_values": torch.zeros(3, 2)}, r"static_values must have shape \(3, 3\), got \(3, 2\)"),
        ({"static_values": torch.full((3, 3), math.nan)}, "static_values must be finite"),
    ],
)
def test_bad_inputs_are_named(change, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model(**random_batch(model.config) | change)


def test_static_values_without_a_place_are_refused():
    model = make_model(num_static_features=0)
    inputs = random_batch(model.config)
    assert model(**inputs).pooler_output.shape == (3, 16)
    model(**inputs, static_values=torch.zeros(3, 0))
    with pytest.raises(ValueError, match="num_static_features=0"):
        model(**inputs, static_values=torch.zeros(3, 2))


def test_defaults_stand_for_full_masks():
    model = make_model()
    inputs = random_batch(model.config)
    full = inputs | {name: torch.ones(3, 9) for name in ("attention_mask", "value_mask")}
    bare = {name: tensor for name, tensor in inputs.items() if name not in ("attention_mask", "value_mask")}
    with torch.no_grad():
        close(model(**bare).pooler_output, model(**full).pooler_output, 0)


@ablations
@torch.no_grad()
def test_compiled_without_graph_breaks(ablation):
    torch.compiler.reset()
    model = make_model(**ablation)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = random_batch(model.config, batch=2, length=7)
    expected, found = model(**inputs), compiled(**inputs)
    for row in range(2):
        assert_same_record(found, row, expected, row)


def saved_sizes(model, inputs) -> list[int]:
    """Elements of every tensor that autograd keeps for the backward pass."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(**inputs)
    assert outputs.pooler_output.requires_grad
    return sizes


def test_memory_grows_linearly_with_the_length():
    model = make_model(state_size=32, hidden_size=8, expand=1)
    short, long = (random_batch(model.config, batch=2, length=length) for length in (256, 512))
    sizes = saved_sizes(model, long)
    assert max(sizes) < 2 * 512 * 8 * 32 / 2  # (batch, length, inner, state)
    assert max(sizes) < 512 * 512 / 2  # (length, length)
    assert sum(sizes) < 2.1 * sum(saved_sizes(model, short))
    event = make_model(attention_axis="event", attn_implementation="eager", hidden_size=8, expand=1)
    assert max(saved_sizes(event, long)) >= 512 * 512  # what this measure sees where it is not linear


def test_training_on_a_batch_lowers_the_loss():
    torch.manual_seed(0)
    model = HyMaTEForSequenceClassification(tiny_config(hidden_dropout=0.1, attention_dropout=0.1)).train()
    inputs = random_batch(model.config, batch=8) | {"labels": torch.arange(8) % 2}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(15):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
