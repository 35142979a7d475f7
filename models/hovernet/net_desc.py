"""HoVer-Net: a pre-activation ResNet50 encoder and one decoder for each of NP, HV and (with types) TP.

Graham et al., Medical Image Analysis 58 (2019) 101563. `original` is the network of the paper (5x5 kernels in
the decoders, no padding in the first convolution); `fast` is the authors' lighter one (3x3, padded).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .net_utils import BN_EPS, DenseBlock, Net, ResidualBlock, TFSamepaddingLayer, UpSample2x, crop_op, grad_if

# Side of a patch, px: input and output. `two_scales` are two `fast` networks (two_scales.py).
PATCH_SHAPES: dict[str, tuple[int, int]] = {"original": (270, 80), "fast": (256, 164), "two_scales": (264, 124)}
# Windows differ by multiples of it: the encoder halves its input three times, and two thirds must be whole, too.
WINDOW_STEPS = {"original": 8, "fast": 8, "two_scales": 24}
# Px cut off the skip connections d0 and d1, both sides together; follows from the valid convolutions.
_SKIP_CROP = {"original": (184, 72), "fast": (92, 36)}
_DECODER_KSIZE = {"original": 5, "fast": 3}
# The narrowest layer has 32 channels in 4 groups: widths are multiples of an eighth.
_WIDTH_STEP = 0.125


def output_size(mode: str, input_size: int) -> int:
    """Return the side of the output for a window of `input_size` px.

    The encoder halves its input three times, so a window is 8n px (`fast`), 8n + 6 px (`original`, whose
    first convolution takes 6 px) or 24n px (`two_scales`).

    Raises:
        ValueError: the network cannot take that window; the message names the nearest possible ones.
    """
    patch_in, patch_out = PATCH_SHAPES[mode]
    lost, step = patch_in - patch_out, WINDOW_STEPS[mode]
    offset = patch_in % step
    smallest = lost + step - (lost - offset) % step
    if input_size % step != offset or input_size < smallest:
        below = max(input_size - (input_size - offset) % step, smallest)
        raise ValueError(
            f"mode `{mode}` takes windows of {step}n + {offset} px from {smallest} px on; got {input_size}, "
            f"try {below} or {below + step}"
        )
    return input_size - lost


class HoVerNet(Net):
    """The network.

    Args:
        input_ch: channels of the input image.
        nr_types: number of nuclear types with the background; `None` leaves the TP branch out.
        freeze: train with the residual units of the encoder fixed (the recipe's first phase).
        mode: `original` or `fast`.
        width: multiplier on every channel count, a multiple of 1/8; 1.0 is HoVer-Net.

    Raises:
        ValueError: unknown mode, or a width that is no positive multiple of 1/8.
    """

    def __init__(
        self,
        input_ch: int = 3,
        nr_types: int | None = None,
        freeze: bool = False,
        mode: str = "original",
        width: float = 1.0,
    ):
        super().__init__()
        if mode not in _DECODER_KSIZE:
            raise ValueError(f"unknown mode `{mode}`; choose `original` or `fast`")
        if width <= 0 or width % _WIDTH_STEP:
            raise ValueError(f"width must be a positive multiple of {_WIDTH_STEP}, got {width}")
        self.mode = mode
        self.freeze = freeze
        self.nr_types = nr_types
        self.width = width
        self.output_ch = 3 if nr_types is None else 4

        def ch(count: int) -> int:
            return int(count * width)

        stem = [
            ("/", nn.Conv2d(input_ch, ch(64), 7, bias=False)),
            ("bn", nn.BatchNorm2d(ch(64), eps=BN_EPS)),
            ("relu", nn.ReLU(inplace=True)),
        ]
        if mode == "fast":
            stem.insert(0, ("pad", TFSamepaddingLayer(ksize=7, stride=1)))
        self.conv0 = nn.Sequential(OrderedDict(stem))
        self.d0 = ResidualBlock(ch(64), [1, 3, 1], [ch(64), ch(64), ch(256)], 3, stride=1)
        self.d1 = ResidualBlock(ch(256), [1, 3, 1], [ch(128), ch(128), ch(512)], 4, stride=2)
        self.d2 = ResidualBlock(ch(512), [1, 3, 1], [ch(256), ch(256), ch(1024)], 6, stride=2)
        self.d3 = ResidualBlock(ch(1024), [1, 3, 1], [ch(512), ch(512), ch(2048)], 3, stride=2)
        self.conv_bot = nn.Conv2d(ch(2048), ch(1024), 1, bias=False)

        # Order of the branches = order of the channels in the prediction map.
        branches = {"np": 2, "hv": 2} if nr_types is None else {"tp": nr_types, "np": 2, "hv": 2}
        self.decoder = nn.ModuleDict(
            {name: _decoder_branch(out_ch, _DECODER_KSIZE[mode], ch) for name, out_ch in branches.items()}
        )
        self.upsample2x = UpSample2x()
        self.weights_init()

    def forward(self, imgs: Tensor) -> OrderedDict[str, Tensor]:
        """Run the network.

        Args:
            imgs: (B, 3, H, W) float, RGB, 0-255; H and W as `output_size` says.

        Returns:
            Logits of `tp` (B, nr_types, h, w) (typed networks) and `np` (B, 2, h, w), and `hv` (B, 2, h, w),
            x then y, about -1 to 1; h = H - 92 (`fast`) or H - 190 (`original`).
        """
        # shapes: `fast` at 256 px; `original` at 270 px
        imgs = imgs / 255.0
        d0 = self.d0(self.conv0(imgs), self.freeze)  # (B, 256, 256, 256); 264
        with grad_if(not (self.freeze and self.training)):
            d1 = self.d1(d0)  # (B, 512, 128, 128); 132
            d2 = self.d2(d1)  # (B, 1024, 64, 64); 66
            d3 = self.d3(d2)  # (B, 2048, 32, 32); 33
        d3 = self.conv_bot(d3)  # (B, 1024, 32, 32); 33
        crop0, crop1 = _SKIP_CROP[self.mode]
        d0 = crop_op(d0, (crop0, crop0))  # 164; 80
        d1 = crop_op(d1, (crop1, crop1))  # 92; 60

        bottom = self.upsample2x(d3).add_(d2)  # the same for every branch
        out = OrderedDict()
        for name, branch in self.decoder.items():
            x = branch.u3(bottom)  # (B, 512, 46, 46); 30
            x = branch.u2(self.upsample2x(x).add_(d1))  # (B, 256, 82, 82); 40
            x = branch.u1(self.upsample2x(x).add_(d0))  # (B, 64, 164, 164); 80
            out[name] = branch.u0(x)
        return out


def _decoder_branch(out_ch: int, ksize: int, ch) -> nn.Sequential:
    u3 = [
        ("conva", nn.Conv2d(ch(1024), ch(256), ksize, bias=False)),
        ("dense", DenseBlock(ch(256), [1, ksize], [ch(128), ch(32)], 8, split=4)),
        ("convf", nn.Conv2d(ch(512), ch(512), 1, bias=False)),
    ]
    u2 = [
        ("conva", nn.Conv2d(ch(512), ch(128), ksize, bias=False)),
        ("dense", DenseBlock(ch(128), [1, ksize], [ch(128), ch(32)], 4, split=4)),
        ("convf", nn.Conv2d(ch(256), ch(256), 1, bias=False)),
    ]
    u1 = [
        ("conva/pad", TFSamepaddingLayer(ksize=ksize, stride=1)),
        ("conva", nn.Conv2d(ch(256), ch(64), ksize, bias=False)),
    ]
    u0 = [
        ("bn", nn.BatchNorm2d(ch(64), eps=BN_EPS)),
        ("relu", nn.ReLU(inplace=True)),
        ("conv", nn.Conv2d(ch(64), out_ch, 1)),
    ]
    units = {"u3": u3, "u2": u2, "u1": u1, "u0": u0}
    return nn.Sequential(OrderedDict((name, nn.Sequential(OrderedDict(layers))) for name, layers in units.items()))


def create_model(mode: str | None = None, **kwargs) -> HoVerNet:
    """Create a network with random weights; the arguments are `HoVerNet`'s.

    Raises:
        ValueError: unknown mode.
    """
    if mode is None:
        raise ValueError("create_model needs a mode: `original` or `fast`")
    return HoVerNet(mode=mode, **kwargs)


def to_inference(net: HoVerNet, device: torch.device | str) -> HoVerNet:
    """Move a network to `device` for prediction: evaluation mode, channels-last, no gradients."""
    return net.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)
