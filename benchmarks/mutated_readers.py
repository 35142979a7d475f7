"""The toolkit's readers of files, and whole files for each, which `mutate` damages and reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import scipy.io
import tifffile
import torch
from skimage.data import immunohistochemistry

SIDE_PX = 160
NUCLEI_XY = ((30, 40), (90, 50), (60, 110), (120, 120))  # centres of made-up nuclei, px
RADIUS_PX = 12


def read_image(path: Path) -> None:
    from misc.slides.images import probe_size
    from misc.slides.images import read_image as read

    probe_size(path)
    read(path)


def read_slide(path: Path) -> None:
    from misc.slides.handler import get_file_handler, read_reflect
    from misc.slides.tissue import otsu_mask, thumbnail

    with get_file_handler(path, mpp=0.5) as handler:
        handler.prepare_reading(read_mpp=0.5)
        read_reflect(handler, -10, -10, 100, 100)
        handler.prepare_reading(read_mpp=1.3)
        read_reflect(handler, 0, 0, 64, 64)
        otsu_mask(thumbnail(handler))


def read_label(path: Path) -> None:
    from dataset import get_dataset
    from metrics.folders import instance_scores
    from metrics.label_lists import load, read_map, typed_centroids
    from misc.formats.labels import says_prediction

    says_prediction(path)
    content = load(path)
    inst_map = read_map(content, "inst_map", path)
    instance_scores(inst_map, inst_map)
    typed_centroids(content, path)
    get_dataset("mat").load_ann(path, with_type=True)


def read_annotations(path: Path) -> None:
    from misc.formats.annotations import read_annotations as read
    from misc.formats.masks import paint_contours

    found = read(path)
    found.check_understood()
    paint_contours(found.contours, [1] * len(found.contours), (SIDE_PX, SIDE_PX))


def read_nuclei(path: Path) -> None:
    from misc.formats.csv_table import write_csv
    from misc.formats.nuclei_json import read_header, read_json, types_from_header
    from misc.formats.nuclei_table import NucleiTable
    from misc.formats.qupath import write_geojson
    from misc.formats.slide_facts import slide_facts
    from misc.ihc.heat_map.slide import load_slide, map_slide
    from misc.type_info import default_type_info

    header = read_header(path)
    nuclei, _ = read_json(path)
    facts = slide_facts(path, header, None, None, None)
    names = types_from_header(header) or default_type_info(256)
    write_geojson(path.with_suffix(".out.geojson"), nuclei, names, facts.scale, origin_xy=facts.origin_xy)
    write_csv(path.with_suffix(".out.csv"), NucleiTable(nuclei, names, facts.scale))
    slide = load_slide(path, None, None, False, lambda count: None, None, None)
    if slide.width and slide.height:
        map_slide(slide, "all", (0.2, 0.4, 0.6), 100, (1000, 1000), 3, 1.0)


def read_checkpoint(path: Path) -> None:
    from infer.run import InferManager

    InferManager({"model_path": path}, gpu="")


def read_types(path: Path) -> None:
    from misc.type_info import load_type_info

    load_type_info(path, 3)


def read_mapping(path: Path) -> None:
    from misc.formats.type_mapping import TypeMapping

    TypeMapping.read(path)


def read_table(path: Path) -> None:
    from misc.tables import merge_table

    merge_table(path, [{"slide": "b", "nuclei": 1}], ["b"], ["slide", "nuclei"])


# By name: the reader, and the endings of its files' names.
READERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "image": (read_image, (".tif", ".png", ".jpg")),
    "slide": (read_slide, (".svs", ".ome.tif", ".dcm")),
    "label": (read_label, (".mat", ".npy")),
    "annotations": (read_annotations, (".xml", ".geojson")),
    "nuclei": (read_nuclei, (".json",)),
    "checkpoint": (read_checkpoint, (".tar", ".npz")),
    "type_info": (read_types, (".json",)),
    "mapping": (read_mapping, (".json",)),
    "table": (read_table, (".csv",)),
}


def write_whole_files(folder: Path, data: Path | None = None) -> dict[str, list[Path]]:
    """Write small whole files for each of `READERS`; with `data`, the project's folder, real ones too.

    Returns:
        The files by reader.
    """
    for name in READERS:
        (folder / name).mkdir(parents=True)
    rgb = np.ascontiguousarray(immunohistochemistry()[:SIDE_PX, :SIDE_PX])
    _write_images(folder / "image", rgb)
    _write_slides(folder / "slide", np.tile(rgb, (4, 4, 1)))
    _write_labels(folder / "label")
    _write_annotations(folder / "annotations")
    _write_nuclei(folder / "nuclei" / "a.json")
    _write_checkpoints(folder / "checkpoint")
    types = {"0": ["none", [0, 0, 0]], "1": ["Positive", [255, 0, 0]], "2": ["Negative", [0, 0, 255]]}
    (folder / "type_info" / "a.json").write_text(json.dumps(types))
    (folder / "mapping" / "a.json").write_text(json.dumps({"tumour": 1, "#00ff00": 2, "bed": None}))
    (folder / "table" / "a.csv").write_text("slide,nuclei,type_1,failed\na,12,3,\nc,1,1,x\n")
    if data is not None:
        shutil.copy(data / "slides" / "small_dicom.dcm", folder / "slide" / "real.dcm")
        shutil.copy(data / "slides" / "CMU-1-Small-Region.svs", folder / "slide" / "real.svs")
        shutil.copy(data / "slides" / "odd_rgba_geotiff.tiff", folder / "image" / "geo.tif")
        for name in ("asap1.xml", "TCGA-B0-5710-01Z-00-DX1.xml"):
            shutil.copy(data / "annotations" / name, folder / "annotations")
        shutil.copy(next((data / "consep" / "Train" / "Labels").glob("*.mat")), folder / "label" / "real.mat")
    return {name: sorted((folder / name).iterdir()) for name in READERS}


def _write_images(folder: Path, rgb: np.ndarray) -> None:
    for name in ("a.png", "a.jpg"):
        cv2.imwrite(str(folder / name), rgb[..., ::-1])
    tifffile.imwrite(folder / "strips.tif", rgb, compression="zlib", rowsperstrip=32, photometric="rgb")
    tifffile.imwrite(folder / "lzw.tif", rgb[..., 0], compression="lzw", tile=(64, 64))
    tifffile.imwrite(folder / "raw.tif", rgb.astype(np.uint16) * 257, photometric="rgb")


def _write_slides(folder: Path, rgb: np.ndarray) -> None:
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    text = "Aperio Image Library v12.0.15\r\n640x640 [0,0 640x640] (128x128) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(folder / "a.svs") as out:
        for step in (1, 4):
            out.write(np.ascontiguousarray(rgb[::step, ::step]), description=text, **options)
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as out:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        out.write(rgb, subifds=1, metadata=metadata, **{k: v for k, v in options.items() if k != "metadata"})
        out.write(np.ascontiguousarray(rgb[::2, ::2]), subfiletype=1, **options)


def _label() -> tuple[np.ndarray, np.ndarray]:
    inst_map = np.zeros((SIDE_PX, SIDE_PX), np.int32)
    for index, centre in enumerate(NUCLEI_XY, 1):
        cv2.circle(inst_map, centre, RADIUS_PX, index, -1)
    return inst_map, np.array([[1], [2], [1], [2]], np.int32)


def _write_labels(folder: Path) -> None:
    inst_map, types = _label()
    lists = {"inst_map": inst_map, "inst_type": types, "inst_centroid": np.array(NUCLEI_XY, np.float64)}
    scipy.io.savemat(folder / "lists.mat", lists, do_compression=True)
    type_map = np.append(0, types.ravel())[inst_map].astype(np.int32)
    scipy.io.savemat(folder / "maps.mat", {"inst_map": inst_map, "type_map": type_map})
    np.save(folder / "both.npy", np.stack([inst_map, type_map], axis=-1))
    with h5py.File(folder / "v73.mat", "w", userblock_size=512) as file:
        for key, value in {"inst_map": inst_map, "type_map": type_map}.items():
            file.create_dataset(key, data=value.T.astype(np.float64), compression="gzip")
    with open(folder / "v73.mat", "rb+") as out:
        out.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def _rings() -> list[np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, 20)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * RADIUS_PX
    return [np.round(circle + centre, 2) for centre in NUCLEI_XY]


def _write_annotations(folder: Path) -> None:
    rings = _rings()
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
            "properties": {"objectType": "detection", "classification": {"name": "tumour", "color": [255, 0, 0]}},
        }
        for ring in rings
    ]
    (folder / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    points = ["".join(f'<V X="{x:.0f}" Y="{y:.0f}"/>' for x, y in ring) for ring in rings]
    regions = "".join(f'<Region Type="Polygon"><Vertices>{text}</Vertices></Region>' for text in points)
    halo = f'<Annotations><Annotation LineColor="255" Name="a"><Regions>{regions}</Regions></Annotation></Annotations>'
    (folder / "halo.xml").write_text(halo)


def _write_nuclei(path: Path) -> None:
    from misc.formats.nuclei_json import write_json
    from misc.nuclei import Nuclei

    rings = [np.rint(ring).astype(np.int32) for ring in _rings()]
    nuclei = Nuclei(
        ids=np.arange(1, 5),
        boxes_yx=np.array([[ring.min(axis=0)[::-1], ring.max(axis=0)[::-1] + 1] for ring in rings], np.int32),
        centroids_xy=np.array(NUCLEI_XY, np.float64),
        points_xy=np.concatenate(rings),
        offsets=np.arange(5) * len(rings[0]),
        types=np.array([1, 2, 1, 2], np.int32),
        type_prob=np.full(4, 0.75),
    )
    slide = {"name": "a.svs", "width": SIDE_PX, "height": SIDE_PX, "scale": 1.0, "mpp": 0.5, "bounds": None}
    types = {"1": ["Positive", [255, 0, 0]], "2": ["Negative", [0, 0, 255]]}
    write_json(path, nuclei, 20.0, {"mpp": 0.5, "slide": slide, "types": types, "model": "a.tar"})


def _write_checkpoints(folder: Path) -> None:
    from models.hovernet.checkpoint import save_weights
    from models.hovernet.net_desc import create_model

    weights = create_model("fast", nr_types=3, width=0.125).state_dict()
    meta = {"mpp": 0.5, "types": {"1": ["Positive", [255, 0, 0]], "2": ["Negative", [0, 0, 255]]}, "window": 256}
    save_weights(folder / "a.tar", weights, meta)
    np.savez(folder / "a.npz", **{name: value.numpy() for name, value in weights.items()})
    assert torch.load(folder / "a.tar", weights_only=True)
