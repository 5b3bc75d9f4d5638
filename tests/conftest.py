import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Let the learn runs begin first: they are one file, which one process runs, and take longest."""
    items.sort(key=lambda item: "learn" not in item.path.parts)


@pytest.fixture(autouse=True)
def one_thread():
    """Hold torch to one thread in the tests that have imported it, since others run beside them."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def run_detcli():
    """Return a function that runs the command line in a process of its own and returns what it did."""

    def run(*arguments, python=sys.executable, **options):
        command = [python, "-m", "detcli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

    return run


@pytest.fixture
def server(monkeypatch):
    """A file server on the loopback interface, reached without a proxy; see tests/zoo/server.py."""
    spec = importlib.util.spec_from_file_location("file_server", Path(__file__).with_name("zoo") / "server.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    monkeypatch.setenv("no_proxy", "*")
    server = module.Server()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of an empty cache of downloads, which waits for no server longer than a moment."""
    from detcli import download

    monkeypatch.setenv("DETCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETCLI_TIMEOUT", "0.3")
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    return tmp_path / "cache"
