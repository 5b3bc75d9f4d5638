"""``detcli zoo list``, ``search`` and ``show``."""

import json
import shlex
import sys
from collections import Counter
from dataclasses import fields, replace

import pytest

from detcli.cli.text import shortened
from detcli.cli.zoo import _table, list_rows, search, show
from detcli.config import resolve
from detcli.errors import DetcliError, UsageError
from detcli.zoo.rows import Row, rows
from detcli.zoo.training import SETTINGS_OF, training

SCHEDULES = {"1x": {"unit": "epoch", "length": 12, "drops": [8, 11], "warmup_iters": 500, "batch": 16}}
ERRATUM = {"field": "backbone", "printed": "64x4d", "correct": "32x4d", "why": "the file is of 32x4d"}


@pytest.fixture
def zoo(made_up_zoo):
    """Rows of three sources, with every field."""
    made_up_zoo.write(
        [
            {
                "id": "detectron2/mask_rcnn_R_50_FPN_3x",
                "method": "mask_rcnn",
                "model": "mask_rcnn",
                "sched": "3x",
                "style": "caffe",
                "task": "instance",
                "figures": {"box_AP": 41.0, "mask_AP": 37.2, "train_speed": 0.261},
                "files": [
                    {
                        "kind": "weights",
                        "url": "https://a.example/m/model_final_f10217.pkl",
                        "hash": "f10217",
                        "hash_kind": "md5",
                    }
                ],
            }
        ],
        source="detectron2",
        mirrors=[["https://a.example/", "https://b.example/mirror/"]],
    )
    made_up_zoo.write(
        [
            {
                "id": "detectron/e2e",
                "name": "X-101-64x4d-FPN",
                "backbone": "x101_64x4d",
                "figures": {"box_AP": 42.4, "train_speed": 0.2, "inference_speed": [0.241, "+", 0.003]},
                "others": {"Caffe2": {"box_AP": 42.3}},
                "notes": ["with test-time augmentation"],
                "errata": [ERRATUM],
            }
        ],
        source="detectron",
    )
    made_up_zoo.write(
        [
            {"id": "mmdet-v2/atss_r50_fpn_1x_coco", "method": "atss", "model": "atss", "figures": {"box_AP": 39.4}},
            {"id": "mmdet-v2/rpn", "method": "rpn", "model": "rpn", "task": "proposals", "figures": {"prop_AR": 58.2}},
            {"id": "mmdet-v2/made_up", "method": "made_up", "model": "retinanet", "dataset": "lvis_v1", "sched": ""},
        ],
        schedules=SCHEDULES,
    )


@pytest.fixture
def listed(capsys):
    """Return a function that lists rows and returns the ids, in order."""

    def run(command=list_rows, *arguments, **options):
        command(*arguments, **options, as_json=True)
        return [row["id"].partition("/")[2] for row in json.loads(capsys.readouterr().out)]

    return run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"source": ["Detectron2"]}, ["mask_rcnn_R_50_FPN_3x"]),
        ({"source": ["detectron", "detectron2"]}, ["mask_rcnn_R_50_FPN_3x", "e2e"]),
        ({"method": ["Mask-RCNN"]}, ["mask_rcnn_R_50_FPN_3x"]),
        ({"model": ["retinanet"]}, ["made_up"]),
        ({"backbone": ["X101-64x4d"]}, ["e2e"]),
        ({"sched": ["1X"], "backbone": ["r50"]}, ["atss_r50_fpn_1x_coco", "rpn"]),
        ({"dataset": ["lvis_v1"]}, ["made_up"]),
        ({"task": ["instance", "proposals"]}, ["mask_rcnn_R_50_FPN_3x", "rpn"]),
        ({"min_box_ap": 41.0}, ["mask_rcnn_R_50_FPN_3x", "e2e"]),
        ({"min_box_ap": 99.0}, []),
        ({"sort": "box_AP"}, ["e2e", "mask_rcnn_R_50_FPN_3x", "atss_r50_fpn_1x_coco", "rpn", "made_up"]),
        ({"sort": "train_speed"}, ["e2e", "mask_rcnn_R_50_FPN_3x", "atss_r50_fpn_1x_coco", "rpn", "made_up"]),
        ({"sort": "prop_AR", "source": ["mmdet-v2"]}, ["rpn", "atss_r50_fpn_1x_coco", "made_up"]),
        ({"sort": "method", "source": ["mmdet-v2"]}, ["atss_r50_fpn_1x_coco", "made_up", "rpn"]),
    ],
)
def test_rows_are_chosen_and_ordered(zoo, listed, options, expected):
    assert listed(**options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": ["mask_rcn"]}, "unknown method 'mask_rcn': did you mean 'mask_rcnn'"),
        ({"source": ["mmdet"]}, "unknown source 'mmdet': did you mean 'mmdet-v2'"),
        ({"dataset": ["lvis"]}, "unknown dataset 'lvis': did you mean 'lvis_v1'"),
        ({"sort": "box_app"}, "unknown field 'box_app': did you mean 'box_AP'"),
    ],
)
def test_what_no_row_has_gives_the_nearest(zoo, options, message):
    with pytest.raises(UsageError, match=message):
        list_rows(**options)


def test_json_has_every_field_of_every_row(zoo, capsys):
    list_rows(as_json=True)
    written, errors = capsys.readouterr()
    records = json.loads(written)
    assert errors == "5 of 5 rows\n"
    assert {frozenset(record) for record in records} == {frozenset(field.name for field in fields(Row))}
    first, second, third = records[:3]
    assert first["files"][0]["hash"] == "f10217"
    assert first["links"] == [[3, "model", "https://a.example/m/model_final_f10217.pkl"]]
    assert second["figures"] == {"box_AP": 42.4, "train_speed": 0.2, "inference_speed": [0.241, "+", 0.003]}
    assert second["errata"] == [ERRATUM]
    assert third["schedule"] == SCHEDULES["1x"]


def test_the_table_has_figures_as_printed_and_what_it_is_sorted_by(zoo, capsys):
    list_rows(source=["detectron", "detectron2"], sort="inference_speed")
    assert capsys.readouterr().out.splitlines() == [
        "id                                method       backbone    sched  box AP  mask AP  inference time (s/im)",
        "detectron/e2e                     faster_rcnn  x101_64x4d  1x       42.4                   0.241 + 0.003",
        "detectron2/mask_rcnn_R_50_FPN_3x  mask_rcnn    r50         3x       41.0     37.2",
    ]
    list_rows(source=["mmdet-v2"], sort="mask_AP")
    assert capsys.readouterr().out.splitlines()[0].split("  ")[-1] == "mask AP"


def test_the_table_fits_the_terminal():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    found = rows()
    longest = max(len(row.id) for row in found)
    for width in (60, 100, 160):
        lines = _table(found, "train_speed", width)
        assert max(map(len, lines)) <= width
        assert len(lines) == len(found) + 1
        assert lines[0].endswith("train time (s/iter)")
    assert max(map(len, _table(found, "", None))) > longest + 50, "nothing is left out where it is no terminal"


def test_search_finds_rows_with_all_words_the_best_first(zoo, listed):
    assert listed(search, ["r50", "atss"]) == ["atss_r50_fpn_1x_coco"]
    assert listed(search, ["MASK rcnn"]) == ["mask_rcnn_R_50_FPN_3x"]
    assert listed(search, ["rpn"]) == ["rpn"]
    assert listed(search, ["x-101"]) == ["e2e"]
    assert listed(search, ["table 0", "lvis"]) == ["made_up"]
    assert listed(search, ["test-time"]) == ["e2e"]
    assert listed(search, ["rcnn"]) == ["mask_rcnn_R_50_FPN_3x", "e2e"]
    with pytest.raises(DetcliError, match="no row has 'atts': did you mean 'atss'"):
        search(["atts", "r50"])
    with pytest.raises(DetcliError, match="no row has all of atss, mask"):
        search(["atss", "mask"])


def test_show_says_everything(zoo, capsys):
    show("mask_rcnn_r50_fpn_3x")
    text = capsys.readouterr().out
    for part in (
        "detectron2/mask_rcnn_R_50_FPN_3x\n",
        "detectron2, made up (detectron2)",
        "Made up > Table 0",
        "table 1, row 1",
        "train time (s/iter): 0.261",
        "weights: https://a.example/m/model_final_f10217.pkl (md5 f10217…)",
        "mirror: https://b.example/mirror/m/model_final_f10217.pkl",
        "detcli zoo download detectron2/mask_rcnn_R_50_FPN_3x",
        "detcli train mask_rcnn_detectron2 --sched 3x --data path/to/coco",
    ):
        assert part in text
    show("detectron/e2e")
    text = capsys.readouterr().out
    assert "backbone: printed 64x4d, correct 32x4d: the file is of 32x4d" in text
    assert "with test-time augmentation" in text
    assert "inference time (s/im): 0.241 + 0.003" in text
    assert "others      Caffe2, box AP: 42.3\n" in text
    assert "no weights are linked" in text
    show("mmdet-v2/made_up")
    assert "there is no plugin for made_up yet" in capsys.readouterr().out
    show("atss_r50_fpn_1x")
    text = capsys.readouterr().out
    assert "1x: 12 epochs, lower learning rate after 8, 11; 500 iterations of warm-up; 16 images a step" in text
    assert text.endswith("  train       detcli train atss --data path/to/coco\n")


def test_show_has_no_command_for_what_is_no_file(capsys):
    show("mmdet-v2/scnet_r50_fpn_1x_coco")
    text = capsys.readouterr().out
    assert "  download    by hand, with a browser: https://drive.google.com/" in text
    assert "detcli zoo download" not in text


def test_show_as_json_is_the_record_that_list_has(zoo, capsys):
    show("detectron/e2e", as_json=True)
    shown = json.loads(capsys.readouterr().out)
    list_rows(source=["detectron"], as_json=True)
    assert json.loads(capsys.readouterr().out) == [shown]


def test_the_published_rows_are_all_there(listed, capsys):
    list_rows(as_json=True)
    written = json.loads(capsys.readouterr().out)
    assert len(written) == 666
    assert Counter(row["source"] for row in written) == {
        "detectron2": 53,
        "detectron": 75,
        "mmdet-v0": 115,
        "mmdet-v2": 423,
    }
    assert len({row["id"] for row in written}) == 666


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("mmdet-v2/atss_r101_fpn_1x_coco", "detcli train atss --backbone r101 --data path/to/coco"),
        ("faster_rcnn_r50_caffe_dc5_mstrain_3x_coco", "detcli train faster_rcnn_dc5_mstrain_3x --data path/to/coco"),
        ("mask_rcnn_r50_caffe_fpn_mstrain-poly_2x_coco", "detcli train mask_rcnn_mstrain_2x --data path/to/coco"),
        ("faster_rcnn_r50_fpn_giou_1x_coco", "detcli train faster_rcnn_giou --data path/to/coco"),
        ("detectron2/retinanet_R_50_FPN_3x", "detcli train retinanet_detectron2 --sched 270k --data path/to/coco"),
        (
            "mmdet-v2/rpn_x101_32x4d_fpn_2x_coco",
            "detcli train rpn --backbone x101_32x4d --sched 2x --data path/to/coco",
        ),
        (
            "mmdet-v2/mask_rcnn_x50_32x4d_fpn_gn_ws-all_20_23_24e_coco",
            "detcli train mask_rcnn --backbone x50_32x4d_gn_ws --sched 20-23-24e --with gn_ws --data path/to/coco",
        ),
        (
            "mmdet-v2/mask_rcnn_r50_fpn_gn-all_contrib_3x_coco",
            "detcli train mask_rcnn --backbone r50_gn_contrib --sched 36e --with gn --data path/to/coco",
        ),
        (
            "detectron2/mask_rcnn_R_50_FPN_3x_gn",
            "detcli train mask_rcnn_detectron2 --sched 270k --with gn --data path/to/coco",
        ),
        (
            "mmdet-v2/htc_r2_101_fpn_20e_coco",
            "detcli train htc --backbone res2net101 --sched 20e --data path/to/coco",
        ),
        (
            "mmdet-v2/faster_rcnn_r50_fpn_mdconv_c3-c5_group4_1x_coco",
            "detcli train faster_rcnn_mdconv_c3-c5_group4 --data path/to/coco",
        ),
        ("mmdet-v2/mask_rcnn_r50_fpn_fp16_1x_coco", "detcli train mask_rcnn --with fp16 --data path/to/coco"),
        # No overlay is called as the paper is.
        (
            "mmdet-v0/cascade_mask_rcnn_dconv_c3-c5_r101_fpn_1x",
            "detcli train cascade_mask_rcnn_legacy --backbone r101 --with dconv --data path/to/coco",
        ),
        # The overlay's recipe, which has more than the overlay.
        ("mmdet-v2/retinanet_r50_fpn_fp16_1x_coco", "detcli train retinanet_fp16 --data path/to/coco"),
    ],
)
def test_a_row_is_trained_by_the_recipe_that_its_config_is_called_by(name, command):
    from detcli.zoo import names

    found = training(names.resolve(name))
    assert (found.command, found.differs) == (command, ())


def test_a_backbone_named_after_a_source_is_no_recipe_of_that_source():
    from detcli.zoo import names

    row = names.resolve("detectron/e2e_faster_rcnn_X-101-32x8d-FPN_1x")
    found = training(replace(row, id="detectron/cascade_rcnn", method="cascade_rcnn", model="cascade_rcnn"))
    assert not found.exact
    assert found.differs == ("the recipe has MMDetection's settings, not those of detectron",)


def test_every_training_command_is_valid_and_says_what_it_lacks():
    flags = {"--backbone": "backbone", "--sched": "sched"}
    commands = 0
    for row in rows():
        found = training(row)
        assert bool(found.command) != bool(found.missing)
        if not found.command:
            continue
        commands += 1
        _, _, recipe, *words = shlex.split(found.command)
        options = dict(zip(words[::2], words[1::2], strict=True))
        given = {argument: options[flag] for flag, argument in flags.items() if flag in options}
        config = resolve(recipe, **given, overlays=[options["--with"]] if "--with" in options else []).config
        if row.task == "classification":
            assert config.model["backbone"]["name"] == row.backbone
        else:
            assert config.model["name"] == row.model
        assert config == found.config
        assert found.exact or found.differs
        if not found.differs and row.schedule:
            assert (config.sched.length, tuple(config.sched.drops)) == (row.schedule.length, row.schedule.drops)
        if row.source in SETTINGS_OF:
            own = SETTINGS_OF[row.source] in recipe.split("_")
            assert own != any("MMDetection's settings" in text for text in found.differs)
    assert commands > 100


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["search", "mask", "rcnn"], ["show", "137849600"]])
def test_it_is_fast_and_imports_no_torch(arguments, timed):
    code = (
        "import sys; from detcli.cli import main; sys.argv[1:1] = ['zoo']\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    least = "import typer\ndef least(name: str = ''): pass\ntyper.run(least)"
    spent, floor = [], []
    for _ in range(5):
        done, seconds = timed([sys.executable, "-c", code, *arguments])
        assert done.returncode == 0
        assert done.stderr.splitlines()[-1] == "set()"
        spent.append(seconds)
        floor.append(timed([sys.executable, "-c", least])[1])
    # A busy machine takes longer for both, a slow one, too: 0.15 s for the least command is common.
    if arguments[0] != "show":
        assert min(spent) < 2.2 * min(floor)
