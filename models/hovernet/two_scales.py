"""Two networks in one: one reads the image as it is, the other at two thirds of its resolution.

The fine network draws better outlines. The coarse one has 1.5 times as much tissue around each nucleus, so it alone
gives the types. The mean of both maps says where nuclei are, and where they touch: a higher AJI than the fine network's
on Kumar's test images, not on others (pretrained/he.md), for 1.3 times the work of a typed network at the fine
resolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .flips import mean_maps
from .net_desc import HoVerNet, crop_op

MPP_RATIO = 1.5  # um/px of the coarse network / um/px of the fine one
# `fast` networks lose 46 px on either side: 69 px of the fine grid in the coarse one. So both give the same pixels, if
# the coarse one's window has 24 px more on either side, and its map is cut by one.
_FINE_CUT, _COARSE_CUT = 2 * 24, 2 * 1  # px, both sides together


class TwoScales(nn.Module):
    """The mean of a network's maps and those of another one that reads the image 1.5 times smaller.

    It returns the same maps as a `HoVerNet`. `np` is the logarithm of the mean probabilities; `tp` is the coarse one's.

    Args:
        fine: a `fast` network without types, for the pixel size of the image.
        coarse: a `fast` network, with or without types, for pixels 1.5 times as large.

    Raises:
        ValueError: a network is of another kind.
    """

    mode = "two_scales"

    def __init__(self, fine: HoVerNet, coarse: HoVerNet):
        super().__init__()
        if (fine.mode, coarse.mode, fine.nr_types) != ("fast", "fast", None):
            raise ValueError(
                "two `fast` networks are needed, the fine one without types; got "
                f"`{fine.mode}` with {fine.nr_types or 0} types and `{coarse.mode}`"
            )
        self.fine, self.coarse = fine, coarse
        self.nr_types, self.output_ch = coarse.nr_types, coarse.output_ch

    def forward(self, imgs: Tensor) -> dict[str, Tensor]:
        """Run both networks.

        Args:
            imgs: (B, 3, H, W) float, RGB, 0-255; H and W as `output_size` says.

        Returns:
            As `HoVerNet.forward`, h = H - 140.
        """
        fine = self.fine(crop_op(imgs, (_FINE_CUT, _FINE_CUT)))
        # the mean of 1.5 x 1.5 px: every pixel twice, then 3 x 3 of these
        smaller = F.avg_pool2d(F.interpolate(imgs, scale_factor=2, mode="nearest"), 3)
        coarse = {name: _enlarged(value) for name, value in self.coarse(smaller).items()}
        return coarse | mean_maps([fine, coarse])


def _enlarged(maps: Tensor) -> Tensor:
    large = F.interpolate(maps.float(), scale_factor=MPP_RATIO, mode="bilinear", align_corners=False)
    return crop_op(large, (_COARSE_CUT, _COARSE_CUT))
