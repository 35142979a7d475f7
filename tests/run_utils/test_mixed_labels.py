"""Patches with types and without train one network: what is unknown takes no part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dataloader.train_loader import FileLoader
from misc.type_info import UNKNOWN_TYPE, load_type_info, renumber_types, types_by_name
from misc.viz_utils import UNKNOWN_COLOUR
from models.hovernet.net_desc import create_model
from models.hovernet.targets import gen_targets, prep_sample
from models.hovernet.train_step import proc_valid_step_output, train_step, valid_step, viz_step_output, weighted_loss
from run_utils.checks import check_patches, describe_unknown, folder_weights, list_patches
from run_utils.patch_report import report_patches
from run_utils.sampling import EpochBatchSampler

LOSS = {"np": {"bce": 1, "dice": 1}, "hv": {"mse": 2, "msge": 1}, "tp": {"bce": 1, "dice": 1, "mse": 1}}
NR_TYPES = 3


def maps(seed: int = 0) -> tuple[dict, torch.Tensor]:
    """Truth of two samples of 6 x 8 px, and logits of their types."""
    rng = torch.Generator().manual_seed(seed)
    types = torch.randint(0, NR_TYPES, (2, 6, 8), generator=rng)
    true = {"np": (types > 0).long(), "hv": torch.zeros(2, 6, 8, 2), "tp": types}
    return true, torch.randn(2, 6, 8, NR_TYPES, generator=rng, requires_grad=True)


def losses(true: dict, logits: torch.Tensor, **extra) -> tuple[torch.Tensor, dict]:
    pred = {"tp": logits.softmax(-1), "np": torch.full((*true["np"].shape, 2), 0.5), "hv": true["hv"]}
    return weighted_loss(true, pred, {"loss": LOSS, **extra})


def patch(path, types: int | None, unknown: bool = False):
    """A patch with two nuclei, the second one maybe of unknown type."""
    array = np.full((150, 150, 4 if types is None else 5), 200, np.uint8)
    array[..., 3:] = 0
    for nucleus, start in enumerate((60, 80), 1):
        array[start : start + 14, start : start + 14] = [90, 50, 120, nucleus, types or 0][: array.shape[2]]
    if unknown:
        array[80:94, 80:94, 4] = UNKNOWN_TYPE
    path.parent.mkdir(exist_ok=True)
    np.save(path, array)
    return path


@pytest.fixture
def mixed(tmp_path):
    """One patch without types, one with, and one with both, in folders of their own."""
    return [
        patch(tmp_path / "kumar" / "a_000.npy", None),
        patch(tmp_path / "consep" / "b_000.npy", 2),
        patch(tmp_path / "pannuke" / "c_000.npy", 1, unknown=True),
    ]


def batch_of(files) -> dict:
    loader = FileLoader(
        files,
        with_type=True,
        mode="valid",
        input_shape=(128, 128),
        mask_shape=(36, 36),
        target_gen=(gen_targets, {}),
    )
    samples = [loader[index] for index in range(len(files))]
    return {name: torch.as_tensor(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def run_info():
    torch.manual_seed(0)
    net = create_model("fast", nr_types=NR_TYPES, width=0.125)
    info = {"desc": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1), "extra_info": {"loss": LOSS}}
    return [{"net": info}, {"epoch": 0, "step": 0}]


def test_unknown_pixels_have_no_gradient_and_the_loss_is_that_of_the_others():
    for weights in (None, [1.0, 2.0, 5.0]):
        true, logits = maps()
        known = torch.zeros(2, 6, 8, dtype=torch.bool)
        known[0], known[1, 2:, 3:] = True, True
        hidden = {**true, "tp": torch.where(known, true["tp"], UNKNOWN_TYPE), "known": known}
        total, terms = losses(hidden, logits, tp_class_weights=weights)
        total.backward()
        assert not logits.grad[~known].any()
        assert logits.grad[known].any(dim=-1).all()
        # the same pixels as a picture of their own
        alone = {"np": true["np"][known][None, None], "hv": true["hv"][known][None, None]}
        alone["tp"] = true["tp"][known][None, None]
        expected = losses(alone, logits.detach()[known][None, None], tp_class_weights=weights)[1]
        for name in ("loss_tp_bce", "loss_tp_dice", "loss_tp_mse"):
            assert terms[name] == expected[name] > 0


def test_without_unknown_pixels_nothing_changes():
    true, logits = maps()
    terms = losses(true, logits)[1]
    all_known = losses({**true, "known": torch.ones(2, 6, 8, dtype=torch.bool)}, logits)[1]
    assert terms.keys() == all_known.keys()
    for name, value in terms.items():
        torch.testing.assert_close(all_known[name], value)


def test_a_batch_without_one_known_pixel_trains_the_other_branches():
    true, logits = maps()
    unknown = {**true, "tp": torch.full((2, 6, 8), UNKNOWN_TYPE), "known": torch.zeros(2, 6, 8, dtype=torch.bool)}
    total, terms = losses(unknown, logits)
    total.backward()
    assert torch.isfinite(total)
    assert not logits.grad.any()
    assert not any(name.startswith("loss_tp") for name in terms)


def test_the_loader_marks_nuclei_without_a_type(mixed):
    batch = batch_of(mixed)
    wanted = ([UNKNOWN_TYPE], [2], [1, UNKNOWN_TYPE])
    for types, inside, values in zip(batch["tp_map"], batch["np_map"], wanted, strict=True):
        assert not types[inside == 0].any()
        assert types[inside > 0].unique().tolist() == values


def test_a_step_on_mixed_labels_trains_and_types_come_from_the_typed_alone(mixed):
    terms = train_step(batch_of(mixed), run_info())["EMA"]
    assert all(np.isfinite(list(terms.values())))
    run = run_info()
    untyped = batch_of(mixed[:1])
    untyped["tp_map"][:] = UNKNOWN_TYPE
    before = {name: value.clone() for name, value in run[0]["net"]["desc"].decoder["tp"].named_parameters()}
    train_step(untyped, run)
    for name, value in run[0]["net"]["desc"].decoder["tp"].named_parameters():
        assert torch.equal(before[name], value), name


def test_validation_scores_leave_unknown_pixels_out(mixed):
    """Whatever is predicted there, the scores of the types are those of the other pixels."""
    batch, run = batch_of(mixed), run_info()
    known = batch["tp_map"] != UNKNOWN_TYPE
    raw = valid_step(batch, run)["raw"]
    areas = np.sum(raw["tp_area"], axis=0)
    assert areas.sum() == 2 * int(known.sum())
    batch["tp_map"][:] = UNKNOWN_TYPE
    raw = valid_step(batch, run)["raw"]
    assert not np.sum(raw["tp_area"])
    assert np.sum(raw["np_area"])
    assert set(proc_valid_step_output(raw, NR_TYPES)["scalar"]) == {"np_acc", "np_dice", "hv_mse"}


def test_unknown_types_are_drawn_grey(mixed):
    batch = batch_of(mixed)
    grey = np.array(UNKNOWN_COLOUR)
    views = [prep_sample({name: value[i].numpy() for name, value in batch.items()}) for i in range(3)]
    shown = [(view[:, -128:] == grey).all(-1).sum() for view in views]
    assert shown == [(batch["tp_map"][i] == UNKNOWN_TYPE).sum() for i in range(3)]
    drawn = viz_step_output(train_step(batch, run_info())["raw"], NR_TYPES)
    assert (drawn[:36, -36:] == grey).all(-1).sum() == shown[0]  # truth of the first sample
    assert not (drawn[36:72, -36:] == grey).all(-1).any()  # a prediction is never unknown


def test_checks_count_what_is_unknown(mixed):
    counts = check_patches(mixed, NR_TYPES)
    ground, nucleus = 150 * 150 - 2 * 196, 196
    assert counts.tolist() == [
        [ground, 0, 0, 2 * nucleus],
        [ground, 0, 2 * nucleus, 0],
        [ground, nucleus, 0, nucleus],
    ]
    assert "unknown in 2 training patches, 50% of nuclear pixels" in describe_unknown(counts)
    assert describe_unknown(counts[1:2]) is None
    with pytest.raises(ValueError, match="no patch of train_dir_list has types"):
        describe_unknown(counts[:1])
    assert "100%" in describe_unknown(counts[:1], types_are_made=True)
    report = report_patches(mixed[2:], NR_TYPES)
    assert report.nuclei == {1: 1, UNKNOWN_TYPE: 1}
    assert report.pixels[UNKNOWN_TYPE] == nucleus
    assert not report.failed
    assert not report.odd


def test_unknown_is_the_largest_id_of_the_smallest_integer_type():
    assert UNKNOWN_TYPE == np.iinfo(np.uint8).max


def test_folders_with_weights_are_drawn_as_often_as_they_say(mixed, tmp_path):
    folders = [tmp_path / "kumar", (tmp_path / "consep", 3.0), (str(tmp_path / "pannuke"), 2)]
    files = list_patches(folders, "train_dir_list")
    weights = folder_weights(folders, files, "train_dir_list")
    assert weights.tolist() == [1, 3, 2]
    assert folder_weights(folders[:1], files[:1], "train_dir_list") is None
    with pytest.raises(ValueError, match="train_dir_list in config.py: .* has two weights"):
        folder_weights([*folders, (folders[0], 3.0)], files, "train_dir_list")
    sampler = EpochBatchSampler(6000, 6000, seed=1, weights=np.repeat(weights, 2000))
    drawn = np.bincount(np.array(next(iter(sampler)))[:, 1] // 2000, minlength=3)
    np.testing.assert_allclose(drawn, [1000, 3000, 2000], rtol=0.1)
    for wrong in ((tmp_path, 0), (tmp_path, "2"), (tmp_path, True), (tmp_path,), (tmp_path, float("nan"))):
        with pytest.raises(ValueError, match=r"train_dir_list .* an entry is a folder or \(folder, weight above 0\)"):
            list_patches([wrong], "train_dir_list")


def test_types_are_matched_by_name(tmp_path):
    (tmp_path / "types.json").write_text(
        '{"0": ["none", [0, 0, 0]], "1": ["Epithelial", [1, 1, 1]], "2": ["inflammatory", [2, 2, 2]]}'
    )
    info = load_type_info(tmp_path / "types.json")
    monusac = {1: "epithelial", 2: "lymphocyte", 3: "macrophage", 4: "neutrophil"}
    assert types_by_name(monusac, info) == {1: 1, 2: 255, 3: 255, 4: 255}
    ids = types_by_name(monusac, info, {"lymphocyte": "inflammatory", "Neutrophil": "Inflammatory"})
    assert ids == {1: 1, 2: 2, 3: 255, 4: 2}
    for renamed in ({"lymphocytes": "inflammatory"}, {"lymphocyte": "inflamed"}):
        with pytest.raises(ValueError, match="there is no type `(lymphocytes|inflamed)` to rename"):
            types_by_name(monusac, info, renamed)
    label = np.array([[[0, 0], [1, 1], [2, 2], [3, 3], [4, 4], [5, 0], [6, 7]]])
    assert renumber_types(label, ids)[0, :, 1].tolist() == [0, 1, 2, 255, 2, 255, 255]
