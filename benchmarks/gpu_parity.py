"""A step of gpu.py: compare GPU and CPU, for full-width networks with random weights, then for a whole `tile` run.

Usage: gpu_parity.py <rows> [--rehearse]
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_common import MODES, NR_TYPES, PRECISIONS, Step, as_input, computing_in, noise, patches, seeded_net

SHIPPED = Path(__file__).resolve().parents[1] / "pretrained" / "hovernet_fast_w025_20x.tar"
MPP = 0.25  # of the made-up image


def main() -> None:
    step = Step(sys.argv[1:])
    for mode in MODES:
        for nr_types in (None, NR_TYPES):
            network(step, mode, nr_types)
    shipped(step)


def network(step: Step, mode: str, nr_types: int | None) -> None:
    """Compare the maps of a network with those of the CPU in float32."""
    from models.hovernet.net_desc import PATCH_SHAPES

    net = seeded_net(mode, nr_types, step.size.width, torch.device("cpu"))
    images = noise(step.size.parity_patches, PATCH_SHAPES[mode][0])
    true = maps(net, images, torch.device("cpu"), "fp32")
    there = copy.deepcopy(net).to(step.device)
    for precision in PRECISIONS:
        name = {"network": f"{mode}, {nr_types or 'no'} types", "precision": precision}
        step.row(name, lambda p=precision: differences(maps(there, images, step.device, p), true))


def maps(net, images: np.ndarray, device: torch.device, precision: str) -> np.ndarray:
    """Return (B, h, w, C) prediction maps."""
    from models.hovernet.run_desc import to_prediction_map

    with computing_in(precision, device):
        return to_prediction_map(net(as_input(images, device))).cpu().numpy()


def differences(found: np.ndarray, true: np.ndarray) -> dict:
    """Return the largest differences of NP and HV, and the share of px with another NP decision or another type."""
    np_hv, true_np_hv = found[..., -3:], true[..., -3:]
    away = np.abs(np_hv - true_np_hv)
    return {
        "largest NP difference": float(away[..., 0].max()),
        "largest HV difference": float(away[..., 1:].max()),
        "HV error / norm of HV": float(np.linalg.norm(away[..., 1:]) / np.linalg.norm(true_np_hv[..., 1:])),
        "px with another NP decision": float(((np_hv[..., 0] >= 0.5) != (true_np_hv[..., 0] >= 0.5)).mean()),
        "px with another type": float((found[..., 0] != true[..., 0]).mean()) if found.shape[-1] == 4 else None,
    }


def shipped(step: Step) -> None:
    """Compare `tile` on the GPU and on the CPU: a made-up image, the shipped checkpoint."""
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        cv2.imwrite(str(root / "in" / "a.png"), patches(1, step.size.image_px)[0][..., ::-1])
        true = tile(root, "cpu", "", "fp32")
        for precision in ("fp32", "auto", "bf16") if step.rehearse else ("fp32", "auto", "bf16", "fp16"):
            name = {"network": "shipped, whole `tile` run", "precision": precision}
            step.row(name, lambda p=precision: compared(tile(root, p, step.gpu, p), true))


def tile(root: Path, name: str, gpu: str, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the network's maps and the instance map."""
    import scipy.io

    from infer.tile import InferManager

    manager = InferManager({"model_path": SHIPPED}, gpu=gpu, precision=precision)
    places = {"input_dir": root / "in", "output_dir": root / name}
    report = manager.process_file_list({**places, "mpp": MPP, "save_raw_map": True, "nr_post_proc_workers": 0})
    if report.failed:
        raise ValueError(str(report.failed))
    content = scipy.io.loadmat(root / name / "mat" / "a.mat")
    return content["raw"], content["inst_map"]


def compared(found: tuple[np.ndarray, np.ndarray], true: tuple[np.ndarray, np.ndarray]) -> dict:
    """Return `differences` of the maps, the numbers of nuclei, and the PQ of `found` against `true`."""
    from metrics.folders import INSTANCE_SCORES, instance_scores

    counts = [np.count_nonzero(np.unique(labels)) for _, labels in (found, true)]
    pq = instance_scores(true[1], found[1])[INSTANCE_SCORES.index("PQ")]
    return {**differences(found[0], true[0]), "nuclei, CPU": f"{counts[0]}, {counts[1]}", "PQ against the CPU": pq}


if __name__ == "__main__":
    main()
