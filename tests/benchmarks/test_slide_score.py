"""Images on one made-up slide: where they lie, what comes back of them, and a run with the stub for a network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.io
from stubs import StubNet, disc_labels, painted_image, write_rgb

from benchmarks import slide_score
from infer import tile, wsi
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model
from models.hovernet.post_proc import measure


def test_images_lie_apart_and_inside_the_slide():
    shapes = [(1000, 1000), (500, 700), (800, 300), (1000, 1000), (10, 20)]
    for seed in range(20):
        corners, size_yx = slide_score.places(shapes, seed)
        boxes = [(y, x, y + h, x + w) for (y, x), (h, w) in zip(corners, shapes, strict=True)]
        least = slide_score.GLASS_PX[0]
        assert all(y0 >= least and x0 >= least for y0, x0, *_ in boxes)
        assert all(y1 <= size_yx[0] - least and x1 <= size_yx[1] - least for *_, y1, x1 in boxes)
        for a, b in itertools.combinations(boxes, 2):
            assert max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]) >= least


def test_outlines_are_painted_back_where_the_image_lies():
    labels = disc_labels((200, 240))
    piece = slide_score.Piece(0, "a", (37, 501), labels.shape)
    slide = np.zeros((300, 900), np.int32)
    slide[37:237, 501:741] = labels
    slide[0:20, 0:20] = labels.max() + 1  # on the glass: nobody's
    painted = slide_score.painted(measure(slide), piece)
    assert np.array_equal(painted > 0, labels > 0)
    assert len(np.unique(painted)) == len(np.unique(labels))


def test_both_roads_of_the_stub_find_the_same(tmp_path, monkeypatch):
    for module in (tile, wsi):
        monkeypatch.setattr(module, "InferManager", stubbed(module.InferManager))
    save_weights(tmp_path / "net.tar", create_model("fast", width=0.125).state_dict())
    labels = disc_labels((300, 340))
    labels[:20] = labels[:, :20] = 0  # the discs that the border cuts
    image = painted_image(labels)
    image[labels == 0, 0] = 170  # dark enough for tissue beside the glass, and no nucleus for the stub
    for name in ("a", "b"):
        write_rgb(tmp_path / "data" / "Images" / f"{name}.png", image)
        (tmp_path / "data" / "Labels").mkdir(exist_ok=True)
        scipy.io.savemat(tmp_path / "data" / "Labels" / f"{name}.mat", {"inst_map": labels})
    options = {"--mpp": "0.25", "--window": None, "--precision": "auto", "--tile_shape": "256", "--gpu": ""}
    options |= {"--seed": "0", "--bootstrap": "10", "--model_path": tmp_path / "net.tar"}
    table = slide_score.compare({**options, "<folder>": [tmp_path / "data"]}, tmp_path / "out").splitlines()
    tile_row, slide_row, less = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:])
    found = 2 * (len(np.unique(labels)) - 1)
    assert tile_row[1] == slide_row[1] == f"{found} of {found}"
    assert [float(row[-1]) for row in (tile_row, slide_row)] == pytest.approx([1, 1], abs=0.02)
    assert less[1] == "+0"


def stubbed(manager: type) -> type:
    """Return a manager of that kind whose network reads its prediction off the picture."""

    class Stubbed(manager):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.net = FlatOutsideNuclei()

    return Stubbed


class FlatOutsideNuclei(StubNet):
    """The stub on glass: grey would be an HV value, and its edge a slope steeper than any nucleus has."""

    def forward(self, imgs):
        out = super().forward(imgs)
        out["hv"] = out["hv"] * (out["np"][:, 1:] > 0)
        return out
