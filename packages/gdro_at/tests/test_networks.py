import subprocess
import sys
import urllib.error

import pytest
import torch
from grfal_golden import recipe_state
from purity import unchanged
from torch import nn

from gdro_at.networks import TORCHVISION_NAMES, build_network, check_name, list_names
from robust_core.errors import UserError
from robust_core.models import FrozenView, Normalize, pooled_features
from robust_core.models.resnet import ResNet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
OWN = (*TORCHVISION_NAMES, "pre18")


def light(names):
    """Return parameters of a test: the wide network takes as long as the others together."""
    return [pytest.param(name, marks=[pytest.mark.slow] if "wide" in name else []) for name in names]


def built(name, classes=3, *, size=64, seed=0, weights="scratch", mean=None, std=None):
    return build_network(name, classes, image_size=size, mean=mean, std=std, seed=seed, weights=weights)


def pixels(count=2, size=64, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", light(OWN))
def test_the_frozen_view_and_the_parts_agree_with_the_network(name):
    model = built(name, mean=MEAN, std=STD)
    # statistics and scales that an untrained network does not have
    model.load_state_dict(recipe_state(model))
    model.eval()
    images = pixels()
    with unchanged(model), torch.no_grad():
        logits = model(images)
        features = model.forward_features(images)
        assert features.shape[2:] == (2, 2)
        torch.testing.assert_close(model.forward_head(features), logits)
        view = FrozenView(model)
        scale = logits.abs().max()
        assert (view(images) - logits).abs().max() <= 2e-5 * scale
        pooled = pooled_features(view, images)
    assert pooled.shape == (2, model.pooled_head().linear.in_features)
    folded = {norm for _, norm in model.conv_norm_pairs()}
    norms = {key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    alone = {f"layer{stage}.{block}.bn1" for stage in range(1, 5) for block in range(2)}
    assert norms - folded == (alone if name == "pre18" else set())


@pytest.mark.parametrize("name", light(TORCHVISION_NAMES))
def test_names_and_numbers_are_those_of_torchvision(name):
    from torchvision import models

    theirs = getattr(models, TORCHVISION_NAMES[name][0])(weights=None, num_classes=3)
    ours = built(name, mean=MEAN, std=STD)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    normalized = Normalize(MEAN, STD)(pixels())
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(pixels()), theirs.eval()(normalized))


@pytest.mark.parametrize("size", [32, 72, 224])
def test_pre18_takes_the_mean_of_the_whole_map(size):
    model = built("pre18", size=size).eval()
    with torch.no_grad():
        features = model.forward_features(pixels(1, size))
        side = -(-size // 32)
        assert features.shape == (1, 512, side, side)
        if side == 7:
            published = model.linear(nn.functional.avg_pool2d(features, 7).flatten(1))
            torch.testing.assert_close(model.forward_head(features), published)


@pytest.mark.parametrize("name", ["resnet18", "pre18", "resnet18-w16"])
def test_weights_are_a_function_of_the_seed_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = built(name, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = built(name, seed=3).state_dict(), built(name, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_plain_names_are_torchvisions_and_names_with_a_width_the_cores():
    assert built("resnet18").conv1.kernel_size == (7, 7)
    core = built("resnet18-w16")
    assert isinstance(core, ResNet)
    assert core.conv1.kernel_size == (3, 3)


def test_torchvision_is_imported_only_when_needed():
    code = (
        "import sys; from gdro_at.networks import build_network as b; "
        "b('pre18', 2, image_size=32, mean=None, std=None, seed=0); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["resnet18", "pre18", "resnet18-w16"])
def test_a_file_of_weights(name, tmp_path):
    source = built(name, 3, seed=1).state_dict()
    path = tmp_path / "weights.pt"
    torch.save(source, path)
    same = built(name, 3, seed=2, weights=path).state_dict()
    assert all(torch.equal(same[key], source[key]) for key in source)
    fewer, fresh = built(name, 2, seed=2, weights=path).state_dict(), built(name, 2, seed=2).state_dict()
    for key in source:
        of_head = key.startswith(("fc.", "linear."))
        assert torch.equal(fewer[key], fresh[key] if of_head else source[key]), key


def test_a_head_of_the_other_name_is_left_out_too(tmp_path):
    source = {
        key.replace("linear.", "fc."): value for key, value in built("resnet18-w16").state_dict().items()
    }
    torch.save(source, tmp_path / "weights.pt")
    found = built("resnet18-w16", 5, weights=tmp_path / "weights.pt")
    assert torch.equal(found.conv1.weight, source["conv1.weight"])
    assert found.linear.out_features == 5


def test_a_file_of_another_network(tmp_path):
    torch.save(built("resnet18-w16").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="another architecture than resnet18"):
        built("resnet18", weights=tmp_path / "weights.pt")
    with pytest.raises(UserError, match="no checkpoint file"):
        built("resnet18", weights=tmp_path / "nowhere.pt")


def test_imagenet_weights_come_with_a_checked_hash_and_a_new_head(monkeypatch):
    theirs = built("resnet18", 1000, seed=9).state_dict()
    # the files of the first version have no such counters
    theirs = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    asked = {}

    def fetch(url, **settings):
        asked.update(settings, url=url)
        return dict(theirs)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    for classes in (2, 1000):
        found, fresh = built("resnet18", classes, weights="imagenet"), built("resnet18", classes)
        assert torch.equal(found.conv1.weight, theirs["conv1.weight"])
        assert torch.equal(found.fc.weight, fresh.fc.weight)
    assert asked["check_hash"] is True
    assert asked["weights_only"] is True
    assert "resnet18" in asked["url"]


def test_without_a_network_one_sentence_names_both_ways_out(monkeypatch, tmp_path):
    def unreachable(*arguments, **settings):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        built("resnet18", weights="imagenet")
    for part in ("resnet18", "no route to host", "--pretrained PATH", "--train_from_scratch"):
        assert part in str(error.value)


def test_what_has_no_imagenet_weights():
    with pytest.raises(
        UserError, match=r"no ImageNet weights of 'resnet18-w16'.*--train_from_scratch.*--pretrained"
    ):
        built("resnet18-w16", weights="imagenet")
    # as published: pre18 is never pretrained
    assert torch.equal(built("pre18", weights="imagenet").conv1.weight, built("pre18").conv1.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inception_v3", "official code does not recognise either"),
        ("raw_logistic_regression", "official code does not recognise either"),
        ("bert", "out of scope"),
        ("resnet51", "did you mean 'resnet50'"),
        ("pre-18", "did you mean 'pre18'"),
        ("wideresnet", "did you mean 'wideresnet50'"),
        ("resnet18-w99999", "expected at most"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        check_name(name)
    with pytest.raises(UserError, match=message):
        built(name)


def test_all_listed_names_are_known():
    assert set(OWN) < set(list_names())
    for name in list_names():
        check_name(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 0}, "num_classes is 0"),
        ({"classes": 2.0}, "num_classes is 2.0"),
        ({"size": 4}, "image_size is 4"),
        ({"mean": MEAN}, "both mean and std"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(UserError, match=message):
        built("pre18", **change)
