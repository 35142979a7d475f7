"""Where an image has the colour of ink or dark pigment, which haematoxylin and eosin cannot have.

Both stains absorb green the most: haematoxylin blue light 0.4 and red light 0.9 times as much, eosin less of either
(Ruifrok and Johnston 2001). Black ink absorbs all alike, brown pigment much blue, blue ink much red. What the limits
below leave out of images with and without ink: pretrained/he.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .net_desc import crop_op

# A nucleus in H&E absorbs less blue light than the sum of these shares of what it absorbs of green and of red, and less
# red than green. Dark nuclei are nearly black in some scanners, so black is further beyond the limit than brown.
BLUE_PER_GREEN, BLUE_PER_RED = 0.6, 0.2


class InkSeen(nn.Module):
    """A network that also returns, as `ink` (B, 1, h, w), how far each pixel is beyond the colours of H&E.

    Its mean over a nucleus is above 0 where the nucleus is ink.

    Args:
        net: a `HoVerNet`, or anything that returns the same.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, imgs: Tensor) -> dict[str, Tensor]:
        out = self.net(imgs)
        lost = [whole - left for whole, left in zip(imgs.shape[2:], out["np"].shape[2:], strict=True)]
        return out | {"ink": ink_map(crop_op(imgs, lost))}


def ink_map(imgs: Tensor) -> Tensor:
    """Return how far pixels are beyond the colours of H&E, in optical density; negative inside.

    Args:
        imgs: (B, 3, H, W), RGB, 0-255.

    Returns:
        (B, 1, H, W) float32.
    """
    red, green, blue = torch.log(256 / (imgs.float() + 1)).unbind(dim=1)
    return torch.maximum(blue - BLUE_PER_GREEN * green - BLUE_PER_RED * red, red - green)[:, None]
