"""Data sets: how each stores its images and labels. One small class a data set; a new one is a class and a line below.

`load_img(path)` returns (H, W, 3) uint8 RGB; `load_ann(path, with_type)` returns (H, W, 1) int32 instance ids, or
(H, W, 2) with the type of each pixel behind them. 0 is background in both.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import scipy.io

from metrics.type_maps import MERGES
from misc.files import atomic_path
from misc.formats.labels import keys_of, read_label, types_by_id
from misc.slides.images import read_image


class Dataset:
    """Images in any format, labels as `.mat` with `inst_map`, and `type_map` or a list of types; base of the others.

    Attributes:
        typed: whether labels have types; `None` where it depends on the files.
        type_names: name of each type that training sees, where the data set fixes them.
        merge: types that become one: `{type of the patches: types of the file}`.
    """

    typed: bool | None = None
    type_names: dict[int, str] = {}  # noqa: RUF012 - a table that subclasses replace, never changed
    merge: dict[int, tuple[int, ...]] = {}  # noqa: RUF012
    # names of the list of types, and of the instance ids that it belongs to, in label files without a type map
    type_key, uid_key = "inst_type", "inst_uid"

    def load_img(self, path: str | Path) -> np.ndarray:
        """Read an image of any kind that OpenCV decodes; returns (H, W, 3) uint8 RGB.

        Raises:
            ValueError: it cannot be read; the message says why.
        """
        return read_image(Path(path))

    def load_ann(self, path: str | Path, with_type: bool = False) -> np.ndarray:
        """Read a label.

        Returns:
            (H, W, 1) int32 instance ids, or (H, W, 2) with types.

        Raises:
            ValueError: the file cannot be read, or lacks what is asked for.
        """
        content = read_label(path)
        inst_map = _whole_numbers(content, "inst_map")
        if not with_type:
            return inst_map[..., None]
        if self.typed is False:
            raise ValueError("this data set has no types; use --no_type")
        types = self.load_types(content, inst_map)
        merged = types.copy()
        for new, olds in self.merge.items():
            merged[np.isin(types, olds)] = new
        return np.stack([inst_map, merged], axis=-1)

    def load_types(self, content: dict, inst_map: np.ndarray) -> np.ndarray:
        """Return the type of every pixel, (H, W) int32, as the file has it."""
        if "type_map" in content:
            type_map = _whole_numbers(content, "type_map")
            if type_map.shape != inst_map.shape:
                raise ValueError(f"type_map is {type_map.shape}, inst_map {inst_map.shape}; they must be one size")
            return type_map
        if self.type_key not in content:
            raise ValueError(
                f"has neither type_map nor {self.type_key}, so no types; use --no_type. It holds {keys_of(content)}"
            )
        ids = np.unique(inst_map[inst_map > 0])
        uids, types = types_by_id(content, ids, self.type_key, self.uid_key)
        table = np.zeros(max(int(inst_map.max(initial=0)), int(uids.max(initial=0))) + 1, np.int32)
        table[uids] = types
        return table[inst_map]


class Kumar(Dataset):
    """Kumar et al., IEEE Transactions on Medical Imaging 36(7), 2017: 7 organs at 40x, no types."""

    typed = False


class CPM17(Dataset):
    """CPM 2017 (Vu et al., Frontiers in Bioengineering and Biotechnology 7, 2019), no types."""

    typed = False


class CoNSeP(Dataset):
    """CoNSeP (Graham et al., Medical Image Analysis 58, 2019): seven types, merged to the paper's four."""

    typed = True
    type_names = {1: "miscellaneous", 2: "inflammatory", 3: "epithelial", 4: "spindle"}  # noqa: RUF012
    merge = MERGES["consep"]  # 3: healthy, malignant epithelial; 4: fibroblast, muscle, endothelial


class PanNuke(Dataset):
    """PanNuke (Gamper et al., 2020): 256 px at 40x, 19 tissues; `unpack` makes `.mat` labels of its arrays."""

    typed = True
    type_names = {  # noqa: RUF012
        1: "neoplastic",
        2: "inflammatory",
        3: "connective",
        4: "dead",
        5: "non-neoplastic epithelial",
    }

    @staticmethod
    def label_of(masks: np.ndarray) -> tuple[np.ndarray, int]:
        """Turn one entry of `masks.npy` into a label.

        Args:
            masks: (H, W, 6) instance ids of each of the five types; the last channel, background, is not used.

        Returns:
            (H, W, 2) int32 instances and types, and the number of nuclei that others hide altogether. Where two overlap
            the smaller one is on top.

        Raises:
            ValueError: another shape.
        """
        if masks.ndim != 3 or masks.shape[2] != 6:
            raise ValueError(f"masks have shape {masks.shape}; (H, W, 6) is needed, five types and background")
        planes = np.zeros(masks.shape[:2] + (5,), np.int64)
        sizes = [0]  # pixels of each nucleus, by its new id
        for channel in range(5):
            ids, new, counts = np.unique(masks[..., channel], return_inverse=True, return_counts=True)
            numbers = np.where(ids > 0, np.cumsum(ids > 0) + len(sizes) - 1, 0)
            planes[..., channel] = numbers[new].reshape(masks.shape[:2])
            sizes += counts[ids > 0].tolist()
        size_of = np.array(sizes, np.float64)
        size_of[0] = np.inf  # background is under everything
        top = size_of[planes].argmin(axis=-1)
        inst_map = np.take_along_axis(planes, top[..., None], axis=-1)[..., 0]
        label = np.stack([inst_map, np.where(inst_map > 0, top + 1, 0)], axis=-1).astype(np.int32)
        return label, len(sizes) - 1 - np.count_nonzero(np.unique(inst_map))

    @staticmethod
    def unpack(images: str | Path, masks: str | Path, out_dir: str | Path, overwrite: bool = False, track=lambda x: x):
        """Write `images.npy` and `masks.npy` as `Images/00000.png` and `Labels/00000.mat`, one image at a time.

        Args:
            images: (N, H, W, 3), 0 to 255 of any type.
            masks: (N, H, W, 6).
            out_dir: folder to write to.
            overwrite: replace files that exist; otherwise those of the same arrays stay.
            track: wraps the range of numbers, for a progress bar.

        Returns:
            Number of images written, of images that were there, and of nuclei hidden under others.

        Raises:
            ValueError: the arrays do not fit each other, or what is there is of others (another fold).
            FileNotFoundError: one is missing.
        """
        pictures, labels, out_dir = _open_npy(images), _open_npy(masks), Path(out_dir)
        if pictures.ndim != 4 or pictures.shape[3] != 3 or labels.shape != (*pictures.shape[:3], 6):
            raise ValueError(
                f"{images} has shape {pictures.shape} and {masks} {labels.shape}; "
                "(N, H, W, 3) and (N, H, W, 6) are needed"
            )
        for name in ("Images", "Labels"):
            (out_dir / name).mkdir(parents=True, exist_ok=True)
        written = hidden = 0
        for index in track(range(len(pictures))):
            png, mat = out_dir / "Images" / f"{index:05d}.png", out_dir / "Labels" / f"{index:05d}.mat"
            image = np.clip(np.rint(pictures[index]), 0, 255).astype(np.uint8)
            if png.exists() and not overwrite:
                if not _shows(png, image):
                    raise ValueError(f"{png} is from other arrays or damaged; another --output_dir, or --overwrite")
                if mat.exists():
                    continue
            label, lost = PanNuke.label_of(labels[index])
            with atomic_path(mat) as temporary:
                scipy.io.savemat(temporary, _label_lists(label), do_compression=True)
            with atomic_path(png) as temporary:
                temporary.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
            written, hidden = written + 1, hidden + lost
        return written, len(pictures) - written, hidden


class MoNuSAC(Dataset):
    """MoNuSAC 2020 (Verma et al., 2021), 40x; labels as `.mat`."""

    typed = True
    type_names = {1: "epithelial", 2: "lymphocyte", 3: "macrophage", 4: "neutrophil"}  # noqa: RUF012


class Lizard(Dataset):
    """Lizard (Graham et al., ICCV workshops 2021), colon at 20x; `class` holds the type of each instance in `id`."""

    typed = True
    type_names = {  # noqa: RUF012
        1: "neutrophil",
        2: "epithelial",
        3: "lymphocyte",
        4: "plasma",
        5: "eosinophil",
        6: "connective",
    }
    type_key, uid_key = "class", "id"


# The names that config.py and --dataset take; `mat` is a folder of your own labels, as GenerateMasks.py writes them.
DATASETS: dict[str, type[Dataset]] = {
    "kumar": Kumar,
    "cpm17": CPM17,
    "consep": CoNSeP,
    "pannuke": PanNuke,
    "monusac": MoNuSAC,
    "lizard": Lizard,
    "mat": Dataset,
}


def get_dataset(name: str) -> Dataset:
    """Return the data set of that name; upper and lower case are the same.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name.lower() not in DATASETS:
        raise ValueError(f"unknown data set `{name}`; there is {', '.join(DATASETS)} (dataset.py)")
    return DATASETS[name.lower()]()


def _whole_numbers(content: dict, key: str) -> np.ndarray:
    """Return a map of the file, (H, W) int32; MATLAB users often save whole numbers as double."""
    if key not in content:
        raise ValueError(f"has no {key}; it holds {keys_of(content)}")
    values = np.asarray(content[key])
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(f"{key} has shape {values.shape} and type {values.dtype}; (H, W) of numbers is needed")
    result = values.astype(np.int32)
    if not np.array_equal(result, values) or result.min(initial=0) < 0:
        raise ValueError(f"{key} holds numbers that are no ids (negative or fractional)")
    return result


def _open_npy(path: str | Path) -> np.ndarray:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no readable .npy array: {error}") from error


def _shows(png: Path, image: np.ndarray) -> bool:
    try:
        return np.array_equal(read_image(png), image)
    except ValueError:
        return False


def _label_lists(label: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a label file holds (`inst_map`, `type_map`, `inst_uid`, `inst_type`, `inst_centroid` x, y)."""
    ys, xs = np.nonzero(label[..., 0])
    ids, first, which, area = np.unique(label[ys, xs, 0], return_index=True, return_inverse=True, return_counts=True)
    centroids = np.stack([np.bincount(which, v, len(ids)) / np.maximum(area, 1) for v in (xs, ys)], axis=-1)
    return {
        "inst_map": label[..., 0],
        "type_map": label[..., 1],
        "inst_uid": ids[:, None],
        "inst_type": label[ys, xs, 1][first][:, None],
        "inst_centroid": centroids,
    }
