"""HyMaTE models: the encoder, forecast pretraining and record classification."""

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import HyMaTEAttention, HyMaTEAttentionLayer, HyMaTEFusionAttention, mix_tokens
from .channel_statistics import HyMaTEChannelStatistics, split_quantities
from .channel_tokens import HyMaTEChannelTokens
from .configuration_hymate import HyMaTEConfig
from .dropout import head_dropout
from .embedding import HyMaTEEmbedding, HyMaTEPredictionTimeEmbedding, HyMaTEStaticEmbedding
from .forecast import HyMaTEForecastHead, forecast_loss
from .inputs import (
    arrange_events,
    check_event_shapes,
    check_prediction_time,
    check_static,
    event_masks,
    refuse_unknown,
    sort_predictions,
)
from .losses import is_regression, label_loss, label_predictions
from .mamba import HyMaTEMambaLayer, HyMaTEMixer
from .native_layers import native_layers
from .outputs import (
    HyMaTEForPreTrainingOutput,
    HyMaTEForSequenceClassificationOutput,
    HyMaTEModelOutput,
)
from .running_quantities import event_weights
from .streaming import (
    StreamState,
    advance_stream,
    new_stream,
    observed_channels,
    observed_quantities,
    recall_natively,
)

FORWARD_ARGUMENTS = (
    *("values", "times", "variable_ids", "attention_mask", "value_mask", "static_values", "prediction_times"),
    *("prediction_mask", "max_channels", "output_event_weights", "output_channel_hidden_state"),
)
# elements of all tokens that are held at a time: those of more prediction times are made one part after the other
TOKEN_BUDGET = 2**22

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
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["A_log", "D", "dt_proj.bias"]  # noqa: RUF012 - transformers' own convention
    _can_record_outputs = {"attentions": HyMaTEAttention}  # noqa: RUF012 - transformers' own convention
    # Trainer would otherwise take our losses to be sums over accumulated batches
    accepts_loss_kwargs = False

    def resize_token_embeddings(self, *args, **kwargs):
        """Refused: a variable has more than its embedding, and each its place in the feature extractor.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a HyMaTE model's variables cannot be resized: fine-tune from the checkpoint on data with other "
            "variables, which keeps the weights of those it knows (hymate finetune --checkpoint)"
        )

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
        elif isinstance(module, HyMaTEForecastHead):
            init.ones_(module.carried_share)

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
        self.channel_tokens: Any = HyMaTEChannelTokens(config) if config.attention_axis == "channel" else None
        self.attention_layers = nn.ModuleList(HyMaTEAttentionLayer(config) for _ in range(config.num_attention_layers))
        self.fusion = HyMaTEFusionAttention(config)
        self.prediction_time_embedding = HyMaTEPredictionTimeEmbedding(config)
        self.static_embedding = HyMaTEStaticEmbedding(config) if config.num_static_features else None
        self.half_lives = [float(hours) / config.time_scale for hours in config.half_lives]
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
        prediction_times: torch.Tensor | None = None,
        prediction_mask: torch.Tensor | None = None,
        max_channels: int | None = None,
        output_event_weights: bool | None = None,
        output_channel_hidden_state: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> HyMaTEModelOutput:
        """Encodes a batch of records, once or at many prediction times.

        Args:
            values: standardized values, `(batch, length)`; where there is no number, anything.
            times: scaled times, `(batch, length)`, in any order.
            variable_ids: index of each event's variable, `(batch, length)`.
            attention_mask: 1 or true at real events, `(batch, length)`, in any pattern; all real where absent.
            value_mask: 1 or true at events that carry a number, `(batch, length)`; where absent, those whose value
                is not NaN.
            static_values: standardized static features, `(batch, num_static_features)`; required if the
                configuration has any.
            prediction_times: scaled times, `(batch, predictions)`, in any order. What is said at each rests on the
                events at or before it alone, and equals what is said of a record that ends there. Where absent, a
                record is asked once, at the time of its last event.
            prediction_mask: 1 or true at real prediction times, `(batch, predictions)`; all real where absent. What is
                returned for the others means nothing.
            max_channels: a bound to the number of variables observed in any record, which spares a GPU the wait for
                it, and makes shapes that do not depend on the data; more variables than that are an error that is not
                noticed. CPUs count for themselves.
            output_event_weights: return `event_weights`; by default where no prediction times are given.
            output_channel_hidden_state: return `channel_hidden_state`; by default where no prediction times are given,
                for many of which it takes most of the memory.
            output_hidden_states: return the hidden states of all layers.

        Raises:
            ValueError: for shapes that do not fit, prediction times with `attention_axis="event"`, and on CPUs also
                for variable ids out of range, masks that hold other numbers than 0 and 1, and times or values that
                are not finite.
            TypeError: for an argument of another name.
        """
        refuse_unknown(kwargs, FORWARD_ARGUMENTS)
        mask, has_value = event_masks(values, attention_mask, value_mask)
        check_event_shapes(values, times, variable_ids, mask, has_value)
        check_static(static_values, values.shape[0], self.config)
        if prediction_times is not None and self.channel_tokens is None:
            raise ValueError(
                "prediction_times needs attention_axis='channel': with 'event', a record can be asked at the time of "
                "its last event alone"
            )
        if max_channels is None and getattr(self, "_is_replica", False):
            max_channels = self.config.num_variables  # DataParallel joins outputs, which must have one width
        events, channels = arrange_events(values, times, variable_ids, mask, has_value, self.config, max_channels)
        asked = sort_predictions(prediction_times, prediction_mask, events)
        keeps = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states, all_hidden_states = self._read_events(events, bool(keeps))
        optional = {"event_weights": output_event_weights, "channel_hidden_state": output_channel_hidden_state}
        wanted = [
            name for name, asked_for in optional.items() if (asked.is_single if asked_for is None else asked_for)
        ]
        encode = self._encode_events if self.channel_tokens is None else self._encode_channels
        found = encode(hidden_states, events, asked, channels, wanted, **kwargs)
        found["pooler_output"] = self._with_context(found["pooler_output"], asked.times, self._static(static_values))
        found = {name: asked.in_given_order(tensor) for name, tensor in found.items()}
        if "event_weights" in wanted:
            found["event_weights"] = events.in_given_order(found["event_weights"].movedim(-1, 1)).movedim(1, -1)
        return HyMaTEModelOutput(
            last_hidden_state=all_hidden_states[-1] if keeps else events.in_given_order(hidden_states),
            channel_ids=channels.channel_ids,
            hidden_states=tuple(all_hidden_states) if keeps else None,
            **found,
        )

    def _read_events(self, events, keeps: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """States of the events after the last Mamba layer, in the canonical order; and with `keeps` those as embedded
        and after each layer, as they came, all `(batch, length, hidden_size)`.

        Each layer then reads what is kept, so that gradients reach that, too.
        """
        kept = []
        states = self.embedding(events.values, events.times, events.variable_ids, events.has_value, events.lengths)
        for layer in (None, *self.mamba_layers):
            states = states if layer is None else layer(states, events.lengths)
            if keeps:
                kept.append(events.in_given_order(states))
                states = events.in_canonical_order(kept[-1])
        return states, kept

    def start_stream(self, static_values: torch.Tensor | None = None, batch_size: int | None = None) -> StreamState:
        """The state of records that have no events yet; `stream` feeds them.

        Args:
            static_values: standardized static features, `(batch, num_static_features)`; required if the configuration
                has any.
            batch_size: number of records, where there are no static features; 1 by default.

        Raises:
            ValueError: for static features that do not fit, with `attention_axis="event"`, and for offloaded weights.
        """
        if self.channel_tokens is None:
            raise ValueError("a stream needs attention_axis='channel': with 'event', each event needs all others")
        if static_values is not None and static_values.shape[-1]:
            batch = len(static_values)
        else:
            batch = 1 if batch_size is None else batch_size
        check_static(static_values, batch, self.config)
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError("a stream needs all weights in memory, and some are offloaded: load without device_map")
        with torch.inference_mode():
            return new_stream(self, batch, self._static(static_values))

    def stream(
        self,
        state: StreamState,
        values: torch.Tensor | None = None,
        times: torch.Tensor | None = None,
        variable_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        value_mask: torch.Tensor | None = None,
        prediction_time: torch.Tensor | None = None,
    ) -> tuple[HyMaTEModelOutput, StreamState]:
        """Feeds further events, any number at a time, and encodes the records as of then.

        The outputs are those of `forward` for all events so far, at a cost and with a state that do not grow with
        their number. Events of one time stamp may come in any order and in different calls: the answer is that for
        their canonical order, for which the state keeps the events of its latest time stamp.

        Args:
            state: of `start_stream`, or of the last call. It stays as it is, so that one can go back to it.
            values, times, variable_ids, attention_mask, value_mask: events as in `forward`, `(batch, length)`, in any
                order; absent altogether to ask again at a later time.
            prediction_time: scaled time at which each record is asked, `(batch,)`, no earlier than its last event; by
                default that of its last event.

        Returns:
            Outputs as of `forward` without prediction times, without those that belong to events; and the new state.

        Raises:
            ValueError: as `forward`; for an event that is older than the latest of its record; for a prediction time
                that is older; and in training mode.
        """
        if self.training:
            raise ValueError("a stream is for inference: call model.eval() first")
        with torch.inference_mode():
            layers = native_layers(self)
            if values is not None:
                if times is None or variable_ids is None:
                    raise ValueError("values, times and variable_ids must be given together")
                mask, has_value = event_masks(values, attention_mask, value_mask)
                check_event_shapes(values, times, variable_ids, mask, has_value)
                events, _ = arrange_events(values, times, variable_ids, mask, has_value, self.config)
                state = advance_stream(self, state, events, layers)
            return self._encode_stream(state, prediction_time, layers), state

    def _static(self, static_values: torch.Tensor | None) -> torch.Tensor | None:
        if self.static_embedding is None or static_values is None:
            return None
        return self.static_embedding(static_values.to(self.embedding.missing_value.dtype))

    def _with_context(self, pooled, times, static_embeds):
        """Adds the prediction times `(batch, predictions)` to the pooled tokens, and puts the demographics behind."""
        pooled = pooled + self.prediction_time_embedding(times, pooled.dtype).to(pooled.dtype)
        if static_embeds is None:
            return pooled
        static_embeds = static_embeds.to(pooled.dtype).unsqueeze(1).expand(-1, pooled.shape[1], -1)
        return torch.cat([pooled, static_embeds], -1)

    def _encode_channels(self, hidden_states, events, asked, channels, wanted, **kwargs):
        """What is said of channels at the prediction times, some of them at a time."""
        batch, predictions = asked.times.shape
        stretches = [asked]
        if not torch.compiler.is_compiling() and predictions > 1:
            tokens = batch * channels.channel_ids.shape[1] * self.config.hidden_size
            # each part goes through all events again, which must not become most of the work
            stretches = asked.split(max(1, max(TOKEN_BUDGET, hidden_states.numel()) // tokens))
        described = self.channel_tokens.describe(
            hidden_states, events, channels, [stretch.times for stretch in stretches], self.half_lives
        )
        found = [
            self._encode_stretch(stretch, of_stretch, events, channels, wanted, **kwargs)
            for stretch, of_stretch in zip(stretches, described, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return {name: torch.cat([part[name] for part in found], 1) for name in found[0]}

    def _encode_stretch(self, asked, described, events, channels, wanted, **kwargs):
        pooled, totals, quantities, scores = described
        found = self._encode_quantities(pooled, quantities, channels.channel_ids, wanted, asked.mask, **kwargs)
        if "event_weights" in wanted:
            found["event_weights"] = event_weights(
                found["channel_weights"], totals, scores, events.times, channels.slots, asked.times
            )
        return found

    def _encode_quantities(
        self, pooled, quantities, channel_ids, wanted=("channel_hidden_state",), prediction_mask=None, **kwargs
    ):
        """Running quantities `(batch, predictions, channels, ...)` -> what is said of channels and records.

        Predictions that `prediction_mask (batch, predictions)` leaves out have no tokens and need no attention.
        """
        named = split_quantities(quantities)
        mask = (named["count"] > 0) & (channel_ids >= 0).unsqueeze(1)
        if prediction_mask is not None:
            mask = mask & prediction_mask.unsqueeze(-1)
        # not the embedding itself, which accelerate's hooks would take for an input and move to another device
        embedding = partial(getattr, self.embedding, "variable_embedding")
        tokens = self.channel_tokens(pooled, quantities, mask, channel_ids, embedding)
        tokens, pooled, weights = mix_tokens(self, tokens, mask, **kwargs)
        found = {
            "pooler_output": pooled,
            "channel_counts": named["count"],
            "channel_last_values": named["last"],
            "channel_weights": weights,
        }
        if "channel_hidden_state" in wanted:
            found["channel_hidden_state"] = tokens.masked_fill(~mask.unsqueeze(-1), 0)
        return found

    def encode_quantities(self, pooled, quantities, channel_ids, prediction_times, static_values=None) -> torch.Tensor:
        """`pooled` and `statistics` of `running_quantities`, the variable of each channel, `(batch, channels)`, and
        scaled prediction times, `(batch, predictions)` -> `pooler_output`, `(batch, predictions, pooler_size)`."""
        found = self._encode_quantities(pooled, quantities, channel_ids, ())
        return self._with_context(found["pooler_output"], prediction_times, self._static(static_values))

    def _encode_events(self, hidden_states, events, asked, channels, wanted, **kwargs):
        """What is said of channels and records where tokens are events, at the time of the last."""
        tokens, pooled, weights = mix_tokens(self, hidden_states, events.mask, **kwargs)
        states, channel_weights = channels.means(tokens, weights)
        found = {
            "pooler_output": pooled,
            "channel_hidden_state": states.masked_fill((channels.channel_ids < 0).unsqueeze(-1), 0),
            "channel_counts": channels.sum(events.mask.float().unsqueeze(-1)).squeeze(-1),
            "channel_last_values": channels.last(events.values, events.has_value),
            "channel_weights": channel_weights,
        }
        if "event_weights" in wanted:
            found["event_weights"] = weights
        return {name: tensor.unsqueeze(1) for name, tensor in found.items()}

    def _encode_stream(
        self, state: StreamState, prediction_time: torch.Tensor | None, layers: Any
    ) -> HyMaTEModelOutput:
        memory, channel_ids = state.current, observed_channels(state.current)
        now = memory.last_time
        if prediction_time is not None:
            now = prediction_time.float()
            check_prediction_time(now, memory.last_time, memory.num_events)
        if layers is None:
            pooled, quantities = observed_quantities(memory, now, channel_ids, self)
            pooled = pooled.to(self.embedding.missing_value.dtype)
            found = self._encode_quantities(pooled, quantities, channel_ids)
            found = {name: tensor.squeeze(1) for name, tensor in found.items()}
        else:
            found = recall_natively(memory, now, channel_ids, layers)
        pooled = self._with_context(found["pooler_output"].unsqueeze(1), now.unsqueeze(1), state.static_embeds)
        found["pooler_output"] = pooled.squeeze(1)
        return HyMaTEModelOutput(channel_ids=channel_ids, **found)


class HyMaTEHeadModel(HyMaTEPreTrainedModel):
    """An encoder `hymate` with a head."""

    output_class: type[HyMaTEModelOutput]

    def head(self, outputs: HyMaTEModelOutput) -> dict[str, Any]:
        """What the head adds to the encoder's outputs, by the names of the fields."""
        raise NotImplementedError

    def start_stream(self, static_values: torch.Tensor | None = None, batch_size: int | None = None) -> StreamState:
        """See `HyMaTEModel.start_stream`."""
        return self.hymate.start_stream(static_values, batch_size)

    def stream(self, state: StreamState, *args, **kwargs) -> tuple[Any, StreamState]:
        """See `HyMaTEModel.stream`; the outputs are those of this model's `forward`, with `logits (batch, ...)`."""
        outputs, state = self.hymate.stream(state, *args, **kwargs)
        with torch.inference_mode():
            return self.output_class(**self.head(outputs), **outputs), state


class HyMaTEForPreTraining(HyMaTEHeadModel):
    """HyMaTE with a forecast head: what each variable does next (STraTS, section 4.2)."""

    output_class = HyMaTEForPreTrainingOutput

    def __init__(self, config: HyMaTEConfig):
        super().__init__(config)
        self.hymate = HyMaTEModel(config)
        self.dropout = head_dropout(config)
        self.forecast = HyMaTEForecastHead(config)
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
        prediction_times: torch.Tensor | None = None,
        prediction_mask: torch.Tensor | None = None,
        forecast_values: torch.Tensor | None = None,
        forecast_mask: torch.Tensor | None = None,
        measured_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> HyMaTEForPreTrainingOutput:
        """Arguments as `HyMaTEModel.forward`, and

        Args:
            forecast_values: the first value of each variable after the prediction time and within each horizon,
                standardized, `(batch, [predictions,] horizons, num_variables)`; `predictions` is there where
                prediction times are given.
            forecast_mask: 1 or true where there is one, of the same shape. Padded predictions count nowhere.
            measured_mask: 1 or true where the variable has any event in that time, with a number or without, of the
                same shape; `forecast_mask` by default.

        Raises:
            ValueError: if only one of the first two is given, or a shape does not fit.
        """
        if (forecast_values is None) != (forecast_mask is None):
            raise ValueError("forecast_values and forecast_mask must be given together")
        if measured_mask is not None and forecast_mask is None:
            raise ValueError("measured_mask was given without forecast_values and forecast_mask")
        asked = {"prediction_times": prediction_times, "prediction_mask": prediction_mask}
        kwargs = kwargs | {"return_dict": True, "output_channel_hidden_state": True}
        inputs = (values, times, variable_ids, attention_mask, value_mask, static_values)
        outputs = self.hymate(*inputs, **asked, **kwargs)
        forecast = self.head(outputs)
        loss = None
        if forecast_values is not None and forecast_mask is not None:
            loss = forecast_loss(
                forecast["logits"],
                forecast["measured_logits"],
                forecast_values,
                forecast_mask,
                measured_mask,
                prediction_mask,
                self.config.measured_weight,
            )
        return HyMaTEForPreTrainingOutput(loss=loss, **forecast, **outputs)

    def head(self, outputs: HyMaTEModelOutput) -> dict[str, Any]:
        logits, measured_logits = self.forecast(
            self.dropout(outputs.pooler_output),
            outputs.channel_hidden_state,
            outputs.channel_ids,
            outputs.channel_counts,
            outputs.channel_last_values,
        )
        return {"logits": logits, "measured_logits": measured_logits}


class HyMaTEForSequenceClassification(HyMaTEHeadModel):
    """HyMaTE with a linear head for a label of a record at a time: binary, multiclass, multilabel or a number.

    `config.problem_type` chooses the loss: cross-entropy (`"single_label_classification"`, binary tasks have two
    labels), binary cross-entropy of each label (`"multi_label_classification"`), squared error (`"regression"`) or the
    likelihood of discrete-time hazards (`"time_to_event"`). Where it is `None` it follows from the labels as in
    transformers: one output is a regression, integer labels name a class, floating labels are multilabel.
    """

    output_class = HyMaTEForSequenceClassificationOutput

    def __init__(self, config: HyMaTEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.hymate = HyMaTEModel(config)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.pooler_size, config.num_logits)
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
        prediction_times: torch.Tensor | None = None,
        prediction_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> HyMaTEForSequenceClassificationOutput:
        """Arguments as `HyMaTEModel.forward`, and

        Args:
            labels: `(batch,)` class indices, `(batch, num_labels)` zeros and ones, or `(batch,)` or
                `(batch, num_labels)` numbers, or `(batch, 2)` hours to the event, or until which there was none, and
                whether it was observed, by `config.problem_type`; with prediction times a dimension
                `predictions` comes after the batch. The loss is the mean over all real predictions; what stands at
                padded ones is not looked at.

        Raises:
            ValueError: for labels whose shape, and on CPUs also whose values, do not fit the problem type.
        """
        asked = {"prediction_times": prediction_times, "prediction_mask": prediction_mask, "return_dict": True}
        inputs = (values, times, variable_ids, attention_mask, value_mask, static_values)
        outputs = self.hymate(*inputs, **kwargs | asked)
        logits = self.head(outputs)["logits"]
        loss = None if labels is None else label_loss(logits.float(), labels, prediction_mask, self.config)
        return HyMaTEForSequenceClassificationOutput(loss=loss, logits=logits, **outputs)

    def head(self, outputs: HyMaTEModelOutput) -> dict[str, Any]:
        logits = self.classifier(self.dropout(outputs.pooler_output))
        if is_regression(self.config):
            logits = logits.float() * self.config.label_deviation + self.config.label_mean
        return {"logits": logits}

    def predictions(self, logits: torch.Tensor, horizons: Sequence[float] | None = None) -> torch.Tensor:
        """What logits say, float32 `(batch, [predictions,] num_labels)`.

        Args:
            logits: as `forward` returns them.
            horizons: hours within which a `"time_to_event"` model says the risk, in place of `config.horizons`; with
                those of `config.curve_times` it is the whole curve, one minus the survival.

        Returns:
            Probabilities of classes (which sum to one) or labels, at the configuration's temperature, the regressed
            numbers, or the risk of the event within each horizon.

        Raises:
            ValueError: for horizons beyond the bins, and for those of another problem type.
        """
        return label_predictions(logits.float(), self.config, horizons)


__all__ = [
    "HyMaTEForPreTraining",
    "HyMaTEForPreTrainingOutput",
    "HyMaTEForSequenceClassification",
    "HyMaTEForSequenceClassificationOutput",
    "HyMaTEModel",
    "HyMaTEModelOutput",
    "HyMaTEPreTrainedModel",
]
