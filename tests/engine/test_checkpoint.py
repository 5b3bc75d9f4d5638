import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detcli.config import resolve
from detcli.engine.checkpoint import open_checkpoint, save_checkpoint
from detcli.errors import DetcliError
from detcli.nn.weights import load_weights
from detcli.structures import ClassMap

CONFIG = resolve("atss", backbone="r18").config
CLASSES = ClassMap(("cat", "dog"), (17, 18))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {"backbone.weight": torch.arange(6.0).reshape(2, 3).t(), "count": torch.tensor(3)}
    save_checkpoint(path, weights, CONFIG, CLASSES, {"box_AP": 12.5}, {"step": 4}, {"optimizer.0.step": torch.ones(1)})
    return path, weights


def test_a_checkpoint_knows_its_model_and_classes(saved):
    path, weights = saved
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == CONFIG
    assert checkpoint.classes == CLASSES
    assert checkpoint.metrics == {"box_AP": 12.5}
    assert checkpoint.training == {"step": 4}
    assert checkpoint.weights().keys() == weights.keys()
    assert all(torch.equal(checkpoint.weights()[name], value) for name, value in weights.items())
    assert checkpoint.training_tensors().keys() == {"optimizer.0.step"}


def test_a_checkpoint_knows_stuff_and_keypoints(tmp_path):
    classes = ClassMap(("cat",), (17,), ("sky", "road"), (187, 149), ("nose", "left_eye", "right_eye"))
    save_checkpoint(tmp_path / "model.safetensors", {"weight": torch.ones(1)}, CONFIG, classes)
    assert open_checkpoint(tmp_path / "model.safetensors").classes == classes


def test_a_run_folder_stands_for_its_best_checkpoint(saved):
    path, _ = saved
    path.rename(path.parent / "last.safetensors")
    assert open_checkpoint(path.parent).path.name == "last.safetensors"
    (path.parent / "best.safetensors").write_bytes((path.parent / "last.safetensors").read_bytes())
    assert open_checkpoint(path.parent).path.name == "best.safetensors"


def test_every_truncation_is_one_clear_error(saved, tmp_path):
    whole = saved[0].read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(DetcliError, match=r"cut\.safetensors is not a readable safetensors file"):
            open_checkpoint(cut)


def test_foreign_and_missing_files_are_named(saved, tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DetcliError, match="not the config of a detcli model"):
        open_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(DetcliError, match=r"no checkpoint .*none\.safetensors\. Beside it: model\.safetensors, other"):
        open_checkpoint(tmp_path / "none.safetensors")
    header = json.dumps({"format": 99, "config": {}, "classes": {"names": [], "ids": []}})
    save_file({"x": torch.ones(1)}, tmp_path / "new.safetensors", metadata={"detcli": header})
    with pytest.raises(DetcliError, match="newer detcli"):
        open_checkpoint(tmp_path / "new.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DetcliError, match="folder without a checkpoint"):
        open_checkpoint(tmp_path / "empty")


def test_a_failed_save_keeps_what_was_there(saved, monkeypatch):
    path, _ = saved
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detcli.engine.checkpoint.save_file", full)
    with pytest.raises(DetcliError, match="No space left on device"):
        save_checkpoint(path, {"x": torch.ones(1)}, CONFIG, CLASSES)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_weights_load_strictly_or_not_at_all():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    weights = {"weight": torch.ones(2, 4), "extra": torch.ones(1)}
    with pytest.raises(DetcliError) as caught:
        load_weights(model, weights, "some.safetensors")
    message = str(caught.value)
    assert "bias is missing" in message
    assert "extra is not in this model" in message
    assert "weight is (2, 4), not (2, 3)" in message
    assert torch.equal(model.weight, before)
    load_weights(model, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "some.safetensors")
    assert torch.equal(model.weight, torch.ones(2, 3))
