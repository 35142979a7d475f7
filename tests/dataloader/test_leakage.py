"""Held-out pictures are recognised by what they show."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dataloader.leakage import Picture, same_names, same_pictures
from misc.slides.images import read_image


@pytest.fixture(scope="module")
def images(kumar):
    return [read_image(path) for path in sorted((kumar / "Train" / "Images").glob("*.png"))[:4]]


def as_jpeg(image: np.ndarray, quality: int = 70) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def test_copies_crops_and_other_magnifications_are_found(images):
    rng = np.random.default_rng(0)
    for image in images:
        whole = Picture(image)
        y, x = rng.integers(0, 400, 2)
        half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for other in (
            as_jpeg(image),
            as_jpeg(image[y : y + 540, x : x + 540]),
            image[y : y + 256, x : x + 256],  # as small as PanNuke's
            half,
            half[100:400, 130:430],
        ):
            assert whole.shows_tissue_of(Picture(other))
            assert Picture(other).shows_tissue_of(whole)
        # neighbouring fields that overlap by a part, neither within the other
        assert Picture(image[:600]).shows_tissue_of(Picture(image[290:]))


def test_other_images_are_not_taken_for_the_same(images):
    for index, image in enumerate(images):
        for other in images[index + 1 :]:
            assert not Picture(image).shows_tissue_of(Picture(other))
    # two halves of one image show different tissue
    assert not Picture(images[0][:500]).shows_tissue_of(Picture(images[0][500:]))


def test_empty_and_tiny_pictures_are_like_none():
    blank, tiny = np.full((600, 600, 3), 240, np.uint8), np.zeros((20, 30, 3), np.uint8)
    for first in (blank, tiny):
        for second in (blank, tiny):
            assert not Picture(first).shows_tissue_of(Picture(second))


def test_files_are_compared_by_name_and_by_picture(images, tmp_path):
    for folder, name, image in (
        ("held", "a.png", images[0]),
        ("held", "b.1.png", images[1]),
        ("train", "renamed.png", images[0][100:700, 50:650]),
        ("train", "b.1.jpg", images[2]),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / folder / name), image[..., ::-1])
    held, train = (sorted((tmp_path / folder).iterdir()) for folder in ("held", "train"))
    assert same_names(held, train) == ["b.1"]
    assert [(a.name, b.name) for a, b in same_pictures(held, train, read_image)] == [("a.png", "renamed.png")]
