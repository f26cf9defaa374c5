"""Native CPU kernels for the selective scan and the causal convolution of Mamba layers."""

from hymate_native.library import MAX_KERNEL, is_available, runnable_builds, selected_build, unavailable_reason
from hymate_native.ops import causal_conv1d, mamba_inner, selective_scan

__all__ = [
    "MAX_KERNEL",
    "causal_conv1d",
    "is_available",
    "mamba_inner",
    "runnable_builds",
    "selected_build",
    "selective_scan",
    "unavailable_reason",
]
