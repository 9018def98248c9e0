"""Networks against the official implementations: names, logits and features in both modes and precisions."""

from __future__ import annotations

import functools

import golden
import numpy as np
import pytest
import torch
from torch import Tensor

from robust_core.models import FrozenView, build_model, load_state

pytestmark = pytest.mark.golden

DTYPES = {"f32": torch.float32, "f64": torch.float64}
CASES = golden.in_both_precisions(("resnet18", "wrn34_10"))


def error(ours: Tensor | np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference, relative to the largest absolute value of the reference."""
    difference = np.abs(np.asarray(torch.as_tensor(ours).detach(), dtype=np.float64) - reference)
    return float(difference.max() / np.abs(reference).max())


def tolerance(suffix: str) -> float:
    return {"f32": 1e-5, "f64": 1e-10}[suffix]


@functools.cache
def passes(name: str, suffix: str) -> dict[str, Tensor]:
    """One pass in evaluation mode, one of the frozen view, then one in training mode, of all images."""
    model = golden.recipe_model(name, DTYPES[suffix])
    images = torch.from_numpy(golden.load("part", "inputs.npz")["x"]).to(DTYPES[suffix])
    found = {}
    with torch.no_grad():
        found["frozen_logits"] = FrozenView(model)(images)
        for mode in ("eval", "train"):
            model.train(mode == "train")
            features = model.forward_features(images)
            found[f"{mode}_features"], found[f"{mode}_logits"] = features, model.forward_head(features)
    found |= {f"bn1_{key}": value for key, value in model.get_submodule("bn1").named_buffers()}
    return found


@pytest.mark.parametrize(("name", "suffix"), CASES)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_logits_and_features(name: str, suffix: str, mode: str) -> None:
    reference, found = golden.load("part", "forward.npz"), passes(name, suffix)
    features = found[f"{mode}_features"]
    prints = np.stack([golden.fingerprint(image) for image in features])
    assert tuple(features.shape) == tuple(reference[f"{name}_{mode}_feat_shape"])
    assert error(found[f"{mode}_logits"], reference[f"{name}_{mode}_logits_{suffix}"]) < tolerance(suffix)
    assert error(prints, reference[f"{name}_{mode}_feat_fp_{suffix}"]) < tolerance(suffix)
    assert error(features[0, :4], reference[f"{name}_{mode}_feat_slice_{suffix}"]) < tolerance(suffix)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_running_statistics_after_one_training_pass(name: str, suffix: str) -> None:
    reference, found = golden.load("part", "forward.npz"), passes(name, suffix)
    for statistic in ("running_mean", "running_var"):
        official = reference[f"{name}_after_train_bn1_{statistic}_{suffix}"]
        assert error(found[f"bn1_{statistic}"], official) < tolerance(suffix)
    assert found["bn1_num_batches_tracked"] == 1


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_the_frozen_view_gives_the_official_logits(name: str, suffix: str) -> None:
    official = golden.load("part", "forward.npz")[f"{name}_eval_logits_{suffix}"]
    # Folding rounds every weight once more than the official code does.
    assert error(passes(name, suffix)["frozen_logits"], official) < 2 * tolerance(suffix)


@pytest.mark.parametrize("suffix", DTYPES)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_preactresnet_at_64_pixels(suffix: str, mode: str) -> None:
    model = golden.recipe_model("preact18", DTYPES[suffix], paper="ancra").train(mode == "train")
    pixels = golden.load("ancra", "inputs.npz")["x64_u8"].astype(np.float32) / np.float32(255)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).to(DTYPES[suffix]))
    official = golden.load("ancra", "forward.npz")
    assert error(logits, official[f"preact18_{mode}_logits_{suffix}"]) < tolerance(suffix)
    if mode == "train":
        norm = model.get_submodule("bn")
        for statistic in ("running_mean", "running_var"):
            reference = official[f"preact18_after_train_bn_{statistic}_{suffix}"]
            assert error(norm.get_buffer(statistic), reference) < tolerance(suffix)


@pytest.mark.parametrize(
    ("paper", "name"),
    [("part", "resnet18"), ("part", "wrn34_10"), ("ancra", "wrn34_10"), ("ancra", "preact18")],
)
def test_state_dict_names_shapes_and_order(paper: str, name: str) -> None:
    entry = golden.load_json(paper, "models.json")[name]
    classes, size = (200, 64) if name == "preact18" else (10, 32)
    with torch.device("meta"):
        model = build_model(golden.MODEL_NAMES[name], classes, image_size=size)
    ours = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert ours == [tensor[:2] for tensor in entry["tensors"]]
    assert [key for key, _ in model.named_parameters()] == entry["parameters"]


def test_a_resnet_whose_classifier_is_named_fc_loads() -> None:
    entry = golden.load_json("ancra", "models.json")["resnet18"]
    state = golden.recipe_state_dict(entry)
    model = build_model("resnet18", 10, seed=0)
    load_state(model, state)
    assert torch.equal(model.get_parameter("linear.weight"), state["fc.weight"])
