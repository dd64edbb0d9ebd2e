"""Model-FLOPs utilisation: what of its devices' peak a run's model makes use of.

    utilisation = FLOPs a token x tokens a second / (devices x peak FLOP/s of one)

FLOPs a token are those of `model.flops`, by formula: recomputation by remat is no use of the peak, nor are tokens of
padding, which are left out of the tokens. The peak is that of bfloat16 as published for the device, whatever the
compute dtype, or the setting `peak_flops`. Where neither is known there is no utilisation.
"""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from launch.slices import generation_of
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.flops import formula, token_flops
from wizard_jax.model.lora import LoRA


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utilisation:
    """What it takes to make a share of the peak of tokens a second."""

    flops_per_token: float
    flops_formula: str
    devices: int
    peak_flops_per_device: float
    peak_from: str
    formula: str = "flops_per_token x tokens_per_second / (devices x peak_flops_per_device)"

    def of(self, tokens_per_second: float) -> float:
        """A share of the peak, 0 to 1; tokens are those of all devices, without padding."""
        return self.flops_per_token * tokens_per_second / (self.devices * self.peak_flops_per_device)


def utilisation_of(
    model: ModelConfig,
    *,
    seq_len: int,
    mesh: Mesh,
    peak_flops: float | None = None,
    adapter: LoRA | None = None,
) -> Utilisation | None:
    """None where nobody says what a device can do: not the setting `peak_flops`, nor the table of TPUs."""
    kind = mesh.devices.flat[0].device_kind
    generation = generation_of(kind)
    if peak_flops is not None:
        peak, peak_from = peak_flops, "the setting peak_flops"
    elif generation is not None:
        peak = generation.peak_flops / generation.devices_per_chip
        peak_from = f"bfloat16 as published for {kind}"
    else:
        return None
    return Utilisation(
        flops_per_token=token_flops(model, seq_len=seq_len, adapter=adapter).total,
        flops_formula=formula(model, seq_len=seq_len, adapter=adapter),
        devices=mesh.size,
        peak_flops_per_device=peak,
        peak_from=peak_from,
    )
