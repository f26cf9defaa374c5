"""The Stream contract: events fed in any chunks give what the whole record gives, from a state of constant size."""

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hymate_native
from modeling_hymate import (
    HyMaTEFeatureExtractor,
    HyMaTEForPreTraining,
    HyMaTEForSequenceClassification,
    Stream,
    StreamState,
)
from tests.support.helpers import close, event_inputs, make_model, random_batch

SHAPES = [
    {"num_statistic_bins": 2},
    {"num_mamba_layers": 0},
    {"num_attention_layers": 0, "num_static_features": 0},
    {"conv_kernel": 1, "num_mamba_layers": 1},
]
needs_kernels = pytest.mark.skipif(
    not hymate_native.is_available(), reason="the native kernels are not built: no C++ compiler"
)
shapes = pytest.mark.parametrize("shape", SHAPES, ids="-".join)


def in_order(inputs: dict) -> dict:
    """The same records with their events by time, masked ones anywhere; ties as they come."""
    order = inputs["times"].argsort(dim=1, stable=True)
    return inputs | {name: tensor.gather(1, order) for name, tensor in event_inputs(inputs).items()}


def start(model, inputs) -> StreamState:
    batch = inputs["values"].shape[0]
    return model.start_stream(inputs.get("static_values"), batch)


def assert_same_answer(found, expected):
    close(found.logits, expected.logits)
    close(found.pooler_output, expected.pooler_output)
    for row in range(len(found.logits)):
        channels = [
            {
                int(variable): (outputs.channel_weights[row, slot], outputs.channel_counts[row, slot])
                for slot, variable in enumerate(outputs.channel_ids[row])
                if variable >= 0
            }
            for outputs in (found, expected)
        ]
        assert channels[0].keys() == channels[1].keys()
        for variable, pair in channels[0].items():
            for one, other in zip(pair, channels[1][variable], strict=True):
                close(one, other)


@shapes
@torch.no_grad()
def test_any_chunks_give_what_the_whole_record_gives(shape):
    model = make_model(HyMaTEForSequenceClassification, **shape)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10**6), length=st.integers(1, 20), data=st.data())
    def check(seed, length, data):
        inputs = in_order(random_batch(model.config, batch=3, length=length, seed=seed))
        cuts = data.draw(st.lists(st.integers(1, length), max_size=4))
        ends = sorted({*cuts, length})
        state = start(model, inputs)
        for begin, end in zip([0, *ends], ends, strict=False):
            chunk = {name: tensor[:, begin:end] for name, tensor in event_inputs(inputs).items()}
            outputs, state = model.stream(state, **chunk)
            seen = inputs | {"attention_mask": inputs["attention_mask"].clone()}
            seen["attention_mask"][:, end:] = False
            assert_same_answer(outputs, model(**seen))

    check()


@pytest.mark.parametrize("head", [HyMaTEForSequenceClassification, HyMaTEForPreTraining])
@shapes
@torch.no_grad()
def test_event_by_event(shape, head):
    """Also events of one time stamp, in whichever order they come."""
    model = make_model(head, **shape)
    for seed in range(3):
        inputs = in_order(random_batch(model.config, batch=1, length=15, seed=seed))
        inputs["attention_mask"][:] = True
        state = start(model, inputs)
        for end in range(1, 16):
            event = {name: tensor[:, end - 1 : end] for name, tensor in event_inputs(inputs).items()}
            outputs, state = model.stream(state, **event)
            seen = inputs | {name: tensor[:, :end] for name, tensor in event_inputs(inputs).items()}
            assert_same_answer(outputs, model(**seen))


@needs_kernels
@shapes
@torch.no_grad()
def test_plain_pytorch_gives_the_same_answers_and_states(shape, monkeypatch):
    model = make_model(HyMaTEForSequenceClassification, **shape)
    inputs = in_order(random_batch(model.config, batch=3, length=15))
    followed = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("HYMATE_SCAN_BACKEND", backend)
        state = start(model, inputs)
        for begin, end in ((0, 1), (1, 2), (2, 3), (3, 9), (9, 10), (10, 15)):
            chunk = {name: tensor[:, begin:end] for name, tensor in event_inputs(inputs).items()}
            outputs, state = model.stream(state, **chunk)
            followed.append((outputs, state.to_dict()))
    for (ours, state), (theirs, expected) in zip(followed[:6], followed[6:], strict=True):
        assert_same_answer(ours, theirs)
        close(ours.channel_hidden_state, theirs.channel_hidden_state)
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype
            close(state[name].nan_to_num(), tensor.nan_to_num())


def write_in_place(model):
    model.hymate.mamba_layers[0].mixer.A_log.add_(0.5)
    model.hymate.fusion.projection.weight.mul_(2)


def replace_parameter(model):
    model.hymate.channel_tokens.value.weight = torch.nn.Parameter(torch.randn(16, 16))


def replace_module(model):
    model.hymate.mamba_layers[0].mixer.in_proj = torch.nn.Linear(16, 64, bias=False)


def replace_activation(model):
    model.hymate.mamba_layers[1].mixer.act = torch.nn.Tanh()


def add_hook(model):
    model.hymate.attention_layers[0].mlp_norm.register_forward_hook(lambda layer, inputs, output: 2 * output)


def replace_forward(model):
    layer = model.hymate.embedding.value_embedding[0]
    layer.forward = lambda states: 2 * torch.nn.Linear.forward(layer, states)


def parametrize_weight(model):
    torch.nn.utils.parametrizations.weight_norm(model.hymate.fusion.projection)
    model.hymate.fusion.projection.parametrizations.weight.original0.mul_(3)


CHANGES = [
    write_in_place,
    replace_parameter,
    replace_module,
    replace_activation,
    add_hook,
    replace_forward,
    parametrize_weight,
]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_model_that_changes_is_followed_as_it_is(change):
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    inputs = random_batch(model.config)
    before, _ = model.stream(start(model, inputs), **event_inputs(inputs))
    change(model)
    after, _ = model.stream(start(model, inputs), **event_inputs(inputs))
    assert (after.logits - before.logits).abs().max() > 1e-3
    assert_same_answer(after, model(**inputs))


@needs_kernels
@torch.no_grad()
def test_a_module_that_does_not_fit_is_refused():
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    inputs = random_batch(model.config)
    model.stream(start(model, inputs), **event_inputs(inputs))
    model.hymate.channel_tokens.value = torch.nn.Linear(16, 8)
    with pytest.raises(ValueError, match="value_weight must have the shape"):
        model.stream(start(model, inputs), **event_inputs(inputs))


@needs_kernels
@torch.no_grad()
def test_a_state_of_another_model_is_refused():
    model, other = (
        make_model(HyMaTEForSequenceClassification, num_statistic_bins=2, num_static_features=0, state_size=size)
        for size in (4, 5)
    )
    inputs = event_inputs(random_batch(model.config))
    _, state = model.stream(model.start_stream(batch_size=3), **inputs)
    later = inputs | {"times": inputs["times"] + 100}
    with pytest.raises(ValueError, match="scan must have the shape"):
        other.stream(state, **later)
    halved = {name: tensor.half() if "convolution" in name else tensor for name, tensor in state.to_dict().items()}
    with pytest.raises(ValueError, match="convolution must be float32"):
        model.stream(StreamState.from_dict(halved), **later)


@torch.no_grad()
def test_answers_at_a_later_time():
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    inputs = random_batch(model.config)
    state = start(model, inputs)
    times = torch.tensor([2.0, 3.5, 8.0])
    found, _ = model.stream(state, prediction_time=times)  # before any event
    nothing = inputs | {"attention_mask": torch.zeros(3, 9)}
    close(found.logits, model(**nothing, prediction_times=times.unsqueeze(1)).logits[:, 0])
    outputs, state = model.stream(state, **event_inputs(inputs), prediction_time=times)
    expected = model(**inputs, prediction_times=times.unsqueeze(1)).logits[:, 0]
    close(outputs.logits, expected)
    again, unchanged = model.stream(state, prediction_time=times)
    close(again.logits, outputs.logits, 0)
    assert unchanged is state
    for wrong, message in (
        (torch.tensor([2.0, -5.0, 8.0]), "no earlier than the latest event"),
        (torch.tensor([2.0, math.nan, 8.0]), "prediction_time must be finite"),
        (torch.tensor(2.0), r"prediction_time must be \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.stream(state, prediction_time=wrong)


def sizes(state: StreamState) -> dict[str, tuple]:
    return {name: tuple(tensor.shape) for name, tensor in state.to_dict().items()}


@torch.no_grad()
def test_a_state_does_not_grow_stays_as_it_was_and_survives_saving(tmp_path):
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    inputs = in_order(random_batch(model.config, batch=2, length=40))
    inputs["attention_mask"][:] = True
    inputs["times"] = torch.arange(40.0).expand(2, -1)
    state = start(model, inputs)
    expected_sizes = None
    for at in range(0, 40, 4):
        chunk = {name: tensor[:, at : at + 4] for name, tensor in event_inputs(inputs).items()}
        before = state.to_dict()
        outputs, after = model.stream(state, **chunk)
        for name, tensor in state.to_dict().items():
            assert torch.equal(tensor, before[name]), name
        after.save(tmp_path / "state.safetensors")
        restored = StreamState.load(tmp_path / "state.safetensors")
        for name, tensor in after.to_dict().items():
            assert torch.equal(tensor, restored.to_dict()[name]), name
        assert torch.equal(model.stream(restored)[0].logits, outputs.logits)
        expected_sizes = expected_sizes or sizes(after)
        assert sizes(after) == expected_sizes
        state = restored
    assert_same_answer(outputs, model(**inputs))
    with pytest.raises(ValueError, match="not the tensors of a stream's state"):
        StreamState.from_dict({"settled.scan": torch.zeros(1)})


def test_a_state_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    model = make_model(HyMaTEForSequenceClassification)
    state = start(model, random_batch(model.config, batch=1))
    path = tmp_path / "state.safetensors"
    state.save(path)
    before = path.read_bytes()
    write = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left on device"):
        state.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@torch.no_grad()
def test_bad_events_are_named():
    model = make_model(HyMaTEForSequenceClassification)
    inputs = random_batch(model.config, batch=2)
    _, state = model.stream(start(model, inputs), **event_inputs(inputs))
    one = {"values": torch.zeros(2, 1), "times": torch.full((2, 1), 5.0), "variable_ids": torch.ones(2, 1).long()}
    late = one | {"times": torch.tensor([[5.0], [-7.0]])}
    with pytest.raises(ValueError, match=r"an event of record 1 at the scaled time -7 is older than its latest, at"):
        model.stream(state, **late)
    with pytest.raises(ValueError, match="the state is of 2 records, but values holds 1"):
        model.stream(state, **{name: tensor[:1] for name, tensor in one.items()})
    with pytest.raises(ValueError, match=r"variable_ids must lie in \[0, 6\)"):
        model.stream(state, **one | {"variable_ids": torch.full((2, 1), 6)})
    with pytest.raises(ValueError, match="times must be finite"):
        model.stream(state, **one | {"times": torch.full((2, 1), math.nan)})
    with pytest.raises(ValueError, match="static_values is required"):
        model.start_stream()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        model.train().stream(state, **one)


VARIABLES = ["HR", "GCS", "Ward"]
RECORD = {
    "time": [0.0, 1.5, 1.5, 2.0, 7.25, 30.0],
    "variable": ["HR", "GCS", "HR", "HR", "GCS", "Ward"],
    "value": [88, 15, 91.5, 70, 3, None],
    "Age": 71,
}


@pytest.fixture(scope="module")
def extractor() -> HyMaTEFeatureExtractor:
    return HyMaTEFeatureExtractor.fit([RECORD, RECORD | {"Age": 50}], VARIABLES, numeric_columns=["Age"])


@pytest.fixture(scope="module")
def classifier(extractor):
    return make_model(
        HyMaTEForSequenceClassification,
        num_variables=3,
        num_static_features=2,
        num_statistic_bins=2,
        time_scale=extractor.time_scale,
        id2label={0: "survived", 1: "died"},
        problem_type="single_label_classification",
    )


def event(at: int) -> dict:
    return {name: RECORD[name][at] for name in ("time", "variable", "value")}


def assert_answer(answer, classifier, extractor, events: list[int], time: float):
    record = {name: [RECORD[name][at] for at in events] for name in ("time", "variable", "value")} | {"Age": 71}
    with torch.no_grad():
        outputs = classifier(**extractor([record], prediction_times=[time]))
    died = classifier.predictions(outputs.logits)[0, 0, 1].item()
    assert answer["prediction_time"] == time
    assert answer["scores"]["died"] == pytest.approx(died, abs=1e-6)
    assert answer["label"] == ("died" if died > 0.5 else "survived")
    counts = {found["variable"]: found["num_events"] for found in answer["variables"]}
    assert counts == {name: record["variable"].count(name) for name in set(record["variable"])}
    assert sum(found["weight"] for found in answer["variables"]) == pytest.approx(float(bool(events)), abs=1e-6)


def test_a_patient_is_followed_in_clinical_units(classifier, extractor):
    stream = Stream(classifier, extractor, static={"Age": 71})
    assert_answer(stream.ask(0.5), classifier, extractor, [], 0.5)
    for at in range(6):
        assert_answer(stream.add(event(at)), classifier, extractor, list(range(at + 1)), RECORD["time"][at])
    assert_answer(stream.ask(40), classifier, extractor, list(range(6)), 40.0)
    resumed = Stream(classifier, extractor, state=StreamState.from_dict(stream.state.to_dict()))
    assert resumed.ask(40) == stream.ask(40)
    with pytest.raises(ValueError, match="older than the latest, at 30 hours: give events in the order"):
        stream.add(event(3))
    with pytest.raises(ValueError, match="no earlier than the latest event, at 30 hours, got 2"):
        stream.ask(2)
    with pytest.raises(ValueError, match="'BP' is not one of the 3 known variables"):
        stream.add({"time": 31, "variable": "BP", "value": 1})


@pytest.mark.parametrize("order", [[0, 3, 4, 1, 5, 2], [5, 4, 3, 2, 1, 0], [1, 2, 0, 5, 3, 4]])
def test_late_events_rewind(classifier, extractor, order):
    stream = Stream(classifier, extractor, static={"Age": 71}, on_late="rewind")
    for place, at in enumerate(order):
        seen = order[: place + 1]
        latest = max(RECORD["time"][event_at] for event_at in seen)
        assert_answer(stream.add(event(at)), classifier, extractor, sorted(seen), latest)


def test_rewinding_has_a_limit_and_a_refusal_changes_nothing(classifier, extractor):
    stream = Stream(classifier, extractor, static={"Age": 71}, on_late="rewind", snapshots=2)
    for at in (0, 3, 4, 5):
        stream.add(event(at))
    expected = stream.ask(31)
    with pytest.raises(ValueError, match="before the last 2 calls, which are all that is kept"):
        stream.add(event(1))
    assert stream.ask(31) == expected
    stream.add({"time": 7.25, "variable": "HR", "value": 80})
    assert stream.time == 30


def test_streams_that_cannot_be(classifier, extractor):
    with pytest.raises(ValueError, match="needs a HyMaTEForSequenceClassification"):
        Stream(make_model(), extractor)
    with pytest.raises(ValueError, match="on_late must be 'error' or 'rewind'"):
        Stream(classifier, extractor, on_late="ignore")
    with pytest.raises(ValueError, match="snapshots must be at least 1"):
        Stream(classifier, extractor, snapshots=0)
    with pytest.raises(ValueError, match="they do not belong together"):
        Stream(make_model(HyMaTEForSequenceClassification), extractor)
    with pytest.raises(ValueError, match="static has a column 'age', but the model knows Age"):
        Stream(classifier, extractor, static={"age": 71})


def test_absent_static_columns_count_as_unknown(classifier, extractor):
    answers = [Stream(classifier, extractor, static=static).ask(1) for static in (None, {}, {"Age": None})]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] != Stream(classifier, extractor, static={"Age": 71}).ask(1)
