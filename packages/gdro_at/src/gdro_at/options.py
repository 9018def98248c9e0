"""The flags of ``run_expt.py`` that say which data, which network and which files; the rest is in ``config.py``."""

from __future__ import annotations

from dataclasses import dataclass

from robust_core.config import RunConfig, option

__all__ = ["DATASETS", "DataOptions", "ModelOptions"]

DATASETS = ("CelebA", "CUB", "CIFAR10", "MultiNLI", "Covid", "Skin", "Cifar", "table", "shapes")
"""``-d``: the published names, any table of images (``table``) and the drawn images (``shapes``)."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(RunConfig):
    """Which images, groups and splits."""

    dataset: str = option("shapes", "dataset", flags=("-d",), choices=DATASETS, group="data")
    shift_type: str = option(
        "confounder",
        "where groups come from",
        flags=("-s",),
        choices=("confounder", "label_shift_step"),
        group="data",
    )
    target_name: str | None = option(
        None,
        "target: first part of Waterbirds' folder, attribute of CelebA, column of a table; else a word for the log",
        flags=("-t",),
        group="data",
    )
    confounder_names: str | None = option(
        None,
        "confounders: rest of Waterbirds' folder, attributes of CelebA, columns of a table",
        flags=("-c",),
        kind="words",
        group="data",
    )
    root_dir: str | None = option(
        None, "folder that contains data/ (default: cub, celebA, ... in the present folder)", group="data"
    )
    metadata: str | None = option(None, "-d table: the CSV that lists the images", group="data")
    minority_fraction: float | None = option(
        None, "label shift: share of the classes that are rare", group="data"
    )
    imbalance_ratio: float | None = option(
        None, "label shift: how much rarer; with confounder CIFAR-10: long-tailed", group="data"
    )
    fraction: float = option(1.0, "random part of the training split", group="data")
    val_fraction: float = option(0.1, "share of CIFAR-10's training images kept apart", group="data")
    reweight_groups: bool = option(False, "draw each epoch with replacement, every group alike", group="data")
    augment_data: bool = option(False, "random resized crop and flip", group="data")
    augmentation: str = option(
        "",
        "of CIFAR-10; here: with --augment-data training images are cropped and flipped; official: without it, and "
        "evaluated images too (default: here; official with --official)",
        choices=("", "here", "official"),
        group="data",
    )
    image_size: int = option(224, "side of the images of a folder, in pixels", group="data")
    cache_dir: str | None = option(
        None, "where decoded images are kept (default: .decoded beside the images)", group="data"
    )
    subset_seed: int = option(
        0,
        "seed that draws --train-subset, --validation and, of a table, the images of --test-images and the like",
        group="data",
    )
    test_images: int = option(0, "evaluate on N of the test images, a fair sample (0: all)", group="data")
    workers: int = option(0, "processes that decode images (0: one per core)", group="data")
    skip_unreadable: bool = option(
        False, "go on without images that are missing or damaged; says how many", group="data"
    )
    class_num: int = option(
        0,
        "units of WAT, CFA and FAT: only the data's own number of groups (--fair-over class: classes) works (0: that)",
        group="data",
    )
    n_classes: int = option(0, "ignored: the data knows its classes", group="ignored")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DataOptions):
    """Which network, and where runs and logs go."""

    model: str = option(
        "resnet50",
        "network: resnet18, resnet34, resnet50, wideresnet50 of torchvision, pre18, or one of the core such as "
        "resnet18-w16",
        group="model",
    )
    train_from_scratch: bool = option(False, "begin without ImageNet weights", group="model")
    pretrained: str | None = option(None, "begin with the weights of this state dict", group="model")
    pth_name: str = option("", "weights for --resume without a value, and for --only-test", group="model")
    resume_weights: bool = option(False, "--resume without a value", group="model")
    only_test: bool = option(False, "test the weights of --pth-name and train nothing", group="run")
    gpu: str = option("0", "number of the GPU (without one: the CPU)", group="run")
    log_dir: str = option("./logs", "folder in which numbered run folders are made", group="files")
    log_dir_text: str = option("log.txt", "end of the text log's name", group="files")
    name_index: str = option("unit", "beginning of all file names", group="files")
    log_every: int = option(2000, "batches between rows of the training log", group="files")
    save_step: int = option(100, "numbered state dict at epochs 0, 1 and multiples", group="files")
    save_best: bool = option(True, "write the best network as a state dict", group="files")
    save_last: bool = option(True, "write the last network as a state dict", group="files")
    show_progress: bool = option(False, "ignored: progress is always shown", group="ignored")
    early_stop: bool = option(False, "ignored, as published", group="ignored")
    automatic_adjustment: bool = option(False, "ignored, as published", group="ignored")
    l2_norm: float = option(0.0, "ignored, as published", group="ignored")
