"""What modules share between the processes of a distributed run."""

import subprocess
import sys

import pytest

START = """
import sys, torch
from torch import distributed
torch.set_num_threads(1)
rank = int(sys.argv[1])
def join():
    distributed.init_process_group("gloo", init_method="file://{meeting}", rank=rank, world_size=2)
"""


@pytest.fixture
def in_two_processes(tmp_path):
    """Return a function that runs code in two processes, which may `join()` each other, and know their `rank`."""

    def run(code):
        code = START.format(meeting=tmp_path / "meeting") + code + "\ndistributed.destroy_process_group()"
        processes = [subprocess.Popen([sys.executable, "-c", code, str(rank)]) for rank in range(2)]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]

    return run


def test_numbers_are_averaged(in_two_processes):
    in_two_processes("""
from detcli.nn.processes import reduce_mean
assert reduce_mean(torch.tensor(3.0)) == 3
join()
value = torch.tensor(2 + 4 * rank)
assert reduce_mean(value) == 4
assert value == 2 + 4 * rank
distributed.barrier()
""")


def test_synced_norm_is_batch_norm_of_all_images(in_two_processes):
    in_two_processes("""
from detcli.nn.blocks import make_norm
torch.manual_seed(0)
whole = torch.randn(5, 8, 6, 4) * 3 + 10
factors = torch.randn(5, 8, 6, 4)
plain, synced = make_norm("bn", 8), make_norm("syncbn", 8)
for norm in (plain, synced):
    torch.nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
x = whole.clone().requires_grad_()
expected = plain(x)
(expected * factors).sum().backward()

join()
mine = slice(0, 3) if rank == 0 else slice(3, 5)
part = whole[mine].clone().requires_grad_()
y = synced(part)
(y * factors[mine]).sum().backward()
for parameter in synced.parameters():
    distributed.all_reduce(parameter.grad)
close = torch.testing.assert_close
close(y, expected[mine])
close(part.grad, x.grad[mine], rtol=1e-4, atol=1e-5)
close(synced.weight.grad, plain.weight.grad)
close(synced.bias.grad, plain.bias.grad)
close(dict(synced.named_buffers()), dict(plain.named_buffers()))
close(synced.eval()(part), plain.eval()(part))
""")
