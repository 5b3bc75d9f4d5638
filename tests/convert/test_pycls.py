"""RegNets of pycls, whose names say the same as a ResNet's."""

from pathlib import Path

import pytest
import torch

from detcli.convert import pycls
from detcli.convert.rules import rename
from detcli.errors import DetcliError


def norm(name):
    parts = {part: torch.zeros(1) for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.{part}": value for part, value in parts.items()} | {f"{name}.num_batches_tracked": torch.tensor(7)}


def weights():
    found = {"stem.conv.weight": torch.zeros(1), **norm("stem.bn")}
    for block in ("s1.b1", "s1.b2", "s2.b1", "s3.b12"):
        if block.endswith("b1"):
            found |= {f"{block}.proj.weight": torch.zeros(1), **norm(f"{block}.bn")}
        for letter in "abc":
            found |= {f"{block}.f.{letter}.weight": torch.zeros(1), **norm(f"{block}.f.{letter}_bn")}
    return found | {"head.fc.weight": torch.zeros(1), "head.fc.bias": torch.zeros(1)}


def test_names_are_those_of_a_resnet():
    content = {"model_state": weights(), "epoch": 99, "optimizer_state": {}, "cfg": "MODEL:\n"}
    assert pycls.recognises(content, Path("RegNetX-3.2GF_dds_8gpu.pyth"))
    unwrapped = pycls.unwrap(content)
    tensors, report = rename(unwrapped.tensors, pycls.rules(unwrapped.tensors), "it")
    ours = {entry.theirs: entry.ours for entry in report.entries}
    assert ours["stem.bn.running_var"] == "bn1.running_var"
    assert ours["s1.b1.proj.weight"] == "layer1.0.downsample.0.weight"
    assert ours["s2.b1.bn.bias"] == "layer2.0.downsample.1.bias"
    assert ours["s3.b12.f.b.weight"] == "layer3.11.conv2.weight"
    assert ours["s1.b2.f.c_bn.num_batches_tracked"] == "layer1.1.bn3.num_batches_tracked"
    assert [entry.theirs for entry in report.dropped] == ["head.fc.weight", "head.fc.bias"]
    assert len(tensors) == len(weights()) - 2
    assert all(tensors[entry.ours] is content["model_state"][entry.theirs] for entry in report.renamed)
    assert {entry.theirs for entry in unwrapped.dropped} == {"epoch", "optimizer_state", "cfg"}


def test_other_layers_are_named():
    more = weights() | {"s1.b1.f.se.f_ex.0.weight": torch.zeros(1)}
    with pytest.raises(DetcliError, match=r"s1\.b1\.f\.se\.f_ex\.0\.weight has no place"):
        rename(more, pycls.rules(more), "it")


@pytest.mark.parametrize(
    "content", [{}, [], {"model_state": {}}, {"model_state": {"fc": torch.zeros(1)}}, {"model": weights()}]
)
def test_other_files_are_not_recognised(content):
    assert not pycls.recognises(content, Path("a.pyth"))
