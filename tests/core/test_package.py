import subprocess
import sys

import pytest

import detcli
from detcli.engine import predictor


def test_importing_detcli_imports_no_torch():
    code = "import sys, detcli, detcli.plugin, detcli.config, detcli.registry; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_load_is_there_when_it_is_asked_for():
    assert detcli.__all__ == ["load"]
    assert detcli.load is predictor.load
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = detcli.laod


def test_python_m_detcli_is_the_command_line(run_detcli):
    assert run_detcli("--version").stdout == f"detcli {detcli.__version__}\n"
