import platform
import subprocess
import sys

import pytest
import torch

from detcli.engine.device import memory_in_use

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

FAULTS = """
import resource, torch
torch.set_num_threads(1)
from detcli.engine.device import find_device
find_device("cpu")
def step():
    tensors = [torch.ones(5_000_000) for _ in range(5)]
for _ in range(12):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def output(code):
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@LINUX
def test_the_peak_memory_is_that_of_this_process_alone():
    own = memory_in_use(torch.device("cpu"))
    block = b"1" * 1_000_000_000
    with_block = memory_in_use(torch.device("cpu"))
    assert with_block >= own
    assert with_block > len(block)
    child = output(
        "import torch\nfrom detcli.engine.device import memory_in_use\nprint(memory_in_use(torch.device('cpu')))"
    )
    assert 50_000_000 < child < len(block)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_is_used_again_on_a_cpu():
    # Without being told to, the C library gives it back most of the time, with some 78,000 pages to clear again.
    assert max(output(FAULTS) for _ in range(3)) < 500
