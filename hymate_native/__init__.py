"""Native CPU kernels for Mamba layers: the selective scan, the causal convolution and the projections."""

from hymate_native.causal_convolution import causal_conv1d
from hymate_native.library import is_available, runnable_builds, selected_build, unavailable_reason
from hymate_native.mamba_mixer import mamba_mixer
from hymate_native.selective_scan import selective_scan
from hymate_native.structures import MAX_KERNEL

__all__ = [
    "MAX_KERNEL",
    "causal_conv1d",
    "is_available",
    "mamba_mixer",
    "runnable_builds",
    "selected_build",
    "selective_scan",
    "unavailable_reason",
]
