"""Fine-tunes HyMaTE with the plain `transformers.Trainer`, on a binary task of a prepared folder.

    python examples/finetune_with_trainer.py --output runs/trainer
    python examples/finetune_with_trainer.py --data DIR --task NAME --output DIR [--resume] [--push-to ORG/NAME]

Without --data it simulates stays first.
"""

import argparse
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainingArguments, set_seed

from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.metrics import compute_metrics
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.readers import synthetic
from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification

SIMULATED_STAYS = 3000
PATIENCE = 4  # epochs


def make_model(extractor: HyMaTEFeatureExtractor, task: TaskInfo) -> HyMaTEForSequenceClassification:
    """A classifier from scratch; `from_pretrained(checkpoint, id2label=...)` would start from a pretrained one."""
    config = HyMaTEConfig(
        num_variables=extractor.num_variables,
        num_static_features=len(extractor.static_feature_names),
        time_scale=extractor.time_scale,
        hidden_size=32,
        id2label=dict(enumerate(task.label_names)),
        label2id={name: index for index, name in enumerate(task.label_names)},
        problem_type="single_label_classification",
    )
    return HyMaTEForSequenceClassification(config)


def make_trainer(
    model: torch.nn.Module,
    extractor: HyMaTEFeatureExtractor,
    data: PreparedFolder,
    task: TaskInfo,
    output: Path,
    **settings,
) -> Trainer:
    """A Trainer for a binary task; `settings` are TrainingArguments beside those below, or instead of them."""
    if task.problem_type != "binary":
        raise ValueError(f"this example has the metrics of binary tasks, and {task.name!r} is {task.problem_type}")
    arguments = {
        "remove_unused_columns": False,  # the data set hands over whole batches, which have no columns
        "num_train_epochs": 12,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "auroc",
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return Trainer(
        model=model,
        args=TrainingArguments(str(output), **arguments | settings),
        train_dataset=load_task(data, task.name, "train", extractor.variables),
        eval_dataset=load_task(data, task.name, "validation", extractor.variables),
        data_collator=TaskCollator(extractor),
        processing_class=extractor,  # saved and pushed beside the model
        compute_metrics=binary_metrics,
        callbacks=[EarlyStoppingCallback(PATIENCE)],
    )


def binary_metrics(predicted: EvalPrediction) -> dict[str, float]:
    probabilities = torch.from_numpy(predicted.predictions).softmax(-1)[:, 1].numpy()
    metrics = compute_metrics(LabeledPredictions("binary", predicted.label_ids, probabilities))
    return {name: value for name, value in metrics.items() if value is not None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Prepared folder.")
    parser.add_argument("--task", default="in_hospital_mortality", help="A binary task of it.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the run.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="Go on from the last checkpoint in --output.")
    parser.add_argument("--push-to", metavar="ORG/NAME", help="Repository on the Hub for the best model.")
    parser.add_argument("--private", action="store_true", help="Make that repository private.")
    args = parser.parse_args()

    data = args.data or args.output.with_name(f"{args.output.name}-data")
    if args.data is None and not data.exists():
        synthetic.prepare(data, num_records=SIMULATED_STAYS, seed=0)
    folder = PreparedFolder(data)
    task = folder.info.task(args.task)
    extractor = fit_feature_extractor(folder)
    set_seed(0)
    trainer = make_trainer(
        make_model(extractor, task),
        extractor,
        folder,
        task,
        args.output,
        num_train_epochs=args.epochs,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        push_to_hub=args.push_to is not None,
        hub_model_id=args.push_to,
        hub_private_repo=args.private,
        hub_strategy="end",
    )
    trainer.train(resume_from_checkpoint=args.resume)
    trainer.save_model()  # the best of all epochs, with its feature extractor
    metrics = trainer.evaluate()
    print({name: round(value, 4) for name, value in metrics.items()})
    if args.push_to:
        trainer.push_to_hub(license="apache-2.0", tags=["electronic-health-records"])


if __name__ == "__main__":
    main()
