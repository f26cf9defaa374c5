"""The temporal encoder's layer: a Mamba mixer (Gu and Dao, arXiv 2312.00752) that runs on CPUs and CUDA."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_hymate import HyMaTEConfig
from .dropout import FeatureDropout
from .native import is_plain, runs_natively
from .scan import hymate_native, resolve_backend, selective_scan

SILU = (nn.SiLU, type(ACT2FN["silu"]))  # which the kernels compute


class HyMaTEMixer(nn.Module):
    """Mamba mixer whose parameters carry the names and shapes of transformers' `MambaMixer`."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.config = config
        inner_size = config.mamba_inner_size
        rank = int(config.time_step_rank)
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner_size, bias=config.use_bias)
        self.conv1d = nn.Conv1d(
            inner_size, inner_size, config.conv_kernel, groups=inner_size, bias=config.use_conv_bias
        )
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {config.hidden_act!r}")
        self.act = ACT2FN[config.hidden_act]
        self.x_proj = nn.Linear(inner_size, rank + 2 * config.state_size, bias=False)
        self.dt_proj = nn.Linear(rank, inner_size)
        # in float32 whatever the default: the scan's rates and steps lose too much in half precision
        self.dt_proj.bias = nn.Parameter(torch.empty(inner_size, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(inner_size, config.state_size, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(inner_size, dtype=torch.float32))
        self.out_proj = nn.Linear(inner_size, config.hidden_size, bias=config.use_bias)

    @torch.no_grad()
    def init_weights(self):
        """The initialization of the Mamba paper (section 3.6): S4D-real decay rates, log-uniform step sizes."""
        config = self.config
        rates = torch.arange(1, config.state_size + 1, dtype=torch.float32, device=self.A_log.device)
        init.copy_(self.A_log, rates.log().expand_as(self.A_log))
        init.ones_(self.D)
        bound = self.dt_proj.in_features**-0.5
        init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        steps = torch.rand(config.mamba_inner_size, device=self.A_log.device) * (high - low) + low
        steps = steps.exp().clamp(min=config.time_step_floor)
        init.copy_(self.dt_proj.bias, steps + (-torch.expm1(-steps)).log())  # the inverse of softplus
        init.kaiming_uniform_(self.conv1d.weight, a=math.sqrt(5))
        if self.conv1d.bias is not None:
            init.zeros_(self.conv1d.bias)

    def forward(self, hidden_states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Mixes events along time.

        Args:
            hidden_states: `(batch, length, hidden_size)`, real events first.
            lengths: number of real events of each record, `(batch,)`.

        Returns:
            `(batch, length, hidden_size)`.
        """
        backend = resolve_backend(hidden_states)
        if backend == "native" and self.is_fusable():
            return self.mix_natively(hidden_states, lengths)
        if backend == "triton" and self._middle_is_plain():
            return self._mix_on_gpu(hidden_states, lengths)
        A = -torch.exp(self.A_log.float())
        states, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        states = self._convolve(states, lengths, self._convolution(backend))
        config = self.config
        time_step, B, C = self.x_proj(states).split(
            [config.time_step_rank, config.state_size, config.state_size], dim=-1
        )
        if is_plain(self.dt_proj):
            # the bias is added inside the scan, in float32
            delta, delta_bias = F.linear(time_step, self.dt_proj.weight), self.dt_proj.bias
        else:
            delta, delta_bias = self.dt_proj(time_step), None
        states = cast(torch.Tensor, selective_scan(states, delta, A, B, C, self.D, gate, delta_bias, lengths=lengths))
        return self.out_proj(states)

    def advance(
        self, hidden_states: torch.Tensor, lengths: torch.Tensor, inputs: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mixes further events of records of which only this is known: the last inputs of the convolution, `(batch,
        inner, conv_kernel - 1)`, and the state of the scan, `(batch, inner, state)`.

        Returns:
            As `forward`, and both as they are afterwards.
        """
        config = self.config
        states, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        window = torch.cat([inputs, states.transpose(1, 2)], -1)
        last = lengths.view(-1, 1, 1) + torch.arange(config.conv_kernel - 1, device=lengths.device)
        inputs = window.gather(2, last.expand(-1, window.shape[1], -1))
        states = self.act(self.conv1d(window).transpose(1, 2))
        time_step, B, C = self.x_proj(states).split(
            [config.time_step_rank, config.state_size, config.state_size], dim=-1
        )
        delta, A = self.dt_proj(time_step), -torch.exp(self.A_log.float())
        mixed, state = selective_scan(
            states, delta, A, B, C, self.D, gate, lengths=lengths, initial_state=state, return_final_state=True
        )
        return self.out_proj(mixed), inputs, state

    def mix_natively(self, states: torch.Tensor, lengths: torch.Tensor, **options) -> Any:
        """`hymate_native.mamba_mixer` with this layer's weights. A projection that is not plain is called."""
        projections: dict[str, Any] = {}
        for name, layer in {"in_proj": self.in_proj, "out_proj": self.out_proj}.items():
            if is_plain(layer):
                projections[f"{name}_weight"], projections[f"{name}_bias"] = layer.weight, layer.bias
        mixed = hymate_native.mamba_mixer(
            states if "in_proj_weight" in projections else self.in_proj(states),
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log.float()),
            self.D,
            lengths,
            **projections,
            **options,
        )
        return mixed if "out_proj_weight" in projections else self.out_proj(mixed)

    def is_fusable(self) -> bool:
        """Whether all that lies between the projections may be one native kernel."""
        return self._middle_is_plain() and self.config.conv_kernel <= hymate_native.MAX_KERNEL

    def _middle_is_plain(self) -> bool:
        layers = (self.conv1d, self.act, self.x_proj, self.dt_proj)
        return type(self.act) in SILU and all(map(is_plain, layers))

    def _mix_on_gpu(self, hidden_states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        from .triton_operators import mamba_mixer  # noqa: PLC0415 - slow to import and needed on GPUs only

        states = mamba_mixer(
            self.in_proj(hidden_states),
            *(self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias),
            *(-torch.exp(self.A_log.float()), self.D, lengths),
        )
        return self.out_proj(states)

    def _convolution(self, backend: str) -> Callable | None:
        """The backend's causal convolution, where there is one that serves this layer."""
        if not is_plain(self.conv1d):
            return None
        if backend == "triton":
            from .triton_operators import causal_conv1d  # noqa: PLC0415 - as above

            return causal_conv1d
        fits = backend == "native" and self.config.conv_kernel <= hymate_native.MAX_KERNEL
        return hymate_native.causal_conv1d if fits else None

    def _convolve(self, states: torch.Tensor, lengths: torch.Tensor, convolution: Callable | None) -> torch.Tensor:
        """Depthwise convolution over past events and the activation, on (batch, length, inner)."""
        if convolution is not None:
            weight = self.conv1d.weight.squeeze(1)
            return self.act(convolution(states, weight, self.conv1d.bias, None, lengths))
        padded = F.pad(states.transpose(1, 2), (self.config.conv_kernel - 1, 0))
        return self.act(self.conv1d(padded).transpose(1, 2))


class HyMaTEMambaLayer(GradientCheckpointingLayer):
    """h <- h + dropout(Mamba(RMSNorm(h)))"""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mixer = HyMaTEMixer(config)
        self.dropout = FeatureDropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        if self.is_fusable(hidden_states):
            factors = self.dropout.factors(hidden_states)
            return self.mixer.mix_natively(
                hidden_states, lengths, norm=self.norm.weight, eps=self.norm.eps, factors=factors
            )
        return hidden_states + self.dropout(self.mixer(self.norm(hidden_states), lengths))

    def advance(
        self, hidden_states: torch.Tensor, lengths: torch.Tensor, inputs: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `HyMaTEMixer.advance`."""
        if self.is_fusable(hidden_states) and not torch.is_grad_enabled():
            options = {"norm": self.norm.weight, "eps": self.norm.eps}
            mixed, (inputs, state) = self.mixer.mix_natively(
                hidden_states, lengths, **options, initial_state=(inputs, state), return_final_state=True
            )
            return mixed, inputs, state
        mixed, inputs, state = self.mixer.advance(self.norm(hidden_states), lengths, inputs, state)
        return hidden_states + mixed, inputs, state

    def is_fusable(self, hidden_states: torch.Tensor) -> bool:
        """Whether a compiled kernel takes the place of this layer."""
        mixer = self.mixer
        layers = (self.norm, self.dropout, mixer, mixer.in_proj, mixer.out_proj)
        return runs_natively(hidden_states, *layers) and mixer.is_fusable()

    def weights(self) -> tuple[Any, ...]:
        """In the order of the operator `mamba_mixer`, from `in_weight` to `norm`, with `A_log` for A."""
        mixer = self.mixer
        return (
            *(mixer.in_proj.weight, mixer.in_proj.bias, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias),
            *(mixer.x_proj.weight, mixer.dt_proj.weight, mixer.dt_proj.bias, mixer.A_log, mixer.D),
            *(mixer.out_proj.weight, mixer.out_proj.bias, self.norm.weight),
        )
