"""AP of keypoints: against pycocotools itself, both backends against each other, and cases made by hand."""

import copy

import numpy as np
import pytest

from detcli.errors import DetcliError
from detcli.eval.evaluator import measure
from detcli.eval.keypoints import COCO_SIGMAS, evaluate

BACKENDS = ["faster", "pycocotools"]


def scene(seed, count=17, images=30):
    """Return random ground truth and results: crowd, objects without keypoints, hidden ones, equal scores."""
    random = np.random.default_rng(seed)
    names = [f"point {number}" for number in range(count)]
    categories = [{"id": 1, "name": "person", "keypoints": names}, {"id": 18, "name": "dog", "keypoints": names}]
    truth = {"images": [], "annotations": [], "categories": categories}
    results = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image, "height": 300, "width": 400})
        for _ in range(random.integers(1, 6) if image % 6 else 0):
            w, h = random.uniform(20, 200, 2)
            x, y = random.uniform(0, 400 - w), random.uniform(0, 300 - h)
            points = np.stack([x + w * random.random(count), y + h * random.random(count)], axis=1)
            visibility = random.integers(0, 3, count) * (random.random() > 0.1)
            keypoints = np.concatenate([points * (visibility > 0)[:, None], visibility[:, None]], axis=1)
            category = int(random.choice([1, 18]))
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": w * h * 0.6,
                "iscrowd": int(random.random() < 0.1),
                "keypoints": keypoints.ravel().tolist(),
                "num_keypoints": int((visibility > 0).sum()),
            }
            truth["annotations"].append(annotation)
            for _ in range(random.integers(0, 4)):
                found = points + random.normal(0, 0.06 * random.random() * np.sqrt(w * h), points.shape)
                results.append(
                    {
                        "image_id": image,
                        "category_id": category if random.random() < 0.8 else 1,
                        "bbox": [x, y, w, h],
                        "score": round(float(random.random()), 2),
                        "keypoints": np.concatenate([found, np.ones((count, 1))], axis=1).ravel().tolist(),
                    }
                )
    return truth, results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_pycocotools(backend, seed):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = scene(seed)
    assert {annotation["iscrowd"] for annotation in truth["annotations"]} == {0, 1}
    assert 0 in {annotation["num_keypoints"] for annotation in truth["annotations"]}
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    reference = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "keypoints")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    found = evaluate(truth, results, backend=backend)
    np.testing.assert_allclose(list(found.metrics.values()), 100 * reference.stats, rtol=0, atol=1e-9)
    np.testing.assert_allclose(reference.params.kpt_oks_sigmas, COCO_SIGMAS, rtol=1e-12)
    names = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
    assert list(found.metrics) == [f"keypoint_{name}" for name in names]
    assert 5 < found.metrics["keypoint_AP"] < 95


def test_backends_are_equal_with_another_number_of_keypoints():
    truth, results = scene(5, count=6)
    faster, reference = (evaluate(truth, results, backend=backend) for backend in BACKENDS)
    np.testing.assert_allclose(list(faster.metrics.values()), list(reference.metrics.values()), rtol=0, atol=1e-9)
    np.testing.assert_allclose(list(faster.per_class.values()), list(reference.per_class.values()), rtol=0, atol=1e-9)
    assert 5 < faster.metrics["keypoint_AP"] < 95


def one_object(distance, visibility=2):
    """Return an object of 100 x 100 pixels with two keypoints, and a result that is `distance` off in both."""
    truth = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": [{"id": 1, "name": "thing", "keypoints": ["a", "b"]}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 100, 100],
                "area": 10000,
                "iscrowd": 0,
                "keypoints": [20, 20, visibility, 80, 80, visibility],
            }
        ],
    }
    keypoints = [20 + distance, 20, 1, 80, 80 + distance, 1]
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "score": 0.5, "keypoints": keypoints}
    return truth, [result]


@pytest.mark.parametrize(("similarity", "average"), [(0.999, 100), (0.76, 60), (0.74, 50), (0.51, 10), (0.49, 0)])
def test_similarity_falls_with_the_distance(similarity, average):
    # exp(-d² / (8 area sigma²)) with an area of 100² and a sigma of 0.05.
    distance = np.sqrt(-np.log(similarity) * 8 * 100**2 * 0.05**2)
    truth, results = one_object(distance)
    assert measure("faster", "keypoint", truth, results).metrics["keypoint_AP"] == pytest.approx(average)


@pytest.mark.parametrize("backend", BACKENDS)
def test_categories_without_objects_are_not_in_the_mean(backend):
    truth, results = one_object(0)
    truth["categories"] += [{"id": number, "name": str(number), "keypoints": ["a", "b"]} for number in (2, 3)]
    found = evaluate(truth, results, backend=backend)
    assert found.per_class == {"thing": pytest.approx(100), "2": -1, "3": -1}
    assert found.metrics["keypoint_AP"] == pytest.approx(100)


def test_an_object_without_labelled_keypoints_does_not_count():
    found = evaluate(*one_object(0, visibility=0))
    assert found.metrics["keypoint_AP"] == -1
    assert found.notes == ["keypoint_AP is -1: the ground truth has no objects"]


def test_nothing_is_printed_or_changed(capfd):
    truth, results = scene(0)
    before = copy.deepcopy((truth, results))
    evaluate(truth, results)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_data_without_keypoints_are_named():
    truth, results = one_object(0)
    del truth["categories"][0]["keypoints"]
    with pytest.raises(DetcliError, match="no keypoints"):
        evaluate(truth, results)
