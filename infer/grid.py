"""Pure arithmetic of patches: which pieces of an image the network reads, and where their output lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PatchGrid:
    """Patches of an image in row-major order; all coordinates are yx px of the image.

    Attributes:
        output_tl_yx: (N, 2) top left of what the patch predicts; the last row and column may reach beyond the image.
        input_tl_yx: (N, 2) top left of what it reads; negative at the top and left, where the image is reflected.
    """

    output_tl_yx: np.ndarray
    input_tl_yx: np.ndarray

    def __len__(self) -> int:
        return len(self.output_tl_yx)


def patch_grid(shape_yx, patch_input: int, patch_output: int) -> PatchGrid:
    """Lay patches over an image so that every pixel is predicted once."""
    rows, cols = (np.arange(0, length, patch_output) for length in shape_yx)
    output_tl_yx = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    return PatchGrid(output_tl_yx, output_tl_yx - (patch_input - patch_output) // 2)
