"""Two stages: a region proposal network, then a class and a box for each proposal."""

from detcli.plugin import Part, Plugin, Recipe

MSTRAIN = {"resize": [(1333, side) for side in (640, 672, 704, 736, 768, 800)]}

DC5_BACKBONE = {
    "name": "r50_caffe",
    "strides": (1, 2, 2, 1),
    "dilations": (1, 1, 1, 2),
    "out_stages": (4,),
}
DC5 = {
    "neck": None,
    "anchor_scales": (2.0, 4.0, 8.0, 16.0, 32.0),
    "anchor_border": 0,
    "train_nms_pre": 12000,
    "train_proposals": 2000,
    "test_nms_pre": 6000,
}

DEMO = {
    "demo": {
        "sched": {"length": 500},
        "model": {"fc_channels": 384, "sampler": {"num": 64}, "train_proposals": 300},
    }
}

plugin = Plugin(
    name="faster_rcnn",
    title="Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
    arxiv="1506.01497",
    models={"faster_rcnn": Part(".model:faster_rcnn", summary="an RPN, then a class and a box for each proposal")},
    converters={"mmdet/StandardRoIHead": ".convert:mmdet_head"},
    recipes=[
        Recipe("faster_rcnn", under=DEMO, summary="on a feature pyramid"),
        Recipe(
            "faster_rcnn_mstrain_2x",
            model="faster_rcnn",
            backbone="r50_caffe",
            sched="2x",
            sched_args={"drops": [16, 23]},
            data=MSTRAIN,
            summary="multi-scale training, one of six sizes",
        ),
        Recipe(
            "faster_rcnn_mstrain_3x",
            model="faster_rcnn",
            backbone="r50_caffe",
            sched="3x",
            data={"resize": [(1333, 640), (1333, 800)], "resize_mode": "range"},
            summary="multi-scale training, any size between two",
        ),
        Recipe(
            "faster_rcnn_iou",
            model="faster_rcnn",
            args={"decode_before_loss": True, "loss_bbox": {"name": "iou", "weight": 10.0}},
            summary="IoU loss of the second stage's boxes",
        ),
        Recipe(
            "faster_rcnn_giou",
            model="faster_rcnn",
            args={"decode_before_loss": True, "loss_bbox": {"name": "giou", "weight": 10.0}},
            summary="generalised IoU loss of the second stage's boxes",
        ),
        Recipe(
            "faster_rcnn_dc5",
            model="faster_rcnn",
            backbone=DC5_BACKBONE,
            args=DC5,
            summary="no pyramid: one map of stride 16, from a dilated last stage",
        ),
        Recipe(
            "faster_rcnn_dc5_mstrain",
            model="faster_rcnn",
            backbone=DC5_BACKBONE,
            args=DC5,
            data=MSTRAIN,
            summary="dilated last stage, multi-scale training",
        ),
        Recipe(
            "faster_rcnn_dc5_mstrain_3x",
            model="faster_rcnn",
            backbone=DC5_BACKBONE,
            args=DC5,
            sched="3x",
            sched_args={"drops": [28, 34]},
            data=MSTRAIN,
            summary="dilated last stage, multi-scale training, three times as long",
        ),
    ],
)
