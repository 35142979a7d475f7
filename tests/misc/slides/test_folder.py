"""Which files of a folder are slides; a DICOM series is one, whichever folder it lies in."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from dicom_series import write_instance, write_series

from misc.slides.folder import find_slides, slide_files
from misc.slides.handler import SlideError, get_file_handler
from misc.slides.image import find_image

RGB = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8), (15, 15), 0)


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_a_dicom_series_is_one_slide_in_one_folder_or_in_one_each(tmp_path):
    write_series(tmp_path / "slide.A", RGB)  # a folder has no extension: its name is whole
    write_series(tmp_path / "B", RGB)
    write_series(tmp_path, RGB, prefix="c")
    write_series(tmp_path, RGB, prefix="d")
    write_series(tmp_path / "two", RGB, prefix="e")
    write_series(tmp_path / "two", RGB, prefix="f")
    write_series(tmp_path / "deep" / "G", RGB)
    (tmp_path / "notes.txt").write_text("side file")
    found = find_slides(tmp_path)
    assert names(found.slides, tmp_path) == ["B", "c1.dcm", "d1.dcm", "slide.A", "two/e1.dcm", "two/f1.dcm"]
    assert names(found.others, tmp_path) == ["notes.txt"]
    assert not found.unusable
    deep = find_slides(tmp_path, recursive=True).slides
    assert names(sorted(set(deep) - set(found.slides)), tmp_path) == ["deep/G"]
    for path in deep:
        with get_file_handler(path) as handler:
            assert handler._source.sizes_xy == [(400, 300), (200, 150)]
            assert handler.metadata["base_mpp"].tolist() == [0.5, 0.5]
            assert np.abs(handler.get_full_img(read_mpp=0.5).astype(int) - RGB).mean() < 3
        assert len(slide_files(path)) == 5
    for name in ("slide.A", "B", "c1", "e1"):
        assert find_image(name, tmp_path).width == 400
    with pytest.raises(FileNotFoundError, match="no image of this name"):
        find_image("c0", tmp_path)


def test_labels_are_no_slides(tmp_path):
    write_series(tmp_path, RGB)
    label = write_instance(tmp_path / "label.dcm", RGB[:100, :100], "1.2.3", "LABEL", 100, 0.5)
    found = find_slides(tmp_path)
    assert names(found.slides, tmp_path) == ["1.dcm"]
    assert found.others == [label]


def test_broken_files_with_a_slides_name_are_said(tmp_path):
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "link.svs").symlink_to(tmp_path / "nowhere")
    cv2.imwrite(str(tmp_path / "a.png"), RGB)
    (tmp_path / "a.svs").write_bytes(b"broken, and of the stem of one that opens")
    found = find_slides(tmp_path)
    assert names(found.slides, tmp_path) == ["a.png", "empty.dcm"]
    assert sorted(path.name for path in found.unusable) == ["a.svs", "folder.svs", "link.svs"]
    cv2.imwrite(str(tmp_path / "a.svs.png"), RGB)
    (tmp_path / "a.svs").unlink()
    cv2.imwrite(str(tmp_path / "a.jpg"), RGB)
    with pytest.raises(ValueError, match="two inputs would write the same results"):
        find_slides(tmp_path)


def test_a_slide_that_changes_while_it_is_read_is_an_error(tmp_path):
    files = write_series(tmp_path / "A", RGB)
    cv2.imwrite(str(tmp_path / "b.png"), RGB)
    for path, change in (
        (tmp_path / "b.png", lambda: cv2.imwrite(str(tmp_path / "b.png"), RGB[:200])),
        (tmp_path / "A", lambda: files[0].write_bytes(files[0].read_bytes()[:5000])),
        (tmp_path / "A", lambda: files[3].unlink()),
        (files[1], lambda: shutil.copy(files[2], tmp_path / "A" / "9.dcm")),
        (tmp_path / "A", lambda: shutil.rmtree(tmp_path / "A")),
    ):
        with get_file_handler(path, mpp=0.5) as handler:
            handler.prepare_reading(read_mpp=1)
            handler.check_unchanged()
            with handler.reopen() as fresh:
                assert fresh.shape_yx == handler.shape_yx
            change()
            for check in (handler.check_unchanged, handler.reopen):
                with pytest.raises(SlideError, match="was changed while it was read"):
                    check()
