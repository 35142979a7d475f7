"""A network that takes no time: it reads its prediction off the colours of the image."""

from __future__ import annotations

import copy
import dataclasses

import cv2
import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import nn

from models.hovernet.net_desc import PATCH_SHAPES

# A channel value of 128 is 0; HV values from -1 to 1 take the rest of the 8 bits.
HV_SCALE = 120.0


class StubNet(nn.Module):
    """Red is nucleus (dark) or not; green and blue are the horizontal and vertical map; red 0, 10, 20 also types."""

    def __init__(self, nr_types: int | None = None, mode: str = "fast"):
        super().__init__()
        self.nr_types = nr_types
        self.output_ch = 3 if nr_types is None else 4
        self.lost = PATCH_SHAPES[mode][0] - PATCH_SHAPES[mode][1]
        self.unused = nn.Parameter(torch.zeros(1))  # says which device the network is on
        self.batch_sizes: list[int] = []

    def forward(self, imgs):
        self.batch_sizes.append(len(imgs))
        half = self.lost // 2
        centre = imgs[:, :, half : imgs.shape[2] - self.lost + half, half : imgs.shape[3] - self.lost + half]
        nucleus = (centre[:, :1] < 128).float()
        out = {}
        if self.nr_types is not None:
            type_id = (nucleus * (1 + torch.div(centre[:, :1], 10, rounding_mode="floor"))).long()
            type_id = type_id.clamp(max=self.nr_types - 1)
            out["tp"] = nn.functional.one_hot(type_id[:, 0], self.nr_types).permute(0, 3, 1, 2).float() * 20
        out["np"] = torch.cat([10 - 20 * nucleus, 20 * nucleus - 10], dim=1)
        out["hv"] = (centre[:, 1:] - 128) / HV_SCALE
        return out


def stubbed(manager):
    """Return a copy of an `InferManager` with the stub as its network; what a test changes stays its own."""
    stub = copy.copy(manager)
    stub.checkpoint = dataclasses.replace(manager.checkpoint, meta=dict(manager.checkpoint.meta))
    stub.net = StubNet()
    return stub


def painted_image(labels: np.ndarray, types: np.ndarray | None = None) -> np.ndarray:
    """Paint an image from which `StubNet` reads exactly these nuclei.

    Args:
        labels: (H, W) label map.
        types: (N + 1,) type of each label, from 1 on.
    """
    image = np.full((*labels.shape, 3), 128, np.uint8)
    image[..., 0] = 255
    for index, box in enumerate(find_objects(labels), 1):
        if box is None:
            continue
        mask, painted = labels[box] == index, image[box]
        ys, xs = np.nonzero(mask)
        painted[..., 0][mask] = 0 if types is None else 10 * (types[index] - 1)
        for channel, values in ((1, xs), (2, ys)):
            offset = values - values.mean()
            painted[..., channel][mask] = np.rint(128 + HV_SCALE * offset / max(np.abs(offset).max(), 1))
    return image


def disc_labels(shape: tuple[int, int], spacing: int = 40, radius: int = 12) -> np.ndarray:
    """A grid of discs, none of which touches another, the border included."""
    labels = np.zeros(shape, np.int32)
    centres = [(y, x) for y in range(0, shape[0] + spacing, spacing) for x in range(0, shape[1] + spacing, spacing)]
    for index, (y, x) in enumerate(centres, 1):
        cv2.circle(labels, (x, y), radius, index, -1)
    return labels


def write_rgb(path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
