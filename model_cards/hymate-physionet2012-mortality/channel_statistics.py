"""Summary statistics of a variable's values in its token: what a table of hand-made features would hold."""

import torch
from torch import nn
from transformers import initialization as init

from .attention import ChannelIndex
from .configuration_hymate import HyMaTEConfig

STATISTICS = ("first", "last", "min", "max", "mean", "early_mean", "deviation", "count", "first_time", "last_time")
BOUND = 2.5  # the outer knots; statistics are on about the scale of standardized values
LIMIT = 4.0  # what lies further out counts as this far out


class HyMaTEChannelStatistics(nn.Module):
    """Embeds `STATISTICS` of each variable's numbers, each by a piecewise-linear function of the variable's own.

    Such a function has a learned vector at each of `num_statistic_bins + 1` knots between -2.5 and 2.5, between which
    it interpolates, and beyond which it goes on in a straight line (Gorishniy et al., arXiv 2203.05556, section 3.2).
    """

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.num_bins = config.num_statistic_bins
        self.num_functions = config.num_variables * len(STATISTICS)
        # one matrix, and no nn.Embedding, so that it has weight decay
        self.knots = nn.Parameter(torch.empty(self.num_functions * (self.num_bins + 1), config.hidden_size))

    @torch.no_grad()
    def init_weights(self):
        """Straight lines of random slope, and a little noise at each knot."""
        knots = torch.linspace(-BOUND, BOUND, self.num_bins + 1, device=self.knots.device).view(1, -1, 1)
        slopes = 0.1 * torch.randn(self.num_functions, 1, self.knots.shape[1], device=self.knots.device)
        noise = 0.04 * torch.randn(self.num_functions, self.num_bins + 1, slopes.shape[2], device=knots.device)
        init.copy_(self.knots, (knots * slopes + noise).flatten(0, 1))

    def forward(
        self, values: torch.Tensor, times: torch.Tensor, value_mask: torch.Tensor, channels: ChannelIndex
    ) -> torch.Tensor:
        """Arguments (batch, length), events in time order; returns (batch, channels, hidden_size), zero for channels
        without a number."""
        statistics, present = channel_statistics(values, times, value_mask, channels)  # (batch, channels, statistics)
        batch, num_channels, num_statistics = statistics.shape
        place = (statistics.clamp(-LIMIT, LIMIT) + BOUND) * (self.num_bins / (2 * BOUND))
        lower = place.detach().floor().clamp(0, self.num_bins - 1)
        share = place - lower
        functions = channels.channel_ids.clamp(min=0).unsqueeze(-1) * num_statistics
        functions = functions + torch.arange(num_statistics, device=values.device)
        rows = functions * (self.num_bins + 1) + lower.long()
        weights = torch.stack([1 - share, share], -1) * present[..., None, None]
        embeds = nn.functional.embedding_bag(
            torch.stack([rows, rows + 1], -1).view(batch * num_channels, -1),
            self.knots,
            per_sample_weights=weights.view(batch * num_channels, -1).to(self.knots.dtype),
            mode="sum",
        )
        return embeds.view(batch, num_channels, -1)


def channel_statistics(
    values: torch.Tensor, times: torch.Tensor, value_mask: torch.Tensor, channels: ChannelIndex
) -> tuple[torch.Tensor, torch.Tensor]:
    """`STATISTICS` of the numbers of each channel, brought to about the scale of standardized values.

    Args:
        values: standardized, `(batch, length)`, events in time order.
        times: scaled, `(batch, length)`.
        value_mask: true at events that carry a number, `(batch, length)`.
        channels: which event belongs where.

    Returns:
        `(batch, channels, statistics)` in float32, and `(batch, channels)`, true where there is any number.
    """
    mask = value_mask & channels.mask
    values = values.float().masked_fill(~mask, 0)
    times = times.float()
    batch, length = values.shape
    position = torch.arange(length, device=values.device).expand(batch, -1)
    end = times.masked_fill(~channels.mask, -torch.inf).amax(1, keepdim=True)
    early = mask & (times <= end / 2)

    counts, totals, squares, early_counts, early_totals = channels.sum(
        torch.stack([mask.float(), values, values.square(), early.float(), values.masked_fill(~early, 0)], -1)
    ).unbind(-1)
    present = counts > 0
    counts_or_one = counts.clamp(min=1)
    mean = totals / counts_or_one
    # the square root's slope is infinite at 0, where a variable was measured once
    variance = (squares / counts_or_one - mean.square()).clamp(min=1e-6)
    first_at = channels.extreme(position.masked_fill(~mask, length), "amin").clamp(0, length - 1)
    last_at = channels.extreme(position.masked_fill(~mask, -1), "amax").clamp(0, length - 1)
    first, last = values.gather(1, first_at), values.gather(1, last_at)
    statistics = {
        "first": first,
        "last": last,
        "min": channels.extreme(values.masked_fill(~mask, torch.inf), "amin"),
        "max": channels.extreme(values.masked_fill(~mask, -torch.inf), "amax"),
        "mean": mean,
        "early_mean": torch.where(early_counts > 0, early_totals / early_counts.clamp(min=1), first),
        "deviation": 2 * variance.sqrt() - BOUND,
        "count": counts.log1p() - BOUND,
        "first_time": 2 * BOUND * times.gather(1, first_at) - BOUND,
        "last_time": 2 * BOUND * times.gather(1, last_at) - BOUND,
    }
    stacked = torch.stack([statistics[name] for name in STATISTICS], -1)
    return stacked.masked_fill(~present.unsqueeze(-1), 0), present
