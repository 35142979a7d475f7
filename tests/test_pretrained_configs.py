"""The configurations in `pretrained/` are whole: recipe, shapes and types fit each other."""

from __future__ import annotations

import torch
from conftest import ROOT

import run_train
from misc.type_info import load_type_info
from models.hovernet.checkpoint import load_checkpoint
from run_utils.recipe_checks import check_recipe
from run_utils.trainer import Trainer


def test_every_configuration_that_ships_can_be_trained():
    paths = sorted((ROOT / "pretrained").glob("*.py"))
    stems = {path.stem for path in paths}
    assert stems >= {
        "config",
        "he",
        "he_30x",
        "he_30x_long",
        "he_30x_more",
        "he_30x_stains",
        "he_30x_focus",
        "he_30x_focus_small",
        "he_20x_focus",
        "he_20x_focus_small",
        "he_30x_muon",
        "he_20x_muon",
        "ihc",
        "ihc_30x",
        "ihc_30x_focus",
        "ihc_30x_more",
        "ihc_30x_muon",
    }
    for path in paths:
        manager = run_train.load_manager(path)()
        trainer = Trainer(manager, [torch.device("cpu")])  # checks shapes and types
        made_by_another = getattr(manager, "START", "").startswith("../logs/")  # what it starts from
        check_recipe(manager.model_config, trainer.nr_types, first_fresh=int(made_by_another))
        assert trainer.meta["mpp"] == (0.3333 if "_30x" in path.stem else 0.5)
        assert trainer.meta["licence"]


def test_checkpoints_that_ship_name_no_folder_of_a_machine(subtests):
    def texts(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)
        elif isinstance(value, str):
            yield value

    for path in sorted((ROOT / "pretrained").glob("*.tar")):
        with subtests.test(path=path.name):
            assert [text for text in texts(load_checkpoint(path).meta) if text.startswith("/")] == []


def test_types_that_ship_are_those_that_training_makes():
    from dataset import CoNSeP
    from misc.ihc.scores import NEGATIVE
    from misc.type_info import types_by_name

    he, ihc = (load_type_info(ROOT / "pretrained" / f"{name}_types.json") for name in ("he", "ihc"))
    assert types_by_name(CoNSeP.type_names, he) == {type_id: type_id for type_id in CoNSeP.type_names}
    assert {type_id: name for type_id, (name, _) in ihc.items() if type_id} == {NEGATIVE: "negative", 2: "positive"}
    restain = run_train.load_manager(ROOT / "pretrained" / "ihc.py")().model_config["run_engine"]["train"]["restain"]
    assert restain["classes"] == len([type_id for type_id in ihc if type_id])
