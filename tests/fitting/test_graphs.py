"""Passes recorded as CUDA graphs, and batches prepared ahead."""

import pytest
import torch

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.fitting.graphs import CHANNEL_STEP, LENGTH_STEP, GraphedPasses, pad_batch, shape_of
from modeling_hymate import HyMaTEConfig, HyMaTEForSequenceClassification
from tests.support.runs import TASK, TINY_MODEL, assert_same_weights

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch knows as cuda")


def make_model() -> HyMaTEForSequenceClassification:
    torch.manual_seed(0)
    config = HyMaTEConfig(num_variables=5, num_labels=2, hidden_size=8, hidden_dropout=0.0, attention_dropout=0.0)
    return HyMaTEForSequenceClassification(config)


def make_batch(length: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[0, length // 2 :] = False
    return {
        "values": torch.randn(3, length, generator=generator),
        "times": torch.rand(3, length, generator=generator).sort().values,
        "variable_ids": torch.randint(5, (3, length), generator=generator),
        "attention_mask": mask,
        "max_channels": 5,
        "labels": torch.randint(2, (3,), generator=generator),
    }


@pytest.mark.parametrize("length", [1, 63, 64, 65])
@pytest.mark.parametrize("masked", [True, False])
def test_padding_to_a_common_shape_moves_no_answer(length, masked):
    model, batch = make_model().eval(), make_batch(length)
    if not masked:
        del batch["attention_mask"]
    padded = pad_batch(batch)
    assert padded["values"].shape[1] % LENGTH_STEP == 0
    assert padded["max_channels"] % CHANNEL_STEP == 0
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)


def test_batches_of_similar_lengths_have_one_shape():
    shapes = [shape_of(pad_batch(make_batch(length))) for length in (65, 100, 128, 129)]
    assert shapes[0] == shapes[1] == shapes[2] != shapes[3]


def test_a_shape_tells_data_types_and_plain_numbers_apart():
    batch = make_batch(4)
    for change in ({"max_channels": 4}, {"labels": batch["labels"].float()}, {"extra": None}):
        assert shape_of(batch) != shape_of({**batch, **change})


@pytest.mark.parametrize("options", [{"mixed_precision": "fp16"}, {"gradient_checkpointing": True}])
def test_what_cannot_be_recorded_is_refused(options):
    with pytest.raises(ValueError, match="cuda_graphs goes with neither"):
        FinetuneOptions(cuda_graphs=True, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_recorded(synthetic_folder, tmp_path):
    options = FinetuneOptions(cuda_graphs=True, epochs=1)
    with pytest.raises(ValueError, match="cuda_graphs needs a GPU"):
        finetune(PreparedFolder(synthetic_folder), TASK, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


@on_gpu
def test_recorded_passes_equal_plain_ones():
    """Two shapes by turns, so that each is run plainly, recorded and replayed, with weights updated in between."""
    results = []
    for graphed in (False, True):
        model = make_model().cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # AdamW makes much of gradients near zero

        def run(arguments, weight, model=model):
            loss = model(**arguments).loss * weight
            loss.backward()
            return loss.detach()

        passes = GraphedPasses(run, torch.device("cuda:0")) if graphed else None
        losses = []
        for step in range(8):
            batch = make_batch(60 if step % 2 else 100, seed=step)
            if passes is None:
                moved = {name: part.cuda() if torch.is_tensor(part) else part for name, part in batch.items()}
                losses.append(float(run(moved, 0.5)))
            else:
                losses.append(float(passes(batch, 0.5)))
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        if passes is not None:
            assert len(passes.recorded) == 2
        results.append((losses, [parameter.detach().cpu() for parameter in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    for plain, recorded in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(plain, recorded, rtol=1e-3, atol=1e-4)


def test_batches_prepared_in_processes_change_no_weight(synthetic_folder, tmp_path):
    for workers in (0, 2):
        options = FinetuneOptions(epochs=2, batch_size=64, dataloader_num_workers=workers, model=TINY_MODEL)
        finetune(PreparedFolder(synthetic_folder), TASK, tmp_path / str(workers), options)
    assert_same_weights(tmp_path / "0", tmp_path / "2")
