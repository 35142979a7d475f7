"""Checkpoints of every family: what they are is read off the tensors, and loading is strict."""

from __future__ import annotations

import io
import pickle
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.hovernet.checkpoint import CheckpointError, build_model, check_options, load_checkpoint, save_weights
from models.hovernet.net_desc import create_model
from models.hovernet.weight_names import from_monai, from_tensorflow


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return create_model("fast", nr_types=4, width=0.125)


def assert_same_weights(checkpoint, net):
    loaded = build_model(checkpoint).state_dict()
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], value), name


def test_p27_what_a_checkpoint_is_is_read_off_its_tensors(tmp_path, subtests):
    for mode, nr_types, width in [("original", None, 0.25), ("fast", 6, 0.125), ("original", 3, 0.125)]:
        with subtests.test(mode=mode, nr_types=nr_types, width=width):
            save_weights(tmp_path / "a.tar", create_model(mode, nr_types=nr_types, width=width).state_dict())
            checkpoint = load_checkpoint(tmp_path / "a.tar")
            assert (checkpoint.mode, checkpoint.nr_types, checkpoint.width) == (mode, nr_types, width)
            check_options(checkpoint, mode, nr_types or 0)
            check_options(checkpoint)


def test_p27_a_contradiction_is_one_line(tmp_path, net, subtests):
    for mode, nr_types, named in [("original", None, "original"), (None, 5, "--nr_types=5"), (None, 0, "4 types")]:
        with subtests.test(mode=mode, nr_types=nr_types, named=named):
            save_weights(tmp_path / "a.tar", net.state_dict())
            with pytest.raises(CheckpointError, match=named) as error:
                check_options(load_checkpoint(tmp_path / "a.tar"), mode, nr_types)
            assert "\n" not in str(error.value)


def test_original_files_with_and_without_module_prefix_and_optimizer(tmp_path, net):
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 25)
    wrapped = {f"module.{name}": value for name, value in net.state_dict().items()}
    content = {"desc": wrapped, "optimizer": optimizer.state_dict(), "lr_scheduler": scheduler.state_dict()}
    torch.save(content, tmp_path / "net_epoch=50.tar")
    torch.save({"desc": net.state_dict()}, tmp_path / "plain.tar")
    torch.save(net.state_dict(), tmp_path / "tiatoolbox.pth")
    for name in ("net_epoch=50.tar", "plain.tar", "tiatoolbox.pth"):
        assert_same_weights(load_checkpoint(tmp_path / name), net)


def test_checkpoints_as_people_save_them(tmp_path, net, subtests):
    """Under the keys and behind the wrappers of their frameworks; numbers of NumPy's beside the weights do no harm."""
    weights = net.state_dict()
    lightning = {f"model._orig_mod.{name}": value for name, value in weights.items()}
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in weights.items()}}
    scores = {"best": np.float64(0.7), "epoch": np.int64(3), "name": np.str_("x"), "ok": np.bool_(True)}
    contents = {key: {key: weights} for key in ("net", "network", "model", "model_state_dict", "state_dict", "ema")}
    contents |= {
        "lightning": {"state_dict": lightning, "epoch": 3, "hyper_parameters": {"lr": 1e-4}},
        "averaged": averaged,
        "scores": {"epoch": 3, "net": {"state_dict": weights}, "scores": scores, "meta": {"mpp": np.float32(0.5)}},
    }
    for name, content in contents.items():
        with subtests.test(name=name):
            torch.save(content, tmp_path / "a.pth")
            checkpoint = load_checkpoint(tmp_path / "a.pth")
            assert checkpoint.state_dict.keys() == weights.keys()
            assert all(torch.equal(checkpoint.state_dict[name], value) for name, value in weights.items())
            assert checkpoint.meta == ({"mpp": 0.5} if name == "scores" else {})
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "a.safetensors")
    assert_same_weights(load_checkpoint(tmp_path / "a.safetensors"), net)


def test_what_cannot_be_loaded_names_what_was_found(tmp_path, net, subtests):
    weights = net.state_dict()
    diverged = {**weights, "conv_bot.weight": weights["conv_bot.weight"] * float("nan")}
    both = {f"{prefix}.{name}": value for prefix in ("model", "ema") for name, value in weights.items()}
    for content, said in (
        ({"generator": weights, "epoch": 3}, "no weights in it, but generator, epoch; they are looked for .* desc, st"),
        ({"state_dict": {f"student.{name}": value for name, value in weights.items()}}, "but student.conv0./.weight"),
        (both, "several networks, under `ema....` and `model....`"),
        ({"desc": diverged}, r"NaN or infinite numbers in 1 of \d+ tensors \(first: conv_bot.weight\): its training"),
        ({"desc": weights, "options": Options()}, r"holds Python objects \(test_checkpoint.Options\) besides tensors"),
    ):
        with subtests.test(said=said):
            torch.save(content, tmp_path / "a.pth")
            with pytest.raises(CheckpointError, match=said) as error:
                load_checkpoint(tmp_path / "a.pth")
            assert "\n" not in str(error.value)


class Options:
    """What people store beside weights."""


def tensorflow_name(name: str) -> str:
    """The name a tensor has in the authors' first repository, written here independently of the rules under test."""
    stem, value = name.rsplit(".", 1)
    is_norm = stem.endswith("bn")
    value = {
        "weight": "gamma" if is_norm else "W",
        "bias": "beta" if is_norm else "b",
        "running_mean": "mean/EMA",
        "running_var": "variance/EMA",
    }[value]
    if match := re.fullmatch(r"decoder\.(tp|np|hv)\.u0\.(bn|conv)", stem):
        stem = f"preact_out_{match[1]}/bn" if match[2] == "bn" else f"conv_out_{match[1]}"
    else:
        stem = re.sub(r"^decoder\.", "", stem).replace("conv0./", "conv0").replace("dense.units.", "dense.blk.")
        stem = re.sub(r"^d(\d)\.shortcut", r"group\1.block0.convshortcut", stem)
        stem = re.sub(r"^d(\d)\.units\.", r"group\1.block", stem)
        stem = re.sub(r"^d(\d)\.blk_bna", r"group\1.bnlast", stem).replace(".", "/")
    return f"{stem}/{value}:0"


def test_tensorflow_npz(tmp_path, net):
    arrays = {}
    for name, value in net.state_dict().items():
        if "num_batches" in name or "unpool" in name:
            continue
        array = value.numpy()
        arrays[tensorflow_name(name)] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    arrays["linear/W:0"] = np.zeros((8, 1000), np.float32)
    arrays["global_step:0"] = np.array(7)
    np.savez(tmp_path / "tf.npz", **arrays)
    checkpoint = load_checkpoint(tmp_path / "tf.npz")
    assert checkpoint.family == "tensorflow"
    assert_same_weights(checkpoint, net)


def test_tensorflow_names(subtests):
    cases = [
        ("conv0/W:0", "conv0./.weight"),
        ("group0/block0/convshortcut/W:0", "d0.shortcut.weight"),
        ("group2/block5/preact/bn/variance/EMA:0", "d2.units.5.preact/bn.running_var"),
        ("group3/bnlast/bn/beta:0", "d3.blk_bna.bn.bias"),
        ("hv/u3/dense/blk/7/conv2/W:0", "decoder.hv.u3.dense.units.7.conv2.weight"),
        ("tp/u2/dense/blk_bna/bn/gamma:0", "decoder.tp.u2.dense.blk_bna.bn.weight"),
        ("preact_out_np/bn/mean/EMA:0", "decoder.np.u0.bn.running_mean"),
        ("conv_out_tp/b:0", "decoder.tp.u0.conv.bias"),
        ("linear/b:0", None),
    ]
    for theirs, ours in cases:
        with subtests.test(theirs=theirs, ours=ours):
            assert from_tensorflow(theirs) == ours


def monai_name(name: str) -> str:
    branches = {"np": "nucleus_prediction", "hv": "horizontal_vertical", "tp": "type_prediction"}
    name = name.replace("conv0./", "conv0.conv").replace("conv_bot", "bottleneck.conv_bottleneck")
    name = re.sub(r"^d(\d)\.units\.(\d+)", r"res_blocks.d\1.layers.denselayer_\2.layers", name)
    name = re.sub(r"^d(\d)\.blk_bna", r"res_blocks.d\1.bna_block", name)
    name = re.sub(r"^d(\d)\.shortcut", r"res_blocks.d\1.shortcut", name)
    if match := re.match(r"decoder\.(\w\w)\.u(\d)\.(.*)", name):
        block, rest = 4 - int(match[2]), match[3]
        rest = re.sub(r"^dense\.units\.(\d+)", lambda m: f"denselayerdecoder{int(m[1]) + 1}.layers", rest)
        rest = rest.replace("dense.blk_bna", "bna_block").replace("conv1/bn", "conv1/norm")
        part = "decoder_blocks" if block < 3 else "output_features"
        name = f"{branches[match[1]]}.{part}.decoderblock{block}.{rest}"
    return name


def test_monai_names_and_files(tmp_path, net):
    weights = {monai_name(name): value for name, value in net.state_dict().items() if "unpool" not in name}
    assert all(from_monai(monai_name(name)) == name for name in net.state_dict() if "unpool" not in name)
    torch.save({"model": weights}, tmp_path / "monai.pt")
    checkpoint = load_checkpoint(tmp_path / "monai.pt")
    assert checkpoint.family == "monai"
    assert_same_weights(checkpoint, net)


def test_half_precision_loads_as_float32(tmp_path, net):
    half = {n: v.half() if v.is_floating_point() else v for n, v in net.state_dict().items()}
    save_weights(tmp_path / "half.tar", half, {"mpp": 0.5})
    checkpoint = load_checkpoint(tmp_path / "half.tar")
    assert checkpoint.meta == {"mpp": 0.5}
    assert {v.dtype for v in checkpoint.state_dict.values()} == {torch.float32, torch.int64}


def test_shipped_checkpoint_loads():
    from pathlib import Path

    paths = sorted((Path(__file__).resolve().parents[2] / "pretrained").glob("*.tar"))
    assert paths
    for path in paths:
        checkpoint = load_checkpoint(path)
        build_model(checkpoint)
        assert checkpoint.meta["mpp"] == (0.5 if "20x" in path.name else 0.3333)


def test_loading_is_strict(tmp_path, net):
    weights = net.state_dict()
    save_weights(tmp_path / "less.tar", {n: v for n, v in weights.items() if n != "d1.shortcut.weight"})
    save_weights(tmp_path / "more.tar", {**weights, "d9.weight": torch.zeros(1)})
    save_weights(tmp_path / "other.tar", {**weights, "conv_bot.weight": torch.zeros(1, 2, 1, 1)})
    for name, said in (
        ("less", "1 missing .*d1.shortcut"),
        ("more", "1 unknown .*d9"),
        ("other", "another shape .*conv_bot"),
    ):
        with pytest.raises(CheckpointError, match=said) as error:
            build_model(load_checkpoint(tmp_path / f"{name}.tar"))
        assert "\n" not in str(error.value)


def test_p31_an_unpacked_or_real_archive_is_named(tmp_path):
    (tmp_path / "net.tar").mkdir()
    with pytest.raises(CheckpointError, match="do not unpack"):
        load_checkpoint(tmp_path / "net.tar")
    with tarfile.open(tmp_path / "real.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    with pytest.raises(CheckpointError, match="is a tar archive"):
        load_checkpoint(tmp_path / "real.tar")
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.tar")
    with zipfile.ZipFile(tmp_path / "b.tar") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(CheckpointError, match="one file of an unpacked checkpoint"):
        load_checkpoint(tmp_path / "b" / "data.pkl")


class Bomb:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_p32_pickled_code_is_not_run(tmp_path, capsys):
    torch.save({"desc": Bomb()}, tmp_path / "bomb.tar")
    with open(tmp_path / "plain.pth", "wb") as handle:
        pickle.dump(Bomb(), handle)
    np.savez(tmp_path / "bomb.npz", a=np.array([Bomb()], dtype=object))
    for name in ("bomb.tar", "plain.pth", "bomb.npz"):
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / name)
    assert "must not run" not in capsys.readouterr().out


def test_whatever_the_unpickler_raises_is_one_line(tmp_path):
    """Files of a few bytes: they raise IndexError, struct.error, AssertionError and others, as damaged ones do."""
    raised = set()
    for code in range(256):
        path = tmp_path / "odd.tar"
        path.write_bytes(bytes([0x80, 2, code, code, ord(".")]))
        with pytest.raises(CheckpointError, match=r"odd\.tar: ") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
        raised.add(type(error.value.__cause__))
    assert {IndexError, struct.error} <= raised


def test_damaged_and_foreign_files_are_one_line(tmp_path, net):
    save_weights(tmp_path / "cut.tar", net.state_dict())
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.tar").write_text("not a checkpoint")
    (tmp_path / "empty.tar").write_bytes(b"")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    encoder = {n: v for n, v in net.state_dict().items() if not n.startswith("decoder")}
    torch.save({"desc": encoder}, tmp_path / "imagenet.tar")
    for name in ("cut.tar", "text.tar", "empty.tar", "foreign.pth", "imagenet.tar"):
        with pytest.raises(CheckpointError, match=name) as error:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save({0: torch.zeros(2)}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match=r"numbers\.pth: .* not text"):
        load_checkpoint(tmp_path / "numbers.pth")
    with pytest.raises(FileNotFoundError, match="missing.tar"):
        load_checkpoint(tmp_path / "missing.tar")


def test_crafted_tensors_and_words_are_one_line(tmp_path, net, subtests):
    weights = net.state_dict()
    stem, path = "conv0./.weight", tmp_path / "a.tar"
    tensors = {
        "no dimension": (torch.tensor(1.0), r"has shape \(\)"),
        "one": (torch.zeros(5), r"has shape \(5,\)"),
        "none of it": (torch.zeros(0, 3, 7, 7), r"has shape \(0, 3, 7, 7\)"),
        "other channels": (torch.zeros(weights[stem].shape[0], 4, 7, 7), "1 of another shape"),
        "too wide": (torch.zeros(640_000, 1, 1, 1), "a network of width 10000: .* GB of memory are needed"),
        "one number for all": (torch.zeros(1).expand(16, 3, 10**5, 10**5), "its weights: .* GB of memory are needed"),
        "sparse": (torch.zeros(16, 3, 7, 7).to_sparse(), "plain numbers are needed"),
        "quantized": (torch.quantize_per_tensor(torch.zeros(16, 3, 7, 7), 1, 0, torch.qint8), "plain numbers"),
    }
    words = {
        "mpp": [[0.5], "x", 0, float("nan"), 1e300],
        "types": [5, [1, 2], {"1": 3}, {"1": ["a", [1, 2]]}, {"1": ["a", [1, 2, 1e9]]}],
        "window": ["x", [1], 10**9],
        "precision": [["fp32"]],
    }
    cases = [(what, {"desc": {**weights, stem: value}}, said) for what, (value, said) in tensors.items()]
    cases += [(f"{k} {v}", {"desc": weights, "meta": {k: v}}, "`meta`") for k, values in words.items() for v in values]
    for what, content, said in cases:
        with subtests.test(what):
            torch.save(content, path)
            with pytest.raises(ValueError, match=said) as caught:
                build_model(load_checkpoint(path))
            assert str(caught.value).startswith(str(path))


def test_an_archive_that_unpacks_to_what_no_weights_do_is_refused_unread(tmp_path, monkeypatch):
    for name in ("a.npz", "a.tar"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("conv0/W:0.npy", bytes(10**6))
    monkeypatch.setattr(np, "load", None)
    monkeypatch.setattr(torch, "load", None)
    for name in ("a.npz", "a.tar"):
        with pytest.raises(CheckpointError, match="unpacks to 0.001 GB, too much for weights"):
            load_checkpoint(tmp_path / name)
