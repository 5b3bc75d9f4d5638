import re

import pytest

from detcli import registry
from detcli.errors import DetcliError, UsageError

SECOND = "from detcli.plugin import Plugin\nplugin = Plugin(name='second', losses={'mine': '.model:mine'})\n"
BUILDER = """
def mine(*, in_channels: int, scale: float = 1.0, mode: str = "a"):
    return in_channels, scale, mode
"""


def test_core_and_plugins_are_found_with_the_owner_of_each_name(toy):
    assert next(iter(registry.plugins())) == "core"
    assert registry.names("backbones")["tiny"] == "toy"
    assert registry.names("backbones")["r50"] == "core"
    assert list(registry.names("backbones")) == sorted(registry.names("backbones"))


def test_a_part_is_normalised_and_its_reference_absolute(toy):
    assert registry.find("backbones", "bare").ref == "toy.model:bare"
    assert registry.find("backbones", "tiny_deep").args == {"depth": 9}


def test_an_unknown_name_comes_with_the_nearest_and_the_command_that_lists_them(toy):
    with pytest.raises(UsageError, match=r"unknown backbone 'tinny': did you mean 'tiny'.*`detcli list backbones`"):
        registry.find("backbones", "tinny")


def test_a_plugin_that_cannot_be_imported_is_named_and_left_out(toy, plugin_package):
    plugin_package("broken", "import not_there_at_all\n")
    plugin_package("wrong", "plugin = 3\n")
    with pytest.warns(UserWarning, match="is left out") as caught:
        found = registry.plugins()
    assert list(found) == ["core", "toy"]
    messages = sorted(str(warning.message) for warning in caught)
    assert messages[0].startswith("plugin 'broken' (broken:plugin) is left out: ModuleNotFoundError")
    assert messages[1].startswith("plugin 'wrong' (wrong:plugin) is left out: TypeError")


def test_two_plugins_with_one_name_in_a_slot_are_both_named(toy, plugin_package):
    plugin_package("second", SECOND.replace("mine'", "focal'"))
    message = re.escape("plugins 'core' and 'second' both have 'focal' in losses")
    with pytest.raises(DetcliError, match=message):
        registry.find("losses", "iou")


def test_two_plugins_of_one_name_are_both_named(plugin_package):
    plugin_package("one", SECOND, entry="same")
    plugin_package("other", SECOND, entry="same")
    with pytest.raises(DetcliError, match=r"two plugins are called 'same': one:plugin and other:plugin"):
        registry.plugins()


def test_build_lays_config_over_context_over_presets(plugin_package):
    parts = "{'mine': Part('.model:mine', {'scale': 2.0, 'mode': 'b'})}"
    plugin_package(
        "second",
        f"from detcli.plugin import Part, Plugin\nplugin = Plugin(name='s', losses={parts})\n",
        BUILDER,
    )
    assert registry.build("losses", "mine", in_channels=8, unasked=1) == (8, 2.0, "b")
    assert registry.build("losses", {"name": "mine", "in_channels": 9, "mode": "c"}, in_channels=8) == (
        9,
        2.0,
        "c",
    )


def test_build_names_an_unknown_argument(plugin_package):
    plugin_package("second", SECOND, BUILDER)
    with pytest.raises(UsageError, match=r"unknown argument of loss 'mine' 'scael': did you mean 'scale'"):
        registry.build("losses", {"name": "mine", "scael": 1}, in_channels=8)


def test_a_reference_that_cannot_be_imported_is_named(toy):
    with pytest.raises(DetcliError, match=r"can't import toy\.model:tiny: No module named 'torch_is_not"):
        registry.build("backbones", "tiny")
    with pytest.raises(DetcliError, match=r"can't import detcli\.errors:nothing"):
        registry.resolve("detcli.errors:nothing")
