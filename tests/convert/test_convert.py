"""detcli convert, from files as each origin writes them to what detcli eval and predict take."""

import hashlib
import json
import pickle
import re
from dataclasses import replace

import pytest
import torch

from detcli.config import resolve, revise
from detcli.convert import convert as engine
from detcli.convert.convert import convert, write
from detcli.data.classes import COCO
from detcli.engine.checkpoint import open_checkpoint
from detcli.engine.model import build_model, load_model
from detcli.errors import DetcliError, UsageError

SLIM = ["model.backbone.depth=18", "model.neck.out_channels=16", "model.roi_head.bbox_head.channels=32"]
CLASSES = ("circle", "square", "triangle", "star")

RETINANET = """
model = dict(
    type='RetinaNet',
    backbone=dict(
        type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(
        type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, start_level=1,
        add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=4, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(320, 200), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(320, 200), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
        dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
        dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])]
data = dict(
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(type='CocoDataset', ann_file='train.json', pipeline=train_pipeline),
    test=dict(type='CocoDataset', ann_file='val.json', pipeline=test_pipeline))
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
"""


def weights(recipe, *settings, classes=4):
    """Return the config of a small model of `recipe`, and weights for it."""
    torch.manual_seed(0)
    config = revise(resolve(recipe).config, settings=settings)
    return config, build_model(config, classes).state_dict()


def detectron2_name(ours):
    """Return what Detectron2 calls a tensor of a two-stage model on a pyramid; None: it doesn't have it."""
    if ours.endswith("num_batches_tracked"):
        return None
    changes = [
        (r"^backbone\.conv1\.", "backbone.bottom_up.stem.conv1."),
        (r"^backbone\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
        (r"^backbone\.layer(\d)\.", lambda match: f"backbone.bottom_up.res{int(match[1]) + 1}."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"^neck\.lateral_convs\.(\d)\.conv", lambda match: f"backbone.fpn_lateral{int(match[1]) + 2}"),
        (r"^neck\.fpn_convs\.(\d)\.conv", lambda match: f"backbone.fpn_output{int(match[1]) + 2}"),
        (r"^rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
        (r"^rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
        (r"^rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
        (r"^roi_head\.bbox_head\.shared_fcs\.(\d)", lambda match: f"roi_heads.box_head.fc{int(match[1]) + 1}"),
        (r"^roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
        (r"^roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    ]
    for pattern, replacement in changes:
        ours = re.sub(pattern, replacement, ours)
    return ours


def blob_name(ours):
    """Return what Detectron calls a tensor of a two-stage model on a pyramid; None: it doesn't have it."""
    if "num_batches" in ours or "running" in ours:
        return None
    ours = re.sub(r"\.weight$", "_w", re.sub(r"\.bias$", "_b", ours))
    changes = [
        (r"^backbone\.conv1_w", "conv1_w"),
        (r"^backbone\.bn1_w", "res_conv1_bn_s"),
        (r"^backbone\.bn1_b", "res_conv1_bn_b"),
        (
            r"^backbone\.layer(\d)\.(\d)\.(conv|bn)(\d)_(\w)",
            lambda match: (
                f"res{int(match[1]) + 1}_{match[2]}_branch2{'abc'[int(match[4]) - 1]}"
                + (f"_bn_{match[5].replace('w', 's')}" if match[3] == "bn" else f"_{match[5]}")
            ),
        ),
        (r"^backbone\.layer(\d)\.(\d)\.downsample\.0_w", lambda m: f"res{int(m[1]) + 1}_{m[2]}_branch1_w"),
        (r"^backbone\.layer(\d)\.(\d)\.downsample\.1_w", lambda m: f"res{int(m[1]) + 1}_{m[2]}_branch1_bn_s"),
        (r"^backbone\.layer(\d)\.(\d)\.downsample\.1_b", lambda m: f"res{int(m[1]) + 1}_{m[2]}_branch1_bn_b"),
        (r"^neck\.lateral_convs\.3\.conv", "fpn_inner_res5_1_sum"),
        (r"^neck\.lateral_convs\.(\d)\.conv", lambda m: f"fpn_inner_res{int(m[1]) + 2}_1_sum_lateral"),
        (r"^neck\.fpn_convs\.(\d)\.conv", lambda m: f"fpn_res{int(m[1]) + 2}_1_sum"),
        (r"^rpn_head\.rpn_conv", "conv_rpn_fpn2"),
        (r"^rpn_head\.rpn_cls", "rpn_cls_logits_fpn2"),
        (r"^rpn_head\.rpn_reg", "rpn_bbox_pred_fpn2"),
        (r"^roi_head\.bbox_head\.shared_fcs\.(\d)", lambda m: f"fc{int(m[1]) + 6}"),
        (r"^roi_head\.bbox_head\.fc_cls", "cls_score"),
        (r"^roi_head\.bbox_head\.fc_reg", "bbox_pred"),
    ]
    for pattern, replacement in changes:
        ours = re.sub(pattern, replacement, ours)
    return ours


def background_first(name, tensor):
    """Return a tensor of a box head as code bases have it that count the background as class 0."""
    if ".fc_cls." in name:
        return tensor.roll(1, 0)
    if ".fc_reg." in name:
        return torch.cat([tensor[:4], tensor])
    return tensor


def mmdet_file(folder, name="latest.pth"):
    config = "model.backbone.depth=18", "model.neck.out_channels=16", "model.stacked_convs=1"
    _, state = weights("retinanet", *config)
    meta = {"config": RETINANET, "CLASSES": CLASSES, "mmdet_version": "2.28.2", "exp_name": "mine.py"}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, folder / name)
    return folder / name, state


def legacy_file(folder):
    _, state = weights("faster_rcnn", *SLIM)
    theirs = {name.removeprefix("roi_head."): background_first(name, value) for name, value in state.items()}
    meta = {"mmdet_version": "1.2.0", "CLASSES": CLASSES}
    torch.save({"meta": meta, "state_dict": theirs}, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth", state


def detectron2_file(folder):
    _, state = weights("faster_rcnn_detectron2", *SLIM)
    model = {detectron2_name(name): value.numpy() for name, value in state.items() if detectron2_name(name)}
    (folder / "model.pkl").write_bytes(pickle.dumps({"model": model, "__author__": "me"}))
    return folder / "model.pkl", state


def detectron_file(folder):
    _, state = weights("faster_rcnn_detectron", *SLIM)
    blobs = {blob_name(name): background_first(name, value).numpy() for name, value in state.items() if blob_name(name)}
    blobs |= {f"{name}_momentum": value for name, value in list(blobs.items())}
    content = {"blobs": blobs, "cfg": "MODEL:\n  BBOX_REG_WEIGHTS: !!python/tuple [10.0, 10.0, 5.0, 5.0]\n"}
    (folder / "model_final.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return folder / "model_final.pkl", state


def torchvision_file(folder):
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    torch.save(FasterRCNN(body, num_classes=5).state_dict(), folder / "mine.pth")
    return folder / "mine.pth", None


ORIGINS = {
    "mmdet": (mmdet_file, []),
    "legacy-v1": (legacy_file, ["--as", "faster_rcnn_legacy"]),
    "detectron2": (detectron2_file, ["--as", "faster_rcnn_detectron2"]),
    "detectron": (detectron_file, ["--as", "faster_rcnn_detectron"]),
    "torchvision": (torchvision_file, ["--as", "fasterrcnn_resnet50_fpn"]),
}


def slim(origin):
    if origin == "mmdet":
        return []
    return SLIM[:1] if origin == "torchvision" else SLIM


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_tensor_arrives(tmp_path, origin):
    make, options = ORIGINS[origin]
    path, state = make(tmp_path)
    found = convert("auto", path, as_id=options[1] if options else None, settings=slim(origin))
    assert found.origin["source"] == origin
    assert len(found.classes) == 4
    write(found, tmp_path / "out.safetensors")
    checkpoint = open_checkpoint(tmp_path / "out.safetensors")
    assert checkpoint.origin == {**found.origin, "notes": found.notes}
    assert any("overlaps, NMS and clipping" in note for note in found.notes) == (origin == "legacy-v1")
    assert any("no outputs of that code" in note for note in found.notes) == (origin == "detectron")
    written = checkpoint.weights()
    if state is not None:
        fixed = origin == "detectron"  # affine layers have no statistics
        assert written.keys() == state.keys()
        for name, value in state.items():
            if not (fixed and "running" in name):
                assert torch.equal(written[name], value), name
    load_model(checkpoint, checkpoint.config, torch.device("cpu"))


@pytest.mark.parametrize("origin", ORIGINS)
def test_what_comes_out_is_evaluated(tmp_path, run_detcli, origin):
    make, options = ORIGINS[origin]
    path, _ = make(tmp_path)
    settings = [word for setting in slim(origin) for word in ("--set", setting)]
    classes = ["--data", "shapes"] if origin != "mmdet" else []
    done = run_detcli("convert", origin, path, tmp_path / "out.safetensors", *options, *settings, *classes)
    assert done.returncode == 0, done.stderr
    assert f"of {origin}" in done.stdout
    assert open_checkpoint(tmp_path / "out.safetensors").classes.names == CLASSES
    done = run_detcli(
        *("eval", tmp_path / "out.safetensors", "--data", "shapes", "--set", "data.args.val_images=2"),
        *("--set", "data.test_resize=[160,128]", "--workers", "0"),
    )
    assert done.returncode == 0, done.stderr
    assert "box_AP" in json.loads((tmp_path / "eval" / "metrics.json").read_text())


def test_report_says_what_became_of_each_tensor(tmp_path, run_detcli):
    path, _ = legacy_file(tmp_path)
    settings = [word for setting in SLIM for word in ("--set", setting)]
    done = run_detcli(
        *("convert", "auto", path, tmp_path / "new.safetensors", "--as", "faster_rcnn_legacy", *settings, "--report")
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "bbox_head.fc_cls.weight -> roi_head.bbox_head.fc_cls.weight (background last)" in lines
    assert "backbone.conv1.weight -> backbone.conv1.weight" in lines
    assert sum(" -> " in line for line in lines) == len(torch.load(path)["state_dict"])


def test_a_file_that_is_there_is_not_overwritten(tmp_path, run_detcli):
    path, _ = mmdet_file(tmp_path)
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    done = run_detcli("convert", "mmdet", path, out)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert out.read_text() == "mine"
    assert run_detcli("convert", "mmdet", path, out, "--overwrite").returncode == 0
    assert run_detcli("convert", "mmdet", path, tmp_path / "out.pth").returncode == 2


def test_the_config_in_the_file_says_the_model(tmp_path):
    path, _ = mmdet_file(tmp_path)
    found = convert("mmdet", path)
    assert found.config.model["name"] == "retinanet"
    assert found.config.model["stacked_convs"] == 1
    assert found.config.data.test_resize == (320, 200)
    assert found.classes.names == CLASSES


def test_classes_of_published_data_have_their_ids(tmp_path):
    _, state = weights("retinanet", "model.backbone.depth=18", classes=80)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    found = convert("mmdet", tmp_path / "x.pth", as_id="retinanet", settings=["model.backbone.depth=18"])
    assert found.classes == COCO


def test_another_number_of_classes_than_the_data_have(tmp_path):
    path, _ = detectron2_file(tmp_path)
    found = convert("detectron2", path, as_id="faster_rcnn_detectron2", settings=SLIM)
    assert found.classes.names == ("class 1", "class 2", "class 3", "class 4")
    assert any("--data" in note for note in found.notes)
    with pytest.raises(DetcliError, match="the data have 80 classes, and the checkpoint is for 4"):
        convert("detectron2", path, as_id="faster_rcnn_detectron2", settings=SLIM, classes=COCO)


def test_the_row_is_found_by_name_and_by_hash(tmp_path, monkeypatch):
    _, state = weights("retinanet", classes=80)
    path = tmp_path / "retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(DetcliError, match="has the name of a published file and is another"):
        convert("mmdet", path)

    row = next(row for row in engine.rows() if row.id == "mmdet-v2/retinanet_r50_fpn_1x_coco")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files = (replace(next(file for file in row.files if file.kind == "weights"), hash=digest[:8]),)
    renamed = path.with_name("mine.pth")
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(DetcliError, match="neither its name nor its hash"):
        convert("mmdet", renamed)
    monkeypatch.setattr(engine, "rows", lambda: [replace(row, files=files)])
    for file in (path, renamed):
        found = convert("mmdet", file)
        assert found.origin["row"] == row.id
        assert found.config.recipe == "retinanet"


def test_a_config_that_is_not_understood_is_not_guessed(tmp_path):
    path, state = mmdet_file(tmp_path)
    meta = {
        "config": RETINANET.replace("RetinaHead", "RetinaHeadOfTomorrow"),
        "exp_name": "retinanet_r50_fpn_1x_coco.py",
    }
    torch.save({"meta": meta, "state_dict": state}, path)
    with pytest.raises(DetcliError, match="RetinaHeadOfTomorrow"):
        convert("mmdet", path)
    _, state = weights("retinanet", classes=80)
    del meta["config"]
    torch.save({"meta": meta, "state_dict": state}, path)
    assert convert("mmdet", path).origin["row"] == "mmdet-v2/retinanet_r50_fpn_1x_coco"


def test_errors_name_what_is_wrong(tmp_path):
    path, state = mmdet_file(tmp_path)
    with pytest.raises(UsageError, match=r"'mmdet2'.*did you mean 'mmdet'"):
        convert("mmdet2", path)
    with pytest.raises(DetcliError, match="no file"):
        convert("mmdet", tmp_path / "none.pth")
    with pytest.raises(DetcliError, match="looks like a file of mmdet: `detcli convert mmdet"):
        convert("detectron2", path)
    with pytest.raises(UsageError, match="retinanet"):
        convert("mmdet", path, as_id="retinanett")
    with pytest.raises(DetcliError, match="does not fit"):
        convert("mmdet", path, as_id="atss")
    torch.save({"lines": [1, 2, 3]}, tmp_path / "else.pth")
    with pytest.raises(DetcliError, match="of no source that is known"):
        convert("auto", tmp_path / "else.pth")
    lacking = {name: value for name, value in state.items() if name != "bbox_head.retina_cls.bias"}
    torch.save({"meta": {"config": RETINANET}, "state_dict": lacking}, path)
    with pytest.raises(DetcliError, match=r"retina_cls\.bias is missing"):
        convert("mmdet", path)
    torch.save({"meta": {"config": RETINANET}, "state_dict": state | {"bbox_head.more": torch.zeros(1)}}, path)
    with pytest.raises(DetcliError, match=r"bbox_head\.more is not in this model"):
        convert("mmdet", path)


def test_a_backbone_is_what_training_starts_from(tmp_path, run_detcli):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18().state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    out = tmp_path / "backbone.safetensors"
    done = run_detcli("convert", "auto", tmp_path / "resnet18.pth", out)
    assert done.returncode == 0, done.stderr
    assert "a backbone of torchvision" in done.stdout
    assert run_detcli("eval", out, "--data", "shapes").returncode == 1
    done = run_detcli(
        *("train", "retinanet", "--backbone", "r18", "--data", "shapes", "--weights", out, "--iters", "1"),
        *("--batch", "1", "--workers", "0", "--out", tmp_path / "run", "--set", "model.neck.out_channels=16"),
        *("--set", "data.resize=[[160,128]]", "--set", "train.eval_every=0", "--set", "data.args.val_images=1"),
        *("--set", "data.test_resize=[160,128]"),
    )
    assert done.returncode == 0, done.stderr
    trained = open_checkpoint(tmp_path / "run").weights()
    assert torch.equal(trained["backbone.conv1.weight"], theirs["conv1.weight"])  # the stem is frozen
