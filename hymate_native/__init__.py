"""Native CPU kernels: Mamba layers, running quantities of channels, and layers across channel tokens."""

from hymate_native.attention_layer import attention_layer
from hymate_native.causal_convolution import causal_conv1d
from hymate_native.channel_memory import recall_channels, remember_channels
from hymate_native.channel_statistics import channel_statistics
from hymate_native.channel_tokens import channel_tokens
from hymate_native.event_embedding import event_embedding
from hymate_native.event_order import arrange_events
from hymate_native.fusion_attention import fusion_attention
from hymate_native.library import is_available, runnable_builds, selected_build, unavailable_reason
from hymate_native.mamba_mixer import mamba_mixer
from hymate_native.occlusion import pooled_without
from hymate_native.pooled_states import pooled_states
from hymate_native.pooling_projection import pooling_projection
from hymate_native.running_quantities import event_weights, running_quantities
from hymate_native.selective_scan import selective_scan
from hymate_native.stream_step import StreamLayers, advance_stream, recall_stream
from hymate_native.structures import MAX_KERNEL

__all__ = [
    "MAX_KERNEL",
    "StreamLayers",
    "advance_stream",
    "arrange_events",
    "attention_layer",
    "causal_conv1d",
    "channel_statistics",
    "channel_tokens",
    "event_embedding",
    "event_weights",
    "fusion_attention",
    "is_available",
    "mamba_mixer",
    "pooled_states",
    "pooled_without",
    "pooling_projection",
    "recall_channels",
    "recall_stream",
    "remember_channels",
    "runnable_builds",
    "running_quantities",
    "selected_build",
    "selective_scan",
    "unavailable_reason",
]
