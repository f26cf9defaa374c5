"""What each variable does after a prediction time: the head of pretraining."""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_hymate import HyMaTEConfig
from .inputs import is_readable


class HyMaTEForecastHead(nn.Module):
    """Forecasts, for each horizon and variable, the next value and whether there will be one.

    Both are read from the patient representation and, where the variable has been observed, from its own token. The
    value is what this says beyond the last one, of which each variable carries over a learned share.
    """

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.num_horizons, self.num_variables = len(config.forecast_horizons), config.num_variables
        width = 2 * self.num_horizons
        self.patient = nn.Linear(config.pooler_size, width * config.num_variables)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.token = nn.Linear(config.hidden_size, config.hidden_size)
        self.context = nn.Linear(config.pooler_size, config.hidden_size, bias=False)
        self.decoder = nn.Linear(config.hidden_size, width)
        self.carried_share = nn.Parameter(torch.empty(self.num_horizons, config.num_variables))

    def forward(
        self,
        pooled: torch.Tensor,
        tokens: torch.Tensor,
        channel_ids: torch.Tensor,
        counts: torch.Tensor,
        last_values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and logits of being measured, both `(..., horizons, num_variables)` in float32.

        Args:
            pooled: patient representation, `(..., pooler_size)`, where `...` is the batch, or batch and predictions.
            tokens: of the channels, `(..., channels, hidden_size)`.
            channel_ids: their variables, `(batch, channels)`; -1 is padding.
            counts: number of their events, `(..., channels)`; the others' tokens are not looked at.
            last_values: their last values, `(..., channels)`, 0 where there is none.
        """
        of_patient = self.patient(pooled).float().unflatten(-1, (2 * self.num_horizons, self.num_variables))
        hidden = F.gelu(self.token(self.norm(tokens)) + self.context(pooled).unsqueeze(-2))
        of_tokens = self.decoder(hidden).float().masked_fill((counts == 0).unsqueeze(-1), 0)
        # padding is decoded into a surplus column
        columns = channel_ids.masked_fill(channel_ids < 0, self.num_variables)
        columns = columns.view(columns.shape[0], *(1,) * (tokens.dim() - 2), -1)

        def by_variable(numbers):
            spread = numbers.new_zeros(*numbers.shape[:-1], self.num_variables + 1)
            return spread.scatter(-1, columns.expand_as(numbers), numbers)[..., : self.num_variables]

        values, measured = (of_patient + by_variable(of_tokens.transpose(-1, -2))).chunk(2, -2)
        carried = by_variable(last_values.float().unsqueeze(-2)) * self.carried_share.float()
        return values + carried, measured


def forecast_loss(
    values: torch.Tensor,
    measured: torch.Tensor,
    forecast_values: torch.Tensor,
    forecast_mask: torch.Tensor,
    measured_mask: torch.Tensor | None,
    prediction_mask: torch.Tensor | None,
    measured_weight: float,
) -> torch.Tensor:
    """Mean squared error over the values that were measured, plus `measured_weight` times the cross-entropy of whether
    each variable was; arguments as in `HyMaTEForPreTraining.forward`.

    Raises:
        ValueError: for shapes that do not fit, and on CPUs for values that are not finite.
    """
    measured_mask = forecast_mask if measured_mask is None else measured_mask
    given = {"forecast_values": forecast_values, "forecast_mask": forecast_mask, "measured_mask": measured_mask}
    for name, tensor in given.items():
        if tensor.shape != values.shape:
            raise ValueError(f"{name} must have shape {tuple(values.shape)}, got {tuple(tensor.shape)}")
    mask, losses_mask = forecast_mask.bool(), torch.ones_like(forecast_mask, dtype=torch.bool)
    if prediction_mask is not None:
        losses_mask = prediction_mask.bool()[..., None, None].expand_as(mask)
        mask = mask & losses_mask
    if is_readable(mask) and not forecast_values[mask].isfinite().all():
        raise ValueError("forecast_values must be finite wherever forecast_mask is set")
    errors = (values - forecast_values.float()).masked_fill(~mask, 0)
    entropies = F.binary_cross_entropy_with_logits(measured, measured_mask.float(), reduction="none")
    of_values = errors.square().sum() / mask.sum().clamp(min=1)
    of_measured = entropies.masked_fill(~losses_mask, 0).sum() / losses_mask.sum().clamp(min=1)
    return of_values + measured_weight * of_measured
