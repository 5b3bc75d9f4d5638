import json

import pytest

from detcli.config import InputConfig, ScheduleConfig, lengthened, load, resolve, revise
from detcli.errors import UsageError

pytestmark = pytest.mark.usefixtures("toy")


def error(*args, **kwargs):
    with pytest.raises(UsageError) as caught:
        resolve(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_argument_of_model_and_parts_is_filled_in():
    assert resolve("toy").config.model == {
        "name": "toy",
        "backbone": {"name": "tiny", "depth": 3, "width": 4, "frozen_stages": 1, "norm_eval": True},
        "neck": {"name": "ladder", "num_outs": 6, "norm": "none"},
        "depth": 2,
        "ratios": (0.5, 1.0),
        "limit": None,
    }


def test_layers_win_in_order_and_each_value_knows_its_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 0.2\nmomentum = 0.8\nweight_decay = 0.3\n[sched]\nlength = 40\n")
    found = resolve(
        "toy",
        sched="scratch",
        overlays=["slow"],
        file=file,
        settings=["optim.weight_decay=0.5"],
        flags={"optim.momentum": 0.7, "train.batch": 6},
    )
    config, origins = found.config, found.origins
    assert (config.optim.lr, origins["optim.lr"]) == (0.2, str(file))
    assert (config.optim.momentum, origins["optim.momentum"]) == (0.7, "flag")
    assert (config.optim.weight_decay, origins["optim.weight_decay"]) == (0.5, "--set")
    assert (config.sched.length, origins["sched.length"]) == (5, "schedule scratch")
    assert (config.sched.warmup_iters, origins["sched.warmup_iters"]) == (7, "recipe toy")
    assert (config.train.batch, origins["train.batch"]) == (6, "flag")
    assert (config.sched_name, config.recipe) == ("scratch", "toy")
    assert origins["train.seed"] == origins["model.limit"] == origins["model.neck.num_outs"] == "default"
    assert set(origins) == set(resolve("toy").origins)


def test_a_recipes_own_schedule_is_below_it_and_absent_when_another_is_asked_for():
    assert resolve("toy").config.sched.drops == [2]
    assert resolve("toy", sched="scratch").config.sched.drops == ScheduleConfig().drops


def test_a_schedule_sets_what_the_model_has_and_a_recipe_has_the_last_word_under_it():
    found = resolve("toy", sched="slim")
    assert (found.config.model["neck"]["num_outs"], found.config.optim.lr) == (3, 0.3)
    assert found.origins["model.neck.num_outs"] == "schedule slim"
    assert found.origins["optim.lr"] == "recipe toy under slim"
    without_neck = resolve("toy_two", sched="slim").config
    assert ("neck" in without_neck.model, without_neck.optim.lr) == (False, 0.1)
    assert resolve("toy", sched="slim", settings=["model.neck.num_outs=4"]).config.model["neck"]["num_outs"] == 4


def test_another_name_keeps_the_arguments_that_the_new_part_has_too():
    found = resolve("toy", neck="tower", settings=["model.neck.floors=3"])
    assert found.config.model["neck"] == {"name": "tower", "num_outs": 6, "floors": 3}
    assert found.origins["model.neck.name"] == "flag"
    wide = resolve("toy_wide", backbone="tiny_deep").config.model["backbone"]
    assert (wide["width"], wide["depth"]) == (8, 9)


def test_an_overlay_that_the_chosen_part_has_no_arguments_for_is_not_dropped():
    with pytest.raises(UsageError, match=r"overlay grouped sets model\.neck\.norm, which neck 'tower' has not"):
        resolve("toy", neck="tower", overlays=["grouped"])


def test_presets_of_a_part_stay_behind_when_its_name_changes():
    config = resolve("toy", backbone="tiny_deep", settings=['model.backbone="tiny"']).config
    assert config.model["backbone"]["depth"] == 3
    assert config.input.mean == InputConfig().mean


def test_what_comes_with_a_part_is_just_above_the_defaults():
    found = resolve("toy", backbone="tiny_deep")
    assert found.config.input.mean == (1.0, 2.0, 3.0)
    assert found.origins["input.mean"] == found.origins["model.backbone.depth"] == "backbone tiny_deep"
    assert resolve("toy", backbone="tiny_deep", settings=["input.mean=[4, 5, 6]"]).config.input.mean == (
        4,
        5,
        6,
    )


def test_random_weights_are_not_frozen_unless_the_user_says_so():
    found = resolve("toy", sched="scratch")
    assert found.config.model["backbone"]["frozen_stages"] == 0
    assert found.config.model["backbone"]["norm_eval"] is False
    assert found.origins["model.backbone.norm_eval"] == "random weights"
    kept = resolve("toy", flags={"weights": "none"}, settings=["model.backbone.frozen_stages=2"])
    assert kept.config.model["backbone"]["frozen_stages"] == 2
    assert resolve("toy_two", flags={"weights": "none"}).config.model["backbone"] == {
        "name": "bare",
        "width": 4,
    }


def test_an_overlay_is_a_target_when_it_names_its_recipe():
    config = resolve("grouped").config
    assert (config.recipe, config.model["neck"]) == ("toy", {"name": "ladder", "num_outs": 6, "norm": "gn"})
    assert resolve("toy", overlays=["grouped"]).config.model == config.model
    assert "--with slow" in error("slow")
    assert "fits toy, not 'toy_two'" in error("toy_two", overlays=["grouped"])


def test_a_json_file_may_be_the_whole_config_of_a_run(tmp_path):
    file = tmp_path / "config.json"
    before = resolve("toy", neck="tower", settings=["data.resize=[[100, 50]]"]).config
    file.write_text(json.dumps(before.model_dump(mode="json")))
    assert resolve("toy", file=file).config == before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("null", None),
        ("1e-3", 1e-3),
        ("[1, 2]", [1, 2]),
        ('{a = "b"}', {"a": "b"}),
        ("x y", "x y"),
    ],
)
def test_settings_are_json_or_toml_or_text(text, value):
    assert resolve("toy", settings=[f"data.args.key={text}"]).config.data.args == {"key": value}


def test_the_config_survives_json_and_comes_back_typed():
    config = resolve("toy", backbone="tiny_deep").config
    back = load(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert back == config
    assert back.model["ratios"] == (0.5, 1.0)


def test_revise_changes_what_is_named_and_nothing_else():
    config = resolve("toy").config
    changed = revise(config, settings=["model.neck.norm=gn"], flags={"data.val": "x.json"})
    assert (changed.model["neck"]["norm"], changed.data.val) == ("gn", "x.json")
    assert revise(changed, settings=["model.neck.norm=none"], flags={"data.val": ""}) == config


def test_a_longer_run_drops_in_proportion():
    config = resolve("toy", settings=["sched.length=12", "sched.drops=[8, 11]"]).config
    assert lengthened(config) is config
    assert lengthened(config, epochs=24).sched.drops == [16, 22]
    in_steps = lengthened(config, iters=1200).sched
    assert (in_steps.unit, in_steps.length, in_steps.drops) == ("iter", 1200, [800, 1100])
    with pytest.raises(UsageError, match="--epochs and --iters"):
        lengthened(config, epochs=1, iters=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.lrr=1"], "unknown setting 'optim.lrr': did you mean 'optim.lr'?"),
        (["optm.lr=1"], "unknown setting 'optm': did you mean 'optim'?"),
        (
            ["model.neck.num_out=1"],
            "unknown setting 'model.neck.num_out': did you mean 'model.neck.num_outs'?",
        ),
        (
            ["model.zzz=1"],
            "unknown setting 'model.zzz': there is backbone, depth, limit, neck, num_classes, ratios.",
        ),
        (["model.depth=deep"], "model.depth can't be 'deep' (--set): input should be a valid integer"),
        (["model.neck.norm=bn"], "model.neck.norm can't be 'bn' (--set): input should be 'none' or 'gn'"),
        (["data.resize=[[1, 2], [3]]"], "data.resize.1.1 can't be"),
        (["model.num_classes=3"], "model.num_classes comes from the data"),
        (["model.backbone=3"], "model.backbone must be a name"),
        (["model.backbone=tinny"], "model.backbone: unknown backbone 'tinny': did you mean 'tiny'"),
        (["data.transforms=[{name = 'mosaik'}]"], "data.transforms.0: unknown transform 'mosaik'"),
        (["data.before_resize=[{name = 'mosaik'}]"], "data.before_resize.0: unknown transform 'mosaik'"),
        (["optim.lr"], "is not KEY=VALUE"),
        (["=1"], "is not KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_full_key(settings, message):
    assert message in error("toy", settings=settings)


def test_unknown_names_come_with_the_nearest():
    assert error("toyy").startswith("unknown recipe 'toyy': did you mean 'toy'")
    assert "unknown schedule 'shrot': did you mean 'short'" in error("toy", sched="shrot")
    assert "unknown overlay 'slw': did you mean 'slow'" in error("toy", overlays=["slw"])
    assert "unknown setting 'model.neck'" in error("toy_two", neck="tower")


def test_a_config_file_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "a.toml"
    assert f"can't read --config {file}" in error("toy", file=file)
    file.write_text("[optim\n")
    assert f"--config {file} is not valid TOML" in error("toy", file=file)
    listed = tmp_path / "a.json"
    listed.write_text("[1]")
    assert "must hold settings by name" in error("toy", file=listed)
