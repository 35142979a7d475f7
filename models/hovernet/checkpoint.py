"""Reading checkpoints: the original repository's, TensorFlow's, tiatoolbox's, MONAI's, those of users, and our own.

Mode, number of types and width are read from the tensors, so nobody has to remember them.
"""

from __future__ import annotations

import pickle
import re
import struct
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misc.files import atomic_path
from misc.formats.nuclei_json import types_from_header
from misc.machine import check_fits

from .net_desc import HoVerNet, create_model
from .numpy_scalars import numpy_scalars
from .two_scales import TwoScales
from .weight_names import NO_WEIGHTS, WEIGHT_KEYS, find_weights, from_monai, from_tensorflow, wrappers

_KSIZE_TO_MODE = {5: "original", 3: "fast"}
_STEM = "conv0./.weight"
_STEM_CHANNELS = 64  # at width 1
MAX_NAMES = 100  # characters of the names that a message lists
_WIDTH_1_BYTES = 150e6  # of all weights at width 1, float32
MPP_UM = (0.01, 100)  # range of um/px for a network: from finer than oil immersion to a thumbnail
MAX_WINDOW = 1 << 14  # px
MAX_UNPACKED = 20  # largest ratio of unpacked to packed size; weights hardly compress


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what is known about them.

    Attributes:
        path: where they came from.
        family: `hovernet`, `tensorflow` or `monai`.
        state_dict: tensors under the original repository's names, float32.
        mode, nr_types, width: read from the tensors; `nr_types` is `None` without a TP branch. Of two networks in one
            (`two_scales`) types and width are the coarse one's.
        meta: what our own checkpoints say of themselves (`mpp`, `types`, `licence`, ...); empty for others.
    """

    path: Path
    family: str
    state_dict: dict[str, torch.Tensor]
    mode: str
    nr_types: int | None
    width: float
    meta: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any family.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint of a complete HoVer-Net.
    """
    path = Path(path)
    raw, meta = read_tensors(path)
    _check_kinds(path, raw)
    check_fits(sum(4 * value.numel() for value in raw.values()), f"{path}: its weights")
    _check_meta(path, meta)
    family, state_dict = _rename(path, raw)
    shapes = [_describe(path, weights) for weights in parts_of(state_dict)]
    _check_finite(path, state_dict)
    mode, nr_types, width = shapes[-1]
    return Checkpoint(path, family, state_dict, mode if len(shapes) == 1 else TwoScales.mode, nr_types, width, meta)


def check_options(checkpoint: Checkpoint, mode: str | None = None, nr_types: int | None = None) -> None:
    """Compare what a user asked for with what the checkpoint is.

    Args:
        checkpoint: the weights.
        mode: the mode asked for; `None` when the user left it out.
        nr_types: the number asked for, 0 for an untyped network; `None` when left out.

    Raises:
        CheckpointError: they contradict each other.
    """
    # both networks of two in one are `fast`
    if mode is not None and mode != checkpoint.mode and (mode, checkpoint.mode) != ("fast", TwoScales.mode):
        raise CheckpointError(
            f"{checkpoint.path} is a `{checkpoint.mode}` network, --model_mode={mode} was asked for; "
            "leave the option out"
        )
    if nr_types is not None and (nr_types or None) != checkpoint.nr_types:
        raise CheckpointError(
            f"{checkpoint.path} predicts {checkpoint.nr_types or 0} types (background included), "
            f"--nr_types={nr_types} was asked for; leave the option out"
        )


def build_model(checkpoint: Checkpoint, freeze: bool = False) -> HoVerNet | TwoScales:
    """Create the network that the checkpoint describes and load every weight into it, strictly.

    Raises:
        CheckpointError: weights are missing, superfluous or of another shape, or its two networks do not fit.
    """
    parts = parts_of(checkpoint.state_dict)
    shapes = [_describe(checkpoint.path, weights) for weights in parts]
    nets = [create_model(mode, nr_types=types, freeze=freeze, width=width) for mode, types, width in shapes]
    try:
        net = TwoScales(*nets) if len(nets) > 1 else nets[0]
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    load_strict(net, checkpoint.state_dict, checkpoint.path)
    return net


def parts_of(weights: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return the weights of the fine and of the coarse network of two in one, else the weights themselves."""
    if f"fine.{_STEM}" not in weights:
        return [weights]
    return [
        {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        for part in ("fine.", "coarse.")
    ]


def load_strict(net: HoVerNet, state_dict: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load a state dict; any mismatch is one line instead of pages of names.

    Raises:
        CheckpointError: names or shapes differ.
    """
    wanted = net.state_dict()
    missing = sorted(wanted.keys() - state_dict.keys())
    surplus = sorted(state_dict.keys() - wanted.keys())
    shapes = [name for name in wanted.keys() & state_dict.keys() if wanted[name].shape != state_dict[name].shape]
    problems = [
        f"{len(names)} {what} (first: {min(names)})"
        for what, names in (("missing", missing), ("unknown", surplus), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path}: weights do not fit the network: " + ", ".join(problems))
    net.load_state_dict(state_dict, strict=True)


def save_weights(path: str | Path, state_dict: dict[str, torch.Tensor], meta: dict[str, Any] | None = None) -> None:
    """Write `{"desc": state_dict, "meta": meta}` atomically: the file is complete or does not exist."""
    with atomic_path(path) as temporary:
        torch.save({"desc": dict(state_dict), **({"meta": meta} if meta else {})}, temporary)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights of a file of any kind, under the file's own names, and its `meta`.

    Raises:
        FileNotFoundError, CheckpointError: see `load_checkpoint`.
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder: a checkpoint named .tar is one file written by torch.save, do not unpack it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path), {}
    _check_archive(path)
    return (_read_npz(path), {}) if path.suffix == ".npz" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # its own error class, or that of a file that cannot be opened
        raise CheckpointError(f"{path}: is damaged or no .safetensors file ({first_line(error)})") from error


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    except Exception as error:  # a damaged archive raises zlib.error, struct.error, ...
        raise CheckpointError(f"{path}: not a readable .npz of arrays: {first_line(error)}") from error


def _read_torch(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with numpy_scalars():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise anything, struct.error included
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    weights = find_weights(content)
    tensors = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        found = ", ".join(map(str, weights))[:MAX_NAMES] or "nothing"
        raise CheckpointError(
            f"{path}: no weights in it, but {found}; they are looked for there and under {', '.join(WEIGHT_KEYS)}"
        )
    if not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path}: holds tensors whose names are not text: these are not weights of a network")
    return tensors, meta


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than the free memory; does nothing for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return
    if unpacked > MAX_UNPACKED * path.stat().st_size:
        raise CheckpointError(f"{path}: unpacks to {unpacked / 1e9:.3g} GB, too much for weights; is it damaged?")
    check_fits(unpacked, f"{path}: what it holds")


def _check_kinds(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_nested or value.is_quantized or value.layout != torch.strided or value.is_complex():
            raise CheckpointError(f"{path}: `{name}` is sparse, nested, quantized or complex; plain numbers are needed")


def _check_meta(path: Path, meta: dict[str, Any]) -> None:
    """Check the known entries of a checkpoint's `meta`; all others pass unchecked."""
    mpp, window, precision = (meta.get(name) for name in ("mpp", "window", "precision"))
    try:
        types_from_header(meta)
        if not (mpp is None or (isinstance(mpp, int | float) and MPP_UM[0] <= mpp <= MPP_UM[1])):
            raise ValueError(f"`mpp` must be from {MPP_UM[0]} to {MPP_UM[1]} um/px, got {mpp!r}")
        if not (window is None or (isinstance(window, int) and 0 < window <= MAX_WINDOW)):
            raise ValueError(f"`window` must be a whole number of px up to {MAX_WINDOW}, got {window!r}")
        if not (precision is None or isinstance(precision, str)):
            raise ValueError(f"`precision` must be a name, got {precision!r}")
    except ValueError as error:
        raise CheckpointError(f"{path}: its `meta` is not valid: {error}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; its class where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _why_unreadable(path: Path, error: Exception) -> str:
    if tarfile.is_tarfile(path):
        return "is a tar archive; a HoVer-Net checkpoint is a file of torch.save that is only named .tar"
    if path.name == "data.pkl" or (zipfile.is_zipfile(path) and not _has_pickle(path)):
        return "is one file of an unpacked checkpoint, or an archive of something else; name the file of torch.save"
    if "weights_only" in str(error).lower() or isinstance(error, pickle.UnpicklingError):
        objects = re.search(r"GLOBAL ([\w.]+)", str(error))
        return (
            f"is damaged, or no checkpoint, or holds Python objects{f' ({objects[1]})' if objects else ''} besides "
            "tensors, which are not loaded because loading them can run code; save its state dict alone and try again"
        )
    return f"is damaged or no checkpoint of torch.save ({first_line(error)})"


def _has_pickle(path: Path) -> bool:
    """Tell whether an archive may be torch's; `True` also where its list of files is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True


def _rename(path: Path, raw: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    prefixes = wrappers(raw)
    if len(prefixes) > 1:
        under = " and ".join(f"`{prefix}...`" if prefix else "no name" for prefix in prefixes)
        raise CheckpointError(f"{path}: holds several networks, under {under}; save one of them alone")
    raw = {name.removeprefix(*prefixes or [""]): value for name, value in raw.items() if name not in NO_WEIGHTS}
    try:
        if path.suffix == ".npz" and "conv0/W:0" in raw:
            family = "tensorflow"
            named = ((from_tensorflow(name), value) for name, value in raw.items())
            weights = {name: value.permute(3, 2, 0, 1) if value.ndim == 4 else value for name, value in named if name}
        elif any(name.startswith("res_blocks.") for name in raw):
            family = "monai"
            weights = {from_monai(name): value for name, value in raw.items() if "upsample" not in name}
        else:
            family, weights = "hovernet", dict(raw)
    except KeyError as error:
        raise CheckpointError(f"{path}: looks like {family} weights, but holds an unknown name {error}") from error
    weights = {n: v.float().contiguous() if v.is_floating_point() else v for n, v in weights.items()}
    return family, _with_buffers(weights)


def _with_buffers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the buffers that only PyTorch has: the counter of each batch norm, and the un-pooling matrix."""
    for name in [name for name in weights if name.endswith(".running_mean")]:
        weights.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0, dtype=torch.long))
    if _STEM in weights:
        weights.setdefault("upsample2x.unpool_mat", torch.ones(2, 2))
    return weights


def _check_finite(path: Path, weights: dict[str, torch.Tensor]) -> None:
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinite numbers in {len(bad)} of {len(weights)} tensors (first: {bad[0]}): its training "
            "diverged; take a checkpoint of an earlier epoch"
        )


def _describe(path: Path, weights: dict[str, torch.Tensor]) -> tuple[str, int | None, float]:
    if _STEM not in weights:
        found = ", ".join(weights)[:MAX_NAMES] or "nothing"
        raise CheckpointError(f"{path}: not a HoVer-Net checkpoint: no tensor `{_STEM}`, but {found}")
    if "decoder.np.u3.conva.weight" not in weights:
        raise CheckpointError(f"{path}: only an encoder (ImageNet weights); train it, or name a trained checkpoint")
    for name in (_STEM, "decoder.np.u3.conva.weight", "decoder.tp.u0.conv.weight"):
        if name in weights and (weights[name].ndim != 4 or 0 in weights[name].shape):
            raise CheckpointError(
                f"{path}: `{name}` has shape {tuple(weights[name].shape)}; that of a convolution is needed"
            )
    ksize = weights["decoder.np.u3.conva.weight"].shape[-1]
    if ksize not in _KSIZE_TO_MODE:
        raise CheckpointError(f"{path}: decoder kernels of {ksize} px are neither `original` (5) nor `fast` (3)")
    head = weights.get("decoder.tp.u0.conv.weight")
    width = weights[_STEM].shape[0] / _STEM_CHANNELS
    check_fits(_WIDTH_1_BYTES * width**2, f"{path}: a network of width {width:g}")
    return _KSIZE_TO_MODE[ksize], None if head is None else head.shape[0], width
