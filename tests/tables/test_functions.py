"""What of detcli.nn is held to tables, and what can't be: a new function belongs to one of the two."""

import ast
from pathlib import Path

import pytest

NN = Path(__file__).parents[2] / "detcli/nn"

IN_TABLES = {
    "anchors.py": {"AnchorGenerator"},
    "assigners.py": {"atss", "max_iou"},
    "box_coders.py": {"DeltaBoxCoder", "DistanceBoxCoder"},
    "boxes.py": {"aligned_iou", "pairwise_iou"},
    "deform.py": {"DeformConv2d", "moved_roi_align"},
    "keypoint_head.py": {"find_keypoints", "keypoint_places"},
    "losses.py": {"bounded_iou", "cross_entropy", "focal", "giou", "iou", "l1", "smooth_l1"},
    "masks.py": {"crop_masks", "paste_masks"},
    "matching.py": {"hungarian"},
    "postprocess.py": {"SoftNMS", "batched_nms", "fast_nms", "multiclass_nms", "suppress"},
    "roi_extractor.py": {"single_level"},
}
"""Functions and classes whose results are compared in test_mmdetection.py and test_detectron2.py."""

ELSEWHERE = {
    "anchors.py": {"PointGenerator", "grid_strides", "inside_images"},
    "assigners.py": {"Assignment"},
    "boxes.py": {"box_area", "clip_boxes"},
    "deform.py": {"DeformExtractor", "OffsetLayers", "deform_roi_pool", "deformable"},
    "keypoint_head.py": {"KeypointHead"},
    "losses.py": {"FocalSum", "Loss", "LossFunction", "of_elements", "one_hot", "weighted_sum"},
    "masks.py": {"paste_regions", "resize_masks", "resize_regions"},
    "matching.py": {"ObjectSet", "object_set", "to_pixels"},
    "postprocess.py": {"batched_soft_nms", "select_top"},
    "roi_extractor.py": {"SingleLevelExtractor", "align"},
}
"""What those are made of, and what no table has an entry for."""

PARTS_OF_MODELS = {
    "blocks.py",
    "cascade_roi_head.py",
    "dense_heads.py",
    "detector.py",
    "fold.py",
    "fpn.py",
    "processes.py",
    "resnet.py",
    "roi_align.py",
    "roi_head.py",
    "rpn_head.py",
    "samplers.py",
    "semantic_head.py",
    "transformer.py",
    "two_stage.py",
    "weights.py",
}
"""Files whose results only show in whole models, which are held to reference cases, or are not numbers."""


FILES = {path.name for path in NN.glob("[!_]*.py")}


def test_parts_of_models_are_there():
    assert PARTS_OF_MODELS <= FILES


@pytest.mark.parametrize("name", sorted(FILES - PARTS_OF_MODELS))
def test_every_function_of_nn_has_its_place(name):
    """What is new is held to the tables' entries where they have any (MISSING names them), or stands in ELSEWHERE."""
    tree = ast.parse((NN / name).read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    public = {function for function in defined if not function.startswith("_")}
    assert public == IN_TABLES.get(name, set()) | ELSEWHERE.get(name, set())


@pytest.mark.parametrize("name", sorted(IN_TABLES))
def test_what_is_said_to_be_in_tables_is_compared(name):
    """Each of them is called in a test of the tables."""
    called = set()
    for file in ("test_mmdetection.py", "test_detectron2.py"):
        tree = ast.parse((Path(__file__).parent / file).read_text())
        called |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        called |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert called >= IN_TABLES[name]
