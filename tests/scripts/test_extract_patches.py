"""The command line of extract_patches.py on real images: patches, what is reported, what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

import extract_patches
from dataset import get_dataset
from metrics.stats_utils import get_dice_1

ROOT = Path(extract_patches.__file__).parent
NAME = "TCGA-18.5592 [1]-01Z.x"  # dots and brackets, as hospitals have them


@pytest.fixture
def labelled(tmp_path, shared) -> Path:
    """Two typed images of 512 px and 256 px, one without a nucleus."""
    for name in ("Images", "Labels"):
        (tmp_path / name).mkdir()
    image, content = read(shared / "data" / "ihc", "Lung1")
    save(tmp_path, NAME, image, content["inst_map"], content["type_map"])
    image, content = read(shared / "data" / "pannuke_breast", "00000010")
    save(tmp_path, "empty", image, np.zeros_like(content["inst_map"]), np.zeros_like(content["type_map"]))
    return tmp_path


def read(folder: Path, name: str) -> tuple[np.ndarray, dict]:
    image = cv2.imread(str(folder / "Images" / f"{name}.png"))[..., ::-1]
    return image, scipy.io.loadmat(folder / "Labels" / f"{name}.mat")


def save(folder: Path, name: str, image: np.ndarray, inst_map: np.ndarray, type_map: np.ndarray) -> None:
    (folder / "Images" / f"{name}.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    scipy.io.savemat(folder / "Labels" / f"{name}.mat", {"inst_map": inst_map, "type_map": type_map})


def run(folder: Path, *options: str, dataset: str = "mat") -> int:
    dirs = [f"--{key}_dir={folder / name}" for key, name in (("img", "Images"), ("ann", "Labels"))]
    return extract_patches.main([f"--dataset={dataset}", *dirs, f"--save_root={folder / 'out'}", *options])


def written(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.load(p) for p in sorted((folder / "out").rglob("*.npy"))}


def test_patches_are_images_with_their_labels(labelled, capsys):
    assert run(labelled, "--type", "--mode=fast", "--split=valid") == 0
    folder = labelled / "out" / "mat" / "valid" / "540x540_164x164"
    patches = written(labelled)
    assert {p.parent for p in folder.rglob("*.npy")} == {folder}
    assert list(patches)[:2] == [f"{NAME}_000.npy", f"{NAME}_001.npy"]
    assert {p.shape for p in patches.values()} == {(540, 540, 5)}
    image, content = read(labelled, NAME)
    first, pad = patches[f"{NAME}_000.npy"], (540 - 164) // 2
    inside = first[pad : pad + 164, pad : pad + 164]
    assert np.array_equal(inside[..., :3], image[:164, :164])
    assert np.array_equal(inside[..., 3], content["inst_map"][:164, :164])
    assert np.array_equal(inside[..., 4], content["type_map"][:164, :164])
    out = capsys.readouterr().out
    assert "valid" in out
    assert "1 image without a nucleus: empty" in out
    assert f"{len(patches)} patches written" in out


def test_nuclei_are_counted_by_type(labelled, capsys):
    run(labelled, "--type", "--extract_type=whole")
    header, row = (line.split() for line in capsys.readouterr().out.splitlines()[:2])
    content = read(labelled, NAME)[1]
    inst, types = content["inst_map"], content["type_map"]
    expected = [np.bincount(types[inst == i]).argmax() for i in np.unique(inst)[1:]]
    assert header == ["split", "images", "patches", "nuclei", "1", "2"]
    assert row == ["train", "2", "2", str(len(expected)), str(expected.count(1)), str(expected.count(2))]


def test_smallest_type_that_holds_the_ids(tmp_path_factory, subtests):
    for largest, dtype in [(255, np.uint8), (256, np.uint16), (70_000, np.int32)]:
        with subtests.test(largest=largest, dtype=dtype):
            tmp_path = tmp_path_factory.mktemp("case")
            for name in ("Images", "Labels"):
                (tmp_path / name).mkdir()
            inst_map = np.zeros((40, 50), np.int32)
            inst_map[3, 4] = largest
            save(tmp_path, "a", np.full((40, 50, 3), 200, np.uint8), inst_map, inst_map > 0)
            run(tmp_path, "--type", "--extract_type=whole")
            (patch,) = written(tmp_path).values()
            assert patch.dtype == dtype
            assert patch[3, 4].tolist() == [200, 200, 200, largest, 1]


def test_patches_take_at_most_half_of_the_originals_bytes(labelled):
    run(labelled, "--type", "--mode=fast")
    for path in (labelled / "out").rglob("*.npy"):
        assert path.stat().st_size <= 540 * 540 * 5 * 4 / 2 + 128


def test_p42_steps_follow_the_mode_of_config(labelled):
    run(labelled, "--no_type", "--extract_type=valid", "--split=a")
    assert (labelled / "out" / "mat" / "a" / "540x540_80x80").is_dir()  # config.py: `original`
    run(labelled, "--no_type", "--extract_type=valid", "--split=b", "--mode=fast")
    assert (labelled / "out" / "mat" / "b" / "540x540_164x164").is_dir()
    run(labelled, "--no_type", "--split=c", "--win_size=300,280", "--step_size=200")
    own = sorted((labelled / "out" / "mat" / "c" / "300x280_200x200").glob("*.npy"))
    assert {np.load(p).shape for p in own} == {(300, 280, 4)}


def test_p43_pannuke_is_neither_padded_nor_cut(tmp_path, shared):
    data = shared / "data" / "pannuke_breast"
    options = [f"--img_dir={data / 'Images'}", f"--ann_dir={data / 'Labels'}/", f"--save_root={tmp_path / 'out'}"]
    assert extract_patches.main(["--dataset=PanNuke", "--type", "--extract_type=whole", *options]) == 0
    patches = written(tmp_path)
    assert len(patches) == 17
    image, content = read(data, "00000010")
    patch = patches["00000010_000.npy"]
    assert np.array_equal(patch, np.dstack([image, content["inst_map"], content["type_map"]]))


def test_half_size_keeps_nuclei_where_they_are(tmp_path, kumar, capsys):
    """40x to 20x: the label, enlarged again, still lies on the nuclei."""
    folder, name = kumar / "Test_diff", "TCGA-AY-A8YK-01A-01-TS1"
    for kind, suffix in (("Images", "png"), ("Labels", "mat")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.{suffix}").symlink_to(folder / kind / f"{name}.{suffix}")
    assert run(tmp_path, "--no_type", "--scale=0.5", "--extract_type=whole", dataset="kumar") == 0
    (patch,) = written(tmp_path).values()
    image, content = read(folder, name)
    assert patch.shape == (500, 500, 4)
    assert np.abs(patch[..., :3] - image.reshape(500, 2, 500, 2, 3).mean(axis=(1, 3))).max() <= 0.5
    assert get_dice_1(np.kron(patch[..., 3], np.ones((2, 2), int)), content["inst_map"]) > 0.95
    assert set(np.unique(patch[..., 3])) <= set(np.unique(content["inst_map"]))


def test_p05_what_is_there_is_kept(labelled, capsys):
    run(labelled, "--type", "--extract_type=whole")
    before = {p: p.stat().st_mtime_ns for p in (labelled / "out").rglob("*.npy")}
    (labelled / "out" / "mat" / "train" / "whole" / "notes.txt").write_text("mine")
    assert run(labelled, "--type", "--extract_type=whole") == 0
    assert "0 patches written, 2 there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert run(labelled, "--no_type", "--extract_type=whole") == 1
    assert "differs from what these options give" in capsys.readouterr().err
    assert {p.shape[2] for p in written(labelled).values()} == {5}
    assert run(labelled, "--no_type", "--extract_type=whole", "--overwrite") == 0
    assert {p.shape[2] for p in written(labelled).values()} == {4}
    assert (labelled / "out" / "mat" / "train" / "whole" / "notes.txt").read_text() == "mine"


def test_patches_of_two_scales_are_not_mixed(labelled, capsys):
    sizes = ("--no_type", "--win_size=100", "--step_size=50")
    run(labelled, *sizes)
    before = len(written(labelled))
    assert run(labelled, *sizes, "--scale=0.5", "--overwrite") == 1
    assert "cut this image into more patches" in capsys.readouterr().err
    assert len(written(labelled)) == before


def test_a_killed_run_is_completed(labelled):
    run(labelled, "--type", "--mode=fast")
    whole = written(labelled)
    files = sorted((labelled / "out").rglob("*.npy"))
    for path in files[3:]:
        path.unlink()
    assert run(labelled, "--type", "--mode=fast") == 0
    again = written(labelled)
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_bad_files_are_reported_and_the_others_done(labelled, capsys):
    image, content = read(labelled, NAME)
    for name in ("cut", "other size", "no map"):
        save(labelled, name, image, content["inst_map"], content["type_map"])
    picture = labelled / "Images" / "cut.png"
    picture.write_bytes(picture.read_bytes()[:5000])
    save(labelled, "other size", image[:500], content["inst_map"], content["type_map"])
    scipy.io.savemat(labelled / "Labels" / "no map.mat", {"x": 1})
    (labelled / "Labels" / "lone.label.mat").write_bytes(b"")
    (labelled / "Images" / "Thumbs.db").write_bytes(b"")
    assert run(labelled, "--type", "--extract_type=whole") == 1
    out, err = capsys.readouterr()
    assert f"failed: cut: {picture} is a truncated PNG" in err
    assert "the image is 512 x 500 px, its label 512 x 512; they must have the same size" in err
    assert "no map.mat has no inst_map; it holds x" in err
    assert "no partner: " in err
    assert "lone.label.mat" in err
    assert "Thumbs.db" in err
    assert "2 patches written" in out
    assert "3 images failed, 2 files without partner" in out


def test_a_file_without_partner_alone_is_no_success(labelled, capsys):
    (labelled / "Images" / "only image.png").write_bytes(b"")
    (labelled / "Labels" / "only label.mat").write_bytes(b"")
    assert run(labelled, "--type", "--extract_type=whole") == 1
    out, err = capsys.readouterr()
    assert "only image.png" in err
    assert "only label.mat" in err
    assert "0 images failed, 2 files without partner" in out
    for path in (labelled / "Labels").iterdir():
        path.rename(path.with_name(f"not {path.name}"))
    assert run(labelled, "--type", "--extract_type=whole") == 1
    said = capsys.readouterr().err
    assert "only image.png" in said
    assert "not " in said


def test_p06_two_images_of_one_name(labelled, capsys):
    (labelled / "Images" / "empty.tif").write_bytes(b"")
    assert run(labelled, "--type") == 1
    assert "two inputs would write the same results" in capsys.readouterr().err


def test_dataset_info_is_edited_in_the_script(labelled, monkeypatch, capsys):
    folders = {"img": (".PNG", f"{labelled / 'Images'}/"), "ann": (".mat", str(labelled / "Labels"))}
    monkeypatch.setattr(extract_patches, "DATASET_INFO", {"train": folders, "valid": folders})
    root = f"--save_root={labelled / 'out'}"
    assert extract_patches.main(["--dataset=mat", "--type", "--extract_type=whole", root]) == 0
    assert sorted(p.name for p in (labelled / "out" / "mat").iterdir()) == ["train", "valid"]
    assert extract_patches.main(["--dataset=mat", "--split=test", root]) == 1
    assert "has no split `test`, only train, valid" in capsys.readouterr().err


def test_wrong_options_are_one_line(capsys, tmp_path, subtests):
    cases = [
        (["--dataset=squares"], "unknown data set `squares`; there is kumar"),
        (["--dataset=kumar", "--type"], "no types; add --no_type"),
        (["--dataset=mat", "--type", "--no_type"], "not both"),
        (["--mode=quick"], "--mode is one of original, fast, got `quick`"),
        (["--extract_type=middle"], "--extract_type is one of mirror, valid, whole"),
        (["--img_dir=a"], "--img_dir and --ann_dir go together"),
        (["--img_dir=a", "--ann_dir=b"], "no such folder: a"),
        (["--img_dir=.", "--ann_dir=.", "--dataset=mat"], "has a label of its name"),
        ([], "edit DATASET_INFO"),
    ]
    for options, message in cases:
        with subtests.test(options=options, message=message), pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(tmp_path)
            assert extract_patches.main(options) == 1
            err = capsys.readouterr().err
            assert message in err
            assert err.startswith("extract_patches.py: ")
            assert err.count("\n") == 1
            assert not list(tmp_path.iterdir())


def test_wrong_numbers_are_one_line(labelled, capsys, subtests):
    for option in ["--scale=0", "--scale=x", "--win_size=0", "--step_size=1,2,3", "--win_size=a"]:
        with subtests.test(option=option):
            assert run(labelled, "--no_type", option) == 1
            assert option.split("=")[0] in capsys.readouterr().err
            assert not (labelled / "out").exists()


def test_check_counts_what_is_in_a_folder(labelled, capsys):
    run(labelled, "--type", "--extract_type=whole")
    capsys.readouterr()
    folder = labelled / "out" / "mat" / "train" / "whole"
    assert extract_patches.main([f"--check={folder}", "--nr_types=3"]) == 0
    out = capsys.readouterr().out
    label = get_dataset("mat").load_ann(labelled / "Labels" / f"{NAME}.mat", True)
    row = next(line.split() for line in out.splitlines() if line.startswith("2 "))
    assert row[3] == str(np.count_nonzero(label[..., 1] == 2))
    assert "1 patch with no nucleus: empty_000.npy" in out
    assert "2 patches (" in out
    assert extract_patches.main([f"--check={folder}", "--nr_types=2"]) == 1
    assert f"failed: {NAME}_000.npy: has the type id 2; 0 to 1 are allowed" in capsys.readouterr().err


def test_check_names_every_error(tmp_path, capsys):
    patch = np.full((30, 30, 5), 100, np.int32)
    patch[..., 3:] = 0
    patch[5:9, 5:9, 3:] = (7, 1)
    bad = {name: patch.copy() for name in ("good", "negative", "colours", "no_type", "stray", "mixed", "zero")}
    bad["negative"][0, 0, 3] = -1
    bad["colours"][0, 0, 0] = 300
    bad["no_type"] = patch[..., :4]
    bad["stray"][20, 20, 4] = 2
    bad["mixed"][5, 5, 4] = 2
    bad["zero"][..., 4] = 0
    bad["flat"] = patch[..., 0]
    bad["float"] = patch.astype(np.float32)
    for name, array in bad.items():
        np.save(tmp_path / f"{name}_000.npy", array)
    (tmp_path / "cut_000.npy").write_bytes((tmp_path / "good_000.npy").read_bytes()[:200])
    assert extract_patches.main([f"--check={tmp_path}"]) == 1
    out, err = capsys.readouterr()
    for name, reason in (
        ("negative_000.npy", "the instance id -1"),
        ("colours_000.npy", "colours from 100 to 300"),
        ("flat_000.npy", "has shape (30, 30)"),
        ("float_000.npy", "holds float32"),
        ("cut_000.npy", "no readable .npy"),
        ("the folder", "1 patch without types and 4 with"),
    ):
        (line,) = (line for line in err.splitlines() if f"failed: {name}:" in line)
        assert reason in line
    assert "good" not in err
    assert "1 patch with nuclei of type 0 (background): zero_000.npy" in out
    assert "1 patch with a type outside nuclei: stray_000.npy" in out
    assert "1 patch with nuclei with several types: mixed_000.npy" in out


def test_check_of_nothing(tmp_path, capsys):
    assert extract_patches.main([f"--check={tmp_path}"]) == 1
    assert "no .npy patches" in capsys.readouterr().err
    assert extract_patches.main([f"--check={tmp_path / 'none'}"]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_pannuke_arrays_to_patches(tmp_path, shared, capsys):
    """What the distribution holds, made of real labels: unpacked and extracted they are those labels again."""
    data = shared / "data" / "pannuke_breast"
    names = sorted(p.stem for p in (data / "Images").iterdir())[:3]
    images, masks = [], []
    for name in names:
        image, content = read(data, name)
        planes = [np.where(content["type_map"] == t, content["inst_map"], 0) for t in range(1, 6)]
        images.append(image)
        masks.append(np.dstack([*planes, content["inst_map"] == 0]))
    np.save(tmp_path / "images.npy", np.array(images, np.float64))
    np.save(tmp_path / "masks.npy", np.array(masks, np.float64))
    arrays = [f"--{name}={tmp_path / name}.npy" for name in ("images", "masks")]
    assert extract_patches.main(["unpack", *arrays, f"--output_dir={tmp_path}"]) == 0
    (tmp_path / "Images" / "rois.csv").write_text("slide,file")  # of a folder of fields
    (tmp_path / "Images" / "other.csv").write_text("")
    assert run(tmp_path, "--type", "--extract_type=whole", dataset="pannuke") == 1  # another file has no partner
    said = capsys.readouterr()
    assert "other.csv" in said.err
    assert "rois.csv" not in said.err
    for index, name in enumerate(names):
        patch, (image, content) = written(tmp_path)[f"{index:05d}_000.npy"], read(data, name)
        assert np.array_equal(patch[..., :3], image)
        assert np.array_equal(patch[..., 3] > 0, content["inst_map"] > 0)
        assert np.array_equal(patch[..., 4] * (patch[..., 3] > 0), content["type_map"] * (content["inst_map"] > 0))
        assert patch[..., 3].max() == len(np.unique(content["inst_map"])) - 1
    capsys.readouterr()
    assert extract_patches.main(["unpack", *arrays, f"--output_dir={tmp_path}"]) == 0
    assert "0 images written, 3 there already" in capsys.readouterr().out
    assert extract_patches.main(["unpack", "--images=no.npy", "--masks=no.npy", f"--output_dir={tmp_path}"]) == 1
