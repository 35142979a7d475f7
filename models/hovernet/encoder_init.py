"""Weights to start from: an ImageNet encoder, or a whole HoVer-Net to fine-tune.

Two families of pre-activation ResNet50 weights are known: the file the original recipe names
(`ImageNet-ResNet50-Preact_pytorch.tar`, our own tensor names without decoders), and timm's `resnetv2_50`.
Loading is strict: the tensors that may be missing or left over are listed here and logged; all others are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint, CheckpointError, load_checkpoint, read_tensors
from .net_desc import HoVerNet, create_model
from .two_scales import TwoScales
from .widen import widened

# Tensors of HoVer-Net that an ImageNet encoder does not have.
_NOT_IN_ENCODER = ("decoder.", "conv_bot.", "upsample2x.")
# Tensors that HoVer-Net does not use: the ImageNet classifier and TensorPack's counters.
_CLASSIFIER = ("head.", "fc.", "linear.", "classifier.")
# The layer of the TP branch whose shape is the number of types.
_TP_HEAD = "decoder.tp.u0.conv."
# Input that timm's `resnetv2_50.a1h_in1k` expects, for RGB from 0 to 1 (its model card).
TIMM_MEAN = TIMM_STD = (0.5, 0.5, 0.5)
_RENAMES_IN_TIMM_BLOCK = {
    "conv1": "conv1",
    "norm2": "conv1/bn",
    "conv2": "conv2",
    "norm3": "conv2/bn",
    "conv3": "conv3",
    "norm1": "preact/bn",
}
_NAMES_OF_WAYS_ON = (
    "what to do: put the file there; or name another one in `pretrained` of the recipe (the original "
    "Preact-ResNet50 file, timm's resnetv2_50 as .pth, .bin or .safetensors, or any HoVer-Net checkpoint); "
    "or `pretrained: None` to start from random weights"
)


def check_pretrained(path: str | Path) -> Path:
    """Return `path` if there is such a file.

    Raises:
        FileNotFoundError: the file does not exist; the message says what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no pretrained weights at {path}; {_NAMES_OF_WAYS_ON}")
    return path


def load_pretrained(
    net: HoVerNet, path: str | Path, normalisation: tuple | None = None, say: Callable[[str], None] = print
) -> None:
    """Fill `net` from an ImageNet encoder or a HoVer-Net checkpoint, whichever the file is.

    Args:
        net: the network; its TP branch may have another number of types than the checkpoint's.
        path: `.tar`, `.pth`, `.bin`, `.safetensors` or `.npz`.
        normalisation: (mean, std), three numbers each, of RGB from 0 to 1 that an encoder expects; `None` takes 0.5 for
            timm's, and nothing for the original file, as upstream does.
        say: called with one line on what was loaded and what stays random.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is neither, or does not fit.
    """
    path = check_pretrained(path)
    encoder = _read_encoder(path)
    if encoder is None:
        state, note = _weights_for(net, load_checkpoint(path))
        say(f"{path}: {note}{load_for_finetuning(net, state)}")
        return
    if any(name.startswith("stages.") for name in encoder):
        encoder = convert_timm(encoder)
        normalisation = normalisation or (TIMM_MEAN, TIMM_STD)
    load_encoder(net, encoder, path, normalisation)
    say(f"{path}: ImageNet encoder loaded; conv_bot and the decoders start from random weights")


def _weights_for(net: HoVerNet, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], str]:
    """Return a checkpoint's tensors, widened if `net` is wider, and a note on that."""
    if checkpoint.mode == TwoScales.mode:
        raise CheckpointError(
            f"{checkpoint.path}: holds two networks, and a training goes on from one; name a file of one of them"
        )
    if checkpoint.mode != net.mode or checkpoint.width >= net.width:
        return checkpoint.state_dict, ""
    narrow = create_model(mode=checkpoint.mode, nr_types=checkpoint.nr_types, width=checkpoint.width)
    narrow.load_state_dict(checkpoint.state_dict)
    return widened(narrow, net.width).state_dict(), f"grown from width {checkpoint.width} to {net.width}; "


def convert_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of timm's `resnetv2_50` to HoVer-Net's; the classifier is left out.

    timm keeps the normalisation before a stage as `norm1` of its first block; in HoVer-Net it ends the module before:
    `conv0.bn` for the first stage, `d<n-1>.blk_bna.bn` for the others, and timm's last `norm` is `d3.blk_bna.bn`.

    Raises:
        CheckpointError: a name that is not timm's.
    """
    return {_timm_name(name): value for name, value in state.items() if not name.startswith(_CLASSIFIER)}


def _timm_name(name: str) -> str:
    if name == "stem.conv.weight":
        return "conv0./.weight"
    if name.startswith("norm."):
        return name.replace("norm.", "d3.blk_bna.bn.", 1)
    match = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(downsample\.conv|conv\d|norm\d)\.(\w+)", name)
    if match is None:
        raise CheckpointError(f"`{name}` is no tensor of timm's resnetv2_50 (pre-activation, BatchNorm)")
    stage, block, layer, tensor = int(match[1]), int(match[2]), match[3], match[4]
    if layer == "downsample.conv":
        return f"d{stage}.shortcut.{tensor}"
    if layer == "norm1" and block == 0:
        return f"conv0.bn.{tensor}" if stage == 0 else f"d{stage - 1}.blk_bna.bn.{tensor}"
    return f"d{stage}.units.{block}.{_RENAMES_IN_TIMM_BLOCK[layer]}.{tensor}"


def fold_normalisation(state: dict[str, Tensor], mean, std) -> dict[str, Tensor]:
    """Fold `(x - mean) / std` into `conv0` and its batch norm, so that the network takes x from 0 to 1.

    conv(( x - m) / s) = conv'(x) + b with conv' = conv / s and b = -sum(conv' * m); the batch norm after it subtracts
    its running mean, and b goes into that. Exact wherever the convolution sees no zero padding.
    """
    mean = torch.as_tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    weight = state["conv0./.weight"]
    scaled = weight.double() / std  # (out, 3, 7, 7)
    shift = (scaled * mean).sum((1, 2, 3))  # -b, (out,)
    running_mean = state["conv0.bn.running_mean"]
    return {
        **state,
        "conv0./.weight": scaled.to(weight.dtype),
        "conv0.bn.running_mean": (running_mean.double() + shift).to(running_mean.dtype),
    }


def load_encoder(
    net: HoVerNet, state: dict[str, Tensor], source: str | Path = "the encoder", normalisation: tuple | None = None
) -> None:
    """Load exactly the encoder; the decoders and `conv_bot` keep their random weights.

    Args:
        net: the network.
        state: the encoder's tensors under HoVer-Net's names.
        source: where they came from, for the message.
        normalisation: (mean, std) to fold in, see `fold_normalisation`; `None` folds nothing.

    Raises:
        CheckpointError: other tensors than those are missing, some are left over, or shapes differ.
    """
    own = net.state_dict()
    # TensorFlow has no counters of batches; they change nothing at HoVer-Net's fixed momentum
    missing = [
        name
        for name in own
        if name not in state and not name.startswith(_NOT_IN_ENCODER) and not name.endswith("num_batches_tracked")
    ]
    unknown = [name for name in state if name not in own and not name.startswith(_CLASSIFIER)]
    wrong = [name for name, value in state.items() if name in own and value.shape != own[name].shape]
    if missing or unknown or wrong:
        raise CheckpointError(
            f"{source} is no encoder for this network: {_list('missing', missing)}{_list('unknown', unknown)}"
            f"{_list('of another shape', wrong)}(width {net.width}; ImageNet weights fit width 1.0 alone)"
        )
    if normalisation is not None:
        state = fold_normalisation(state, *normalisation)
    net.load_state_dict({**own, **{name: value for name, value in state.items() if name in own}})


def load_for_finetuning(net: HoVerNet, state: dict[str, Tensor]) -> str:
    """Load a HoVer-Net checkpoint; only a TP head that does not fit is left as it is.

    Returns:
        One line on what was loaded and what was not.

    Raises:
        CheckpointError: anything but the TP branch differs.
    """
    own = net.state_dict()
    new = [name for name in own if name not in state]
    dropped = [name for name in state if name not in own]
    resized = [name for name in own if name in state and own[name].shape != state[name].shape]
    typing = [name for name in new + dropped if not name.startswith("decoder.tp.")]
    if typing or any(not name.startswith(_TP_HEAD) for name in resized):
        raise CheckpointError(
            "the pretrained checkpoint is of another network: "
            + _list("missing", [n for n in new if n in typing])
            + _list("unknown", [n for n in dropped if n in typing])
            + _list("of another shape", resized)
            + f"(this network: mode `{net.mode}`, width {net.width})"
        )
    net.load_state_dict(
        {**own, **{name: value for name, value in state.items() if name in own and name not in resized}}
    )
    if new:
        return f"checkpoint without types; the whole TP branch ({net.nr_types} types) starts from random weights"
    if dropped:
        return "checkpoint with types; its TP branch is left out, this network has none"
    if resized:
        found = state[resized[0]].shape[0]
        return f"checkpoint of {found} types, this network has {net.nr_types}: the TP head is new, the rest is loaded"
    return "every tensor loaded"


def _read_encoder(path: Path) -> dict[str, Tensor] | None:
    """Read an encoder file; `None` where the file is something else."""
    if path.suffix == ".npz":
        return None
    tensors, _ = read_tensors(path)
    state = {name.removeprefix("module."): value for name, value in tensors.items()}
    is_timm = "stem.conv.weight" in state
    is_original = "conv0./.weight" in state and not any(name.startswith("decoder.") for name in state)
    return state if is_timm or is_original else None


def _list(what: str, names: list[str]) -> str:
    """Name the first few tensors; pages of them help nobody."""
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); "
