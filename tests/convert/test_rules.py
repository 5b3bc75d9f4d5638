"""The engine of names: first rule wins, nothing is lost, nothing is copied without need."""

import pytest
import torch

from detcli.convert.rules import (
    BACKGROUND_LAST,
    BOXES_WITHOUT_BACKGROUND,
    WITHOUT_BACKGROUND,
    Added,
    Change,
    Entry,
    Rule,
    background_last,
    drop_background,
    left_out,
    only_tensors,
    rename,
)
from detcli.errors import DetcliError

ONE, TWO = torch.ones(2), torch.full((2,), 2.0)
DOUBLE = Change("doubled", lambda tensor: tensor * 2)


def test_the_first_rule_that_matches_a_whole_name_wins():
    rules = (Rule("a", "x"), Rule(r"a\.(.*)", r"y.\1"), Rule(".*", "z"))
    tensors, report = rename({"a.b": ONE, "a": TWO, "aa": ONE}, rules, "it")
    assert list(tensors) == ["y.b", "x", "z"]
    assert tensors["y.b"] is ONE
    assert report.entries == [Entry("a.b", "y.b"), Entry("a", "x"), Entry("aa", "z")]


def test_the_report_tells_what_was_renamed_changed_dropped_and_added():
    rules = (
        Rule("drop", None, why="of no use"),
        Rule("same", "same"),
        Rule("other", "ours", DOUBLE),
        Rule("unchanged", "kept", Change("nothing", lambda tensor: tensor)),
        Rule(r"(\w+)_scale", r"\1.weight", adds=(Added(r"\1.mean", torch.zeros_like, "it is fused"),)),
    )
    theirs = dict.fromkeys(["drop", "same", "other", "unchanged", "norm_scale"], ONE)
    tensors, report = rename(theirs, rules, "it")
    assert tensors.keys() == {"same", "ours", "kept", "norm.weight", "norm.mean"}
    assert tensors["ours"].tolist() == [2, 2]
    assert tensors["norm.mean"].tolist() == [0, 0]
    assert report.dropped == [Entry("drop", None, why="of no use")]
    assert report.added == [Entry("", "norm.mean", why="it is fused")]
    assert report.transformed == [Entry("other", "ours", "doubled")]
    assert [entry.theirs for entry in report.renamed] == ["other", "unchanged", "norm_scale"]


def test_names_without_a_rule_and_names_that_become_one_are_listed():
    with pytest.raises(DetcliError, match=r"^file\.pth: b has no place in it; c has no place in it\.$"):
        rename({"a": ONE, "b": ONE, "c": ONE}, (Rule("a", "a"),), "file.pth")
    with pytest.raises(DetcliError, match=r"^file\.pth: a and b are both x\.$"):
        rename({"a": ONE, "b": TWO}, (Rule("[ab]", "x"),), "file.pth")
    with pytest.raises(DetcliError, match=r"a3 has no place in it and 6 more\.$"):
        rename({f"a{number}": ONE for number in range(10)}, (), "file.pth")


def test_what_is_added_does_not_replace_what_is_there():
    rules = (Rule("scale", "weight", adds=(Added("mean", torch.zeros_like, "it is fused"),)), Rule("mean", "mean"))
    with pytest.raises(DetcliError, match="are both mean"):
        rename({"scale": ONE, "mean": TWO}, rules, "it")


def test_a_rule_that_drops_says_why():
    with pytest.raises(ValueError, match="must say why"):
        Rule("a", None)


def test_the_background_goes_or_comes_last():
    rows = torch.arange(2 * 3 * 4).view(6, 4)  # two anchors of three classes
    assert drop_background(rows, anchors=2).tolist() == rows[[1, 2, 4, 5]].tolist()
    assert background_last(rows, anchors=2).tolist() == rows[[1, 2, 0, 4, 5, 3]].tolist()
    assert BACKGROUND_LAST.apply(torch.tensor([0, 1, 2])).tolist() == [1, 2, 0]
    assert BOXES_WITHOUT_BACKGROUND.apply(torch.arange(12)).tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_what_does_not_depend_on_the_class_is_not_touched_and_cut_rows_are_not_copied():
    one_box, one_mask, three_masks = torch.ones(4, 2), torch.ones(1, 2), torch.ones(3, 2)
    assert BOXES_WITHOUT_BACKGROUND.apply(one_box) is one_box
    assert WITHOUT_BACKGROUND.apply(one_mask) is one_mask
    cut = WITHOUT_BACKGROUND.apply(three_masks)
    assert cut.untyped_storage().data_ptr() == three_masks.untyped_storage().data_ptr()


def test_weights_are_tensors_by_name():
    assert only_tensors({"a": ONE}, "it") == {"a": ONE}
    with pytest.raises(DetcliError, match="the weights of a file: a is str, not a tensor; 3 is not a name"):
        only_tensors({"a": "b", 3: ONE}, "a file")


def test_what_is_left_out_has_a_reason_and_weights_are_not_left_out_silently():
    entries = left_out({"used": 1, "optimizer": {"a": ONE}, "epoch": 3}, ("used",), {"optimizer": "its state"}, "it")
    assert entries == [Entry("optimizer", None, why="its state"), Entry("epoch", None, why="it holds no weights")]
    twice = [{}]
    for _ in range(60):
        twice = [twice, twice]
    assert left_out({"log": twice}, (), {}, "it") == [Entry("log", None, why="it holds no weights")]
    for value in (ONE, {"a": ONE}, {"model": [(1, {"a": ONE})]}):
        with pytest.raises(DetcliError, match="a file of X has tensors under strange, and no rule says"):
            left_out({"strange": value}, (), {}, "X")
