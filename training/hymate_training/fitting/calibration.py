"""Temperature scaling (Guo et al., arXiv 1706.04599): probabilities that mean what they say."""

import numpy as np
import torch
import torch.nn.functional as F

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import TaskDataset
from hymate_training.inference.prediction import predict_examples
from modeling_hymate import HyMaTEForSequenceClassification

# one temperature would move hazards, which are rare, and so their level, where it is to change how sure they are
CALIBRATED = ("binary", "multiclass", "multilabel")
TEMPERATURES = np.exp(np.linspace(-2, 2, 401))  # from 0.14 to 7.4, in steps of one percent


def calibrate(
    model: HyMaTEForSequenceClassification, dataset: TaskDataset, collator: TaskCollator, batch_size: int
) -> float:
    """Sets `model.config.temperature` to what minimizes the log-loss on `dataset`, and returns it."""
    model.config.temperature = 1.0
    predicted = predict_examples(model, dataset, collator, batch_size)
    probabilities = torch.from_numpy(predicted.values).double().clamp(1e-12, 1)
    labels = torch.tensor(dataset.labels)
    multilabel = model.config.problem_type == "multi_label_classification"
    logits = torch.logit(probabilities, 1e-12) if multilabel else probabilities.log()

    def log_loss(temperature: float) -> float:
        scaled = logits / temperature
        if multilabel:
            return float(F.binary_cross_entropy_with_logits(scaled, labels.double()))
        return float(F.cross_entropy(scaled, labels))

    model.config.temperature = float(min(TEMPERATURES, key=log_loss))
    return model.config.temperature
