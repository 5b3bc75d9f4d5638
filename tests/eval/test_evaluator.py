"""The slot of evaluators: what names measure, which one measures a task, and errors that name the valid ones."""

import subprocess
import sys

import pytest

from detcli.config import resolve
from detcli.errors import DetcliError, UsageError
from detcli.eval.evaluator import MAIN, STANDARD, check, measure, tasks_of
from detcli.registry import names
from detcli.testing import _check_part

TRUTH = {
    "images": [{"id": 1, "height": 100, "width": 100}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "iscrowd": 0}],
    "categories": [{"id": 1, "name": "square"}],
}
HIT = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.5}


def test_what_measures_a_task_says_so():
    assert set(tasks_of("faster")) == set(tasks_of("pycocotools")) >= {"box", "mask", "proposal"}
    for task, name in STANDARD.items():
        assert task in tasks_of(name)
    assert set(STANDARD) == set(MAIN)


@pytest.mark.parametrize("name", names("evaluators"))
def test_contract(name):
    _check_part("evaluators", name)


def test_a_task_is_measured_by_the_chosen_evaluator():
    found = measure("pycocotools", "box", TRUTH, [HIT])
    assert found.metrics["box_AP"] == pytest.approx(100)
    assert not any("evaluator" in note for note in found.notes)


def test_a_task_that_the_chosen_one_does_not_measure_is_left_to_the_standard_one():
    found = measure("cityscapes", "box", TRUTH, [HIT])
    assert found.metrics == measure("faster", "box", TRUTH, [HIT]).metrics
    assert found.notes[0] == "box_AP is that of faster: the evaluator cityscapes has none"


def test_what_an_evaluator_lacks_is_found_without_results():
    check("faster", ("box",), TRUTH)
    with pytest.raises(DetcliError, match="not LVIS'"):
        check("lvis", ("box",), TRUTH)
    with pytest.raises(DetcliError, match="no masks"):
        check("cityscapes", ("mask",), TRUTH)
    check("cityscapes", ("box",), TRUTH)  # the standard one measures it


def test_objects_with_masks_are_among_the_few_that_are_looked_at():
    size = {"height": 10, "width": 10}
    box = {"category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    masked = {**box, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    truth = {
        "images": [{"id": number, **size} for number in range(300)],
        "annotations": [{"image_id": number, **(masked if number == 299 else box)} for number in range(300)],
        "categories": [{"id": 1, "name": "box"}],
    }
    check("faster", ("box", "mask"), truth)
    check("faster", ("box",), {**truth, "annotations": []})


def test_unknown_evaluators_are_errors_that_name_the_nearest():
    with pytest.raises(UsageError, match=r"unknown evaluator 'fastr': did you mean 'faster'.*detcli list evaluators"):
        resolve("retinanet", settings=["eval.evaluator=fastr"])


def test_evaluators_are_listed_without_importing_them():
    code = (
        "import sys; from detcli.eval.evaluator import tasks_of; from detcli.registry import names; "
        "print(*sorted(name for name in names('evaluators') if 'box' in tasks_of(name))); "
        "print(*(name for name in ('torch', 'numpy', 'pycocotools') if name in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert {"faster", "pycocotools"} <= set(out[0].split())
    assert out[1] == ""
