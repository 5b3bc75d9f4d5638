import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from detcli import __version__, cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def detcli(monkeypatch, capsys):
    """Return a function that runs the command line in this process: (status, stdout, stderr)."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["detcli", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        written = capsys.readouterr()
        return stopped.value.code, written.out, written.err

    return run


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], ["torch", "numpy", "pydantic", "rich"]),
        (["list"], ["torch", "numpy", "rich"]),
        (["list", "recipes"], ["torch", "numpy", "rich"]),
        (["config", "retinanet", "--explain"], ["torch", "numpy", "rich"]),
    ],
)
def test_what_takes_no_time_imports_nothing_heavy(arguments, heavy):
    code = f"""
import sys
sys.argv = ["detcli", *{arguments!r}]
from detcli.cli import main
try:
    main()
finally:
    print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command(detcli):
    status, out, _ = detcli("--help")
    assert status == 0
    for command in ("train", "eval", "predict", "config", "list", "data", "new"):
        assert f"\n  {command} " in out
    assert detcli() == (0, out, "")


def test_version(detcli):
    assert detcli("--version") == (0, f"detcli {__version__}\n", "")


def test_a_mistyped_command_or_option_comes_with_the_nearest(detcli):
    status, out, err = detcli("trian")
    assert (status, out) == (2, "")
    assert err == "error: No such command 'trian'. Did you mean 'train'? See `detcli --help`.\n"
    status, _, err = detcli("train", "--bakbone", "r18")
    assert status == 2
    assert "--backbone" in err
    assert err.count("\n") == 1


def test_an_error_is_one_line_and_debug_shows_where(detcli, monkeypatch, toy):
    status, _, err = detcli("config", "toy", "--set", "optim.lrr=1")
    assert (status, err) == (2, "error: unknown setting 'optim.lrr': did you mean 'optim.lr'?\n")
    monkeypatch.setattr(sys, "argv", ["detcli", "config", "toyy", "--debug"])
    with pytest.raises(cli.DetcliError):
        cli.main()


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            PermissionError(13, "Permission denied", "x.json"),
            1,
            "error: [Errno 13] Permission denied: 'x.json'",
        ),
        (KeyError("x"), 1, "error: KeyError: 'x'. This is a mistake in detcli; --debug shows where."),
    ],
)
def test_whatever_goes_wrong_is_one_line(detcli, monkeypatch, raised, status, line):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr("detcli.config.resolve", fail)
    assert detcli("config", "toy") == (status, "", f"{line}\n")


def test_a_reader_that_stops_early_is_no_error():
    code = "import sys; sys.argv = ['detcli', 'list', 'backbones']; from detcli.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


def test_list_shows_kinds_and_the_names_in_each(detcli, toy):
    status, out, _ = detcli("list")
    assert status == 0
    counts = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:]}
    assert (counts["models"], counts["recipes"], counts["overlays"], counts["plugins"]) == (
        "2",
        "3",
        "2",
        "2",
    )
    _, out, _ = detcli("list", "schedules")
    assert "short      toy     3 epochs, lower learning rate after 2" in out
    _, out, _ = detcli("list", "plugins", "--markdown")
    assert out.splitlines()[:2] == ["| plugin | arXiv | title |", "| --- | --- | --- |"]
    status, _, err = detcli("list", "backbone")
    assert (status, err) == (
        2,
        "error: unknown kind 'backbone': did you mean 'backbones'? See `detcli list`.\n",
    )


def test_config_explains_each_value(detcli, toy):
    status, out, _ = detcli("config", "toy", "--backbone", "tiny_deep", "--set", "optim.lr=0.5", "--explain")
    lines = {line.split("#")[0].strip(): line.split("# ")[1] for line in out.splitlines() if "#" in line}
    assert status == 0
    assert lines['name: "tiny_deep"'] == "flag"
    assert lines["depth: 9"] == "backbone tiny_deep"
    assert lines["lr: 0.5"] == "--set"
    assert lines["drops: [2]"] == "schedule short"
    assert lines["warmup_iters: 7"] == "recipe toy"


def test_config_writes_json_that_config_reads(detcli, toy, tmp_path):
    _, out, _ = detcli("config", "toy", "--neck", "tower", "--lr", "0.3", "--json")
    file = tmp_path / "run.json"
    file.write_text(out)
    values = json.loads(out)
    assert (values["optim"]["lr"], values["optim"]["batch"]) == (0.3, 0)
    assert detcli("config", "toy", "--config", str(file), "--json")[1] == out


def test_new_plugin_refuses_what_it_would_break(detcli, tmp_path, toy):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "kept.txt").write_text("mine")
    for name, out, message in [
        ("shiny_new", folder, "is already there and stays as it is"),
        ("my-plugin", tmp_path / "a", "must be a Python name such as 'my_detector'"),
        ("class", tmp_path / "a", "must be a Python name"),
        ("toy", tmp_path / "a", "the name 'toy' is taken"),
        ("r50", tmp_path / "a", "the name 'r50' is taken: see `detcli list backbones`"),
        ("json", tmp_path / "a", "is the name of an installed package"),
    ]:
        status, _, err = detcli("new", "plugin", name, "--out", str(out))
        assert status == 2
        assert message in err
    assert [path.name for path in folder.iterdir()] == ["kept.txt"]
    assert not (tmp_path / "a").exists()


def test_generated_parts_of_documents_are_what_their_commands_print():
    checked = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr
