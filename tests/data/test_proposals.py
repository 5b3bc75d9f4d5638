from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detcli.config import DataConfig, InputConfig
from detcli.data import collate, open_dataset
from detcli.data.proposals import read_proposals, write_proposals
from detcli.errors import DetcliError


@pytest.fixture
def items() -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for image_id, count in ((11, 3), (5, 0), (8, 2), (2, 1)):
        corner = torch.rand(count, 2, generator=generator) * 20
        boxes = torch.cat([corner, corner + 5 + 10 * torch.rand(count, 2, generator=generator)], dim=1)
        found.append((image_id, boxes, torch.rand(count, generator=generator)))
    return found


def test_round_trip_is_exact_and_best_first(tmp_path: Path, items: Any) -> None:
    write_proposals(tmp_path / "p.safetensors", iter(items))
    proposals = read_proposals(tmp_path / "p.safetensors")
    assert list(proposals) == [11, 5, 8, 2]
    for image_id, boxes, scores in items:
        order = scores.argsort(descending=True)
        read_boxes, read_scores = proposals[image_id]
        assert np.array_equal(read_boxes, boxes[order].numpy())
        assert np.array_equal(read_scores, scores[order].numpy())
    assert 3 not in proposals
    with pytest.raises(KeyError):
        proposals[12]


def test_proposals_move_with_the_picture(
    tmp_path: Path, folder: Any, config: Callable[..., DataConfig], rgb: InputConfig, items: Any
) -> None:
    path = tmp_path / "p.safetensors"
    write_proposals(path, items)
    settings = config(folder.write(), resize=[(160, 120)], flip=1.0, proposals=str(path), val_proposals=str(path))
    expected = torch.from_numpy(read_proposals(path)[11][0].copy()) * 2
    val = open_dataset(config(folder.path, test_resize=(160, 120), val_proposals=str(path)), "val", rgb)
    assert torch.allclose(val[0].target.proposals, expected)
    train = open_dataset(settings, "train", rgb)
    flipped = expected.clone()
    flipped[:, [0, 2]] = 160 - expected[:, [2, 0]]
    assert torch.allclose(train[0].target.proposals, flipped)
    batch = collate([train[0], train[1]], 32)
    assert [len(target.proposals) for target in batch.targets] == [3, 0]


def test_picture_without_proposals_is_named(
    tmp_path: Path, folder: Any, config: Callable[..., DataConfig], rgb: InputConfig, items: Any
) -> None:
    path = tmp_path / "p.safetensors"
    write_proposals(path, items[:2])
    with pytest.raises(DetcliError, match=r"no proposals for grey\.png \(image 8\)"):
        open_dataset(config(folder.write(), proposals=str(path)), "train", rgb)


def test_files_that_hold_no_proposals(tmp_path: Path, items: Any) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(DetcliError, match="there is no proposals file"):
        read_proposals(path)
    write_proposals(path, items)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 10])
    with pytest.raises(DetcliError, match="not a readable file of proposals"):
        read_proposals(path)
    from safetensors.torch import save_file

    save_file({"boxes": torch.zeros(1, 4)}, path)
    with pytest.raises(DetcliError, match="no image_ids, offsets, scores"):
        read_proposals(path)


def test_failed_write_leaves_what_was_there(tmp_path: Path, items: Any) -> None:
    path = tmp_path / "p.safetensors"
    write_proposals(path, items)
    before = path.read_bytes()

    def broken() -> Any:
        yield items[0]
        raise DetcliError("the model stopped")

    with pytest.raises(DetcliError, match="the model stopped"):
        write_proposals(path, broken())
    with pytest.raises(DetcliError, match="can't write"):
        write_proposals(path / "below" / "a.safetensors", items)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
