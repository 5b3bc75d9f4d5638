import pytest

from detcli.errors import UsageError
from detcli.zoo.names import resolve
from detcli.zoo.rows import rows

D2 = "https://example.org/detectron2/"
OPENMMLAB = "https://example.org/mmdetection/v2.0/"


def weights(url):
    return [{"kind": "weights", "url": url}, {"kind": "log", "url": url + ".log"}]


@pytest.fixture
def zoo(made_up_zoo):
    """Names that differ in case, in their dataset, in their source or not at all."""
    made_up_zoo.write(
        [
            {
                "id": "detectron2/mask_rcnn_R_50_FPN_3x",
                "config": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
                "model_id": "137849600",
                "files": weights(D2 + "mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"),
            },
            {
                "id": "detectron2/faster_rcnn_R_50_FPN_1x",
                "config": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
                "model_id": "137257794",
                "files": weights(D2 + "faster_rcnn_R_50_FPN_1x/137257794/model_final_b275ba.pkl"),
            },
        ],
        source="detectron2",
    )
    made_up_zoo.write([{"id": "detectron/36225732", "model_id": "36225732", "name": "X-101"}], source="detectron")
    made_up_zoo.write(
        [
            {
                "id": "mmdet-v0/faster_rcnn_r50_fpn_1x",
                "files": weights("https://example.org/v0/faster_rcnn_r50_fpn_1x_20181010-3d1b3351.pth"),
            },
            {"id": "mmdet-v0/retinanet_r50_fpn_1x"},
        ],
        source="mmdet-v0",
    )
    made_up_zoo.write(
        [
            {
                "id": "mmdet-v2/faster_rcnn_r50_fpn_1x_coco",
                "config": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py",
                "files": weights(OPENMMLAB + "faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth"),
            },
            {
                "id": "mmdet-v2/faster_rcnn_r50_fpn_1x_coco.2",
                "config": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py",
                "files": weights(
                    OPENMMLAB.replace("https", "http") + "faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth"
                ),
            },
            {"id": "mmdet-v2/paa_r50_fpn_1x_coco", "config": "paa/paa_r50_fpn_1x_coco.py"},
            {"id": "mmdet-v2/retinanet_r50_fpn_1x_voc", "dataset": "voc"},
            {"id": "mmdet-v2/retinanet_r50_fpn_1x"},
        ],
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("detectron2/mask_rcnn_R_50_FPN_3x", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("Detectron2/mask-rcnn-r50-fpn-3x", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("mask_rcnn_r50_fpn_3x", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("MASK-RCNN.R50 fpn 3X", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("mask_rcnn_R_50_FPN_3x.yaml", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("137849600", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("36225732", "detectron/36225732"),
        ("x101", "detectron/36225732"),
        ("model_final_f10217.pkl", "detectron2/mask_rcnn_R_50_FPN_3x"),
        ("model_final_b275ba", "detectron2/faster_rcnn_R_50_FPN_1x"),
        (OPENMMLAB + "faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth", "mmdet-v2/faster_rcnn_r50_fpn_1x_coco"),
        ("paa/paa_r50_fpn_1x_coco.py", "mmdet-v2/paa_r50_fpn_1x_coco"),
    ],
)
def test_a_name_is_an_id_a_config_a_model_id_or_a_file_in_any_case(zoo, name, expected):
    assert resolve(name).id == expected


def test_what_is_written_exactly_so_wins_over_other_cases_and_these_over_names_with_a_dataset(zoo):
    assert resolve("faster_rcnn_r50_fpn_1x").id == "mmdet-v0/faster_rcnn_r50_fpn_1x"
    assert resolve("faster_rcnn_R_50_FPN_1x").id == "detectron2/faster_rcnn_R_50_FPN_1x"
    assert resolve("paa_r50_fpn_1x").id == "mmdet-v2/paa_r50_fpn_1x_coco"
    assert resolve("mmdet-v2/retinanet_r50_fpn_1x").id == "mmdet-v2/retinanet_r50_fpn_1x"


def test_rows_with_the_same_weights_are_one_but_each_has_its_id(zoo):
    assert resolve("faster_rcnn/faster_rcnn_r50_fpn_1x_coco").id == "mmdet-v2/faster_rcnn_r50_fpn_1x_coco"
    assert resolve("mmdet-v2/faster_rcnn_r50_fpn_1x_coco.2").id == "mmdet-v2/faster_rcnn_r50_fpn_1x_coco.2"


def test_an_ambiguous_name_lists_the_candidates(zoo):
    with pytest.raises(UsageError) as error:
        resolve("Faster-RCNN_r50_fpn_1x")
    assert str(error.value) == (
        "'Faster-RCNN_r50_fpn_1x' is 2 models: detectron2/faster_rcnn_R_50_FPN_1x, mmdet-v0/faster_rcnn_r50_fpn_1x. "
        "Give one of these ids."
    )
    assert error.value.exit_code == 2
    with pytest.raises(UsageError, match=r"mmdet-v0/retinanet_r50_fpn_1x, mmdet-v2/retinanet_r50_fpn_1x\."):
        resolve("retinanet_r50_fpn_1x")


def test_an_unknown_name_gives_the_nearest_and_the_next_command(zoo):
    with pytest.raises(UsageError, match=r"'mask_rcnn_R_50_FPN_3x'.*See `detcli zoo search WORDS`"):
        resolve("mask_rcnn_r50_fpn_4x")
    with pytest.raises(UsageError, match="did you mean 'mmdet-v2/paa_r50_fpn_1x_coco'"):
        resolve("mmdet-v2/paa_r50_fpn_9x_coco")


def test_it_looks_only_among_the_rows_it_is_given(zoo):
    assert resolve("faster_rcnn_r50_fpn_1x", rows(["detectron2"])).id == "detectron2/faster_rcnn_R_50_FPN_1x"
