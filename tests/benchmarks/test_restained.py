"""Re-stained test images keep their nuclei and get a class each; each image has random numbers of its own."""

from __future__ import annotations

import imageio.v3 as imageio
import numpy as np
import pytest
import scipy.io

from benchmarks import restained
from benchmarks.synthetic import nuclei_labels, tissue_like_image

SIDE_PX = 200


def test_images_get_dab_and_their_nuclei_a_class(tmp_path):
    labels = nuclei_labels(SIDE_PX)
    image = tissue_like_image(labels, 0)
    for part in ("Images", "Labels"):
        (tmp_path / "he" / part).mkdir(parents=True)
    for name in "ab":
        imageio.imwrite(tmp_path / "he" / "Images" / f"{name}.png", image)
        scipy.io.savemat(tmp_path / "he" / "Labels" / f"{name}.mat", {"inst_map": labels})
    for seed in ("0", "0", "1"):
        out = tmp_path / seed
        assert restained.make({"<folder>": tmp_path / "he", "<out>": out, "--seed": seed, "--mpp": "0.25"}) == 0
    images = [imageio.imread(tmp_path / seed / "Images" / f"{name}.png") for seed in "01" for name in "ab"]
    assert all((one != other).any() for k, one in enumerate(images) for other in [image, *images[:k]])
    written = scipy.io.loadmat(tmp_path / "0" / "Labels" / "a.mat")
    np.testing.assert_array_equal(written["inst_map"], labels)
    np.testing.assert_array_equal(written["type_map"] > 0, labels > 0)
    assert set(np.unique(written["type_map"])) <= {0, 1, 2}
    ids = np.unique(labels)[1:]
    for index, (nucleus, (x, y)) in enumerate(zip(ids, written["inst_centroid"], strict=True)):
        assert set(written["type_map"][labels == nucleus]) == {written["inst_type"][index, 0]}
        assert (x, y) == pytest.approx(np.argwhere(labels == nucleus).mean(axis=0)[::-1])
