"""Configuration of HyMaTE, a hybrid of Mamba and attention layers for electronic health records."""

import math
from dataclasses import field
from itertools import pairwise
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class HyMaTEConfig(PreTrainedConfig):
    r"""Shape and hyper-parameters of a HyMaTE model (arXiv 2509.24118).

    A record is a set of events (time, variable, value). Events are embedded, read in time order by
    `num_mamba_layers` Mamba layers, turned into tokens, mixed by `num_attention_layers` self-attention layers and
    pooled by fusion attention; static features (demographics) enter beside the pooled vector.

    Args:
        num_variables (`int`, defaults to 64): Size of the vocabulary of variables (channels) an event can belong to.
        num_static_features (`int`, defaults to 0): Width of `static_values`; 0 leaves demographics out.
        hidden_size (`int`, defaults to 64): Width d of event embeddings and tokens.
        variable_value_vectors (`bool`, defaults to `True`): Give each variable a learned vector that its values
            multiply, added to the event embedding, so that the same number means different things in different
            variables from the start.
        num_mamba_layers (`int`, defaults to 2): Mamba layers over the events; 0 gives the attention-only ablation.
        state_size (`int`, defaults to 16): States per inner channel of a Mamba layer.
        conv_kernel (`int`, defaults to 4): Width of a Mamba layer's causal convolution, in events.
        expand (`int`, defaults to 2): Inner width of a Mamba layer, as a multiple of `hidden_size`.
        time_step_rank (`int` or `"auto"`, defaults to `"auto"`): Rank of the step-size projection; `"auto"` is
            `ceil(hidden_size / 16)`.
        time_step_min (`float`, defaults to 0.001): Smallest step size at initialization.
        time_step_max (`float`, defaults to 0.1): Largest step size at initialization.
        time_step_floor (`float`, defaults to 1e-4): Lower bound of the step size at initialization.
        use_bias (`bool`, defaults to `False`): Biases in a Mamba layer's input and output projections.
        use_conv_bias (`bool`, defaults to `True`): Bias in a Mamba layer's convolution.
        num_attention_layers (`int`, defaults to 1): Self-attention layers over the tokens; 0 gives the Mamba-only
            ablation (together with `attention_axis="event"`, fusion attention then reads the Mamba layers' output).
        num_attention_heads (`int`, defaults to 4): Heads of the self-attention.
        intermediate_size (`int` or `"auto"`, defaults to `"auto"`): Width of the feed-forward part of an attention
            layer; `"auto"` is `2 * hidden_size`.
        attention_axis (`"channel"` or `"event"`, defaults to `"channel"`): What a token is. `"channel"`: one token per
            variable observed in the record, pooled from its events. `"event"`: one token per event, as in STraTS,
            which can be asked at the time of the last event alone.
        num_pooling_queries (`int`, defaults to 4): Queries that pool a variable's events into its token, each filling
            its own part of the token.
        num_statistic_bins (`int`, defaults to 0): Add summary statistics of a variable's values and times up to the
            prediction time (first, last, extremes, means, deviations, changes, how often and how long ago) to its
            token, each through a piecewise-linear function of so many bins; 0 leaves these hand-made features out.
            Needs `attention_axis="channel"`.
        half_lives (`list[float]`, defaults to `[3.0, 12.0]`): Hours after which an event counts half in the decayed
            means and counts among those statistics.
        time_scale (`float`, defaults to 1.0): Hours that one unit of `times` stands for, as in the feature extractor.
        hidden_act (`str`, defaults to `"silu"`): Activation in the Mamba layers.
        hidden_dropout (`float`, defaults to 0.1): Dropout on the residual branches.
        attention_dropout (`float`, defaults to 0.1): Dropout on attention weights.
        classifier_dropout (`float` or `None`, defaults to `None`): Dropout before a head; `None` is `hidden_dropout`.
        rms_norm_eps (`float`, defaults to 1e-5): Epsilon of the RMS norms.
        initializer_range (`float`, defaults to 0.5): Standard deviation of initial embeddings.
        forecast_horizons (`list[float]`, defaults to `[2.0]`): Hours after a prediction time in which pretraining
            forecasts each variable.
        measured_weight (`float`, defaults to 0.2): Weight, in the pretraining loss, of whether a variable is measured
            at all, beside what its next value is.
        pos_weight (`float`, `list[float]` or `None`, defaults to `None`): Weight of positives in the classification
            loss: a number for binary tasks and for all labels of a multilabel task, or one weight per
            class (`single_label_classification`) or label (`multi_label_classification`).
        label_mean (`float`, defaults to 0.0): Mean of a regression's labels in the training data.
        label_deviation (`float`, defaults to 1.0): Their standard deviation. The model regresses standardized labels
            and returns them in their own unit.
        time_bins (`list[float]` or `None`, defaults to `None`): Hours after the prediction time at which the bins of a
            `"time_to_event"` model end, ascending; it has a hazard for each.
        horizons (`list[float]` or `None`, defaults to `None`): Hours within which a `"time_to_event"` model says the
            risk of the event; one per label.
        event (`str` or `None`, defaults to `None`): What the event of a `"time_to_event"` model is called.
        temperature (`float`, defaults to 1.0): What a classifier's logits are divided by before they become
            probabilities, fitted on validation data so that these are calibrated (arXiv 1706.04599).
        logit_shift (`list[float]` or `None`, defaults to `None`): What is added to the logits before that, one number
            per logit, fitted with it.

    Raises:
        StrictDataclassError: (of huggingface_hub) for values of the wrong type or that cannot be combined; the
            message names the fields.
    """

    model_type = "hymate"
    keys_to_ignore_at_inference = [  # noqa: RUF012 - transformers' own convention
        "last_hidden_state",
        "pooler_output",
        "channel_hidden_state",
        "channel_ids",
        "channel_counts",
        "channel_last_values",
        "measured_logits",
        "event_weights",
        "channel_weights",
        "hidden_states",
        "attentions",
    ]

    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "mamba_layers.*": "free_full_weight",
        "attention_layers.*": "free_full_weight",
    }

    num_variables: int = 64
    num_static_features: int = 0
    hidden_size: int = 64
    variable_value_vectors: bool = True
    num_mamba_layers: int = 2
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: int | Literal["auto"] = "auto"
    time_step_min: float | int = 0.001
    time_step_max: float | int = 0.1
    time_step_floor: float | int = 1e-4
    use_bias: bool = False
    use_conv_bias: bool = True
    num_attention_layers: int = 1
    num_attention_heads: int = 4
    intermediate_size: int | Literal["auto"] = "auto"
    attention_axis: Literal["channel", "event"] = "channel"
    num_pooling_queries: int = 4
    num_statistic_bins: int = 0
    half_lives: list[float | int] = field(default_factory=lambda: [3.0, 12.0])
    time_scale: float | int = 1.0
    hidden_act: str = "silu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    classifier_dropout: float | int | None = None
    rms_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.5
    forecast_horizons: list[float | int] = field(default_factory=lambda: [2.0])
    measured_weight: float | int = 0.2
    pos_weight: float | int | list[float | int] | None = None
    label_mean: float | int = 0.0
    label_deviation: float | int = 1.0
    time_bins: list[float | int] | None = None
    horizons: list[float | int] | None = None
    event: str | None = None
    temperature: float | int = 1.0
    logit_shift: list[float | int] | None = None
    problem_type: (
        Literal["regression", "single_label_classification", "multi_label_classification", "time_to_event"] | None
    ) = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size == "auto":
            self.intermediate_size = 2 * self.hidden_size
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        if not type(self).__module__.startswith("transformers_modules."):
            # A folder's own pipeline goes with the folder's own code, and transformers asks for trust_remote_code
            # wherever it sees one named; where this package is imported, its pipeline is registered already.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        return self.num_mamba_layers + self.num_attention_layers

    @property
    def mamba_inner_size(self) -> int:
        return self.expand * self.hidden_size

    @property
    def pooler_size(self) -> int:
        """Width of `pooler_output`: the pooled events and, where there are static features, the demographics."""
        return self.hidden_size * (2 if self.num_static_features else 1)

    @property
    def num_logits(self) -> int:
        """Width of a label head's logits: one per label, or one per bin of time."""
        return self.num_labels if self.time_bins is None else len(self.time_bins)

    @property
    def curve_times(self) -> list[float] | None:
        """Hours that show the whole curve of a time-to-event model, at least two in each of its bins and eight in all;
        or None."""
        if self.time_bins is None:
            return None
        parts = max(2, 8 // len(self.time_bins))
        bins = pairwise([0, *self.time_bins])
        return [start + (end - start) * part / parts for start, end in bins for part in range(1, parts + 1)]

    @property
    def names_an_answer(self) -> bool:
        """Whether one label is the answer: the most probable one, or the only one there is."""
        return self.problem_type not in ("regression", "time_to_event") or self.num_labels == 1

    def validate_sizes(self):
        positive = (
            "num_variables",
            "hidden_size",
            "state_size",
            "conv_kernel",
            "expand",
            "time_step_rank",
            "num_attention_heads",
            "intermediate_size",
            "num_pooling_queries",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_static_features", "num_mamba_layers", "num_attention_layers", "num_statistic_bins"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("num_attention_heads", "num_pooling_queries"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of {name} ({getattr(self, name)})"
                )

    def validate_statistics(self):
        if self.num_statistic_bins and self.attention_axis != "channel":
            raise ValueError(
                f"num_statistic_bins ({self.num_statistic_bins}) describes the tokens of variables, but "
                f"attention_axis is {self.attention_axis!r}: choose 'channel', or 0 bins"
            )

    def validate_times(self):
        for name in ("half_lives", "forecast_horizons"):
            hours = getattr(self, name)
            if not hours or not all(0 < hour < math.inf for hour in hours):
                raise ValueError(f"{name} must be a list of positive hours, got {hours}")
        if not 0 < self.time_scale < math.inf:
            raise ValueError(f"time_scale must be a positive number of hours, got {self.time_scale}")

    def validate_rates(self):
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {rate}")
        for name in ("label_deviation", "temperature", "rms_norm_eps", "time_step_floor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("measured_weight", "initializer_range"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not math.isfinite(self.label_mean):
            raise ValueError(f"label_mean must be a finite number, got {self.label_mean}")
        if not 0 < self.time_step_min <= self.time_step_max < math.inf:
            raise ValueError(
                f"time_step_min ({self.time_step_min}) must be positive and at most time_step_max "
                f"({self.time_step_max})"
            )

    def validate_labels(self):
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {self.num_labels}")
        names = self.id2label or {}
        if sorted(map(int, names)) != list(range(len(names))):
            raise ValueError(f"id2label must number its labels from 0 on, got {', '.join(map(str, names))}")
        if len(set(names.values())) < len(names) or not all(str(name).strip() for name in names.values()):
            raise ValueError(f"id2label must give each label a name of its own, got {list(names.values())}")
        shift = self.logit_shift
        if shift is not None and not (len(shift) == self.num_labels and all(map(math.isfinite, shift))):
            raise ValueError(f"logit_shift must be {self.num_labels} finite numbers, one per label, got {shift}")

    def validate_time_bins(self):
        if self.problem_type != "time_to_event":
            if self.time_bins is not None or self.horizons is not None:
                raise ValueError(
                    f"time_bins and horizons belong to problem_type 'time_to_event', not {self.problem_type!r}"
                )
            return
        bins, horizons = self.time_bins or [], self.horizons or []
        if not bins or not all(start < end < math.inf for start, end in pairwise([0, *bins])):
            raise ValueError(f"time_bins must be ascending hours above 0, got {self.time_bins}")
        if not all(0 < hours <= bins[-1] for hours in horizons) or len(horizons) != self.num_labels:
            raise ValueError(
                f"horizons must be one number of hours per label ({self.num_labels}), above 0 and at most the end of "
                f"time_bins ({bins[-1]:g}), got {self.horizons}"
            )

    def validate_pos_weight(self):
        if self.pos_weight is None:
            return
        if self.problem_type == "time_to_event":
            raise ValueError("pos_weight applies to classification, but problem_type is 'time_to_event'")
        if self.problem_type == "regression" or (self.problem_type is None and self.num_labels == 1):
            raise ValueError(
                f"pos_weight applies to classification, but problem_type is {self.problem_type!r} with "
                f"num_labels={self.num_labels}, a regression"
            )
        weights = self.pos_weight if isinstance(self.pos_weight, list) else [self.pos_weight]
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"pos_weight must be positive, got {self.pos_weight}")
        if isinstance(self.pos_weight, list) and len(self.pos_weight) != self.num_labels:
            raise ValueError(f"pos_weight has {len(self.pos_weight)} entries, but num_labels is {self.num_labels}")
        if (
            not isinstance(self.pos_weight, list)
            and self.problem_type != "multi_label_classification"
            and self.num_labels != 2
        ):
            raise ValueError(
                f"a single pos_weight needs two classes, but num_labels is {self.num_labels}: give one weight a "
                "class, or set problem_type='multi_label_classification'"
            )


__all__ = ["HyMaTEConfig"]
