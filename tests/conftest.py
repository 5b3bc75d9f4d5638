import subprocess
import sys

import pytest


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
