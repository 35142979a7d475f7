"""`run_infer.py` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from skimage.data import immunohistochemistry

import run_infer
from infer.options import COMMON_TEXT, TILE_TEXT, WSI_TEXT
from infer.run import Report
from misc.cli import read_commands
from misc.usage import option_names
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model

MODEL = sorted((ROOT / "pretrained").glob("*.tar"))[0]


@pytest.fixture
def images(tmp_path):
    """A folder with one real image, whose name has dots and a space."""
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "TCGA-1.2 x.png"), immunohistochemistry()[:200, :300, ::-1])
    return folder


def call(images, *common, tile=(), first=("--gpu=", "--nr_post_proc_workers=0")):
    out = images.parent / "out"
    return run_infer.main([*first, *common, "tile", f"--input_dir={images}", f"--output_dir={out}", *tile])


def test_a_run_ends_with_one_line_that_says_it_all(images, capsys):
    assert call(images, f"--model_path={MODEL}") == 0
    line = capsys.readouterr().out.strip()
    nuclei = json.loads((images.parent / "out" / "json" / "TCGA-1.2 x.json").read_text())["nuc"]
    assert line.startswith(f"{len(nuclei)} nuclei (nucleus {len(nuclei)}) in 1 image, 0 skipped, 0 failed")
    assert f"overlays in {images.parent / 'out' / 'overlay'}" in line
    assert line.endswith(f"report in {images.parent / 'out' / 'report.html'}")
    assert len(nuclei) > 5


def test_without_a_pixel_size_the_first_and_the_last_line_say_what_was_assumed(shared, tmp_path, capsys, caplog):
    """The README's own command on 40x images without --mpp: PQ .478 became .080, and nothing was said."""
    (path,) = (shared / "data" / "kumar" / "Test_same" / "Images").glob("TCGA-E2-A1B5*.png")
    image = cv2.imread(str(path))
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), image[:300, :300])
    assert call(tmp_path / "in", f"--model_path={MODEL}") == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert warnings[0] == warnings[1]
    assert "1 of 1 images do not say their pixel size (a.png): assumed to be 0.5 um/px" in warnings[0]
    assert "give --mpp=<um per px> (40x: 0.25" in warnings[0]
    assert caplog.records[-1].getMessage() == warnings[0]
    assert "; median nucleus diameter " in capsys.readouterr().out
    caplog.clear()
    assert call(tmp_path / "in", "--overwrite", f"--model_path={MODEL}", tile=["--mpp=0.25"]) == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_p33_trailing_slashes_and_full_stems(images, capsys):
    out = images.parent / "with slash"
    argv = [f"--model_path={MODEL}", "--gpu=", "--nr_post_proc_workers=0", "tile", f"--input_dir={images}/"]
    assert run_infer.main([*argv, f"--output_dir={out}/"]) == 0
    assert (out / "overlay" / "TCGA-1.2 x.png").is_file()


def test_the_original_run_book_parses(images, capsys):
    """Every option of the original, by its name, as its run_tile.sh writes them."""
    path = images.parent / "typed.tar"
    save_weights(path, create_model("fast", nr_types=6, width=0.125).state_dict())
    common = [
        "--gpu=1",
        "--nr_types=6",
        f"--type_info_path={ROOT / 'type_info.json'}",
        "--batch_size=64",
        "--model_mode=fast",
        f"--model_path={path}",
        "--nr_inference_workers=8",
        "--nr_post_proc_workers=0",
    ]
    assert call(images, *common, tile=["--mem_usage=0.1", "--draw_dot", "--save_qupath"], first=()) == 0
    header = json.loads((images.parent / "out" / "json" / "TCGA-1.2 x.json").read_text())
    assert header["types"]["1"] == ["neopla", [255, 0, 0]]
    assert header["mag"] is None
    assert header["slide"]["name"] == "TCGA-1.2 x.png"


def test_bad_input_is_one_line_and_exit_code_1(images, capsys):
    model = f"--model_path={MODEL}"
    for common, tile, said in [
        ([], [], "--model_path"),
        (["--model_path=nowhere.tar"], [], "nowhere.tar"),
        ([model, "--nr_types=5"], [], "--nr_types=5"),
        ([model, "--nr_types=some"], [], "--nr_types is a whole number from 0 on, got `some`"),
        ([model, "--model_mode=original"], [], "`fast` network"),
        ([model, "--batch_size=many"], [], "--batch_size takes a whole number"),
        ([model, "--type_info_path=nowhere.json"], [], "nowhere.json"),
        ([model, "--window=257"], [], "try 256 or 264"),
        ([model, "--precision=int8"], [], "--precision"),
        ([model, "--precision=tf32"], [], "--precision=tf32 needs a GPU"),
        ([model], ["--pattern=*.tif"], "no image matches"),
        ([model], ["--mem_usage=2"], "--mem_usage"),
        ([model], ["--mpp=nan"], "--mpp"),
        ([model], ["--mpp=inf"], "--mpp"),
    ]:
        assert call(images, *common, tile=tile) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("run_infer.py: ")
        assert said in error
        assert not (images.parent / "out").exists()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="tells what is said where there is no Apple GPU")
def test_apple_s_gpu_may_leave_to_the_cpu_what_it_lacks(images, capsys, monkeypatch):
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    assert call(images, f"--model_path={MODEL}", first=("--gpu=mps",)) == 1
    assert "--gpu=mps: this machine has no Apple GPU" in capsys.readouterr().err.strip().splitlines()[-1]
    assert os.environ.pop("PYTORCH_ENABLE_MPS_FALLBACK") == "1"


def test_p28_no_default_is_a_pair_of_quotes():
    for text in (COMMON_TEXT, TILE_TEXT, WSI_TEXT):
        assert "[default: '']" not in text
        assert '[default: ""]' not in text


@pytest.mark.parametrize("command", ["tile", "wsi"])
def test_an_empty_option_is_its_default(command, tmp_path, monkeypatch):
    """Run books pass every option, filled in or not."""
    seen = []

    class Manager:
        def __init__(self, method, type_info_path, gpu, precision):
            seen.append((method, type_info_path, gpu, precision))

        def process(self, options):
            seen.append(options)
            return Report()

        process_file_list = process_wsi_list = process

    monkeypatch.setattr(f"infer.{command}.InferManager", Manager)
    folders = [f"--input_dir={tmp_path}", f"--output_dir={tmp_path}"]
    common = (
        "gpu nr_types type_info_path model_mode nr_inference_workers nr_post_proc_workers batch_size precision window"
    )
    own = {
        "tile": "mpp mem_usage line_thickness pattern",
        "wsi": "cache_path input_mask_dir mask_dir proc_mag mpp mag ambiguous_size chunk_shape tile_shape pattern",
    }
    empty = [[f"--{name}=" for name in names.split()] for names in (common, own[command])]
    assert run_infer.main(["--model_path=x", *empty[0], command, *folders, *empty[1]]) == 0
    assert run_infer.main(["--model_path=x", "--gpu=", command, *folders]) == 0
    assert seen[:2] == seen[2:]
    assert seen[1].batch_size == 128


def test_p30_default_colours_are_readable_and_plain_integers(images):
    from infer.run import InferManager

    path = images.parent / "typed.tar"
    save_weights(path, create_model("fast", nr_types=6, width=0.125).state_dict())
    info = InferManager({"model_path": path}, gpu="").type_info_dict
    colours = [info[k][1] for k in range(1, 6)]
    assert all(type(v) is int and 0 <= v <= 255 for colour in colours for v in colour)
    assert min(max(colour) for colour in colours) > 150
    distances = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 100


def test_types_of_the_checkpoint_are_used(images):
    from infer.run import InferManager

    path = images.parent / "named.tar"
    meta = {"types": {"1": ["positive", [1, 2, 3]], "2": ["negative", [4, 5, 6]]}, "mpp": 0.5}
    save_weights(path, create_model("fast", nr_types=3, width=0.125).state_dict(), meta)
    manager = InferManager({"model_path": path}, gpu="")
    assert manager.type_info_dict[1] == ("positive", (1, 2, 3))
    assert manager.model_mpp == 0.5


def test_help_answers_at_once_and_commands_have_their_own():
    """No torch is imported for it."""
    code = (
        "import sys; sys.path.insert(0, {root!r}); import run_infer\n"
        "try: run_infer.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    for argv, said in (
        (["--help"], "--model_path"),
        (["tile", "--help"], "--mem_usage"),
        (["wsi", "-h"], "--mag"),
    ):
        command = [sys.executable, "-c", code.format(root=str(ROOT)), *argv]
        assert said in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_as_a_process_with_spawned_workers(images, tmp_path):
    """The script as it is started, from another folder, with worker processes; a bad file makes the exit code 1."""
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    command = [
        sys.executable,
        ROOT / "run_infer.py",
        "--gpu=",
        f"--model_path={MODEL}",
        "--nr_post_proc_workers=2",
        "tile",
    ]
    ended = subprocess.run(
        [*command, f"--input_dir={images}", f"--output_dir={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 1, ended.stderr
    assert "broken.png" in ended.stderr
    assert "1 image, 0 skipped, 1 failed" in ended.stdout
    assert (tmp_path / "out" / "mat" / "TCGA-1.2 x.mat").is_file()


def test_options_may_stand_before_a_command_and_after_it(subtests):
    common, texts = run_infer.commands()
    needed = {"tile": ["--input_dir=a", "--output_dir=b"], "wsi": ["--slides=a", "--output_dir=b"]}
    needed["merge"] = ["--output_dir=b"]
    for command, own in needed.items():
        for name, option in option_names(common).items():
            with subtests.test(command=command, option=name):
                given = f"{name}=1" if option.argcount else name
                read = [
                    read_commands(run_infer.__doc__, argv, common, texts)
                    for argv in ([given, command, *own], [command, *own, given], [*own, given, command])
                ]
                assert read[0] == read[1] == read[2]
                assert read[0][name] == ("1" if option.argcount else True)
                assert [word for word in needed if read[0][word]] == [command]


def test_the_value_of_an_option_is_not_taken_for_the_command():
    common, texts = run_infer.commands()
    argv = ["--model_path", "wsi", "tile", "--input_dir", "merge", "--output_dir=tile"]
    args = read_commands(run_infer.__doc__, argv, common, texts)
    assert (args["tile"], args["wsi"], args["merge"]) == (True, False, False)
    assert (args["--model_path"], args["--input_dir"], args["--output_dir"]) == ("wsi", "merge", "tile")


def test_an_option_of_another_command_is_one_line(capsys):
    for argv, said in (
        (["tile", "--shard=0/2", "--input_dir=a", "--output_dir=b"], "--shard goes with `wsi`"),
        (["--pattern=*", "merge", "--output_dir=b"], "--pattern goes with `tile` or `wsi`"),
        (["--mpp=1"], "--mpp goes with `tile` or `wsi`"),
    ):
        assert run_infer.main(argv) == 2
        assert said in capsys.readouterr().err


def test_unknown_command(capsys):
    assert run_infer.main(["--model_path=x", "wsi2"]) == 2
    assert "wsi2" in capsys.readouterr().err
