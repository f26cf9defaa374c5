"""Summary statistics of a variable's values and times in its token: what a table of hand-made features would hold."""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from .configuration_hymate import HyMaTEConfig
from .constants import constants
from .native import runs_natively
from .running_quantities import HALF_LIFE_QUANTITIES, QUANTITIES
from .scan import hymate_native

OF_VALUES = (
    *("first", "last", "min", "max", "mean", "mean_change", "last_change", "decayed_mean"),
    *("deviation", "change_deviation"),
)
OF_TIMES = ("count", "since_first", "since_last", "recent_count", "rate")
BOUND = 2.5  # the outer knots; statistics are on about the scale of standardized values
LIMIT = 4.0  # what lies further out counts as this far out


class HyMaTEChannelStatistics(nn.Module):
    """Embeds statistics of each variable, each by a piecewise-linear function of the variable's own.

    Such a function has a learned vector at each of `num_statistic_bins + 1` knots between -2.5 and 2.5, between which
    it interpolates, and beyond which it goes on in a straight line (Gorishniy et al., arXiv 2203.05556, section 3.2).
    Statistics of values need a number, those of times an event.
    """

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.num_bins = config.num_statistic_bins
        self.time_scale = float(config.time_scale)
        names = (*OF_VALUES, *OF_TIMES)
        num_statistics = len(names) + (len(config.half_lives) - 1) * len(HALF_LIFE_QUANTITIES)
        self.num_functions = config.num_variables * num_statistics
        # one matrix, and no nn.Embedding, so that it has weight decay
        self.knots = nn.Parameter(torch.empty(self.num_functions * (self.num_bins + 1), config.hidden_size))

    @torch.no_grad()
    def init_weights(self):
        """Straight lines of random slope, and a little noise at each knot."""
        knots = torch.linspace(-BOUND, BOUND, self.num_bins + 1, device=self.knots.device).view(1, -1, 1)
        slopes = 0.1 * torch.randn(self.num_functions, 1, self.knots.shape[1], device=self.knots.device)
        noise = 0.04 * torch.randn(self.num_functions, self.num_bins + 1, slopes.shape[2], device=knots.device)
        init.copy_(self.knots, (knots * slopes + noise).flatten(0, 1))

    def forward(self, quantities: torch.Tensor, channel_ids: torch.Tensor) -> torch.Tensor:
        """Quantities of `running_quantities`, `(batch, predictions, channels, quantities)`, and the variable of each
        channel, `(batch, channels)` -> `(batch, predictions, channels, hidden_size)`, zero where there is nothing."""
        statistics, present = channel_statistics(quantities, self.time_scale)
        return piecewise_linear(statistics, present, channel_ids, self.knots, self.num_bins)


def split_quantities(quantities: torch.Tensor) -> dict[str, torch.Tensor]:
    """The quantities by name, `(...)`; those with half-lives `(..., half_lives)`."""
    fixed, decaying = quantities.tensor_split([len(QUANTITIES)], -1)
    named = dict(zip(QUANTITIES, fixed.unbind(-1), strict=True))
    return named | dict(zip(HALF_LIFE_QUANTITIES, decaying.chunk(len(HALF_LIFE_QUANTITIES), -1), strict=True))


def channel_statistics(quantities: torch.Tensor, time_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Running quantities brought to about the scale of standardized values, between -4 and 4.

    Args:
        quantities: of `running_quantities`, `(..., quantities)`.
        time_scale: hours in one unit of their times.

    Returns:
        `(..., statistics)` in float32, those of values and then those of times, and a boolean tensor of that shape,
        true where there is a number or an event to describe.
    """
    if not quantities.requires_grad and runs_natively(quantities):
        return hymate_native.channel_statistics(quantities, time_scale)
    half_lives = (quantities.shape[-1] - len(QUANTITIES)) // len(HALF_LIFE_QUANTITIES)
    place = {name: [at] for at, name in enumerate(QUANTITIES)}
    for at, name in enumerate(HALF_LIFE_QUANTITIES):
        place[name] = list(range(len(QUANTITIES) + at * half_lives, len(QUANTITIES) + (at + 1) * half_lives))
    plain = [at for name in OF_VALUES if name in place for at in place[name]]
    squared = [*place["variance"], *place["change_variance"]]
    counted = [at for name in OF_TIMES if name in place for at in place[name]]
    order = constants([*plain, *squared, *counted], quantities, torch.int64)
    parts = quantities.index_select(-1, order).split([len(plain), len(squared), len(counted)], -1)
    hours = 2 * BOUND / math.log1p(time_scale)
    # per column: the unit of what is counted, then factor and shift of what comes of it
    units = constants([1, time_scale, time_scale, *[1] * half_lives], quantities)
    factors = [*[1] * len(plain), 2, 2, 1, hours, hours, *[1] * half_lives, 1]
    shifts = [*[0] * len(plain), *[-BOUND] * (2 + len(counted)), 0]
    # the square root's slope is infinite at 0, where a variable was measured once
    deviations = parts[1].clamp(min=1e-6).sqrt()
    logarithms = (parts[2].clamp(min=0) * units).log1p()
    rate = logarithms[..., :1] - logarithms[..., 1:2]
    statistics = torch.cat([parts[0], deviations, logarithms, rate], -1)
    statistics = torch.addcmul(constants(shifts, quantities), statistics, constants(factors, quantities))
    num_values = len(plain) + len(squared)
    needed = [*place["numbers"] * num_values, *place["count"] * (len(counted) + 1)]
    present = quantities.index_select(-1, constants(needed, quantities, torch.int64)) > 0
    return statistics.clamp(-LIMIT, LIMIT), present


def piecewise_linear(
    statistics: torch.Tensor, present: torch.Tensor, channel_ids: torch.Tensor, knots: torch.Tensor, num_bins: int
) -> torch.Tensor:
    """Sums the piecewise-linear functions of each channel's statistics.

    Args:
        statistics: `(batch, predictions, channels, statistics)`.
        present: which of them count, of the same shape.
        channel_ids: variable of each channel, `(batch, channels)`; -1 is padding.
        knots: vectors at the knots, `(variables * statistics * (num_bins + 1), hidden_size)`, in that order.
        num_bins: number of bins between the knots at -2.5 and 2.5.

    Returns:
        `(batch, predictions, channels, hidden_size)`, in the data type of `knots`.
    """
    num_statistics = statistics.shape[-1]
    place = (statistics + BOUND) * (num_bins / (2 * BOUND))
    lower = place.detach().floor().clamp(0, num_bins - 1)
    upper_weight = (place - lower) * present
    weights = torch.stack([present.float() - upper_weight, upper_weight], -1).flatten(-2).to(knots.dtype)
    first_knot = channel_ids.clamp(min=0).unsqueeze(-1) * num_statistics
    first_knot = (first_knot + torch.arange(num_statistics, device=knots.device)) * (num_bins + 1)
    rows = first_knot.unsqueeze(1) + lower.long()
    rows = torch.stack([rows, rows + 1], -1).flatten(-2)
    rows, weights = rows.flatten(0, -2), weights.flatten(0, -2)
    is_trained = torch.is_grad_enabled() and knots.requires_grad and not weights.requires_grad
    if is_trained and knots.device.type == "cpu" and not torch.compiler.is_compiling():
        variables = channel_ids.unsqueeze(1).expand(statistics.shape[:-1]).flatten()
        embeds = _SumOfKnots.apply(rows, weights, knots, variables, num_statistics * (num_bins + 1))
    else:
        embeds = _sum_of_knots(rows, weights, knots)
    return embeds.view(*statistics.shape[:-1], -1)


def _sum_of_knots(rows: torch.Tensor, weights: torch.Tensor, knots: torch.Tensor) -> torch.Tensor:
    return nn.functional.embedding_bag(rows, knots, per_sample_weights=weights, mode="sum")


class _SumOfKnots(torch.autograd.Function):
    """A sum of weighted rows whose gradient is one matrix product per variable: on CPUs the gradient of embedding_bag
    takes fifty times as long as its forward pass."""

    @staticmethod
    def forward(rows, weights, knots, variables, knots_per_variable):
        return _sum_of_knots(rows, weights, knots)

    @staticmethod
    def setup_context(ctx, inputs, output):
        rows, weights, knots, variables, ctx.knots_per_variable = inputs
        ctx.save_for_backward(rows, weights, variables)
        ctx.num_knots = len(knots)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weights, variables = ctx.saved_tensors
        width = ctx.knots_per_variable
        present, order = variables.sort()
        rows, weights, grad = rows[order], weights[order], grad[order]
        dense = grad.new_zeros(len(rows), width).scatter_(1, rows % width, weights)
        grad_knots = grad.new_zeros(ctx.num_knots // width, width, grad.shape[1])
        start = 0
        found, counts = present.unique_consecutive(return_counts=True)
        for variable, count in zip(found.tolist(), counts.tolist(), strict=True):
            if variable >= 0:
                chosen = slice(start, start + count)
                torch.mm(dense[chosen].t(), grad[chosen], out=grad_knots[variable])
            start += count
        return None, None, grad_knots.flatten(0, 1), None, None
