"""Fine-tunes a pretrained HyMaTE through LoRA adapters on its linear layers, with peft and the plain Trainer.

    python examples/lora.py --checkpoint runs/demo/pretrained --data runs/demo/data --output runs/lora

Leaves the adapter, a few percent of the weights, in OUTPUT and an ordinary checkpoint with the adapter merged into
the weights in OUTPUT/merged.
"""

import argparse
from pathlib import Path

from finetune_with_trainer import make_trainer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification, set_seed

import hymate  # noqa: F401 - registers the Auto classes
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo

HEAD = "classifier"


def add_adapters(checkpoint: Path, task: TaskInfo, rank: int) -> PeftModel:
    """The pretrained model with a fresh head that is trained in full, and low-rank adapters on all other linears."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint,
        id2label=dict(enumerate(task.label_names)),
        label2id={name: index for index, name in enumerate(task.label_names)},
        problem_type="single_label_classification",
    )
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=[HEAD], modules_to_save=[HEAD]
    )
    return get_peft_model(model, config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="Folder of a pretrained model.")
    parser.add_argument("--data", type=Path, required=True, help="Prepared folder.")
    parser.add_argument("--task", default="in_hospital_mortality", help="A binary task of it.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the run.")
    parser.add_argument("--rank", type=int, default=8, help="Rank of the adapters.")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()

    data = PreparedFolder(args.data)
    task = data.info.task(args.task)
    extractor = AutoFeatureExtractor.from_pretrained(args.checkpoint)
    set_seed(0)
    model = add_adapters(args.checkpoint, task, args.rank)
    model.print_trainable_parameters()
    trainer = make_trainer(model, extractor, data, task, args.output, num_train_epochs=args.epochs, learning_rate=3e-3)
    trainer.train()
    trainer.save_model()
    print({name: round(value, 4) for name, value in trainer.evaluate().items()})
    merged = args.output / "merged"
    trainer.model.merge_and_unload().save_pretrained(merged)
    extractor.save_pretrained(merged)


if __name__ == "__main__":
    main()
