"""Names that upstream keeps here: cropping and the loss terms."""

from __future__ import annotations

from .losses import dice_loss, mse_loss, msge_loss, xentropy_loss
from .net_utils import crop_op, crop_to_shape

__all__ = ["crop_op", "crop_to_shape", "dice_loss", "mse_loss", "msge_loss", "xentropy_loss"]
