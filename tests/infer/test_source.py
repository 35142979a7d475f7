"""What the network reads: the right pixels at the right resolution, reflected outside, whatever goes wrong once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tifffile
from stubs import write_rgb

from infer.source import DEFAULT_MAG, ImageSource, SlideSource, network_shape
from misc.slides.handler import FileHandler, SlideError
from misc.slides.images import ImageError

SHAPE = (320, 480)  # of slides at level 0, px


def picture(shape=SHAPE, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


def write_slide(path, mpp: float | None = 0.25, factors=(1, 2, 4), seed: int = 0) -> list[np.ndarray]:
    """Write a pyramid; returns its levels."""
    levels = [cv2.resize(picture(seed=seed), (480 // f, 320 // f), interpolation=cv2.INTER_AREA) for f in factors]
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level in levels:
            subfile = int(level is not levels[0])
            file.write(level, photometric="rgb", tile=(64, 64), metadata=None, subfiletype=subfile, **resolution)
    return levels


def open_slide(path, model_mpp=None, proc_mag=None, mpp=None, mag=None) -> SlideSource:
    return SlideSource(path, mpp, mag, model_mpp, proc_mag)


def reflect(image: np.ndarray, box) -> np.ndarray:
    """Return a box of an image that NumPy has reflected at its edges."""
    y0, x0, y1, x1 = box
    (height, width), pad = image.shape[:2], max(-y0, -x0, y1 - image.shape[0], x1 - image.shape[1], 0)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), "reflect")
    assert padded.shape[:2] == (height + 2 * pad, width + 2 * pad)
    return padded[y0 + pad : y1 + pad, x0 + pad : x1 + pad]


def boxes(shape, outside: int, count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        y0, x0 = rng.integers(-outside, shape)
        y1, x1 = rng.integers((y0, x0), np.array(shape) + outside) + 1
        yield int(y0), int(x0), int(y1), int(x1)


# ---------------------------------------------------------------------------------------------- images


def test_p08_what_lies_outside_of_an_image_is_reflected():
    """As NumPy does it, also far outside of images of one px."""
    for shape in [(1, 1), (1, 7), (5, 2), (33, 20)]:
        source = ImageSource(picture(shape))
        assert source.planes.net_yx == source.planes.out_yx == shape
        for box in boxes(shape, 70, 40):
            assert np.array_equal(source.read(box), reflect(source.image, box))


def test_an_image_is_read_at_the_network_s_resolution_and_kept_as_it_is(tmp_path):
    image = picture((60, 90))
    write_rgb(tmp_path / "a.png", image)
    for scale in (1, 0.5, 0.33, 1.7, 1e-6):
        source = ImageSource.open(tmp_path / "a.png", scale)
        net_yx = network_shape((60, 90), scale)
        assert source.planes.net_yx == net_yx
        assert source.planes.out_yx == (60, 90)
        assert np.array_equal(source.image, image)
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        whole = cv2.resize(image, net_yx[::-1], interpolation=interpolation)
        for box in boxes(net_yx, 9, 10):
            assert np.array_equal(source.read(box), reflect(whole, box))
    assert network_shape((60, 90), 0.33) == (20, 30)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="not an image"):
        ImageSource.open(tmp_path / "b.png", 1)


# ---------------------------------------------------------------------------------------------- planes of slides


def test_p24_without_the_checkpoint_s_mpp_both_planes_are_those_of_the_original(tmp_path):
    """--proc_mag, 40 when left out; slides that were scanned at less are enlarged, and it is said."""
    for mpp, proc_mag, scale in ((0.25, None, 1), (0.25, 20, 0.5), (0.5, None, 2), (0.5, 20, 1), (0.125, None, 0.5)):
        write_slide(tmp_path / "a.tif", mpp)
        source = open_slide(tmp_path / "a.tif", None, proc_mag)
        assert source.out_mag == (proc_mag or DEFAULT_MAG)
        assert source.planes.net_yx == source.planes.out_yx == (320 * scale, 480 * scale)
        assert source.scale == 1 / scale
        said = source.enlarged()
        assert (said is not None) == (scale > 1)
        if said:
            assert all(words in said for words in ("20x", "40x", "enlarged 2 times", "--proc_mag=20"))
        source.close()


def test_with_the_checkpoint_s_mpp_the_network_reads_at_it_and_outlines_at_the_slide_s_own(tmp_path):
    """A slide of 80x is outlined at 40x."""
    # mpp of the slide and of the network, --proc_mag; magnification and scale of the output plane, network's scale
    for mpp, model_mpp, proc_mag, out_mag, out, net in (
        (0.25, 0.5, None, 40, 1, 0.5),
        (0.25, 0.25, None, 40, 1, 1),
        (0.5, 0.25, None, 20, 1, 2),
        (0.5, 0.5, None, 20, 1, 1),
        (0.125, 0.5, None, 40, 0.5, 0.25),
        (0.125, 0.25, 80, 80, 1, 0.5),
        (0.25, 0.5, 10, 10, 0.25, 0.5),
        (0.25, 1.0, 20, 20, 0.5, 0.25),
    ):
        write_slide(tmp_path / "a.tif", mpp)
        source = open_slide(tmp_path / "a.tif", model_mpp, proc_mag)
        assert source.out_mag == out_mag
        assert source.planes.out_yx == (320 * out, 480 * out)
        assert source.planes.net_yx == (320 * net, 480 * net)
        assert source.scale == 1 / out
        said = source.enlarged()
        assert (said is not None) == (net > 1)
        if said:
            assert all(
                words in said for words in ("20x", "0.25 um/px", "enlarged 2 times", "a network for that resolution")
            )
        source.close()


def test_a_level_that_is_near_is_read_as_it_is(tmp_path):
    """Scanners' 0.4990 and 0.5040 um/px are 0.5; what is further off is resized."""
    for mpp, model_mpp, level in (
        (0.252, 0.5, 1),
        (0.2495, 0.5, 1),
        (0.252, 0.25, 0),
        (0.25, 1.01, 2),
        (0.27, 0.5, None),
    ):
        levels = write_slide(tmp_path / "a.tif", mpp)
        source = open_slide(tmp_path / "a.tif", model_mpp)
        if level is None:
            assert source.planes.net_yx == (int(320 * mpp / model_mpp), int(480 * mpp / model_mpp))
        else:
            assert np.array_equal(source.read((0, 0, *source.planes.net_yx)), levels[level])
        assert source.enlarged() is None
        source.close()


def test_what_the_user_says_of_the_resolution_goes_first(tmp_path):
    write_slide(tmp_path / "a.tif", 0.25)
    source = open_slide(tmp_path / "a.tif", 0.5, mpp=0.5)
    assert (source.out_mag, source.planes.net_yx) == (20, SHAPE)
    source.close()
    source = open_slide(tmp_path / "a.tif", 0.5, mag=20)
    assert source.out_mag == 20
    source.close()
    write_slide(tmp_path / "silent.tif", None)
    for model_mpp in (None, 0.5):
        with pytest.raises(SlideError, match="--mpp .*--mag"):
            open_slide(tmp_path / "silent.tif", model_mpp)
    source = open_slide(tmp_path / "silent.tif", 0.5, mag=40)
    assert source.planes.net_yx == (160, 240)
    source.close()


# ---------------------------------------------------------------------------------------------- reading slides


def test_p08_boxes_of_a_slide_are_those_of_the_whole_also_outside_and_from_threads(tmp_path):
    for model_mpp in [0.25, 0.5, 0.4, 0.2]:
        write_slide(tmp_path / "a.tif")
        source = open_slide(tmp_path / "a.tif", model_mpp)
        whole = source.read((0, 0, *source.planes.net_yx))
        assert whole.shape == (*source.planes.net_yx, 3)
        asked = list(boxes(source.planes.net_yx, 100, 30))
        with ThreadPoolExecutor(3) as pool:
            for box, found in zip(asked, pool.map(source.read, asked), strict=True):
                assert np.array_equal(found, reflect(whole, box))
        source.close()


def away(monkeypatch, times: int) -> list:
    """Let reading fail some times; returns the handlers that are opened from now on."""
    read, opened, left = FileHandler.read_region, [], [times]

    def flaky(self, *args):
        if left[0]:
            left[0] -= 1
            raise SlideError(self.path, "the disk is away")
        return read(self, *args)

    start = FileHandler.__init__
    monkeypatch.setattr(FileHandler, "read_region", flaky)
    monkeypatch.setattr(
        FileHandler, "__init__", lambda self, *args, **said: opened.append(self) or start(self, *args, **said)
    )
    return opened


def test_p03_what_cannot_be_read_once_is_tried_again_with_the_slide_opened_again(tmp_path, monkeypatch, caplog):
    write_slide(tmp_path / "a.tif")
    source = open_slide(tmp_path / "a.tif", 0.5)
    whole = source.read((0, 0, 160, 240))
    opened = away(monkeypatch, 1)
    assert np.array_equal(source.read((0, 0, 160, 240)), whole)
    assert "the disk is away; opening it again for a second try" in caplog.text
    assert len(opened) == 1
    assert source.handler is opened[0]
    opened = away(monkeypatch, 2)
    with pytest.raises(SlideError, match="the disk is away"):
        source.read((0, 0, 160, 240))
    closed, close = [], FileHandler.close
    monkeypatch.setattr(FileHandler, "close", lambda self: closed.append(self) or close(self))
    source.close()
    assert len(closed) == 3  # all that were opened


def replaced(path) -> None:
    path.rename(path.with_name("old.tif"))
    write_slide(path, seed=1)


def truncated(path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def silent(path) -> None:
    path.unlink()
    write_slide(path, None)


@pytest.mark.parametrize("change", [replaced, truncated, silent, lambda path: path.unlink()])
@pytest.mark.parametrize("faults", [0, 1])
def test_a_slide_that_is_changed_while_it_is_read_is_an_error_and_never_half_of_each(
    tmp_path, monkeypatch, change, faults
):
    """Whether the open file would still be read, or the one that took its place."""
    write_slide(tmp_path / "a.tif")
    source = open_slide(tmp_path / "a.tif", 0.5)
    source.read((0, 0, 100, 100))
    change(tmp_path / "a.tif")
    away(monkeypatch, faults)
    with pytest.raises(SlideError, match=r"a\.tif"):
        source.read((0, 0, 160, 240))
    source.close()


def test_what_is_no_slide_is_named(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"nothing of a slide")
    with pytest.raises(SlideError, match=r"a\.svs"):
        open_slide(tmp_path / "a.svs", 0.5)
