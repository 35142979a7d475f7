"""Imports an unmodified checkout of the original repository beside ours, in one process.

Both have packages of the same names (`models`, `misc`, ...), and the original was written for Python 3.6, NumPy 1.19
and CUDA. This module restores, from outside, what today's libraries lack for it; the checkout stays unchanged.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from skimage import morphology

# Top-level names that both repositories have.
_SHARED_NAMES = (
    "compute_stats",
    "config",
    "convert_format",
    "dataloader",
    "dataset",
    "extract_patches",
    "infer",
    "metrics",
    "misc",
    "models",
    "run_utils",
)
# Packages that the original imports and that none of the compared functions needs.
_STUBS = ("pandas", "psutil", "sklearn", "sklearn.metrics", "tensorboardX", "termcolor")
# Arguments for runs of both, on images or slides: batches for a CPU, no processes, the patches of mode `fast`.
RUN_ARGS = {
    "batch_size": 4,
    "nr_inference_workers": 0,
    "nr_post_proc_workers": 0,
    "patch_input_shape": 256,
    "patch_output_shape": 164,
}


class Upstream:
    """The original repository's modules: `upstream.load("models.hovernet.post_proc")`.

    Args:
        folder: its checkout.
        device: the device for its literal `"cuda"`.

    Raises:
        FileNotFoundError: `folder` is not such a checkout.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        self.folder = Path(folder).resolve()
        if not (self.folder / "models" / "hovernet" / "net_desc.py").is_file():
            raise FileNotFoundError(
                f"{folder} is not a checkout of the original repository (it lacks models/hovernet/net_desc.py)"
            )
        self.device = device
        self._modules: dict[str, types.ModuleType] = {}
        self._is_active = False

    def load(self, name: str) -> types.ModuleType:
        """Import one of its modules."""
        with self.active():
            return importlib.import_module(name)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While the block runs, imports find the original's modules, and `"cuda"` means `device`."""
        if self._is_active:
            yield
            return
        self._is_active = True
        ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] in _SHARED_NAMES}
        for name in ours:
            del sys.modules[name]
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.folder))
        try:
            with _todays_libraries(), _no_cuda_literal(self.device):
                yield
        finally:
            sys.path.remove(str(self.folder))
            self._modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] in _SHARED_NAMES}
            for name in self._modules:
                del sys.modules[name]
            sys.modules.update(ours)
            self._is_active = False


@contextlib.contextmanager
def _todays_libraries() -> Iterator[None]:
    """Restore what today's libraries dropped, and undo that the original's import silences `warnings`."""
    warn = warnings.warn
    for name in _STUBS:
        if name not in sys.modules and _is_missing(name.split(".")[0]):
            sys.modules[name] = _Stub(name)
    np.lib.pad = np.pad
    remove_small = morphology.remove_small_objects

    def remove_smaller(ar, min_size=64, **kwargs):
        # before scikit-image 0.26, an object of `min_size` px stayed
        return remove_small(ar, max_size=min_size - 1, **kwargs)

    morphology.remove_small_objects = remove_smaller
    open_memmap = np.lib.format.open_memmap

    def open_memmap_of_ints(*args, shape=None, **kwargs):
        # NumPy 2 writes its own integers into the header as np.int64(...), and cannot read that
        return open_memmap(*args, shape=None if shape is None else tuple(map(int, shape)), **kwargs)

    np.lib.format.open_memmap = open_memmap_of_ints
    with_sctypes = not hasattr(np, "sctypes")
    if with_sctypes:  # imgaug 0.4.0
        np.sctypes = {"float": [np.float16, np.float32, np.float64], "int": [np.int8, np.int16, np.int32, np.int64]}
        np.sctypes["uint"] = [np.uint8, np.uint16, np.uint32, np.uint64]
    try:
        yield
    finally:
        warnings.warn = warn
        del np.lib.pad
        morphology.remove_small_objects = remove_small
        np.lib.format.open_memmap = open_memmap
        if with_sctypes:
            del np.sctypes


def _is_missing(package: str) -> bool:
    return isinstance(sys.modules.get(package), _Stub) or importlib.util.find_spec(package) is None


class _Stub(types.ModuleType):
    """A package that is not installed: every name in it is `_Anything`."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)  # other packages read it

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Anything:
    """Stands for any name of a package that is not installed; `available` is psutil's free memory."""

    available = 1 << 36

    def __call__(self, *args, **kwargs):
        return self

    def __getattr__(self, name):
        return self


@contextlib.contextmanager
def _no_cuda_literal(device: str) -> Iterator[None]:
    """Let `.to("cuda")` mean `.to(device)`, and `arange(..., device="cuda")` likewise."""
    if device == "cuda":
        yield
        return
    originals = [(owner, owner.to) for owner in (torch.Tensor, torch.nn.Module)]

    def redirect(to):
        return lambda self, *args, **kwargs: to(self, *(device if a == "cuda" else a for a in args), **kwargs)

    arange = torch.arange
    for owner, to in originals:
        owner.to = redirect(to)
    torch.arange = lambda *args, **kwargs: arange(*args, **{**kwargs, "device": device})
    try:
        yield
    finally:
        torch.arange = arange
        for owner, to in originals:
            owner.to = to
