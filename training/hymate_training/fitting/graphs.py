"""Passes of training as CUDA graphs: of a small model a GPU is done with each kernel before Python asks for the next,
so all kernels of a pass are recorded once and then launched as one."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hymate_training.data.device import on_device

LENGTH_STEP = 64  # batches are padded to a multiple of so many events, so that shapes recur
CHANNEL_STEP = 8  # and the bound of their channels is rounded up likewise
MOST_GRAPHS = 64  # what is recorded keeps its memory
OF_EVENTS = ("values", "times", "variable_ids", "attention_mask", "value_mask")


@dataclass
class RecordedPass:
    """A recorded pass: it reads `arguments` and `weight`, and writes `loss` and the gradients."""

    graph: "torch.cuda.CUDAGraph"
    arguments: dict[str, Any]
    weight: Tensor
    loss: Tensor


class GraphedPasses:
    """Runs forward and backward of batches: of the first batch of a shape as they are, and of the second and all
    further ones as a graph. Gradients add up in the parameters' `grad`, which must not be set to None in between.

    Args:
        run: forward and backward, `run(arguments, weight)`, on tensors on the GPU; returns the loss, detached. What it
            does must depend on shapes alone: a batch without `max_channels` would make the model read its data.
        device: the GPU.
    """

    def __init__(self, run: Callable[[dict[str, Any], Tensor], Tensor], device: torch.device):
        self.run = run
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: Counter = Counter()
        self.recorded: dict[tuple, RecordedPass] = {}

    def __call__(self, batch: Mapping[str, Any], weight: float) -> Tensor:
        """The loss of a batch that lies on the CPU, as a tensor of its own on the GPU."""
        batch = pad_batch(batch)
        shape = shape_of(batch)
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            if shape not in self.recorded and (not self.seen[shape] or len(self.recorded) == MOST_GRAPHS):
                loss = self.run(*self._on_gpu(batch, weight))
            else:
                loss = self._replay(shape, batch, weight)
        current.wait_stream(self.stream)
        self.seen[shape] += 1
        return loss

    def _on_gpu(self, batch: Mapping[str, Any], weight: float) -> tuple[dict[str, Any], Tensor]:
        return on_device(batch, self.device), torch.tensor(weight, device=self.device)

    def _replay(self, shape: tuple, batch: Mapping[str, Any], weight: float) -> Tensor:
        recorded = self.recorded.get(shape)
        if recorded is None:
            arguments, weight_tensor = self._on_gpu(batch, weight)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                loss = self.run(arguments, weight_tensor)
            recorded = self.recorded[shape] = RecordedPass(graph, arguments, weight_tensor, loss)
        else:
            for name, part in batch.items():
                if torch.is_tensor(part):
                    recorded.arguments[name].copy_(part, non_blocking=True)
            recorded.weight.fill_(weight)
        recorded.graph.replay()
        return recorded.loss.clone()


def pad_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with its events padded to a multiple of `LENGTH_STEP`, and `max_channels` rounded up: the model answers
    the same. Padding holds zeros, which the masks leave out."""
    batch = {"attention_mask": torch.ones_like(batch["values"], dtype=torch.bool), **batch}
    padded = dict(batch)
    for name in OF_EVENTS:
        if (part := batch.get(name)) is not None:
            padded[name] = pad(part, (0, -part.shape[1] % LENGTH_STEP))
    if (most := batch.get("max_channels")) is not None:
        padded["max_channels"] = most + -most % CHANNEL_STEP
    return padded


def shape_of(batch: Mapping[str, Any]) -> tuple:
    """What a recorded pass is made for: shapes and data types of tensors, and everything else as it is."""
    return tuple(
        (name, (tuple(part.shape), part.dtype) if torch.is_tensor(part) else part) for name, part in batch.items()
    )
