"""Native CPU kernels for Mamba layers: the selective scan, the causal convolution and the projections."""

from hymate_native.library import MAX_KERNEL, is_available, runnable_builds, selected_build, unavailable_reason
from hymate_native.mixer import mamba_mixer
from hymate_native.ops import causal_conv1d, selective_scan

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
