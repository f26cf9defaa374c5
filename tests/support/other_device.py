"""A pytest plugin that gives the tests a second device, as a GPU is one (`-p tests.support.other_device`).

Accelerate chooses it, so models are trained and asked there, and what mixes tensors of both devices fails as on a GPU.
It needs a C++ compiler and ninja, for a minute; `HYMATE_OTHER_DEVICE` is the folder in which the extension is built.
"""

import os
import types
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.cpp_extension import load

NAME = "other"


def register() -> None:
    extension = load(
        "other_device",
        [str(Path(__file__).with_suffix(".cpp"))],
        extra_cflags=["-O0"],
        build_directory=os.environ["HYMATE_OTHER_DEVICE"],
    )
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.__dict__.update(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        synchronize=lambda *_: None,
        _is_in_bad_fork=lambda: False,
        manual_seed=lambda _: None,
        manual_seed_all=lambda _: None,
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
        get_amp_supported_dtype=lambda: [torch.bfloat16],
    )
    torch._register_device_module(NAME, module)
    extension.start()
    torch.utils.generate_methods_for_privateuse1_backend()


def choose() -> None:
    initialize = PartialState.__init__

    def with_other_device(self, *args, **options):
        initialize(self, *args, **options)
        self.device = torch.device(NAME, 0)

    PartialState.__init__ = with_other_device


register()
choose()
