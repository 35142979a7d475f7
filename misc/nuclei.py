"""Nuclei as one structure of arrays.

A slide has a million nuclei: a dictionary of dictionaries for each of them costs many GB and seconds. They
travel as arrays instead; the dictionary exists only at the edge (`to_dict`, and the writers).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Nuclei:
    """N nuclei.

    Attributes:
        ids: (N,) int64, unique, the value of the nucleus in the instance map; need not be contiguous.
        boxes_yx: (N, 2, 2) int32, [[rmin, cmin], [rmax, cmax]] in px, max exclusive.
        centroids_xy: (N, 2) float64, x then y, px.
        points_xy: (P, 2) int32, all contours one after the other, open rings of outer border pixels.
        offsets: (N + 1,) int64, contour i is `points_xy[offsets[i]:offsets[i + 1]]`.
        types: (N,) int32, or `None` for an untyped network.
        type_prob: (N,) float64, share of the nucleus' pixels that have its type, or `None`.
        class_probs: (N, T) float32, mean softmax of the TP branch over the nucleus, or `None`.
        measured: other measurements of each nucleus, by name, (N,) float, or `None`.
    """

    ids: np.ndarray
    boxes_yx: np.ndarray
    centroids_xy: np.ndarray
    points_xy: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None = None
    type_prob: np.ndarray | None = None
    class_probs: np.ndarray | None = None
    measured: Mapping[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def contour(self, index: int) -> np.ndarray:
        """Return contour `index` (position, not id) as an (M, 2) int32 view, x then y."""
        return self.points_xy[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def empty(cls, typed: bool = False, nr_class_probs: int = 0) -> Nuclei:
        """Return an empty structure with the columns that `typed` and `nr_class_probs` ask for."""
        return cls(
            ids=np.zeros(0, np.int64),
            boxes_yx=np.zeros((0, 2, 2), np.int32),
            centroids_xy=np.zeros((0, 2), np.float64),
            points_xy=np.zeros((0, 2), np.int32),
            offsets=np.zeros(1, np.int64),
            types=np.zeros(0, np.int32) if typed else None,
            type_prob=np.zeros(0, np.float64) if typed else None,
            class_probs=np.zeros((0, nr_class_probs), np.float32) if nr_class_probs else None,
        )

    @classmethod
    def from_contours(cls, ids, boxes_yx, centroids_xy, contours: Sequence[np.ndarray], **columns) -> Nuclei:
        """Build from a list of (M, 2) contours; `columns` are `types`, `type_prob`, `class_probs`."""
        lengths = np.fromiter(map(len, contours), np.int64, len(contours))
        return cls(
            ids=np.asarray(ids, np.int64),
            boxes_yx=np.asarray(boxes_yx, np.int32).reshape(-1, 2, 2),
            centroids_xy=np.asarray(centroids_xy, np.float64).reshape(-1, 2),
            points_xy=np.concatenate([np.zeros((0, 2), np.int32), *contours]).astype(np.int32, copy=False),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            **columns,
        )

    def select(self, which: np.ndarray) -> Nuclei:
        """Return the nuclei that a boolean mask or an index array names, in that order."""
        index = np.arange(len(self))[which]
        starts, lengths = self.offsets[index], np.diff(self.offsets)[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # position of every kept point: its contour's start plus its place in the contour
        points = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        pick = lambda column: None if column is None else column[index]  # noqa: E731
        return Nuclei(
            ids=self.ids[index],
            boxes_yx=self.boxes_yx[index],
            centroids_xy=self.centroids_xy[index],
            points_xy=np.take(self.points_xy, points, axis=0),  # many times as fast as [points]
            offsets=offsets,
            types=pick(self.types),
            type_prob=pick(self.type_prob),
            class_probs=pick(self.class_probs),
            measured=self.measured and {name: pick(column) for name, column in self.measured.items()},
        )

    def shift(self, dy: int, dx: int) -> Nuclei:
        """Return the nuclei moved by `dy` rows and `dx` columns (px)."""
        return replace(
            self,
            boxes_yx=self.boxes_yx + np.array([dy, dx], np.int32),
            centroids_xy=self.centroids_xy + np.array([dx, dy], np.float64),
            points_xy=self.points_xy + np.array([dx, dy], np.int32),
        )

    def scale(self, fy: float, fx: float) -> Nuclei:
        """Return the nuclei on a grid `fy` x `fx` times as fine; pixel (0, 0) stays at the corner.

        Points and centroids are pixel centres, so x becomes (x + 0.5) * fx - 0.5; boxes are the extent of the points.
        """
        f_xy = np.array([fx, fy], np.float64)
        points = np.maximum(np.rint((self.points_xy + 0.5) * f_xy - 0.5), 0)
        if points.max(initial=0) > np.iinfo(np.int32).max:
            raise ValueError(f"contours scaled by {max(fx, fy):g} exceed the range of coordinates")
        points = points.astype(np.int32)
        # a contour without points (only in files of other programs) has no extent: its box is scaled
        boxes = np.rint(self.boxes_yx * f_xy[::-1]).astype(np.int32)
        drawn = np.diff(self.offsets) > 0
        starts = self.offsets[:-1][drawn]
        boxes[drawn, 0] = np.minimum.reduceat(points, starts)[:, ::-1]
        boxes[drawn, 1] = np.maximum.reduceat(points, starts)[:, ::-1] + 1
        return replace(self, boxes_yx=boxes, centroids_xy=(self.centroids_xy + 0.5) * f_xy - 0.5, points_xy=points)

    @staticmethod
    def concat(parts: Sequence[Nuclei]) -> Nuclei:
        """Join nuclei of one kind (all typed or none); ids are kept as they are."""
        if not parts:
            return Nuclei.empty()
        join = lambda name: (  # noqa: E731
            None if getattr(parts[0], name) is None else np.concatenate([getattr(p, name) for p in parts])
        )
        lengths = np.concatenate([np.diff(p.offsets) for p in parts])
        return Nuclei(
            ids=join("ids"),
            boxes_yx=join("boxes_yx"),
            centroids_xy=join("centroids_xy"),
            points_xy=join("points_xy"),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            types=join("types"),
            type_prob=join("type_prob"),
            class_probs=join("class_probs"),
            measured=parts[0].measured
            and {name: np.concatenate([p.measured[name] for p in parts]) for name in parts[0].measured},
        )

    def to_dict(self) -> dict[int, dict]:
        """Return `{id: {"bbox", "centroid", "contour", "type_prob", "type"}}`, the form `process()` returns."""
        nothing = [None] * len(self)
        columns = (
            self.ids.tolist(),
            self.boxes_yx.astype(np.int64),
            self.centroids_xy,
            itertools.pairwise(self.offsets.tolist()),
            nothing if self.type_prob is None else self.type_prob.tolist(),
            nothing if self.types is None else self.types.tolist(),
        )
        return {
            inst_id: {
                "bbox": box,
                "centroid": centroid,
                "contour": self.points_xy[start:end],
                "type_prob": type_prob,
                "type": type_id,
            }
            for inst_id, box, centroid, (start, end), type_prob, type_id in zip(*columns, strict=True)
        }

    @classmethod
    def from_dict(cls, nuclei: dict) -> Nuclei:
        """Build from the dictionary form (`process()`, or the `nuc` part of a JSON file)."""
        infos = list(nuclei.values())
        typed = bool(infos) and infos[0].get("type") is not None
        probs = [info.get("type_prob") for info in infos] if typed else []
        return cls.from_contours(
            ids=[int(key) for key in nuclei],
            boxes_yx=[info["bbox"] for info in infos],
            centroids_xy=[info["centroid"] for info in infos],
            contours=[np.asarray(info["contour"], np.int32).reshape(-1, 2) for info in infos],
            types=np.array([info["type"] for info in infos], np.int32) if typed else None,
            type_prob=np.array([np.nan if p is None else p for p in probs], np.float64) if typed else None,
        )
