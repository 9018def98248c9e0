"""``draw_umap.py``: the features of the natural test images in two dimensions, by class."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ancra.checkpoint import Subject, SubjectConfig, load_subject
from ancra.inspection import InspectionScript, write_log
from robust_core.config import expect, option
from robust_core.errors import UserError
from robust_core.models import pooled_features
from robust_core.reporting import save_figure
from robust_core.reporting.figures import MARKERS, SMALL, TEN_COLORS, TEXT, WIDTH, new_figure
from robust_core.storage import write_whole

__all__ = ["ProjectionConfig", "main", "project", "scatter_figure"]

NEIGHBORS, MIN_DIST, DENS_LAMBDA = 12, 0.01, 1.5
FEWEST = 5
MOST_IN_A_LEGEND = 20
PUBLISHED_FLAGS = (
    *("--epsilon", "--seed", "--batch-size", "--no-cuda", "--dataset", "--model-dir"),
    *("--strategy", "--log-path", "--num-steps", "--step-size"),
)
EPILOG = """
Network, attention and dataset come from the run's config.json; a bare state dict needs them as flags. Needs
umap-learn: pip install umap-learn, or the extra 'plots'.
"""
REMEDY = (
    "draw_umap.py needs the package umap-learn, which is not installed: pip install umap-learn, or install with the "
    "extra 'plots' (pip install 'packages/ancra[plots]')."
)
_NOT_DRAWN = "natural images are drawn, nothing is attacked"

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig(SubjectConfig):
    """Settings of the projection; those of UMAP are the published ones."""

    model_dir: str = option(
        "./model/NPsfc-cifar10-strategy-random-adv-alpha-1.0-beta-6.0-zeta-3.0-seed-1",
        "run directory, or state dict; the figure goes beside it",
        flags=("--run-dir",),
        group="figure",
    )
    seed: int = option(42, "seed of the projection")
    batch_size: int = option(500, "images per batch", group="figure")
    epsilon: float = option(8 / 255, "no effect, as published", kind="fraction", group="figure")
    num_steps: int = option(10, "no effect, as published", group="figure")
    step_size: float = option(0.007, "no effect, as published", kind="fraction", group="figure")
    strategy: str = option("random", "no effect, as published", group="figure")
    log_path: str = option("./logs", "no effect, as published", group="figure")

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate()
        expect(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


def project(features: Floats, *, seed: int) -> Floats:
    """Return features ``(N, D)`` in two dimensions ``(N, 2)``: UMAP with the published settings, seeded.

    With fewer than 13 images each has all others as neighbours. Raises ``UserError`` without umap-learn, for
    fewer than five images, and for features that are not finite.
    """
    if len(features) < FEWEST:
        raise UserError(f"{len(features)} images are too few for a figure, expected at least {FEWEST}.")
    if not np.isfinite(features).all():
        raise UserError("The features are not finite (NaN or infinite); load sound weights.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its compiler and of small sets
        umap = _umap()
        found = umap.UMAP(
            n_neighbors=neighbors_of(len(features)),
            min_dist=MIN_DIST,
            metric="correlation",
            n_components=2,
            densmap=True,
            dens_lambda=DENS_LAMBDA,
            random_state=seed,
            n_jobs=1,
        ).fit_transform(features)
    return np.asarray(found, dtype=np.float32)


def neighbors_of(images: int) -> int:
    """Return the published number of neighbours, or all others where there are fewer."""
    return min(NEIGHBORS, images - 1)


def scatter_figure(points: Floats, labels: Ints, class_names: Sequence[str]) -> Figure:
    """Return the points ``(N, 2)`` by class: colours and markers with a legend, beyond 20 classes a colour bar."""
    figure = new_figure(WIDTH, 4.4)
    axes = figure.subplots()
    size = float(np.clip(8000 / len(points), 5, 28))
    if len(class_names) > MOST_IN_A_LEGEND:
        drawn = axes.scatter(points[:, 0], points[:, 1], c=labels, s=size, cmap="viridis", linewidths=0)
        figure.colorbar(drawn, ax=axes).set_label("class number", fontsize=TEXT)
    else:
        handles = []
        for number in range(len(class_names)):
            style: dict[str, Any] = {
                "color": TEN_COLORS[number % 10],
                "marker": MARKERS[(number + number // 10) % len(MARKERS)],
            }
            mine = points[labels == number]
            axes.scatter(mine[:, 0], mine[:, 1], s=size, linewidths=0, alpha=0.8, **style)
            handles += axes.plot([], [], linestyle="none", markersize=6, **style)
        figure.legend(
            handles, class_names, loc="outside lower center", ncols=5, fontsize=SMALL, frameon=False,
            handletextpad=0.1, columnspacing=0.8,
        )  # fmt: skip
    axes.set_xlabel("UMAP 1", fontsize=TEXT)
    axes.set_ylabel("UMAP 2", fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def run(config: ProjectionConfig, given: Mapping[str, Any]) -> None:
    """Project the features, write the figure and the coordinates beside the weights."""
    _umap()
    subject = load_subject(config.model_dir, config, given, flag="--model-dir")
    points = project(_features(subject, config.batch_size), seed=config.seed)
    labels = subject.images.labels.numpy()
    figure = scatter_figure(points, labels, subject.images.info.classes)
    name = f"nat_distribution_{neighbors_of(len(points))}_{MIN_DIST:.3f}_umap{DENS_LAMBDA}"
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        points=points,
        labels=labels,
        indices=subject.images.indices.numpy(),
        class_names=np.array(subject.images.info.classes),
    )
    write_whole(subject.folder / f"{name}.npz", buffer.getvalue())
    for ending in ("pdf", "png"):
        path = save_figure(figure, subject.folder / f"{name}.{ending}")
    line = f"figure: {path} ({len(points):,} images of {subject.images.info.name})"
    write_log(subject.folder / "eval.log", config, [line], subject.found, append=True)
    print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``draw_umap.py``; returns the exit code."""
    return InspectionScript(
        name="draw_umap.py",
        description="Draw the features of the natural test images in two dimensions (UMAP), by class.",
        epilog=EPILOG,
        kind=ProjectionConfig,
        run=run,
        published=PUBLISHED_FLAGS,
        idle={
            **dict.fromkeys(("epsilon", "num_steps", "step_size", "strategy"), _NOT_DRAWN),
            "log_path": "eval.log goes beside the network's weights, as published",
        },
    )(arguments)


def _umap() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import umap
        except ImportError:
            raise UserError(REMEDY) from None
    return umap


@torch.no_grad()
def _features(subject: Subject, batch_size: int) -> Floats:
    parts = [
        pooled_features(
            subject.network, subject.images.pixels(slice(first, first + batch_size)).to(subject.device)
        ).cpu()
        for first in range(0, len(subject.images), batch_size)
    ]
    return torch.cat(parts).numpy()
