"""What is known of each data set before its files are opened."""

from __future__ import annotations

from robust_core.data.types import DatasetInfo
from robust_core.errors import unknown_name

__all__ = ["CIFAR100_CLASSES", "dataset_info", "list_datasets"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# fine labels: their alphabetical order is the official label
_CIFAR100_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly "
    "camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup "
    "dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower "
    "leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid "
    "otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray "
    "road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle "
    "wardrobe whale willow_tree wolf woman worm"
)
CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())

_INFOS = (
    DatasetInfo(
        name="shapes",
        title="Shapes",
        classes=(
            "disc",
            "ring",
            "square",
            "triangle",
            "star",
            "cross",
            "crescent",
            "heart",
            "arrow",
            "bars",
        ),
        size=32,
        mean=(0.4960, 0.4959, 0.4929),
        std=(0.2697, 0.2669, 0.2679),
        official_counts={"train": 10_000, "test": 2_000},
    ),
    DatasetInfo(
        name="shapes-grouped",
        title="Shapes, grouped",
        classes=("round", "pointed"),
        size=32,
        mean=(0.5997, 0.4961, 0.3507),
        std=(0.2990, 0.2072, 0.2983),
        groups=("round on warm", "round on cool", "pointed on warm", "pointed on cool"),
        official_counts={"train": 4_795, "validation": 1_199, "test": 2_000},
        own_validation=True,
    ),
    DatasetInfo(
        name="cifar10",
        title="CIFAR-10",
        classes=CIFAR10_CLASSES,
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        official_counts={"train": 50_000, "test": 10_000},
    ),
    DatasetInfo(
        name="cifar100",
        title="CIFAR-100",
        classes=CIFAR100_CLASSES,
        size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        official_counts={"train": 50_000, "test": 10_000},
    ),
    DatasetInfo(
        name="svhn",
        title="SVHN",
        classes=tuple("0123456789"),
        size=32,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        official_counts={"train": 73_257, "test": 26_032},
        crop_padding=0,  # PART trains on the plain images; a mirrored digit is another sign
        flip=False,
    ),
    # Classes are those of the files. The official validation split is the only labelled one to report on, so
    # that it is 'test' here, and selection needs a carve-out: hence no own_validation.
    DatasetInfo(
        name="tiny-imagenet",
        title="Tiny-ImageNet",
        classes=tuple(f"class {k}" for k in range(200)),
        size=64,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        official_counts={"train": 100_000, "validation": 10_000, "test": 10_000},
        crop_padding=0,  # ANCRA, the only published setting among our papers, trains on the plain images
        flip=False,
    ),
)
_BY_NAME = {info.name: info for info in _INFOS}


def list_datasets() -> list[str]:
    """Return the names that ``load_dataset`` takes, sorted."""
    return sorted(_BY_NAME)


def dataset_info(name: str) -> DatasetInfo:
    """Return what is known of a data set; ``UserError`` with the nearest name if there is none such.

    The classes of ``tiny-imagenet`` are those of its files: the ``info`` of a loaded set has the final word.
    """
    if name not in _BY_NAME:
        raise unknown_name("dataset", name, _BY_NAME)
    return _BY_NAME[name]
