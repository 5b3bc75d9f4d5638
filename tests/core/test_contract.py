import warnings

import pytest

from detcli.errors import UsageError
from detcli.registry import plugins
from detcli.testing import ContractError, check_plugin

with warnings.catch_warnings():
    warnings.simplefilter("error")  # a plugin that can't be imported is an error here
    PLUGINS = list(plugins())


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_keeps_the_contract(name):
    check_plugin(name)


def test_an_unknown_plugin_is_named():
    with pytest.raises(UsageError, match="unknown plugin 'atsss': did you mean 'atss'"):
        check_plugin("atsss")


HEADER = """
import torch
from detcli.nn.detector import Detector
from detcli.plugin import Loss
from detcli.structures import Detections


class Tiny(Detector):
    def __init__(self, num_classes):
        super().__init__(torch.nn.Conv2d(3, num_classes, 1), None)
        self.extra = torch.nn.Parameter(torch.zeros(3))

    def losses(self, features, batch):
        return {"loss": features.mean() + self.extra.sum()}

    def detect(self, features, batch):
        return [Detections(torch.tensor([[0.0, 0, 9, 9]] * 2), torch.tensor([0.5, 0.25]),
        torch.zeros(2).long())] * 2


def tiny(*, num_classes: int, factor: float = 1.0):
    return Tiny(num_classes)
"""
MANIFEST = """
from detcli.plugin import Overlay, Part, Plugin, Recipe
plugin = Plugin(name="kept", arxiv="1234.56789", models={"kept": ".model:tiny"}, recipes=[Recipe("kept")])
"""


@pytest.fixture
def small_plugin(plugin_package):
    """Return a function that installs a plugin which keeps the contract, with a few texts replaced, and
    checks it.
    """

    def check(in_manifest=("", ""), in_model=("", ""), card="arXiv 1234.56789"):
        manifest, model = MANIFEST.replace(*in_manifest), HEADER.replace(*in_model)
        assert in_manifest == ("", "") or manifest != MANIFEST
        assert in_model == ("", "") or model != HEADER
        folder = plugin_package("kept", manifest, model)
        if card:
            (folder / "README.md").write_text(card)
        check_plugin("kept")

    return check


def test_a_small_plugin_keeps_it(small_plugin):
    small_plugin()


def test_attention_keeps_the_shape_of_maps(small_plugin):
    half = "def half(*, in_channels: int):\n    return torch.nn.Conv2d(in_channels, in_channels, 1, 2)\n\n\ndef tiny"
    with pytest.raises(ContractError, match=r"attention 'half' makes maps \[2, 64, 8, 10\] of maps \[2, 64, 16, 20\]"):
        small_plugin(('name="kept"', 'name="kept", attentions={"half": ".model:half"}'), ("def tiny", half))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name="kept"', 'name="other"', "plugin 'other' has the entry point 'kept'"),
        ("from detcli", "import torch\nfrom detcli", "imports torch"),
        (":tiny", ":absent", "no attribute 'absent'"),
        ('".model:tiny"', 'Part(".model:tiny", {"facter": 1})', "presets 'facter'"),
        ('Recipe("kept")', 'Recipe("kept", sched="9x")', "unknown schedule '9x'"),
        ('Recipe("kept")', 'Recipe("kept", args={"facter": 1})', "unknown setting 'model.facter'"),
        ('Recipe("kept")', "", "model 'kept' has no recipe"),
    ],
)
def test_a_manifest_that_breaks_it_is_told_so(small_plugin, old, new, message):
    with pytest.raises(ContractError, match=message):
        small_plugin(in_manifest=(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("*, num_classes", "num_classes", "must take keyword-only arguments"),
        ("factor: float", "factor", "argument 'factor' has no type"),
        ("def tiny", "@lambda f: lambda *, num_classes: f(num_classes=3)\ndef tiny", "is it decorated"),
        ("return Tiny(num_classes)", "return torch.nn.ReLU()", r"no detcli\.nn\.detector\.Detector"),
        ('"loss":', '"cost":', 'no name has "loss" in it'),
        ("+ self.extra.sum()", "/ 0", "loss is -?(inf|nan).*, not a finite number"),
        ("+ self.extra.sum()", "", "no loss depends on extra"),
        ("[0.5, 0.25]", "[0.25, 0.5]", "must be sorted"),
        ("[0.5, 0.25]", "[1.5, 0.25]", r"scores must be in 0\.\.1"),
        ("torch.zeros(2).long()", "torch.full((2,), 3)", r"labels must be int64 in 0\.\.2"),
        ("[0.0, 0, 9, 9]", "[9.0, 0, 0, 9]", "boxes must be x1, y1, x2, y2"),
        ("[0.0, 0, 9, 9]", "[0.0, 0, 999, 9]", "must not reach beyond their image"),
        ("] * 2\n", "]\n", "one Detections an image"),
        ("None)\n", 'None, ("box", "mask"))\n', "not a mask for each detection"),
    ],
)
def test_a_model_that_breaks_it_is_told_so(small_plugin, old, new, message):
    with pytest.raises(ContractError, match=message):
        small_plugin(in_model=(old, new))


def test_an_overlay_is_trained_for_a_step(small_plugin):
    overlay = 'overlays=[Overlay("off", {"model": {"factor": 0.0}}, recipe="kept")], recipes'
    divided = "model = Tiny(num_classes)\n    model.extra.data /= factor\n    return model"
    with pytest.raises(ContractError, match="overlay 'off': loss is nan, not a finite number"):
        small_plugin(in_manifest=("recipes", overlay), in_model=("return Tiny(num_classes)", divided))


@pytest.mark.parametrize(("card", "message"), [("", "has no card"), ("Hello.", r"does not name arXiv 1234\.56789")])
def test_a_card_that_is_missing_or_cites_nothing_is_told_so(small_plugin, card, message):
    with pytest.raises(ContractError, match=message):
        small_plugin(card=card)
