"""What a user without our packages does with a saved folder. Run by test_remote_code.py in a clean process.

python -I remote_client.py FIRST SECOND RECORDS RESULTS: loads the folder FIRST with trust_remote_code, uses it on the
JSON file RECORDS, trains it for a step, saves it as SECOND, loads that, and leaves tensors and answers in RESULTS.
"""

import importlib
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

OURS = ("configuration_hymate", "modeling_hymate", "hymate_native", "hymate_training")
OPTIONAL = ("mamba_ssm", "causal_conv1d", "captum", "datasets", "matplotlib", "polars", "pyarrow")


class Absent(MetaPathFinder):
    """Makes packages look as if they were not installed."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(first: Path, second: Path, records: Path, results: Path):
    sys.meta_path.insert(0, Absent(OURS))
    for name in OURS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported")

    import torch  # noqa: PLC0415 - only now are our packages out of reach
    import transformers  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    sys.meta_path.insert(0, Absent(OPTIONAL))
    results.mkdir()
    stays = json.loads(records.read_text())
    auto = transformers.AutoModelForSequenceClassification
    trust = {"trust_remote_code": True}

    def outputs(model, features) -> dict[str, torch.Tensor]:
        model.eval()
        with torch.no_grad():
            found = model(**features)
        return {name: tensor.contiguous() for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}

    extractor = transformers.AutoFeatureExtractor.from_pretrained(first, **trust)
    features = dict(extractor(stays))
    save_file(features, results / "features.safetensors")
    model = auto.from_pretrained(first, **trust)
    save_file(outputs(model, features), results / "loaded.safetensors")
    encoder = transformers.AutoModel.from_pretrained(first, **trust)
    save_file(outputs(encoder, features), results / "encoder.safetensors")

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(**features, labels=torch.arange(len(stays)) % 2).loss.backward()
    optimizer.step()
    save_file(outputs(model, features), results / "trained.safetensors")
    model.save_pretrained(second)
    extractor.save_pretrained(second)
    save_file(outputs(auto.from_pretrained(second, **trust), features), results / "reloaded.safetensors")

    classify = transformers.pipeline("ehr-classification", model=str(second), device="cpu", **trust)
    answers = {
        "pipeline": classify(stays),
        "processor": type(transformers.AutoProcessor.from_pretrained(second, **trust)).__name__,
        "imported": sorted(name for name in (*OURS, *OPTIONAL) if name in sys.modules),
    }
    (results / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
