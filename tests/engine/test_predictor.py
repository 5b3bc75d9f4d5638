import cv2
import numpy as np
import pytest
import torch

import detcli
from detcli.config import resolve
from detcli.engine.checkpoint import save_checkpoint
from detcli.engine.model import build_model
from detcli.errors import DetcliError
from detcli.structures import ClassMap

CLASSES = ClassMap(("cat", "dog"), (17, 18))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Mask R-CNN with random weights that shows whatever it finds."""
    settings = ["model.neck.out_channels=16", "weights=none"]
    settings += ["model.roi_head.score_threshold=0.0", "model.roi_head.max_per_image=7"]
    config = resolve("mask_rcnn", backbone="r18", sched="demo", settings=settings).config
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(path, build_model(config, 2).state_dict(), config, CLASSES)
    return detcli.load(path, device="cpu")


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_one_picture_gives_detections_in_its_own_pixels(model):
    found = model.predict(picture(250, 190))
    assert 0 < len(found) <= 7
    assert model.names == ("cat", "dog")
    assert found.masks.shape == (len(found), 250, 190)
    assert found.boxes[:, 2].max() <= 190
    assert found.boxes[:, 3].max() <= 250
    assert found.boxes.max() > 128  # not in the pixels of the network's smaller input
    assert (found.scores.diff() <= 0).all()
    assert set(found.labels.tolist()) <= {0, 1}


def test_paths_arrays_and_batches_give_the_same(model, tmp_path):
    arrays = [picture(100, 130, seed) for seed in range(3)]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        cv2.imwrite(str(path), array[..., ::-1])
    one_by_one = [model.predict(str(path)) for path in paths]
    together = model.predict(arrays, batch=2)
    assert len(together) == 3
    for single, batched in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(single.boxes, batched.boxes, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(single.scores, batched.scores, rtol=1e-3, atol=1e-4)


def test_a_score_leaves_out_what_is_below(model):
    everything = model.predict(picture(100, 130))
    middle = float(everything.scores.median())
    kept = model.predict(picture(100, 130), score=middle)
    assert len(kept) == int((everything.scores >= middle).sum()) < len(everything)


def test_settings_change_the_model_too(model):
    few = detcli.load(model.path, device="cpu", settings=["model.roi_head.max_per_image=3"])
    assert [len(each.predict(picture(100, 130))) for each in (model, few)] == [7, 3]
    with pytest.raises(DetcliError, match=r"(?s)model\.safetensors.*neck"):
        detcli.load(model.path, device="cpu", settings=["model.neck.out_channels=8"])


def test_a_file_that_is_no_picture_is_named(model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DetcliError, match=r"bad\.png"):
        model.predict(tmp_path / "bad.png")
