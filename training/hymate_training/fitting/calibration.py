"""Probabilities that mean what they say: a temperature (Guo et al., arXiv 1706.04599) and a shift of the logits.

A temperature alone moves the level of rare classes where it is to change how sure they are, as a slope without an
intercept does in logistic recalibration (Platt 1999).
"""

import math

import torch
import torch.nn.functional as F

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import TaskDataset
from hymate_training.inference.prediction import predict_examples
from modeling_hymate import HyMaTEForSequenceClassification

CALIBRATED = ("binary", "multiclass", "multilabel")
STEPS = 200  # of L-BFGS at most


def calibrate(
    model: HyMaTEForSequenceClassification, dataset: TaskDataset, collator: TaskCollator, batch_size: int
) -> None:
    """Sets `temperature` and `logit_shift` of the configuration to what minimizes the log-loss on `dataset`.

    A standard normal prior on the intercepts and on the logarithm of the slope, which weighs as much as one example,
    keeps both finite where the examples are all predicted right or lack a class.
    """
    model.config.temperature, model.config.logit_shift = 1.0, None
    predicted = predict_examples(model, dataset, collator, batch_size)
    probabilities = torch.from_numpy(predicted.values).double().clamp(1e-12, 1)
    labels = torch.tensor(dataset.labels)
    multilabel = model.config.problem_type == "multi_label_classification"
    logits = torch.logit(probabilities, 1e-12) if multilabel else probabilities.log()
    slope, intercepts = torch.zeros((), dtype=torch.double), logits.new_zeros(logits.shape[-1])
    parameters = [slope.requires_grad_(), intercepts.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=STEPS, line_search_fn="strong_wolfe")

    def log_loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = logits * slope.exp() + intercepts
        if multilabel:
            loss = F.binary_cross_entropy_with_logits(scaled, labels.double())
        else:
            loss = F.cross_entropy(scaled, labels)
        loss = loss + (slope.square() + intercepts.square().sum()) / (2 * len(labels))
        loss.backward()
        return loss

    optimizer.step(log_loss)
    model.config.temperature = math.exp(-slope.item())
    model.config.logit_shift = (intercepts.detach() * model.config.temperature).tolist()
