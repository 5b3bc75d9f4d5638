import pytest
import safetensors.torch
import torch
import torchvision

from detcli.download import cache_path
from detcli.errors import DetcliError
from detcli.nn.resnet import resnet
from detcli.nn.weights import load_backbone

URL = "https://example.invalid/r18.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DETCLI_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


def put(state, name="r18.pth", **options):
    """Place a file in the cache; return its URL."""
    url = f"https://example.invalid/{name}"
    path = cache_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, **options)
    return url


def assert_loaded(model, published):
    for name, value in model.state_dict().items():
        assert torch.equal(value, published[name]), name


@pytest.mark.parametrize(
    ("name", "wrapped", "zipped"),
    [
        ("r18.pth", False, True),
        ("r18.pth", False, False),
        ("r18.pth", True, True),
        ("r18.safetensors", False, True),
    ],
)
def test_formats(published, name, wrapped, zipped):
    state = {"state_dict": published, "meta": {"epoch": 1}} if wrapped else published
    options = {} if name.endswith(".safetensors") else {"_use_new_zipfile_serialization": zipped}
    model = resnet(depth=18)
    load_backbone(model, put(state, name, **options))
    assert_loaded(model, published)


def test_files_from_caffe(published):
    """They have a bias in the stem, no counters and maybe no classifier."""
    state = {name: value for name, value in published.items() if "num_batches" not in name and "fc" not in name}
    model = resnet(depth=18)
    load_backbone(model, put(state | {"conv1.bias": torch.zeros(64)}))
    assert_loaded(model, published)


def test_stages_that_are_not_built(published):
    model = resnet(depth=18, out_stages=(2,))
    load_backbone(model, put(published))
    assert_loaded(model, published)


def test_anything_else_that_differs_is_listed(published):
    missing = {name: value for name, value in published.items() if name != "layer2.0.conv1.weight"}
    with pytest.raises(DetcliError, match=r"r18\.pth does not fit this model: layer2\.0\.conv1\.weight is missing"):
        load_backbone(resnet(depth=18), put(missing))
    with pytest.raises(DetcliError, match=r"layer2\.9\.conv1\.weight is not in this model"):
        load_backbone(resnet(depth=18), put(published | {"layer2.9.conv1.weight": torch.zeros(1)}))
    with pytest.raises(DetcliError, match=r"is missing; .* and \d+ more"):
        load_backbone(resnet(depth=18, norm="gn"), put(published))


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", b"PK\x03\x04truncated"])
def test_unreadable_file(content):
    path = cache_path(URL)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(DetcliError, match=r"r18\.pth can't be read as weights") as caught:
        load_backbone(resnet(depth=18), URL)
    assert "\n" not in str(caught.value)


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    with pytest.raises(DetcliError, match="can't be read as weights"):
        load_backbone(resnet(depth=18), put({"conv1.weight": Evil()}))
    assert not (tmp_path / "written").exists()


def test_without_a_network_training_without_weights_is_named(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    nobody_listens = "http://127.0.0.1:9/r18.pth"
    with pytest.raises(DetcliError, match=r"can't download http://127\.0\.0\.1:9/r18\.pth.*--weights none"):
        load_backbone(resnet(depth=18), nobody_listens)
