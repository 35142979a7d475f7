"""Rules that map the names of HoVer-Net's weights in other repositories to ours.

TensorFlow (`.npz`, the authors' first repository): `group0/block1/conv1/bn/gamma:0`.
MONAI (`monai.networks.nets.HoVerNet`): `res_blocks.d0.layers.denselayer_1.layers.conv1/bn.weight`.
Ours, which are the original PyTorch repository's: `d0.units.1.conv1/bn.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Keys for the weights in a checkpoint; the first one that is there counts.
WEIGHT_KEYS = ("desc", "state_dict", "model_state_dict", "model", "network", "net", "ema")
_NESTED = 3  # how deep, e.g. model, then state_dict
# Extra tensors of a wrapper of the network: the counter of torch's averaged models.
NO_WEIGHTS = ("n_averaged",)
# Prefixes that DataParallel, torch.compile, Lightning and averaged models add to the names of weights.
_WRAPPERS = re.compile(r"((module|model|network|net|ema|_orig_mod)\.)*")
_STEMS = ("conv0./.weight", "conv0.conv.weight")  # ours and MONAI's

_TF_VALUES = {
    "W": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
    "mean/EMA": "running_mean",
    "variance/EMA": "running_var",
}
_TF_VALUE = "(?P<value>" + "|".join(re.escape(name) for name in _TF_VALUES) + ")"
_BRANCH = "(?P<branch>tp|np|hv)"
_TF_RULES = [
    (re.compile(pattern + f"/{_TF_VALUE}$"), template)
    for pattern, template in (
        (r"conv0", "conv0./"),
        (r"conv0/bn", "conv0.bn"),
        (r"group(?P<g>\d)/block0/convshortcut", "d{g}.shortcut"),
        (r"group(?P<g>\d)/block(?P<i>\d+)/(?P<layer>(?:preact|conv\d)(?:/bn)?)", "d{g}.units.{i}.{layer}"),
        (r"group(?P<g>\d)/bnlast/bn", "d{g}.blk_bna.bn"),
        (r"conv_bot", "conv_bot"),
        (_BRANCH + r"/(?P<u>u\d)/(?P<layer>conv[af])", "decoder.{branch}.{u}.{layer}"),
        (
            _BRANCH + r"/(?P<u>u\d)/dense/blk/(?P<i>\d+)/(?P<layer>(?:preact_bna|conv\d)(?:/bn)?)",
            "decoder.{branch}.{u}.dense.units.{i}.{layer}",
        ),
        (_BRANCH + r"/(?P<u>u\d)/dense/blk_bna/bn", "decoder.{branch}.{u}.dense.blk_bna.bn"),
        (r"preact_out_" + _BRANCH + r"/bn", "decoder.{branch}.u0.bn"),
        (r"conv_out_" + _BRANCH, "decoder.{branch}.u0.conv"),
    )
]
# Tensors that TensorPack saves besides the network: ImageNet's classifier, counters, optimiser slots.
_TF_NOT_WEIGHTS = re.compile(r"^linear/|global_step|learning_rate|beta\d_power|/Adam(_\d)?$|^EMA/|-summary")

_MONAI_BRANCHES = {"nucleus_prediction": "np", "horizontal_vertical": "hv", "type_prediction": "tp"}
_MONAI_BRANCH = "^(?P<branch>" + "|".join(_MONAI_BRANCHES) + ")"
_MONAI_RULES = [
    (re.compile(pattern), template)
    for pattern, template in (
        (r"^conv0\.conv\.(?P<rest>.+)$", "conv0./.{rest}"),
        (r"^(?P<rest>conv0\.bn\..+)$", "{rest}"),
        (r"^res_blocks\.d(?P<g>\d)\.layers\.denselayer_(?P<i>\d+)\.layers\.(?P<rest>.+)$", "d{g}.units.{i}.{rest}"),
        (r"^res_blocks\.d(?P<g>\d)\.bna_block\.(?P<rest>.+)$", "d{g}.blk_bna.{rest}"),
        (r"^res_blocks\.d(?P<g>\d)\.shortcut\.(?P<rest>.+)$", "d{g}.shortcut.{rest}"),
        (r"^bottleneck\.conv_bottleneck\.(?P<rest>.+)$", "conv_bot.{rest}"),
        (
            _MONAI_BRANCH
            + r"\.decoder_blocks\.decoderblock(?P<n>\d)\.denselayerdecoder(?P<i1>\d+)\.layers\.(?P<rest>.+)$",
            "decoder.{branch}.u{u}.dense.units.{i}.{rest}",
        ),
        (
            _MONAI_BRANCH + r"\.decoder_blocks\.decoderblock(?P<n>\d)\.bna_block\.(?P<rest>.+)$",
            "decoder.{branch}.u{u}.dense.blk_bna.{rest}",
        ),
        (
            _MONAI_BRANCH + r"\.(?:decoder_blocks|output_features)\.decoderblock(?P<n>\d)\.(?P<rest>conv.*|bn\..+)$",
            "decoder.{branch}.u{u}.{rest}",
        ),
    )
]


def find_weights(content: dict) -> dict:
    """Return the dictionary with the weights in a checkpoint's content; the content itself where no key is known."""
    for _ in range(_NESTED):
        content = next((content[key] for key in WEIGHT_KEYS if isinstance(content.get(key), dict)), content)
    return content


def wrappers(names: Iterable[str]) -> list[str]:
    """Return the prefix of each network among the tensors: `module.`, `model._orig_mod.`, or nothing."""
    heads = {name.removesuffix(stem) for name in names for stem in _STEMS if name.endswith(stem)}
    return sorted(head for head in heads if _WRAPPERS.fullmatch(head))


def from_tensorflow(name: str) -> str | None:
    """Return our name of a TensorFlow variable; `None` for one that is no weight of the network.

    Raises:
        KeyError: no rule knows the name.
    """
    name = name.removesuffix(":0")
    if _TF_NOT_WEIGHTS.search(name):
        return None
    for pattern, template in _TF_RULES:
        match = pattern.match(name)
        if match:
            return template.format(**match.groupdict()) + "." + _TF_VALUES[match["value"]]
    raise KeyError(name)


def from_monai(name: str) -> str:
    """Return our name of a tensor of MONAI's HoVerNet.

    Raises:
        KeyError: no rule knows the name.
    """
    for pattern, template in _MONAI_RULES:
        match = pattern.match(name)
        if match:
            parts = match.groupdict()
            if "n" in parts:  # MONAI counts decoder blocks up from 1, we count resolution down from u3
                parts["u"] = 4 - int(parts["n"])
                parts["branch"] = _MONAI_BRANCHES[parts["branch"]]
            if "i1" in parts:
                parts["i"] = int(parts["i1"]) - 1
            return template.format(**parts).replace("conv1/norm.", "conv1/bn.")
    raise KeyError(name)
