"""Checkpoints of MMDetection 2 and 3: what they say of themselves, averages of weights, and their version."""

from pathlib import Path

import pytest
import torch
from detcli.plugins.fcos.convert import MMDET

from detcli.convert import detectron, detectron2, legacy_v1, mmdet, pycls, torchvision
from detcli.convert.rules import rename
from detcli.errors import DetcliError

PTH = Path("a.pth")
RETINANET = {"backbone.conv1.weight": torch.ones(1), "bbox_head.retina_cls.bias": torch.ones(720)}
MASK_RCNN = {"backbone.conv1.weight": torch.ones(1), "rpn_head.rpn_cls.bias": torch.ones(3)} | {
    f"roi_head.{name}": torch.ones(3) for name in ("bbox_head.fc_cls.bias", "mask_head.conv_logits.bias")
}
MASK_RCNN_1 = {name.removeprefix("roi_head."): value for name, value in MASK_RCNN.items()}


def converted(tensors):
    return rename(tensors, mmdet.rules(tensors), "it")


def test_version_2():
    meta = {
        "mmdet_version": "2.28.2",
        "config": "model = dict(type='RetinaNet')\n",
        "CLASSES": ("cat", "dog"),
        "exp_name": "retinanet_r50_fpn_1x_coco.py",
        "epoch": 12,
    }
    content = {"meta": meta, "state_dict": RETINANET, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(1)}}}}
    assert mmdet.recognises(content, PTH)
    unwrapped = mmdet.unwrap(content)
    assert unwrapped.tensors == RETINANET
    assert unwrapped.meta == {
        "config": meta["config"],
        "classes": ("cat", "dog"),
        "name": "retinanet_r50_fpn_1x_coco.py",
        "version": "2.28.2",
    }
    assert [(entry.theirs, entry.ours) for entry in unwrapped.dropped] == [("optimizer", None)]
    tensors, report = converted(unwrapped.tensors)
    assert tensors == RETINANET
    assert not report.renamed + report.transformed + report.dropped


def test_version_3_whose_model_has_the_average():
    raw = {f"module.{name}": value - 1 for name, value in RETINANET.items()} | {"steps": torch.tensor(90000)}
    content = {
        "meta": {
            "cfg": "model = dict()\n",
            "experiment_name": "retinanet",
            "mmengine_version": "0.7.4",
            "dataset_meta": {"classes": ("cat",), "palette": [(0, 0, 0)]},
        },
        "state_dict": RETINANET | {"data_preprocessor.mean": torch.ones(3)},
        "ema_state_dict": raw,
        "message_hub": {"log_scalars": {}},
        "optimizer": {},
        "param_schedulers": [{}],
    }
    assert mmdet.recognises(content, PTH)
    unwrapped = mmdet.unwrap(content)
    assert unwrapped.meta == {"config": "model = dict()\n", "classes": ("cat",), "name": "retinanet"}
    reasons = {entry.theirs: entry.why for entry in unwrapped.dropped}
    assert reasons.keys() == content.keys() - {"meta", "state_dict"}
    assert "average" in reasons["ema_state_dict"]
    tensors, report = converted(unwrapped.tensors)
    assert tensors == RETINANET
    assert [entry.theirs for entry in report.dropped] == ["data_preprocessor.mean"]


def test_averages_of_version_2_are_under_the_usual_names():
    raw = {f"ema_{name.replace('.', '_')}": value - 1 for name, value in RETINANET.items()}
    tensors, report = converted(RETINANET | raw)
    assert tensors == RETINANET
    assert [entry.theirs for entry in report.dropped] == list(raw)


def test_wrapped_models_and_older_names():
    wrapped = {f"module.{name}": value for name, value in MASK_RCNN.items()}
    assert mmdet.unwrap({"state_dict": wrapped}).tensors == MASK_RCNN
    offset = {"backbone.layer2.0.conv2_offset.weight": torch.ones(1), "neck.x": torch.ones(1)}
    assert "backbone.layer2.0.conv2.conv_offset.weight" in converted(offset)[0]
    ssd = dict.fromkeys(
        ["backbone.l2_norm.weight", "backbone.extra.3.bias", "bbox_head.reg_convs.2.weight"], torch.ones(1)
    )
    assert converted(ssd)[0].keys() == {
        "neck.l2_norm.weight",
        "neck.extra_layers.1.1.conv.bias",
        "bbox_head.reg_convs.2.0.weight",
    }
    fcos = {"bbox_head.fcos_centerness.bias": torch.ones(1)}
    assert rename(fcos, (*MMDET, *mmdet.rules(fcos)), "it")[0].keys() == {"bbox_head.conv_centerness.bias"}
    retinanet = {"bbox_head.cls_convs.1.weight": torch.ones(1), "bbox_head.retina_cls.bias": torch.ones(1)}
    assert "bbox_head.cls_convs.1.conv.weight" in rename(retinanet, legacy_v1.rules(retinanet), "it")[0]


def test_paths_before_the_text_of_a_config_are_left_out():
    text = "/home/a/configs/base.py\na = 1\n/home/a/configs/retinanet.py\nb = dict(c='/d/e.py',\n    f='/g.py')\n"
    meta = mmdet.unwrap({"meta": {"config": text}, "state_dict": RETINANET}).meta
    assert meta["config"] == "a = 1\nb = dict(c='/d/e.py',\n    f='/g.py')\n"


@pytest.mark.parametrize(
    ("version", "config", "weights", "legacy"),
    [
        ("1.2.0", "bbox_head=dict(type='RetinaHead', anchor_scales=[4])", RETINANET, True),
        ("0.6rc0+unknown", "", RETINANET, True),
        ("2.0.0", "", RETINANET, False),
        ("2.28.2", "", MASK_RCNN, False),
        ("1.2.0", "", MASK_RCNN, False),  # upgraded by MMDetection's tool
        ("1.2.0", "bbox_head=dict(anchor_generator=dict())", RETINANET, False),  # upgraded, too
        ("1.2.0", "", MASK_RCNN_1, True),
        ("", "", MASK_RCNN_1, True),
        ("", "", {f"module.{name}": value for name, value in MASK_RCNN_1.items()}, True),
        ("", "", {"bbox_head.fcos_cls.bias": torch.ones(1)}, True),
        ("", "", {"bbox_head.fc_cls.bias": torch.ones(1), "bbox_head.transformer.x": torch.ones(1)}, False),
        ("", "", RETINANET, False),
    ],
)
def test_which_version_a_file_is_of(version, config, weights, legacy):
    meta = {"mmdet_version": version, "config": config} if version else {}
    content = {"meta": meta, "state_dict": weights}
    found = [
        source
        for source in (mmdet, legacy_v1, detectron2, detectron, torchvision, pycls)
        if source.recognises(content, PTH)
    ]
    assert found == [legacy_v1 if legacy else mmdet]


def test_backbones_have_the_names_of_their_own_state_dict():
    names = ["conv1.weight", "layer1.0.conv1.weight", "fc.weight", "conv1.bias"]
    for prefix in ("", "backbone."):
        content = {"state_dict": {f"{prefix}{name}": torch.ones(1) for name in names}}
        assert mmdet.recognises(content, PTH)
        assert mmdet.is_backbone(content["state_dict"])
        tensors, report = converted(mmdet.unwrap(content).tensors)
        assert tensors.keys() == {"conv1.weight", "layer1.0.conv1.weight"}
        assert len(report.dropped) == 2
    assert not mmdet.is_backbone(MASK_RCNN)


def test_other_content_is_refused():
    for content in (None, [], {}, {"state_dict": {}}, {"state_dict": {"a": 3}}, RETINANET, {"model": RETINANET}):
        assert not mmdet.recognises(content, PTH)
        assert not legacy_v1.recognises(content, PTH)
    with pytest.raises(DetcliError, match="a is int, not a tensor"):
        mmdet.unwrap({"state_dict": {"a": 3}})
    with pytest.raises(DetcliError, match="tensors under teacher"):
        mmdet.unwrap({"state_dict": RETINANET, "teacher": RETINANET})
