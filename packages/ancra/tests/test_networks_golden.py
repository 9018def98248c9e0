"""Networks with reverse attention against the official ones: names, outputs in both modes, statistics."""

from __future__ import annotations

import golden
import pytest
import torch
from ra_golden import close, inputs, model_of

from ancra.networks import build_network
from robust_core.models import FrozenView

pytestmark = pytest.mark.golden

NETWORKS = ("resnet18_ra", "wrn34_10_ra", "preact18_ra", "resnet18")
TOLERANCE = {"f32": 1e-5, "f64": 1e-10}
CASES = golden.in_both_precisions(NETWORKS)


def passes(name, suffix):
    """Return outputs in evaluation mode, of the frozen view, and in training mode, and the trained norm."""
    given = inputs(suffix, size=64 if name.startswith("preact") else 32)
    model, attending = model_of(name, suffix), name.endswith("_ra")
    with torch.no_grad():
        view = FrozenView(model)
        if not attending:
            return {"eval": (model(given["x"]), ()), "frozen": (view(given["x"]), ())}, model
        found = {"eval": model(given["x"], auxiliary=True), "frozen": view.call(given["x"], auxiliary=True)}
        found["train"] = model.train()(given["x"], attention_labels=given["y"], auxiliary=True)
    return found, model


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_outputs_and_running_statistics_are_the_official_ones(name, suffix):
    reference = golden.load("ancra", "forward.npz")
    found, model = passes(name, suffix)
    for mode, (logits, auxiliary) in found.items():
        official = "eval" if mode == "frozen" else mode
        # Folding rounds every weight once more than the official code does.
        tolerance = TOLERANCE[suffix] * (4 if mode == "frozen" else 1)
        kind = "f" if name.endswith("_ra") else "logits"
        close(logits, reference[f"{name}_{official}_{kind}_{suffix}"], tolerance)
        if auxiliary:
            close(torch.stack(auxiliary), reference[f"{name}_{official}_aux_{suffix}"], tolerance)
    if "train" not in found:
        return
    norm = model.get_submodule("bn" if name.startswith("preact") else "bn1")
    for statistic in ("running_mean", "running_var"):
        official = reference[f"{name}_after_train_bn_{statistic}_{suffix}"]
        close(norm.get_buffer(statistic), official, TOLERANCE[suffix])
    assert norm.num_batches_tracked == reference[f"{name}_after_train_bn_num_batches"]


@pytest.mark.parametrize("name", ["resnet18_ra", "wrn34_10_ra", "preact18_ra"])
def test_state_dict_names_shapes_and_order(name):
    entry = golden.load_json("ancra", "models.json")[name]
    base = name.removesuffix("_ra")
    classes, size = (200, 64) if base == "preact18" else (10, 32)
    with torch.device("meta"):
        model = build_network(golden.MODEL_NAMES[base], classes, image_size=size)
    ours = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert ours == [tensor[:2] for tensor in entry["tensors"]]
    assert [key for key, _ in model.named_parameters()] == entry["parameters"]
