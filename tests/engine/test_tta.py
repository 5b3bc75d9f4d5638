import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional

import detcli
from detcli.config import leaves, load, resolve, revise
from detcli.data import open_dataset
from detcli.data.classes import COCO_KEYPOINTS
from detcli.engine import tta
from detcli.engine.checkpoint import save_checkpoint
from detcli.engine.evaluate import detect_in, evaluate_model
from detcli.engine.model import build_model
from detcli.engine.predictor import Predictor
from detcli.engine.train import train
from detcli.engine.tta import Augmented, View, looks_again, merge
from detcli.errors import UsageError
from detcli.eval.results import paste
from detcli.nn.detector import Detector
from detcli.nn.keypoint_head import find_keypoints
from detcli.nn.roi_head import to_rois
from detcli.structures import ClassMap, Detections, ImageInfo

CPU = torch.device("cpu")
CLASSES = ClassMap(("cat", "dog"), (17, 18), keypoints=COCO_KEYPOINTS)
SMALL = [
    "model.roi_head.score_threshold=0.05",
    "model.roi_head.max_per_image=9",
    "data.test_resize=[110,90]",
    "weights=none",
]
SLIM = ["model.neck.out_channels=16", "model.rpn_head.test_proposals=30"]
IN_A_MIRROR = [
    name.replace("left", "right") if "left" in name else name.replace("right", "left") for name in COCO_KEYPOINTS
]
EXACT = {"rtol": 1e-4, "atol": 1e-3}


def config_of(method, *settings):
    settings = [*SMALL, *settings]
    return resolve(method, backbone="r18", sched="demo", settings=settings).config


def model_of(config, seed=0):
    """Return a model with random weights that is surer of some boxes than of others."""
    torch.manual_seed(seed)
    model = build_model(config, 2).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("fc_cls.weight", "fc_reg.weight", "conv_logits.weight")):
                weight *= 10
    return model


def picture(height, width, seed=0):
    """Return a picture of smooth random blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def augmented(method, *settings, scales="[1.0]", flip=True):
    config = config_of(method, *settings, f"eval.tta.scales={scales}", f"eval.tta.flip={json.dumps(flip)}")
    return Augmented(model_of(config), config, CLASSES, CPU)


# Views of a picture.


def test_boxes_are_mapped_to_a_view_and_back():
    view = View(ImageInfo(1, "", (100, 150), (73, 111)), True, (0, 2, 1))
    boxes = torch.tensor([[30.0, 20.0, 60.0, 50.0]])
    # Columns are 111 / 150 times as far from the other side, rows 73 / 100 times as far from the same.
    inside = torch.tensor([[66.6, 14.6, 88.8, 36.5]])
    torch.testing.assert_close(view.boxes(boxes), inside)
    crops = torch.rand(1, 4, 5)
    keypoints = torch.tensor([[[70.0, 20.0, 0.1], [80.0, 30.0, 0.2], [85.0, 31.0, 0.3]]])
    found = Detections(inside, torch.ones(1), torch.zeros(1).long(), mask_crops=crops, keypoints=keypoints)
    back = view.original(found)
    torch.testing.assert_close(back.boxes, boxes)
    assert torch.equal(back.mask_crops, crops[..., [4, 3, 2, 1, 0]])
    # The middle one of three points and the last one are left and right of each other.
    places = torch.tensor([[70.0, 20.0], [85.0, 31.0], [80.0, 30.0]])
    expected = torch.stack([(111 - places[:, 0]) * 150 / 111, places[:, 1] * 100 / 73], dim=1)
    torch.testing.assert_close(back.keypoints[0, :, :2], expected)
    assert back.keypoints[0, :, 2].tolist() == pytest.approx([0.1, 0.3, 0.2])
    assert keypoints[0, 0, 0] == 70  # what the network found stays as it was


class Finder(Detector):
    """Finds the bright rectangle in each image by its pixels; its mask map is the image, its keypoints the corners."""

    def __init__(self):
        super().__init__(torch.nn.Identity(), None, ("box", "mask", "keypoint"))

    def detect(self, features, batch):
        found = []
        for image, (height, width) in zip(features, batch.sizes.tolist(), strict=True):
            bright = image[0, :height, :width] > 0
            rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
            left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            box = torch.stack([left, top, right, bottom]).float()[None]
            # Left and right as the image has them: in a mirrored one, that of the left side is called right.
            points = torch.tensor([[[left, top, 0.9], [right, top, 0.8]]])
            score = torch.tensor([0.5 + width / 1000 + 0.0001 * bool(left > width / 2)])
            maps = bright[None].float()
            found.append(Detections(box, score, torch.zeros(1).long(), mask_maps=maps, keypoints=points))
        return found


@pytest.mark.parametrize("scale", [0.5, 1, 1.5])
@pytest.mark.parametrize("flip", [False, True])
def test_the_pixels_of_a_view_lie_where_its_boxes_do(scale, flip):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[20:40, 8:32] = 255
    classes = replace(CLASSES, keypoints=("left_side", "right_side"))
    config = config_of("mask_rcnn", f"eval.tta.scales=[{scale}]", "data.test_resize=[96,64]")
    config.eval.tta.flip = flip
    found = Augmented(Finder().eval(), config, classes, CPU)(pixels)
    # The mirrored view has the rectangle on its right and the greater score.
    assert len(found) == 1
    assert found.scores[0] == pytest.approx(0.5 + 0.096 * scale + 0.0001 * flip)
    assert found.boxes[0].tolist() == pytest.approx([8, 20, 32, 40])
    mask = paste(found, ImageInfo(1, "", (64, 96), (64, 96))).masks[0]
    assert mask[21:39, 9:31].all()
    assert mask.sum() <= 22 * 26
    corners = found.keypoints[0]
    assert corners[:, 0].tolist() == pytest.approx([8, 32])
    assert corners[:, 2].tolist() == pytest.approx([0.8, 0.9] if flip else [0.9, 0.8])


def test_maps_of_masks_of_several_sizes_become_those_of_the_finest():
    box = torch.tensor([[0.0, 0, 8, 8]])
    label = torch.zeros(1).long()
    coarse = Detections(box, torch.tensor([0.5]), label, mask_maps=torch.tensor([[[0.0, 1], [0, 1]]]))
    fine = Detections(box, torch.tensor([0.4]), label + 1, mask_maps=torch.rand(1, 4, 4))
    none = Detections(box[:0], torch.zeros(0), label[:0], mask_maps=torch.zeros(0, 3, 3))
    merged = merge([fine, none, coarse], 0.5, 10)
    assert merged.labels.tolist() == [0, 1]
    assert merged.mask_maps[0, 0].tolist() == [0, 0.25, 0.75, 1]
    assert torch.equal(merged.mask_maps[1], fine.mask_maps[0])
    assert merge([none, none], 0.5, 10).mask_maps.shape == (0, 3, 3)


def test_one_view_stays_as_it_is():
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7]])
    found = Detections(boxes, torch.tensor([0.5, 0.4]), torch.zeros(2).long())
    assert merge([found], 0.5, 1) is found
    assert merge([found, found[:0]], 0.5, 9).scores.tolist() == [0.5]


# Merging.


def slow_nms(boxes, scores, labels, threshold, limit):
    """Return the rows that stay, one box after another."""
    kept = []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        worse = False
        for other in kept:
            left, top = np.maximum(boxes[row][:2], boxes[other][:2])
            right, bottom = np.minimum(boxes[row][2:], boxes[other][2:])
            shared = max(right - left, 0) * max(bottom - top, 0)
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (boxes[row], boxes[other])]
            worse |= bool(labels[row] == labels[other] and shared / (sum(areas) - shared) > threshold)
        if not worse:
            kept.append(row)
    return kept[:limit]


def slow_views(config, pixels):
    """Yield the size (height, width) of each view, whether it is mirrored, and its normalised image, one by one."""
    for width, height in config.eval.tta.sizes(config.data.test_resize):
        factor = min(
            max(width, height) / max(pixels.shape[:2]),
            min(width, height) / min(pixels.shape[:2]),
        )
        size = int(pixels.shape[0] * factor + 0.5), int(pixels.shape[1] * factor + 0.5)
        resized = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
        for flipped in (False, True):
            values = resized[:, ::-1] if flipped else resized
            normal = (values.astype(np.float32) - config.input.mean) / config.input.std
            image = torch.from_numpy(normal).float().permute(2, 0, 1)
            padding = (0, -size[1] % 32, 0, -size[0] % 32)
            yield size, flipped, functional.pad(image, padding)[None]


def mapped(boxes, original, size, flipped):
    boxes = boxes.double() * torch.tensor([size[1] / original[1], size[0] / original[0]] * 2)
    if flipped:
        boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1)
    return boxes.float()


@pytest.mark.parametrize("kept_bytes", [0, tta.KEPT_BYTES])
@pytest.mark.parametrize("method", ["mask_rcnn", "keypoint_rcnn"])
def test_the_second_stage_agrees_with_a_straightforward_loop(method, kept_bytes, monkeypatch):
    monkeypatch.setattr(tta, "KEPT_BYTES", kept_bytes)
    small = (
        [f"model.roi_head.keypoint_head.{each}" for each in ("convs=1", "channels=16")]
        if method == "keypoint_rcnn"
        else []
    )
    merger = augmented(method, *SLIM, *small, scales="[0.7,1,[150,120]]")
    model, config, pixels = merger.model, merger.config, picture(77, 101)
    head = model.roi_head
    assert looks_again(model)
    boxes, scores, labels, features = [], [], [], []
    for size, flipped, image in slow_views(config, pixels):
        with torch.inference_mode():
            maps = model.neck(model.backbone(image))
            (proposals,) = model.rpn_head.propose(model.rpn_head(maps), torch.tensor([size]))
            batch = detcli.structures.Batch(image, torch.tensor([size]))
            (found,) = head.detect(maps, [proposals.boxes], batch)
        features.append(maps)
        # The way back is the way there from a picture of the view's size.
        boxes.append(mapped(found.boxes, size, size, flipped).double())
        boxes[-1] *= torch.tensor([101 / size[1], 77 / size[0]] * 2)
        scores.append(found.scores)
        labels.append(found.labels)
    boxes, scores, labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    keep = slow_nms(boxes.numpy(), scores.tolist(), labels.tolist(), 0.5, 9)
    merged = merger(pixels)
    assert len(boxes) > len(keep) == len(merged) > 3
    torch.testing.assert_close(merged.boxes, boxes[keep].float(), **EXACT)
    torch.testing.assert_close(merged.scores, scores[keep], **EXACT)
    assert torch.equal(merged.labels, labels[keep])
    total = 0
    for (size, flipped, _), maps in zip(slow_views(config, pixels), features, strict=True):
        rois = to_rois([mapped(boxes[keep], (77, 101), size, flipped)])
        with torch.inference_mode():
            if method == "mask_rcnn":
                seen = head.mask_head(head.mask_roi_extractor(maps, rois), labels[keep]).sigmoid()
            else:
                seen = head.keypoint_head(head.keypoint_roi_extractor(maps, rois))
                if flipped:
                    seen = torch.stack([seen[:, COCO_KEYPOINTS.index(name)] for name in IN_A_MIRROR], dim=1)
        total = total + (seen.flip(-1) if flipped else seen) / 6
    if method == "mask_rcnn":
        assert total.std() > 0.05
        torch.testing.assert_close(merged.mask_crops, total, rtol=1e-3, atol=1e-3)
    else:
        expected = find_keypoints(total, boxes[keep].float())
        torch.testing.assert_close(merged.keypoints, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("method", ["mask_rcnn", "keypoint_rcnn", "cascade_mask_rcnn", "htc"])
def test_a_symmetrical_picture_has_symmetrical_objects(method):
    half = picture(75, 52)
    pixels = np.concatenate([half, half[:, ::-1]], axis=1)
    # No overlap is too much: of each object, its mirror image stays, too.
    settings = ["data.test_resize=[104,75]", "eval.tta.nms_threshold=1.0", "eval.tta.max_per_image=100"]
    found = augmented(method, *SLIM, *settings)(pixels)
    assert len(found) > 6
    mirrored = torch.stack([104 - found.boxes[:, 2], found.boxes[:, 1], 104 - found.boxes[:, 0], found.boxes[:, 3]], 1)
    same_label = found.labels[:, None] == found.labels
    distance = (mirrored[:, None] - found.boxes).abs().amax(-1) + 1000 * ~same_label
    nearest, twin = distance.min(1)
    assert nearest.max() < 1e-3
    torch.testing.assert_close(found.scores, found.scores[twin], **EXACT)
    if found.mask_crops is not None:
        assert found.mask_crops.std() > 0.01
        torch.testing.assert_close(found.mask_crops, found.mask_crops[twin].flip(-1), rtol=1e-3, atol=1e-3)
    if found.keypoints is not None:
        left, right = COCO_KEYPOINTS.index("left_ear"), COCO_KEYPOINTS.index("right_ear")
        score = found.keypoints[..., 2]
        torch.testing.assert_close(score[:, left], score[twin][:, right], rtol=1e-2, atol=1e-4)


def test_limits_are_the_models_own_or_those_that_are_set():
    assert tta.merging(config_of("mask_rcnn", "model.roi_head.nms_threshold=0.7")) == (0.7, 9)
    assert tta.merging(config_of("mask_rcnn", "eval.tta.nms_threshold=0.3", "eval.tta.max_per_image=5")) == (0.3, 5)
    assert tta.merging(resolve("detr", settings=["model.max_per_image=50"]).config) == (0.5, 50)
    assert tta.merging(resolve("rpn", settings=["model.rpn_head.test_proposals=70"]).config) == (0.7, 70)


@pytest.mark.parametrize("method", ["retinanet", "yolact", "rpn", "detr"])
def test_methods_of_all_kinds_are_merged(method):
    own = {
        "rpn": ["model.neck.out_channels=16", "model.rpn_head.test_proposals=9"],
        "detr": ["model.channels=32", "model.encoder_layers=1", "model.decoder_layers=1"],
        "yolact": ["model.neck.out_channels=32"],
        "retinanet": ["model.neck.out_channels=32"],
    }[method]
    values = {"score_threshold": 0.001, "max_per_image": 9}
    known = [(key, values.get(key.rpartition(".")[2])) for key in leaves(resolve(method).config.model)]
    limits = [f"model.{key}={value}" for key, value in known if value is not None]
    settings = [*SMALL[2:], *own, *limits, "eval.tta.scales=[0.8,1.2]", "eval.tta.flip=true"]
    config = resolve(method, backbone="r18", sched="demo", settings=settings).config
    torch.manual_seed(0)
    model = build_model(config, 2).eval()
    found = Augmented(model, config, CLASSES, CPU)(picture(70, 90))
    assert 0 < len(found) <= 9
    assert (found.scores.diff() <= 0).all()
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 2:] <= torch.tensor([90, 70])).all()
    assert not looks_again(model)
    whole = paste(found, ImageInfo(1, "", (70, 90), (70, 90)))
    assert ("mask" in model.tasks) == (whole.masks is not None)


# Through evaluation and prediction.


@pytest.fixture(scope="module")
def shapes():
    """A model with random weights, its config, and pictures whose sizes are not those of its network."""
    settings = ["data.args.val_images=3", "data.args.size=[150,118]", "data.workers=0", "eval.batch=2", *SLIM]
    config = revise(config_of("mask_rcnn", *settings), flags={"data.source": "shapes"})
    data = open_dataset(config.data, "val", config.input)
    torch.manual_seed(0)
    config.model["roi_head"]["score_threshold"] = 0.05
    model = build_model(config, len(data.classes)).eval()
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight *= 10
    return model, data, config


def test_one_scale_without_flip_is_plain_evaluation(shapes):
    model, data, config = shapes
    one = revise(config, settings=["eval.batch=1"])
    plain = evaluate_model(model, data, one, CPU)
    half = revise(one, settings=["data.test_resize=[55,45]"])
    smaller = open_dataset(half.data, "val", half.input)
    assert len(plain.results) > 3
    other = evaluate_model(model, smaller, half, CPU)
    assert other.results != plain.results
    again = evaluate_model(model, data, revise(half, settings=["eval.tta.scales=[2]"]), CPU)
    assert (again.results, again.metrics) == (plain.results, plain.metrics)
    again = evaluate_model(model, data, revise(one, settings=["eval.tta.scales=[0.5]"]), CPU)
    assert again.results == other.results


def test_evaluation_and_prediction_find_the_same(shapes):
    model, data, config = shapes
    config = revise(config, overlays=["tta"], settings=["eval.tta.scales=[0.8,1]"])
    assert config.eval.tta.flip
    plain = revise(config, settings=["eval.tta.scales=[1]", "eval.tta.flip=false"])
    predictor = Predictor.of(model, config, data.classes, CPU)
    without = Predictor.of(model, plain, data.classes, CPU)
    for info, found in detect_in(model, data, config, CPU, "fp32"):
        predicted = predictor.predict(data.picture(info.image_id), batch=2)
        assert torch.equal(found.boxes, predicted.boxes)
        assert torch.equal(paste(found, info).masks, predicted.masks)
        assert predicted.masks.shape[1:] == info.original_size
        assert not torch.equal(without.predict(data.picture(info.image_id)).scores, predicted.scores)
        some = predictor.predict(data.picture(info.image_id), score=float(predicted.scores[2]))
        assert len(some) == 3


def test_proposals_of_a_file_are_mapped_to_each_view():
    merger = augmented("fast_rcnn", "model.neck.out_channels=16", scales="[0.7,1]")
    seen = []
    detect = merger.model.roi_head.detect
    merger.model.roi_head.detect = lambda maps, boxes, batch: seen.extend(boxes) or detect(maps, boxes, batch)
    proposals = torch.tensor([[10.0, 10, 50, 60], [40, 20, 100, 76]])
    found = merger(picture(77, 101), proposals)
    assert len(found)
    sizes = [size for size, _, _ in slow_views(merger.config, picture(77, 101))]
    for boxes, size, flipped in zip(seen, sizes, (False, True) * 2, strict=True):
        torch.testing.assert_close(boxes, mapped(proposals, (77, 101), size, flipped))


def test_a_run_is_measured_with_augmentation_at_its_end_only(tmp_path):
    settings = ["data.args.train_images=4", "data.args.val_images=2", "data.workers=0", "train.batch=2"]
    settings += ["sched.length=2", "train.eval_every=1", "eval.tta.scales=[1.5]", "eval.tta.flip=false", *SLIM]
    settings += ["model.roi_head.score_threshold=0.0"]
    flags = {"data.source": "shapes"}
    config = resolve("faster_rcnn", backbone="r18", sched="demo", overlays=["tta"], settings=settings, flags=flags)
    with (tmp_path / "console.txt").open("w") as file:
        evaluation = train(config.config, tmp_path / "run", Console(file=file))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results == evaluation.results
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iter"] for line in lines if line["kind"] == "eval"] == [1, 2]
    predictor = detcli.load(tmp_path / "run" / "last.safetensors", device="cpu", settings=["eval.tta.scales=[1]"])
    data = open_dataset(predictor.config.data, "val", predictor.config.input, classes=predictor.classes)
    plain = evaluate_model(predictor.model, data, predictor.config, CPU)
    assert [result["bbox"] for result in plain.results] != [result["bbox"] for result in results]


# Settings.


def test_a_run_config_keeps_its_scales():
    config = config_of("mask_rcnn", "eval.tta.scales=[0.5,[640,480]]")
    assert load(json.loads(json.dumps(config.model_dump()))).eval.tta == config.eval.tta
    assert config.eval.tta.sizes((1333, 800)) == [(666, 400), (640, 480)]
    assert config.eval.tta.active
    assert not config_of("mask_rcnn").eval.tta.active


def test_an_overlay_of_training_is_refused_for_a_trained_model():
    config = config_of("mask_rcnn")
    with pytest.raises(UsageError, match=r"overlay 'gn' changes model, which a trained model has already.*go tta"):
        revise(config, overlays=["gn"])
    with pytest.raises(UsageError, match="unknown overlay 'tts': did you mean 'tta'"):
        revise(config, overlays=["tts"])


def test_what_cannot_be_merged_is_refused_before_training(tmp_path):
    settings = ["data.args.train_images=2", "data.args.val_images=2", "data.workers=0", *SLIM]
    flags = {"data.source": "shapes"}
    config = resolve("panoptic_fpn", backbone="r18", sched="demo", overlays=["tta"], settings=settings, flags=flags)
    with (tmp_path / "console.txt").open("w") as file, pytest.raises(UsageError, match="panoptic_fpn cuts pictures"):
        train(config.config, tmp_path / "run", Console(file=file))
    assert not (tmp_path / "run").exists()
    config = config_of("keypoint_rcnn", *SLIM, "eval.tta.flip=true")
    nameless = ClassMap(("cat", "dog"), (17, 18))
    with pytest.raises(UsageError, match=r"have no names.*eval\.tta\.flip=false"):
        Augmented(model_of(config), config, nameless, CPU)


def test_the_commands_take_the_overlay(tmp_path, run_detcli, shapes):
    model, data, config = shapes
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model.state_dict(), config, data.classes)
    few = ["--device", "cpu", "--with", "tta", "--set", "eval.tta.scales=[1,1.4]"]
    done = run_detcli("eval", path, "--data", "shapes", *few, "--out", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    expected = evaluate_model(model, data, revise(config, overlays=["tta"], settings=[few[-1]]), CPU)
    written = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert written["box_AP"] == pytest.approx(expected.metrics["box_AP"], abs=1e-3)
    assert len(json.loads((tmp_path / "eval" / "results.json").read_text())) == len(expected.results)
    assert json.loads((tmp_path / "eval" / "config.json").read_text())["eval"]["tta"]["scales"] == [1, 1.4]
    cv2.imwrite(str(tmp_path / "picture.png"), picture(80, 100)[..., ::-1])
    done = run_detcli("predict", path, tmp_path / "picture.png", *few, "--score", "0", "--out", tmp_path / "predicted")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "predicted" / "results.json").read_text())["annotations"]
    direct = detcli.load(path, device="cpu", overlays=["tta"], settings=[few[-1]]).predict(picture(80, 100))
    assert [item["score"] for item in found] == pytest.approx(direct.scores.tolist(), abs=1e-4)
