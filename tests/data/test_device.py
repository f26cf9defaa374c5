"""Batches on their way to a GPU; "meta" stands for one."""

import torch
from transformers import BatchFeature

from hymate_training.data.device import on_device


def test_a_batch_is_copied_and_stays_where_it_is():
    batch = BatchFeature({"values": torch.ones(2, 3), "max_channels": 3})
    moved = on_device(batch, "meta")
    assert moved["values"].device.type == "meta"
    assert moved["max_channels"] == 3
    assert batch["values"].device.type == "cpu"
