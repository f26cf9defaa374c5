"""Whole models over the length of a record: HyMaTE, transformers' Mamba, and a Transformer over events."""

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import MambaConfig, MambaModel

from benchmarks.measure import extra_megabytes, median_seconds
from modeling_hymate import HyMaTEConfig, HyMaTEModel

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
NUM_VARIABLES = 40
HIDDEN_SIZE = 64
LONGEST_STEP = 10.0  # seconds; a model whose step took longer than a quarter of this is not tried at twice the length


class HyMaTECase(nn.Module):
    """Two Mamba layers and one of channel attention."""

    def __init__(self):
        super().__init__()
        self.model = HyMaTEModel(HyMaTEConfig(num_variables=NUM_VARIABLES, hidden_size=HIDDEN_SIZE))

    def forward(self, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        events = {
            "values": torch.randn(1, length, generator=generator),
            "times": torch.rand(1, length, generator=generator),
            "variable_ids": torch.randint(0, NUM_VARIABLES, (1, length), generator=generator),
        }
        return self.model(**events).pooler_output


class MambaCase(nn.Module):
    """transformers' MambaModel with as many layers, over events that are already embedded."""

    def __init__(self):
        super().__init__()
        self.model = MambaModel(
            MambaConfig(
                vocab_size=NUM_VARIABLES,
                hidden_size=HIDDEN_SIZE,
                num_hidden_layers=3,
                use_mambapy=True,
                use_associative_scan=False,
                use_cache=False,
            )
        )

    def forward(self, length: int) -> Tensor:
        return self.model(inputs_embeds=torch.randn(1, length, HIDDEN_SIZE)).last_hidden_state[:, -1]


class TransformerCase(nn.Module):
    """A Transformer encoder of the same width and number of layers, over events that are already embedded."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(HIDDEN_SIZE, 4, 2 * HIDDEN_SIZE, batch_first=True, norm_first=True)
        self.model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, length: int) -> Tensor:
        return self.model(torch.randn(1, length, HIDDEN_SIZE)).mean(1)


CASES: dict[str, Callable[[], nn.Module]] = {
    "HyMaTE": HyMaTECase,
    "MambaModel (mambapy)": MambaCase,
    "Transformer over events": TransformerCase,
}


def model_table(lengths: tuple[int, ...], budget: float) -> list[dict]:
    """One row a model and length, batch 1: seconds and extra megabytes of inference and of a training step."""
    rows = []
    for name, build in CASES.items():
        torch.manual_seed(0)
        model = build()
        step = 0.0
        for length in lengths:
            row: dict = {"model": name, "length": length}
            rows.append(row)
            if step > LONGEST_STEP / 4:
                continue

            def infer(model=model, length=length):
                with torch.no_grad():
                    model.eval()(length)

            def train(model=model, length=length):
                model.train()(length).square().sum().backward()
                model.zero_grad()

            row["inference_megabytes"] = extra_megabytes(infer)
            row["inference"] = median_seconds(infer, budget)
            row["training_megabytes"] = extra_megabytes(train)
            row["training"] = step = median_seconds(train, budget)
    return rows


def save_length_plots(rows: list[dict], folder: Path) -> list[Path]:
    """Time and memory over length, inference and training, on logarithmic axes."""
    paths = []
    for measure, label in {"": "seconds", "_megabytes": "extra memory, MB"}.items():
        figure = Figure(figsize=(10, 4), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2), ("inference", "training"), strict=True):
            for name in CASES:
                points = [
                    (row["length"], row[kind + measure]) for row in rows if row["model"] == name and row.get(kind)
                ]
                if points and points[0][1] is not None:
                    axes.plot(*zip(*points, strict=True), marker="o", label=name)
            axes.set(xscale="log", yscale="log", xlabel="events in the record", ylabel=label, title=kind)
            axes.grid(alpha=0.3)
            axes.legend()
        paths.append(folder / f"{'time' if not measure else 'memory'}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths
