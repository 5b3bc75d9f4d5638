"""`detcli table`: which rows, which columns, which format."""

import csv
import io
import json
import shlex
import subprocess
import sys
import warnings

import pytest
from typer.testing import CliRunner

from detcli.cli import app
from detcli.errors import DetcliError, UsageError
from detcli.zoo import formats, tables
from detcli.zoo.rows import Link

GENERATED = [  # the options of Detectron2's generator for each of its tables, in order
    """--config 'COCO-Detection/faster*50*'{1x,3x}'*' 'COCO-Detection/faster*101*'
    --name R50-C4 R50-DC5 R50-FPN R50-C4 R50-DC5 R50-FPN R101-C4 R101-DC5 R101-FPN X101-FPN
    --fields lr_sched train_speed inference_speed mem box_AP""",
    """--config 'COCO-Detection/retina*50*' 'COCO-Detection/retina*101*' --name R50 R50 R101
    --fields lr_sched train_speed inference_speed mem box_AP""",
    """--config 'COCO-Detection/rpn*' 'COCO-Detection/fast_rcnn*'
    --name "RPN R50-C4" "RPN R50-FPN" "Fast R-CNN R50-FPN"
    --fields lr_sched train_speed inference_speed mem box_AP prop_AR""",
    """--config 'COCO-InstanceSegmentation/mask*50*'{1x,3x}'*' 'COCO-InstanceSegmentation/mask*101*'
    --name R50-C4 R50-DC5 R50-FPN R50-C4 R50-DC5 R50-FPN R101-C4 R101-DC5 R101-FPN X101-FPN
    --fields lr_sched train_speed inference_speed mem box_AP mask_AP""",
    """--config 'COCO-Keypoints/*50*' 'COCO-Keypoints/*101*' --name R50-FPN R50-FPN R101-FPN X101-FPN
    --fields lr_sched train_speed inference_speed mem box_AP keypoint_AP""",
    """--config 'COCO-PanopticSegmentation/*50*' 'COCO-PanopticSegmentation/*101*' --name R50-FPN R50-FPN R101-FPN
    --fields lr_sched train_speed inference_speed mem box_AP mask_AP PQ""",
    """--config 'LVISv0.5-InstanceSegmentation/mask*50*' 'LVISv0.5-InstanceSegmentation/mask*101*'
    --name R50-FPN R101-FPN X101-FPN --fields lr_sched train_speed inference_speed mem box_AP mask_AP""",
    """--config 'Cityscapes/*' 'PascalVOC-Detection/*' --name "R50-FPN, Cityscapes" "R50-C4, VOC"
    --fields train_speed inference_speed mem box_AP box_AP50 mask_AP""",
    """--config 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml' 'Misc/*R_50_FPN_1x_dconv*' 'Misc/cascade*1x.yaml'
    'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml' 'Misc/*R_50_FPN_3x_dconv*' 'Misc/cascade*3x.yaml'
    --name "Baseline R50-FPN" "Deformable Conv" "Cascade R-CNN" "Baseline R50-FPN" "Deformable Conv" "Cascade R-CNN"
    --fields lr_sched train_speed inference_speed mem box_AP mask_AP""",
    """--config 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml' 'Misc/mask*50_FPN_3x_gn.yaml'
    'Misc/mask*50_FPN_3x_syncbn.yaml' 'Misc/scratch*' --name "Baseline R50-FPN" "GN" "SyncBN" "GN (from scratch)"
    "GN (from scratch)" "SyncBN (from scratch)" --fields lr_sched train_speed inference_speed mem box_AP mask_AP""",
    """--config 'Misc/panoptic_*dconv*' 'Misc/cascade_*152*' --name "Panoptic FPN R101" "Mask R-CNN X152"
    --fields inference_speed mem box_AP mask_AP PQ""",
]
ADDED_BY_HAND = {10: 1}  # rows at the end of a table that its command does not give


def table(*arguments):
    """Return what `detcli table` writes; an error is raised."""
    done = CliRunner().invoke(app, ["table", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def json_table(*arguments):
    (written,) = json.loads(table(*arguments, "--format", "json"))
    return written


@pytest.mark.parametrize("number", range(len(GENERATED)))
def test_the_generators_commands_give_the_tables_below_them(number):
    below = tables.document("detectron2")[number]
    written = json_table(*shlex.split(GENERATED[number]))
    expected = below.rows[: len(below.rows) - ADDED_BY_HAND.get(number, 0)]
    assert tuple(written["columns"]) == below.columns
    assert [tuple(row["cells"]) for row in written["rows"]] == [row.cells for row in expected]
    assert [[Link(*link) for link in row["links"]] for row in written["rows"]] == [list(row.links) for row in expected]


def test_a_shell_may_expand_the_braces_itself():
    patterns = ["COCO-Detection/faster*50*1x*", "COCO-Detection/faster*50*3x*"]
    assert json_table("--config", *patterns) == json_table("--config", "COCO-Detection/faster*50*{1x,3x}*")
    assert json_table("--config", patterns[0], f"--config={patterns[1]}") == json_table("--config", *patterns)


def test_several_values_after_an_option_are_the_option_given_again():
    together = table("--source", "detectron2", "--fields", "box_AP", "mask_AP", "--sort", "box_AP")
    assert together == table("--fields", "box_AP", "--sort", "box_AP", "--fields=mask_AP", "--source=detectron2")
    assert together == table("--fields=box_AP", "mask_AP", "--source", "detectron2", "--sort=box_AP")
    with pytest.raises(AssertionError, match="unexpected extra argument"):
        table("--sort", "box_AP", "mask_AP")


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a{1,2}b{3,4}", ["a1b3", "a1b4", "a2b3", "a2b4"]),
        ("{a{1,2},b}", ["a1", "a2", "b"]),
        ("a{,x}", ["a", "ax"]),
        ("{a}b{c", ["{a}b{c"]),
        ("{a}{b,c}", ["{a}b", "{a}c"]),
        ("plain*", ["plain*"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, expanded):
    assert tables.expand_braces(pattern) == expanded


def test_stars_stay_within_a_folder_and_the_order_is_that_of_the_paths(made_up_zoo):
    configs = ["b/two_1x.py", "b/one_1x.py", "c/one_1x.py", "b/one_1x.py", "a/b/one_1x.py", "b/one_2x.yaml"]
    files = [[{"kind": "weights", "url": f"https://x/{config}"}] for config in configs]
    made_up_zoo.write(
        [
            {"config": config, "files": file, "name": str(n)}
            for n, (config, file) in enumerate(zip(configs, files, strict=True))
        ]
    )

    def names(*patterns):
        return [row.name for row in tables.by_config(patterns, tables.rows())]

    assert names("b/*") == ["1", "5", "0"]  # the second row of b/one_1x.py has the first one's weights
    assert names("*/*1x") == ["1", "0", "2"]
    assert names("b/one_1x.py", "b/one_1x") == ["1", "1"]
    assert names("configs/*/b/*") == ["4"]
    assert names("one_2x", "two*") == ["5", "0"]
    assert names("b/{two,one}_1x") == ["0", "1"]
    with pytest.raises(UsageError, match=r"unknown config 'b/onne_2x': did you mean 'b/one_2x'"):
        names("b/onne_2x")


def test_names_are_one_a_row():
    with pytest.raises(UsageError, match=r"^--name gives 2 to 3 rows \(R101, R50, R50\)\.$"):
        table("--config", "COCO-Detection/retina*", "--name", "a", "b")
    rows = json_table("--config", "COCO-Detection/retina*", "--name", "a", "b", "c", "--sort", "box_AP")["rows"]
    assert [row["cells"][0] for row in rows] == ["a", "c", "b"]  # 40.4, 38.7, 37.4


def test_fields_alone_show_every_row_that_has_one_of_them():
    written = json_table("--fields", "box_AP", "mask_AP")
    assert written["columns"] == ["Source", "Method", "Name", "Backbone", "Sched", "box AP", "mask AP"]
    having = [row for row in tables.rows() if {"box_AP", "mask_AP"} & set(row.figures)]
    assert [row["id"] for row in written["rows"]] == [row.id for row in having]
    assert len(having) > 500
    assert all(row["values"]["box_AP"] or row["values"]["mask_AP"] for row in written["rows"])


def test_without_fields_the_main_figures_are_shown():
    assert json_table("--method", "keypoint_rcnn", "--source", "detectron2")["columns"][5:] == ["box AP", "kp. AP"]
    assert json_table("--method", "rpn", "--source", "mmdet-v0")["columns"][5:] == ["AR1000"]
    assert json_table("--method", "rpn")["columns"][5:] == ["prop. AR"]  # the documents' headers differ


def test_cells_are_as_printed_and_values_are_what_they_mean(made_up_zoo):
    made_up_zoo.write(
        [
            {"figures": {"box_AP": 37.0}, "cells": ["R50", "1x", "37.00", ""]},
            {"figures": {"box_AP": 38.5}, "cells": ["R50", "1x", "83.5", ""]},  # a mistake, corrected
            {"figures": {"box_AP": [0.241, "+", 0.003]}, "cells": ["R50", "1x", "0.241 + 0.003", ""]},
            {"figures": {"box_AP": 59.9}, "cells": ["R50", "1x", "0.599", ""]},
            {"figures": {"box_AP": 36.0}, "cells": ["R50", "1x", "36.0 (35.9)", ""]},
            {"figures": {"box_AP": [22.9, "/", 29.2]}, "cells": ["R50", "1x"]},
            {"figures": {"mask_AP": 30.1}, "cells": ["R50", "1x", "N/A", ""]},
        ]
    )
    rows = json_table("--fields", "box_AP", "mask_AP")["rows"]
    shown = [row["cells"][-2] for row in rows]
    assert shown == ["37.00", "38.5", "0.241 + 0.003", "59.9", "36.0 (35.9)", "22.9 / 29.2", "N/A"]
    assert [row["values"]["box_AP"] for row in rows] == [37.0, 38.5, 0.244, 59.9, 36.0, 22.9, None]


def test_sort_puts_the_best_first_and_rows_without_the_field_last(made_up_zoo):
    figures = [{"box_AP": 1.0}, {"mem": 3.0, "box_AP": 2.0}, {"mem": 2.0, "box_AP": 4.0}, {"mem": 9.0, "mask_AP": 1.0}]
    made_up_zoo.write([{"name": str(n), "figures": figure} for n, figure in enumerate(figures)])

    def order(field):
        return [row["cells"][2] for row in json_table("--fields", "box_AP", "mask_AP", "--sort", field)["rows"]]

    assert order("box_AP") == ["2", "1", "0", "3"]
    assert order("mem") == ["2", "1", "3", "0"]
    assert order("name") == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fields", "bax_AP"], "unknown field 'bax_AP': did you mean 'box_AP'"),
        (["--sort", "bax_AP"], "unknown field 'bax_AP': did you mean 'box_AP'"),
        (["--source", "detectron3"], "unknown source 'detectron3': did you mean 'detectron"),
        (["--method", "retinanett"], "unknown method 'retinanett': did you mean 'retinanet'"),
        (
            ["--config", "COCO-Detection/fastr_rcnn*"],
            "unknown config 'COCO-Detection/fastr_rcnn*': did you mean 'COCO-Det",
        ),
        (["--document", "mmdet"], "unknown source 'mmdet': did you mean 'mmdet-v"),
        (["--document", "detectron", "--fields", "box_AP"], "--document writes the whole document"),
        (["--document", "detectron", "--format", "csv"], "CSV holds one table and here are 8"),
        (["--runs", "no/such*"], "no folder matches 'no/such*'"),
        (["--format", "markdwon"], "unknown format 'markdwon': did you mean 'markdown'? See `detcli table --help`."),
    ],
)
def test_what_is_unknown_comes_with_the_nearest(arguments, message):
    with pytest.raises(UsageError) as raised:
        table(*arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_field_that_no_row_has_is_named():
    with pytest.warns(UserWarning, match=r"^no row has PQ$"):
        assert json_table("--method", "atss", "--fields", "box_AP", "PQ")["columns"][-1] == "PQ"
    with pytest.warns(UserWarning, match="no row has PQ"), pytest.raises(DetcliError, match="no row has PQ"):
        table("--method", "atss", "--fields", "PQ")


def write_run(folder, metrics, *, backbone="r50_caffe", sched="1x", source="/data/coco", recipe="faster_rcnn"):
    folder.mkdir(parents=True)
    model = {"name": "faster_rcnn", "backbone": {"name": backbone, "style": "caffe"}, "neck": {"name": "fpn"}}
    config = {"recipe": recipe, "sched_name": sched, "model": model, "data": {"source": source}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def published(made_up_zoo):
    figures = {"box_AP": 37.9, "train_speed": [0.2, "+", 0.01], "mem": 3.0}
    made_up_zoo.write(
        [
            {"figures": figures, "style": "caffe", "id": "x/caffe"},
            {"figures": figures, "style": "pytorch", "id": "x/pytorch"},
            {"figures": figures, "style": "caffe", "sched": "2x", "id": "x/2x"},
            {"figures": figures, "style": "caffe", "method": "ghm", "id": "x/ghm"},
            {"figures": figures, "style": "caffe", "dataset": "voc", "id": "x/voc"},
        ]
    )
    return made_up_zoo


def test_runs_stand_beside_the_rows_of_the_same_model_in_columns_of_their_own(published, tmp_path):
    write_run(
        tmp_path / "runs" / "a", {"box_AP": 38.54, "box_APl": -1.0, "train_speed": 0.1804, "notes": [], "per_class": {}}
    )
    write_run(tmp_path / "runs" / "b", {"box_AP": 37.0, "mask_AP": 1.0})
    written = json_table("--runs", f"{tmp_path}/runs/{{a,b}}", "--fields", "box_AP", "train_speed")
    figures = ["box AP", "box AP (run)", "box AP (diff.)"]
    times = [f"train time (s/iter){column}" for column in ("", " (run)", " (diff.)")]
    assert written["columns"] == ["Source", "Method", "Name", "Backbone", "Sched", "Run", *figures, *times]
    assert [row["id"] for row in written["rows"]] == ["x/caffe", "x/caffe"]
    first, second = (row["cells"][5:] for row in written["rows"])
    assert first == [f"{tmp_path}/runs/a", "37.9", "38.5", "+0.6", "0.2 + 0.01", "0.180", "-0.030"]
    assert second == [f"{tmp_path}/runs/b", "37.9", "37.0", "-0.9", "0.2 + 0.01", "", ""]
    assert written["rows"][0]["values"]["box_AP_difference"] == pytest.approx(0.64)


def test_chosen_rows_are_all_there_and_runs_of_other_models_have_rows_of_their_own(published, tmp_path):
    write_run(tmp_path / "a", {"box_AP": 20.0}, backbone="r18")
    write_run(tmp_path / "b", {"box_AP": 38.0, "train_speed": 0.2}, source="shapes")
    write_run(tmp_path / "c", {"box_AP": 39.0}, recipe="ghm")
    rows = json_table("--source", "mmdet-v2", "--runs", f"{tmp_path}/[abc]", "--fields", "box_AP", "mem")["rows"]
    run, box, difference = ([row["cells"][column] for row in rows] for column in (5, 7, 8))
    ids = ["x/caffe", "x/caffe", "x/pytorch", "x/2x", "x/ghm", "x/voc", ""]
    assert [row["id"] for row in rows] == ids
    assert run == [f"{tmp_path}/b", f"{tmp_path}/c", "", "", f"{tmp_path}/c", "", f"{tmp_path}/a"]
    assert box == ["38.0", "39.0", "", "", "39.0", "", "20.0"]
    assert difference == ["", "+1.1", "", "", "+1.1", "", ""]  # AP on the drawn scenes is none on COCO


def test_a_broken_run_is_named_and_left_out(published, tmp_path):
    write_run(tmp_path / "good", {"box_AP": 38.0})
    write_run(tmp_path / "cut", {})
    (tmp_path / "cut" / "metrics.json").write_text('{"box_AP": ')
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "list", {})
    (tmp_path / "list" / "metrics.json").write_text("[]")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = json_table("--runs", f"{tmp_path}/*t*", f"{tmp_path}/good*", f"{tmp_path}/good")["rows"]
    assert [row["cells"][5] for row in rows] == [f"{tmp_path}/good"]
    messages = sorted(str(warning.message) for warning in caught)
    assert [message.split(": ")[0] for message in messages] == [
        f"{tmp_path}/{name}" for name in ("cut", "empty", "list")
    ]
    assert messages[1].endswith("empty: skipped, no config.json")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DetcliError, match="no run in"):
        table("--runs", f"{tmp_path}/empty")


TRICKY = formats.PrintedTable(
    ("Name", "box AP", "download"),
    (
        formats.PrintedRow(
            ("*R|50 <b> & 10% _x_ `c`", "1.0", "model | log"),
            (Link(2, "model", "https://x/a_(b).pth?c=1&d=2"), Link(2, "log", "https://x/a.json")),
        ),
        formats.PrintedRow(("", "2 + 0.1", None)),
    ),
    ("Over it", "Title"),
)


def test_markdown_shows_signs_as_they_are():
    assert formats.to_markdown([TRICKY]).splitlines() == [
        "## Over it",
        "",
        "### Title",
        "",
        "| Name | box AP | download |",
        "| --- | --- | --- |",
        r"| \*R\|50 \<b\> & 10% \_x\_ \`c\` | 1.0 | [model](https://x/a_%28b%29.pth?c=1&d=2) \| "
        "[log](https://x/a.json) |",
        "|  | 2 + 0.1 |",
    ]


def test_html_shows_signs_as_they_are():
    assert (
        "<tr><td>*R|50 &lt;b&gt; &amp; 10% _x_ `c`</td><td>1.0</td>"
        '<td><a href="https://x/a_(b).pth?c=1&amp;d=2">model</a> | <a href="https://x/a.json">log</a></td></tr>\n'
        "<tr><td></td><td>2 + 0.1</td></tr>"
    ) in formats.to_html([TRICKY])


def test_csv_has_urls_where_there_is_only_something_to_download():
    assert list(csv.reader(io.StringIO(formats.to_csv([TRICKY])))) == [
        ["Name", "box AP", "download"],
        ["*R|50 <b> & 10% _x_ `c`", "1.0", "https://x/a_(b).pth?c=1&d=2 https://x/a.json"],
        ["", "2 + 0.1", ""],
    ]


def test_latex_escapes_what_it_reads_as_commands():
    assert formats.to_latex([TRICKY]).splitlines() == [
        "% Over it / Title",
        r"\begin{tabular}{lr}",
        r"\hline",
        r"Name & box AP \\",
        r"\hline",
        r"*R|50 \textless{}b\textgreater{} \& 10\% \_x\_ `c` & 1.0 \\",
        r" & 2 + 0.1 \\",
        r"\hline",
        r"\end{tabular}",
    ]


def test_a_terminal_of_100_columns_breaks_headers_and_no_cells():
    arguments = shlex.split(GENERATED[0])
    done = CliRunner().invoke(app, ["table", *arguments, "--format", "rich"], env={"COLUMNS": "100"})
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "R50-C4    1x        0.551      0.102    4.8  35.7  137257644  model | metrics" in done.stdout
    assert len(lines) == 3 + 1 + 10


def test_a_table_that_is_far_too_wide_has_a_line_for_each_cell():
    arguments = shlex.split(GENERATED[1])
    done = CliRunner().invoke(app, ["table", *arguments, "--format", "rich"], env={"COLUMNS": "40"})
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "Name                   R50"
    assert "inference time (s/im)  0.056" in lines
    assert len(lines) == 3 * 8 + 2


def test_piped_output_is_markdown():
    assert table("--method", "atss") == table("--method", "atss", "--format", "markdown")
    assert table("--method", "atss").startswith("| Source | Method |")


@pytest.mark.parametrize("arguments", [["--fields", "box_AP", "mask_AP"], ["--document", "mmdet-v2"]])
def test_no_table_needs_torch(arguments):
    code = f"""
import sys, time
sys.argv = ["detcli", "table", *{arguments!r}]
from detcli.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "numpy", "rich") if name in sys.modules], time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.6  # 0.15 s on one of today's cores
