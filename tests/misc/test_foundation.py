"""Files written whole, nuclei as arrays, names and colours, small helpers."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT

from misc.files import atomic_path, check_unique_stems, full_stem, list_files, write_atomic
from misc.machine import available_memory, cpu_count, reused_memory_pages
from misc.nuclei import Nuclei
from misc.sample import as_he, write_samples
from misc.type_info import default_type_info, load_type_info
from misc.utils import cropping_center, get_bounding_box, remove_small_objects, rm_n_mkdir
from misc.viz_utils import visualize_instances_dict


def test_p33_stems_are_full(subtests):
    cases = [
        ("TCGA-18-5592-01Z-00-DX1.1a2b.svs", "TCGA-18-5592-01Z-00-DX1.1a2b"),
        ("x/y/a.session.xml", "a"),
        ("slide.ome.tif", "slide"),
        ("noext", "noext"),
    ]
    for name, stem in cases:
        with subtests.test(name=name, stem=stem):
            assert full_stem(name) == stem


def test_list_files_is_sorted_and_takes_any_folder_name(tmp_path):
    folder = tmp_path / "a [1] *"
    for name in ("b.png", "a.png", ".hidden", "c.txt"):
        write_atomic_in(folder, name)
    write_atomic_in(folder / "sub", "d.png")
    assert [p.name for p in list_files(folder)] == ["a.png", "b.png", "c.txt"]
    assert [p.name for p in list_files(folder, "*.png", recursive=True)] == ["a.png", "b.png", "d.png"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_files(tmp_path / "nowhere")


def write_atomic_in(folder, name):
    folder.mkdir(exist_ok=True, parents=True)
    write_atomic(folder / name, "x")


def test_p06_equal_stems_are_refused_naming_both(tmp_path):
    check_unique_stems([tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.raises(ValueError, match=r"a\.png and .*a\.tif"):
        check_unique_stems([tmp_path / "a.png", tmp_path / "a.tif"])


def test_p04_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def three_nuclei(**columns) -> Nuclei:
    square = np.array([[0, 0], [0, 2], [2, 2], [2, 0]])
    return Nuclei.from_contours(
        ids=[1, 2, 5],
        boxes_yx=[[[0, 0], [3, 3]], [[10, 20], [13, 23]], [[0, 5], [3, 8]]],
        centroids_xy=[[1, 1], [21, 11], [6, 1]],
        contours=[square, (square + [20, 10])[:3], square + [5, 0]],
        **columns,
    )


def test_nuclei_select_keeps_contours_with_their_nuclei():
    nuclei = three_nuclei(types=np.array([1, 2, 1], np.int32), type_prob=np.array([0.5, 1, 0.7]))
    picked = nuclei.select(np.array([2, 1]))
    assert picked.ids.tolist() == [5, 2]
    assert picked.contour(0).tolist() == [[5, 0], [5, 2], [7, 2], [7, 0]]
    assert picked.contour(1).tolist() == [[20, 10], [20, 12], [22, 12]]
    assert picked.types.tolist() == [1, 2]
    assert len(nuclei.select(nuclei.types == 3)) == 0


def test_nuclei_shift_scale_concat():
    nuclei = three_nuclei()
    moved = nuclei.shift(dy=100, dx=7)
    assert moved.boxes_yx[1].tolist() == [[110, 27], [113, 30]]
    assert moved.centroids_xy[1].tolist() == [28, 111]
    assert moved.contour(1)[0].tolist() == [27, 110]
    doubled = nuclei.scale(2, 2)
    assert doubled.boxes_yx[0].tolist() == [[0, 0], [5, 5]]
    assert doubled.centroids_xy[0].tolist() == [2.5, 2.5]  # the middle of a pixel, not its corner
    both = Nuclei.concat([nuclei, moved])
    assert len(both) == 6
    assert both.contour(4).tolist() == moved.contour(1).tolist()
    assert len(Nuclei.concat([])) == len(Nuclei.empty()) == 0


def test_p07_scaled_boxes_are_the_extent_of_scaled_points(subtests):
    for fy, fx in [(1, 1), (0.37, 0.37), (0.5, 2), (1.6, 1.45), (4, 4)]:
        with subtests.test(fy=fy, fx=fx):
            scaled = three_nuclei().shift(31, 17).scale(fy, fx)
            for i in range(len(scaled)):
                xs, ys = scaled.contour(i).T
                assert scaled.boxes_yx[i].tolist() == [[ys.min(), xs.min()], [ys.max() + 1, xs.max() + 1]]
            assert len(Nuclei.empty().scale(fy, fx)) == 0


def test_a_nucleus_without_points_keeps_a_scaled_box():
    boxes, contours = [[[2, 4], [4, 8]], [[0, 0], [2, 2]]], [np.zeros((0, 2)), np.array([[0, 0], [0, 1], [1, 1]])]
    scaled = Nuclei.from_contours([1, 2], boxes, [[5, 2], [0, 0]], contours).scale(2, 2)
    assert scaled.boxes_yx.tolist() == [[[4, 8], [8, 16]], [[0, 0], [3, 3]]]


def test_nuclei_dictionary_round_trip():
    nuclei = three_nuclei(types=np.array([1, 2, 1], np.int32), type_prob=np.array([0.5, 1, 0.7]))
    again = Nuclei.from_dict(nuclei.to_dict())
    for name in ("ids", "boxes_yx", "centroids_xy", "points_xy", "offsets", "types", "type_prob"):
        assert np.array_equal(getattr(again, name), getattr(nuclei, name)), name
    assert three_nuclei().to_dict()[5]["type"] is None
    assert Nuclei.from_dict({}).to_dict() == {}


def test_type_info_is_read_and_checked(tmp_path):
    path = tmp_path / "types.json"
    path.write_text(json.dumps({"0": ["none", [0, 0, 0]], "1": ["tumour", [255, 1, 2]]}))
    assert load_type_info(path, 2)[1] == ("tumour", (255, 1, 2))
    with pytest.raises(ValueError, match=r"lacks \[2\]"):
        load_type_info(path, 3)
    for bad in ('{"1": ["x"]}', '{"1": ["x", [1, 2, 300]]}', "[]", "{"):
        path.write_text(bad)
        with pytest.raises(ValueError, match="types.json"):
            load_type_info(path)
    assert default_type_info(3).keys() == {None, 0, 1, 2}


def test_p30_overlay_colours_do_not_overflow():
    image = np.zeros((20, 20, 3), np.uint8)
    nuclei = three_nuclei(types=np.array([1, 1, 1], np.int32), type_prob=np.ones(3)).to_dict()
    colour = {1: ("x", (np.uint8(255), np.uint8(165), np.uint8(0)))}
    overlay = visualize_instances_dict(image, nuclei, type_colour=colour, line_thickness=1)
    assert overlay[0, 0].tolist() == [255, 165, 0]
    assert image.max() == 0  # the input is not drawn on
    assert visualize_instances_dict(image, nuclei, draw_dot=True)[1, 1].tolist() == [255, 0, 0]
    assert visualize_instances_dict(image, {}).max() == 0


def test_small_helpers():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    assert get_bounding_box(mask) == [1, 3, 2, 5]
    with pytest.raises(ValueError, match="empty"):
        get_bounding_box(np.zeros((2, 2)))
    grid = np.arange(25).reshape(5, 5)
    assert cropping_center(grid, (2, 2)).tolist() == [[6, 7], [11, 12]]
    assert cropping_center(grid[None], (1, 1), batch=True).tolist() == [[[12]]]
    labels = np.array([[1, 1, 0, 2]])
    assert remove_small_objects(labels, min_size=2).tolist() == [[1, 1, 0, 0]]
    assert remove_small_objects(np.array([[True, False, True, True]]), min_size=2).tolist() == [
        [False, False, True, True]
    ]
    with pytest.raises(ValueError, match="negative"):
        remove_small_objects(np.array([[-1]]))


def test_rm_n_mkdir_empties_a_folder(tmp_path):
    write_atomic_in(tmp_path / "x", "a")
    rm_n_mkdir(tmp_path / "x")
    assert list((tmp_path / "x").iterdir()) == []


def test_machine():
    assert cpu_count() >= 1
    assert available_memory() > 1 << 20
    with reused_memory_pages():
        assert np.ones(1 << 22).sum() == 1 << 22


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_threads_of_a_script_share_their_memory(tmp_path):
    """In a process of its own: once there are several arenas, nothing takes them away."""
    code = """
import ctypes, sys, threading
from misc.cli import run_command

def work(args):
    import numpy as np
    threads = [threading.Thread(target=np.ones, args=(1000,)) for _ in range(4)]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
    libc.malloc_info(0, file)
    return libc.fclose(file)

sys.exit(run_command("Usage: x.py", work, []) if sys.argv[2] == "script" else work({}))
"""
    env = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    arenas = {}
    for how in ("script", "plain"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / how), how], cwd=ROOT, env=env, check=True)
        arenas[how] = (tmp_path / how).read_text().count("<heap nr=")
    assert arenas["script"] == 1
    assert arenas["plain"] > 1


def test_samples_are_made_and_show_their_stains(tmp_path):
    plain, eosin, alone = (cv2.imread(str(p))[..., ::-1].astype(int) for p in write_samples(tmp_path))
    assert plain.shape == eosin.shape == alone.shape == (512, 512, 3)
    brown = plain[..., 0] > plain[..., 2] + 60
    assert brown.mean() > 0.2
    for image in (eosin, alone):
        assert (image[..., 0] > image[..., 2] + 60).mean() == 0
    pink = eosin[..., 0] - eosin[..., 1]  # eosin takes green
    assert pink[brown].mean() > pink[~brown].mean() + 20
    white = np.full((2, 2, 3), 255, np.uint8)
    assert np.array_equal(as_he(white), white)
