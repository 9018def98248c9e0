"""Pooled features and the distances of pairs against the official figures."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
from ra_golden import DTYPES, EPS, STEP, close, inputs, model_of

from ancra.features import feature_distances, spread_of
from robust_core.attacks import pgd
from robust_core.models import FrozenView, pooled_features

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("suffix", DTYPES)
@pytest.mark.parametrize("name", ["resnet18", "resnet18_ra"])
def test_distances_of_positive_and_negative_pairs(name, suffix):
    arrays = golden.load("ancra", "feature_distance.npz")
    tolerance = {"f64": 1e-10, "f32": 2e-5}[suffix]
    given, model = inputs(suffix), model_of(name, suffix)
    images = given["x"][:4]
    if suffix == "f64":
        start = images + 0.001 * given["z"]
        view = FrozenView(model)
        attacked = pgd(view, images, given["y"][:4], start=start, eps=EPS, step_size=STEP, steps=10)
        prints = np.stack([golden.fingerprint(image) for image in attacked[:2]])
        close(prints, arrays[f"{name}_x_adv_fp_f64"], 1e-10)
    else:
        attacked = torch.from_numpy(arrays[f"{name}_x_adv_f32"])
    with torch.no_grad():
        features, adversarial = pooled_features(model, images), pooled_features(model, attacked)
    close(
        features[: len(arrays[f"{name}_features_{suffix}"])], arrays[f"{name}_features_{suffix}"], tolerance
    )
    pairs = {
        "pos": feature_distances(features, adversarial),
        "neg": feature_distances(features, features[torch.from_numpy(arrays["neg_id"])]),
    }
    for pair, distances in pairs.items():
        for kind, values in (("cos", distances.cosine), ("l2", distances.l2)):
            close(values, arrays[f"{name}_{pair}_{kind}_{suffix}"], tolerance)
            for statistic, value in spread_of(values)._asdict().items():
                official = float(arrays[f"{name}_{pair}_{kind}_{statistic}_{suffix}"])
                scale = float(np.abs(arrays[f"{name}_{pair}_{kind}_{suffix}"]).max())
                assert abs(value - official) <= max(tolerance * scale**2, 10 * tolerance * abs(official))


@pytest.mark.parametrize("suffix", DTYPES)
def test_features_of_the_network_at_64_pixels(suffix):
    arrays = golden.load("ancra", "feature_distance.npz")
    tolerance = {"f64": 1e-10, "f32": 2e-5}[suffix]
    with torch.no_grad():
        features = pooled_features(model_of("preact18_ra", suffix), inputs(suffix, size=64)["x"])
    assert features.shape == (4, 2048)
    close(features[:1], arrays[f"preact18_ra_features_{suffix}"], tolerance)
    distances = feature_distances(features, features[torch.from_numpy(arrays["preact18_ra_neg_id"])])
    close(distances.cosine, arrays[f"preact18_ra_neg_cos_{suffix}"], tolerance)
    close(distances.l2, arrays[f"preact18_ra_neg_l2_{suffix}"], tolerance)
