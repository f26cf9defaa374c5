"""HyMaTE models: the encoder, forecast pretraining and record classification."""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import (
    ChannelIndex,
    HyMaTEAttention,
    HyMaTEAttentionLayer,
    HyMaTEChannelPooling,
    HyMaTEFusionAttention,
)
from .channel_statistics import HyMaTEChannelStatistics
from .configuration_hymate import HyMaTEConfig
from .embedding import HyMaTEEmbedding, HyMaTEStaticEmbedding
from .mamba import HyMaTEMambaLayer, HyMaTEMixer


@dataclass
class HyMaTEModelOutput(ModelOutput):
    """Output of the encoder.

    Attributes:
        last_hidden_state: contextual events in the order they were handed in, `(batch, length, hidden_size)`; zeros
            at masked events.
        pooler_output: the patient representation, `(batch, config.pooler_size)`.
        channel_hidden_state: one token a variable observed in the record, `(batch, channels, hidden_size)`; with
            `attention_axis="event"` the weighted mean of that variable's events.
        channel_ids: the variable of each channel, `(batch, channels)`; -1 is padding. A compiled or exported model
            pads to the most channels that there can be.
        event_weights: share of each event in the pooled vector, `(batch, length)`; a record's shares sum to one.
        channel_weights: share of each variable, `(batch, channels)`; a record's shares sum to one.
        hidden_states: with `output_hidden_states`, the embedded events and the output of each Mamba layer, each like
            `last_hidden_state`.
        attentions: with `output_attentions` and the eager attention implementation, the weights of each attention
            layer, `(batch, heads, tokens, tokens)`: between channels, or between events in time order.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    channel_hidden_state: torch.Tensor | None = None
    channel_ids: torch.Tensor | None = None
    event_weights: torch.Tensor | None = None
    channel_weights: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class HyMaTEHeadOutput(ModelOutput):
    """What a head adds to the encoder's output, ahead of it."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass
class HyMaTEForPreTrainingOutput(HyMaTEModelOutput, HyMaTEHeadOutput):
    """Output of forecast pretraining: the fields of `HyMaTEModelOutput` and

    Attributes:
        loss: mean squared error over the forecast values that were measured; present with `forecast_values`.
        logits: forecast of each variable's next value in standardized units, `(batch, num_variables)`.
    """


@dataclass
class HyMaTEForSequenceClassificationOutput(HyMaTEModelOutput, HyMaTEHeadOutput):
    """Output of record classification: the fields of `HyMaTEModelOutput` and

    Attributes:
        loss: present with `labels`.
        logits: scores before softmax or sigmoid, or the regressed numbers, `(batch, num_labels)`.
    """


# Which class of a saved folder's code serves which Auto class. All are written whatever head is saved, so that a
# classifier's checkpoint also opens as a bare encoder.
AUTO_MAP = {
    "AutoConfig": "configuration_hymate.HyMaTEConfig",
    "AutoModel": "modeling_hymate.HyMaTEModel",
    "AutoModelForPreTraining": "modeling_hymate.HyMaTEForPreTraining",
    "AutoModelForSequenceClassification": "modeling_hymate.HyMaTEForSequenceClassification",
}


class HyMaTEPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization shared by all HyMaTE models."""

    config: HyMaTEConfig
    base_model_prefix = "hymate"
    main_input_name = "values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["HyMaTEMambaLayer", "HyMaTEAttentionLayer"]  # noqa: RUF012 - transformers' own convention
    _supports_sdpa = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["A_log", "D", "dt_proj.bias"]  # noqa: RUF012 - transformers' own convention
    _can_record_outputs = {"attentions": HyMaTEAttention}  # noqa: RUF012 - transformers' own convention
    # Trainer would otherwise take our losses to be sums over accumulated batches
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(max(1, module.in_features))
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (HyMaTEMixer, HyMaTEChannelStatistics)):
            module.init_weights()
        elif isinstance(module, HyMaTEEmbedding):
            init.normal_(module.missing_value, std=self.config.initializer_range)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the folder also holds the code, so that it loads where this package is missing."""
        # The pipeline uses models, not they it. It is imported here so that its file travels with this one's.
        from .pipeline_hymate import CUSTOM_PIPELINES  # noqa: PLC0415 - only saving needs it

        self.config.auto_map = dict(AUTO_MAP)
        classifies = type(self).__name__ == "HyMaTEForSequenceClassification"
        self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES) if classifies else {}
        super().save_pretrained(save_directory, *args, **kwargs)


class HyMaTEModel(HyMaTEPreTrainedModel):
    """The HyMaTE encoder (arXiv 2509.24118): events -> Mamba layers -> channel attention -> fusion attention."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__(config)
        self.embedding = HyMaTEEmbedding(config)
        self.mamba_layers = nn.ModuleList(HyMaTEMambaLayer(config) for _ in range(config.num_mamba_layers))
        self.channel_pooling = HyMaTEChannelPooling(config) if config.attention_axis == "channel" else None
        self.channel_statistics = HyMaTEChannelStatistics(config) if config.num_statistic_bins else None
        self.attention_layers = nn.ModuleList(HyMaTEAttentionLayer(config) for _ in range(config.num_attention_layers))
        self.fusion = HyMaTEFusionAttention(config)
        self.static_embedding = HyMaTEStaticEmbedding(config) if config.num_static_features else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.variable_embedding

    def set_input_embeddings(self, value: nn.Embedding):
        self.embedding.variable_embedding = value

    @capture_outputs
    def forward(
        self,
        values: torch.Tensor,
        times: torch.Tensor,
        variable_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        value_mask: torch.Tensor | None = None,
        static_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> HyMaTEModelOutput:
        """Encodes a batch of records.

        Args:
            values: standardized values, `(batch, length)`; where there is no number, anything.
            times: scaled times, `(batch, length)`, in any order.
            variable_ids: index of each event's variable, `(batch, length)`.
            attention_mask: 1 or true at real events, `(batch, length)`, in any pattern; all real where absent.
            value_mask: 1 or true at events that carry a number, `(batch, length)`; where absent, those whose value
                is not NaN.
            static_values: standardized static features, `(batch, num_static_features)`; required if the
                configuration has any.
            output_hidden_states: return the hidden states of all layers.

        Raises:
            ValueError: for shapes that do not fit, and on CPUs also for variable ids out of range and for times or
                values that are not finite.
        """
        mask = torch.ones_like(values, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        has_value = ~values.isnan() if value_mask is None else value_mask.bool()
        self._check_inputs(values, times, variable_ids, mask, has_value, static_values)
        # whatever stands at masked events goes, so that not even a NaN there can reach the others
        values = values.masked_fill(~(mask & has_value), 0)
        times = times.masked_fill(~mask, 0)
        variable_ids = variable_ids.long().masked_fill(~mask, 0)

        order = canonical_order(values.masked_fill(~has_value, math.inf), times, variable_ids, mask)
        values, times, variable_ids, mask, has_value = (
            tensor.gather(1, order) for tensor in (values, times, variable_ids, mask, has_value)
        )
        back = order.argsort(1)
        lengths = mask.sum(1)

        def in_given_order(states):
            states = states.masked_fill(~mask.unsqueeze(-1), 0)
            return states.gather(1, back.unsqueeze(-1).expand_as(states))

        hidden_states = self.embedding(values, times, variable_ids, has_value)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        all_hidden_states = [hidden_states]
        for layer in self.mamba_layers:
            hidden_states = layer(hidden_states, lengths)
            all_hidden_states.append(hidden_states)

        channels = ChannelIndex(variable_ids, mask, self.config.num_variables)
        if self.channel_pooling is not None:
            tokens, weights_inside = self.channel_pooling(hidden_states, channels, self.embedding.variable_embedding)
            token_mask = channels.channel_ids >= 0
            if self.channel_statistics is not None:
                tokens = tokens + self.channel_statistics(values, times, has_value, channels)
        else:
            tokens, token_mask = hidden_states, mask
        if len(self.attention_layers):
            attention_mask = create_bidirectional_mask(self.config, tokens, token_mask)
            for layer in self.attention_layers:
                tokens = layer(tokens, attention_mask, **kwargs)
        pooled, token_weights = self.fusion(tokens, token_mask)

        if self.channel_pooling is not None:
            event_weights = channels.gather(token_weights.unsqueeze(-1)).squeeze(-1) * weights_inside
            channel_weights, channel_states = token_weights, tokens
        else:
            event_weights = token_weights
            weighted = channels.sum(torch.cat([tokens * event_weights.unsqueeze(-1), event_weights.unsqueeze(-1)], -1))
            channel_states, channel_weights = weighted[..., :-1], weighted[..., -1]
            tiny = torch.finfo(channel_weights.dtype).tiny
            channel_states = (channel_states / channel_weights.clamp(min=tiny).unsqueeze(-1)).to(tokens.dtype)
        if self.static_embedding is not None:
            pooled = torch.cat([pooled, self.static_embedding(static_values).to(pooled.dtype)], dim=-1)
        return HyMaTEModelOutput(
            last_hidden_state=in_given_order(hidden_states),
            pooler_output=pooled,
            channel_hidden_state=channel_states.masked_fill((channels.channel_ids < 0).unsqueeze(-1), 0),
            channel_ids=channels.channel_ids,
            event_weights=event_weights.gather(1, back),
            channel_weights=channel_weights,
            hidden_states=tuple(map(in_given_order, all_hidden_states)) if output_hidden_states else None,
        )

    def _check_inputs(self, values, times, variable_ids, mask, has_value, static_values):
        if values.dim() != 2 or 0 in values.shape:
            raise ValueError(f"values must be (batch, length), both at least 1, got {tuple(values.shape)}")
        tensors = {"times": times, "variable_ids": variable_ids, "attention_mask": mask, "value_mask": has_value}
        for name, tensor in tensors.items():
            if tensor.shape != values.shape:
                raise ValueError(f"{name} must have the shape of values, {tuple(values.shape)}: {tuple(tensor.shape)}")
        if variable_ids.is_floating_point():
            raise ValueError(f"variable_ids must be integers, got {variable_ids.dtype}")
        num_static = self.config.num_static_features
        if num_static and static_values is None:
            raise ValueError(f"static_values is required: the configuration has num_static_features={num_static}")
        if not num_static and static_values is not None and static_values.shape[-1]:
            raise ValueError("static_values was given, but the configuration has num_static_features=0")
        if num_static and static_values.shape != (values.shape[0], num_static):
            expected = (values.shape[0], num_static)
            raise ValueError(f"static_values must have shape {expected}, got {tuple(static_values.shape)}")
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return  # the checks below read the data, which would stall a GPU and break a graph
        ids = variable_ids[mask]
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.num_variables:
            raise ValueError(
                f"variable_ids must lie in [0, {self.config.num_variables}), got {int(ids.min())} to {int(ids.max())}"
            )
        if not times[mask].isfinite().all():
            raise ValueError("times must be finite at every event that attention_mask keeps")
        if not values[mask & has_value].isfinite().all():
            raise ValueError("values must be finite at every event that attention_mask and value_mask keep")
        if num_static and not static_values.isfinite().all():
            raise ValueError("static_values must be finite: missing ones are 0, with an indicator beside them")


def canonical_order(
    values: torch.Tensor, times: torch.Tensor, variable_ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Sorts events by time, then variable, then value (infinite where there is none); masked events last.

    All (batch, length); returns indices.
    """
    by_value = values.argsort(dim=1, stable=True)
    # Times as integers of the same order, in the upper half of one key: flipping the lower 31 bits of negative
    # floats makes their bit patterns ascend; adding 0.0 turns -0.0 into 0.0.
    bits = (times.float() + 0.0).contiguous().view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (bits << 32 | variable_ids).masked_fill(~mask, torch.iinfo(torch.int64).max)
    return by_value.gather(1, keys.gather(1, by_value).argsort(dim=1, stable=True))


class HyMaTEForPreTraining(HyMaTEPreTrainedModel):
    """HyMaTE with a forecast head: the value each variable takes next (STraTS, section 4.2)."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__(config)
        self.hymate = HyMaTEModel(config)
        self.dropout = head_dropout(config)
        self.forecast = nn.Linear(config.pooler_size, config.num_variables)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        values: torch.Tensor,
        times: torch.Tensor,
        variable_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        value_mask: torch.Tensor | None = None,
        static_values: torch.Tensor | None = None,
        forecast_values: torch.Tensor | None = None,
        forecast_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> HyMaTEForPreTrainingOutput:
        """Arguments as `HyMaTEModel.forward`, and

        Args:
            forecast_values: standardized values to be forecast, `(batch, num_variables)`.
            forecast_mask: 1 or true where a variable was measured in the forecast window, `(batch, num_variables)`.
                A batch without any has loss 0.

        Raises:
            ValueError: if only one of the two is given, or their shape does not fit.
        """
        if (forecast_values is None) != (forecast_mask is None):
            raise ValueError("forecast_values and forecast_mask must be given together")
        outputs = self.hymate(values, times, variable_ids, attention_mask, value_mask, static_values, **kwargs)
        logits = self.forecast(self.dropout(outputs.pooler_output))
        loss = None
        if forecast_values is not None and forecast_mask is not None:
            for name, tensor in {"forecast_values": forecast_values, "forecast_mask": forecast_mask}.items():
                if tensor.shape != logits.shape:
                    raise ValueError(f"{name} must have shape {tuple(logits.shape)}, got {tuple(tensor.shape)}")
            mask = forecast_mask.bool()
            readable = mask.device.type == "cpu" and not torch.compiler.is_compiling()
            if readable and not forecast_values[mask].isfinite().all():
                raise ValueError("forecast_values must be finite wherever forecast_mask is set")
            errors = (logits.float() - forecast_values.float()).masked_fill(~mask, 0)
            loss = errors.square().sum() / mask.sum().clamp(min=1)
        return HyMaTEForPreTrainingOutput(loss=loss, logits=logits, **outputs)


class HyMaTEForSequenceClassification(HyMaTEPreTrainedModel):
    """HyMaTE with a linear head for a label of the whole record: binary, multiclass, multilabel or a number.

    `config.problem_type` chooses the loss: cross-entropy (`"single_label_classification"`, binary tasks have two
    labels), binary cross-entropy a label (`"multi_label_classification"`) or squared error (`"regression"`). Where it
    is `None` it follows from the labels as in transformers: one output is a regression, integer labels name a class,
    floating labels are multilabel.
    """

    def __init__(self, config: HyMaTEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.hymate = HyMaTEModel(config)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.pooler_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        values: torch.Tensor,
        times: torch.Tensor,
        variable_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        value_mask: torch.Tensor | None = None,
        static_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> HyMaTEForSequenceClassificationOutput:
        """Arguments as `HyMaTEModel.forward`, and

        Args:
            labels: `(batch,)` class indices, `(batch, num_labels)` zeros and ones, or `(batch,)` or
                `(batch, num_labels)` numbers, by `config.problem_type`.

        Raises:
            ValueError: for labels whose shape, and on CPUs also whose values, do not fit the problem type.
        """
        outputs = self.hymate(values, times, variable_ids, attention_mask, value_mask, static_values, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        if self._is_regression:
            logits = logits.float() * self.config.label_deviation + self.config.label_mean
        loss = None if labels is None else self._loss(logits.float(), labels)
        return HyMaTEForSequenceClassificationOutput(loss=loss, logits=logits, **outputs)

    @property
    def _is_regression(self) -> bool:
        problem_type = self.config.problem_type
        return problem_type == "regression" or (problem_type is None and self.num_labels == 1)

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        """What the logits say, `(batch, num_labels)` in float32: probabilities of the classes (which sum to one) or
        of each label, at the configuration's temperature, or the regressed numbers."""
        logits = logits.float()
        if self._is_regression:
            return logits
        calibrated = logits / self.config.temperature
        multilabel = self.config.problem_type == "multi_label_classification"
        return calibrated.sigmoid() if multilabel else calibrated.softmax(-1)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        problem_type = "regression" if self._is_regression else self.config.problem_type
        if problem_type is None:
            whole = not labels.is_floating_point()
            problem_type = "single_label_classification" if whole else "multi_label_classification"
        expected = (len(logits),) if problem_type == "single_label_classification" else tuple(logits.shape)
        if self.num_labels == 1 and labels.dim() == 1:
            labels = labels.unsqueeze(-1)
        if tuple(labels.shape) != expected:
            raise ValueError(f"labels for {problem_type} must have shape {expected}, got {tuple(labels.shape)}")
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_labels(labels, problem_type, self.num_labels)
        if problem_type == "regression":
            return F.mse_loss(logits, labels.float()) / self.config.label_deviation**2
        weight = self._positive_weight(problem_type, logits.device)
        if problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weight)
        losses = F.cross_entropy(logits, labels.long(), reduction="none")
        # Averaged over records, not over their weights, so that the size of a batch does not change its gradient.
        return (losses if weight is None else losses * weight[labels.long()]).mean()

    def _positive_weight(self, problem_type: str, device: torch.device) -> torch.Tensor | None:
        weight = self.config.pos_weight
        if weight is None:
            return None
        if not isinstance(weight, list):
            weight = [1.0, weight] if problem_type == "single_label_classification" else [weight] * self.num_labels
        return torch.tensor(weight, dtype=torch.float32, device=device)


def _check_labels(labels: torch.Tensor, problem_type: str, num_labels: int):
    labels = labels.double()
    if problem_type == "regression":
        bad, rule = ~labels.isfinite(), "finite numbers"
    elif problem_type == "single_label_classification":
        bad = (labels < 0) | (labels >= num_labels) | (labels != labels.floor())
        rule = f"whole numbers in [0, {num_labels})"
    else:
        bad, rule = ~((labels >= 0) & (labels <= 1)), "numbers from 0 to 1"
    if bad.any():
        raise ValueError(f"labels for {problem_type} must be {rule}, got {labels[bad][0].item():g}")


def head_dropout(config: HyMaTEConfig) -> nn.Dropout:
    """Dropout before a head."""
    return nn.Dropout(config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout)


__all__ = [
    "HyMaTEForPreTraining",
    "HyMaTEForPreTrainingOutput",
    "HyMaTEForSequenceClassification",
    "HyMaTEForSequenceClassificationOutput",
    "HyMaTEModel",
    "HyMaTEModelOutput",
    "HyMaTEPreTrainedModel",
]
