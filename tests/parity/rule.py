"""Weights, pictures and objects of the reference cases, made again from names, shapes and seeds.

`fill`, `make_input`, `make_proposals` and `make_semantic` are rules of the MMDetection cases, those with
`_detectron2` of the Detectron2 cases, and `make_targets` of both. Weights depend on their own name, shape and
dtype, and on nothing else.
"""

import re
import zlib

import numpy as np

KERNEL_OF_CONV = {"conv1": 4.0, "conv2": 9.0, "conv3": 0.25}  # fan-in / out channels in a bottleneck

VECTOR_SCALES = [  # of 1-d weights
    (r"(^|\.)(bn|gn|norm)[23]\.weight$", 0.25),
    (r"bns\.\d+\.weight$|conv2\.bn\.weight$|fuse_layers\..*\.weight$", 0.25),
    (r"hourglass_modules\..*downsample\.\d\.weight$", 0.5),
]
MATRIX_SCALES = [  # of weights with two axes or more
    (r"offset", 0.25),
    (r"_reg\.weight$|rpn_cls\.weight$", 0.4),
    (r"attentions\.0\.attn\.out_proj\.weight$", 0.25),
    (r"switch\.weight$|weight_diff$", 0.1),
    (r"_emb\.\d\.1\.conv\.weight$", 0.2),
    (r"in_proj_weight$", 0.8),
]
EMBEDDINGS = re.compile(r"(query_embedding|init_proposal_features|row_embed|col_embed)\.weight$|level_embeds$")
CORNER_HEAT = re.compile(r"(tl|br)_heat\.\d\.1\.conv\.bias$")
CORNER_SHIFT = re.compile(r"centripetal_shift\.\d\.1\.conv\.bias$")
CENTRED_DETECTRON2 = re.compile(
    r"head\.cls_score\.weight$|sem_seg_head\.predictor\.weight$"
    r"|roi_heads\.box_predictor(\.\d)?\.cls_score\.weight$"
)


def fill(name, shape, dtype):
    """Return the tensor `name` of an MMDetection case: integers 0, all else float32."""
    if dtype.startswith(("int", "uint", "bool")):
        return np.zeros(shape, dtype)
    if name.endswith("running_var"):
        return (0.5 + _generator(name).random_sample(shape)).astype(np.float32)
    normal = _generator(name).standard_normal(shape)
    return np.asarray(_values(name, tuple(shape), normal), np.float32)


def _values(name, shape, normal):
    if name.endswith("running_mean"):
        return 0.1 * normal
    if name.endswith("weight_gamma"):
        kernel = KERNEL_OF_CONV.get(name.split(".")[-2], 0.5)
        return np.sqrt(3 / (kernel * shape[0])) * (1 + 0.1 * normal)
    if name.endswith("weight_beta"):
        return 0.001 * normal
    if name.endswith("init_proposal_bboxes.weight"):
        return 0.5 + 0.1 * normal
    if EMBEDDINGS.search(name):
        return normal
    if len(shape) == 0:
        return 1 + 0.1 * normal
    if len(shape) == 1:
        if name.endswith(".weight"):
            return _scale(name, VECTOR_SCALES) * (1 + 0.1 * normal)
        if CORNER_HEAT.search(name):
            return 2 * np.random.RandomState(7).standard_normal(shape)
        return 0.05 * normal + (2 if CORNER_SHIFT.search(name) else 0)
    fan_in = np.prod(shape[1:])
    if fan_in >= 32:
        normal = normal - normal.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    gain = 2 if "_head" in name else 1 if name.startswith("neck.") else 3
    return normal * np.sqrt(gain / fan_in) * _scale(name, MATRIX_SCALES)


def make_input(height, width, seed=0, batch=1):
    """Return normalised pixels [batch,3,height,width] float32."""
    return np.random.RandomState(seed).standard_normal((batch, 3, height, width)).astype(np.float32)


def make_targets(height, width, num_classes, count=5, seed=1):
    """Return boxes [count,4] float32, labels [count] int64, ellipses [count,height,width] uint8."""
    boxes, labels = _random_boxes(np.random.RandomState(seed), height, width, num_classes, count)
    masks = _ellipses(boxes.astype(np.float64), height, width)
    return boxes, labels, masks


def make_proposals(height, width, count=200, seed=3):
    """Return the proposals [count,5] float32 (xyxy, score 1) that Fast R-CNN cases are given."""
    random = np.random.RandomState(seed)
    sides = random.uniform(16, 160, (count, 2))
    corner = random.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corner, corner + sides, np.ones((count, 1))], axis=1).astype(np.float32)


def make_semantic(height, width, num_classes, stride=8, seed=2):
    """Return semantic labels [1,1,height/stride,width/stride] int64."""
    shape = (1, 1, height // stride, width // stride)
    return np.random.RandomState(seed).randint(0, num_classes, shape).astype(np.int64)


def fill_detectron2(name, shape, dtype, gain):
    """Return the tensor `name` of a Detectron2 case, which gives its `gain`: integers 0, all else float32."""
    if dtype.startswith("int"):
        return np.zeros(shape, dtype)
    random = _generator(name)
    leaf = name.split(".")[-1]
    if leaf == "running_var":
        values = 0.5 + random.rand(*shape)
    elif leaf == "running_mean":
        values = 0.1 * random.randn(*shape)
    elif len(shape) <= 1:
        values = 1 + 0.1 * random.randn(*shape) if leaf == "weight" else 0.05 * random.randn(*shape)
    else:
        values = random.randn(*shape) * (np.sqrt(2.0 / np.prod(shape[1:])) * gain)
        if CENTRED_DETECTRON2.search(name):
            values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    return np.asarray(values, np.float32)


def make_image_detectron2(height, width, seed=0):
    """Return pixels [3,height,width] float32 of 0..255, in the model's channel order."""
    return np.random.RandomState(seed).randint(0, 256, (3, height, width)).astype(np.float32)


def make_proposals_detectron2(height, width, count=200, seed=2):
    """Return the boxes [count,4] and logits [count], best first, that Fast R-CNN cases are given."""
    random = np.random.RandomState(seed)
    widths, heights = random.uniform(16, 200, count), random.uniform(16, 200, count)
    u, v = random.rand(count), random.rand(count)
    logits = random.randn(count).astype(np.float32)
    left, top = u * np.maximum(width - widths, 0), v * np.maximum(height - heights, 0)
    right, bottom = np.minimum(left + widths, width), np.minimum(top + heights, height)
    boxes = np.stack([left, top, right, bottom], axis=1).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    return boxes[order], logits[order]


def make_semantic_detectron2(height, width, things, stuff):
    """Return semantic labels [height,width] uint8, those of `stuff` after `things`, in squares of 32 pixels.

    Detectron2's labels have one, 0, for all things; it is that of the first thing here.
    """
    row, column = np.mgrid[:height, :width] // 32
    labels = (row * 5 + column * 3) % (stuff + 1)
    labels = np.where(labels == 0, 0, labels + things - 1)
    return np.where((row + column) % 7 == 6, 255, labels).astype(np.uint8)


def _generator(name):
    return np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)


def _scale(name, table):
    return next((scale for pattern, scale in table if re.search(pattern, name)), 1.0)


def _random_boxes(random, height, width, num_classes, count):
    boxes, labels = [], []
    for _ in range(count):
        w, h = random.uniform(24, 160), random.uniform(24, 160)
        x, y = random.uniform(0, width - w), random.uniform(0, height - h)
        boxes.append([x, y, x + w, y + h])
        labels.append(random.randint(0, num_classes))
    return np.array(boxes, np.float32), np.array(labels, np.int64)


def _ellipses(boxes, height, width):
    """Return the pixels [B,height,width] whose centres lie in the ellipse that each box [B,4] bounds."""
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (np.arange(width) + 0.5 - centre[:, :1]) / radius[:, :1]
    y = (np.arange(height) + 0.5 - centre[:, 1:]) / radius[:, 1:]
    return (x[:, None, :] ** 2 + y[:, :, None] ** 2 <= 1).astype(np.uint8)
