"""The command ``make-waterbirds``: Waterbirds at any confounder strength, from CUB-200-2011 and photos of Places."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from gdro_at.composites import compose, draw_places, draw_splits, is_waterbird, shrunk
from robust_core.cli import Parser, guarded, normalise_flags
from robust_core.errors import UserError
from robust_core.randomness import generator_for
from robust_core.storage import write_whole

__all__ = ["Recipe", "main", "make_waterbirds"]

CATEGORIES = (("bamboo_forest", "forest/broadleaf"), ("ocean", "lake/natural"))
"""Categories of Places for land and for water."""

COLUMNS = ("img_id", "img_filename", "y", "split", "place", "place_filename")
PLAN = "making.json"
QUALITY = 95
SAY_EVERY = 1000
PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Recipe:
    """What decides the made set. ``strength``, ``validation``: shares in [0, 1]; ``size``: shorter side at most."""

    name: str
    strength: float = 0.95
    validation: float = 0.2
    seed: int = 0
    size: int | None = None
    labels: str = "published"


@dataclass(frozen=True)
class _Bird:
    number: str
    file: str
    species: str
    train: bool


@dataclass(frozen=True)
class _Row:
    number: str
    file: str
    label: int
    split: int
    place: int
    background: Path
    place_file: str

    def cells(self) -> tuple[str | int, ...]:
        return (self.number, self.file, self.label, self.split, self.place, self.place_file)


def _table(path: Path) -> dict[str, str]:
    """Return a CUB list (``number value`` per line)."""
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"'{path}' is not there; --cub must name the folder of CUB-200-2011 that holds images.txt."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); restore CUB-200-2011.") from None
    table = {}
    for number, line in enumerate(lines, start=1):
        key, space, value = line.strip().partition(" ")
        if not space:
            raise UserError(
                f"Line {number} of '{path}' is '{line}', expected a number and a value; restore CUB-200-2011."
            )
        table[key] = value.strip()
    return table


def _read_cub(cub: Path) -> list[_Bird]:
    """Return the birds in the order of ``images.txt``; every photo and mask is there."""
    images = _table(cub / "images.txt")
    train = _table(cub / "train_test_split.txt")
    species_of = _table(cub / "image_class_labels.txt")
    species = _table(cub / "classes.txt")
    if not images:
        raise UserError(f"'{cub / 'images.txt'}' lists no image; restore CUB-200-2011.")
    birds = []
    for number, file in images.items():
        lists = {"train_test_split.txt": number in train, "image_class_labels.txt": number in species_of}
        lists["classes.txt"] = species_of.get(number) in species
        for name, there in lists.items():
            if not there:
                raise UserError(
                    f"'{cub / name}' has no line for image {number} ('{file}'); restore CUB-200-2011."
                )
        if train[number] not in ("0", "1"):
            raise UserError(
                f"'{cub / 'train_test_split.txt'}' has '{train[number]}' for image {number}, expected 0 or 1; "
                "restore CUB-200-2011."
            )
        birds.append(_Bird(number, file, species[species_of[number]], train[number] == "1"))
    for bird in birds:
        if not (cub / "images" / bird.file).is_file():
            raise UserError(f"'{cub / 'images' / bird.file}' is not there; restore CUB-200-2011.")
        if not _mask(cub, bird.file).is_file():
            raise UserError(
                f"The mask '{_mask(cub, bird.file)}' is not there; unpack CUB's segmentations (a download of their "
                f"own) in '{cub}'."
            )
    return birds


def _mask(cub: Path, file: str) -> Path:
    return (cub / "segmentations" / file).with_suffix(".png")


def _backgrounds(places: Path, place: int) -> list[tuple[Path, str]]:
    """Return the photos of land or water, sorted: path, and name from the folder that the categories lie in."""
    found: list[tuple[Path, str]] = []
    for category in CATEGORIES[place]:
        # Places365 sorts its categories by letter under data_large; a folder of the four alone need not
        tails = [f"data_large/{category[0]}/{category}", f"{category[0]}/{category}", category]
        folder = next((places / tail for tail in tails if (places / tail).is_dir()), None)
        if folder is None:
            raise UserError(
                f"'{places}' has no folder '{category}' (nor '{tails[1]}', nor '{tails[0]}'); --places must name the "
                f"folder with {', '.join(name for names in CATEGORIES for name in names)}."
            )
        base = places / "data_large" if (places / tails[0]).is_dir() else places
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
        found += [(path, f"/{path.relative_to(base).as_posix()}") for path in files]
    return found


def _plan(cub: Path, places: Path, recipe: Recipe) -> list[_Row]:
    """Return all rows of the set; each background is used once."""
    birds = _read_cub(cub)
    published = recipe.labels == "published"
    labels = torch.tensor([int(is_waterbird(bird.species, published=published)) for bird in birds])
    splits = draw_splits([bird.train for bird in birds], recipe.validation, recipe.seed)
    where = draw_places(labels, splits, recipe.strength, recipe.seed)
    chosen: dict[int, tuple[Path, str]] = {}
    for place, word in enumerate(("land", "water")):
        rows = torch.nonzero(where == place).squeeze(1)
        chosen |= dict(zip(rows.tolist(), _drawn(places, place, word, len(rows), recipe.seed), strict=True))
    codes = zip(*(values.tolist() for values in (labels, splits, where)), strict=True)
    return [
        _Row(bird.number, bird.file, label, split, place, *chosen[index])
        for index, (bird, (label, split, place)) in enumerate(zip(birds, codes, strict=True))
    ]


def _drawn(places: Path, place: int, word: str, count: int, seed: int) -> list[tuple[Path, str]]:
    files = _backgrounds(places, place)
    if len(files) < count:
        raise UserError(
            f"{count} {word} backgrounds are needed, one per bird, but '{places}' holds {len(files)} "
            f"({', '.join(CATEGORIES[place])}); add photos of these categories."
        )
    order = torch.randperm(len(files), generator=generator_for(seed, "waterbirds/backgrounds", place))
    return [files[position] for position in order[:count].tolist()]


def _metadata(rows: Sequence[_Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return stream.getvalue()


def _write(path: Path, content: bytes | str) -> None:
    try:
        write_whole(path, content)
    except UserError as error:
        reason = getattr(error.__cause__, "strerror", None) or "unknown error"
        raise UserError(
            f"Cannot write '{path}' ({reason}); make room or choose another --out, then give the same command again: "
            "finished images are kept."
        ) from error


def _prepare(folder: Path, plan: str, rows: Sequence[_Row], overwrite: bool) -> None:
    """Make the folder ready for this plan: new, begun earlier by the same plan, or emptied of what is in the way."""
    if (folder / PLAN).is_file() and (folder / PLAN).read_text(encoding="utf8") == plan and not overwrite:
        return
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(
                f"'{folder}' holds a set of other settings or sources; choose another --name or --out, or replace "
                "it with --overwrite."
            )
        # the plan goes first: a folder without it is never taken for one that this plan began
        for path in (folder / "metadata.csv", folder / PLAN, *(folder / row.file for row in rows)):
            path.unlink(missing_ok=True)
    _write(folder / PLAN, plan)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            whole: Image.Image = image.copy()
            return whole
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"Image '{path}' cannot be read ({error}); restore it.") from None


def _made(cub: Path, row: _Row, size: int | None) -> bytes:
    """Return one composite as JPEG."""
    bird, mask = _open(cub / "images" / row.file), _open(_mask(cub, row.file))
    if mask.size != bird.size:
        raise UserError(
            f"The mask '{_mask(cub, row.file)}' has {mask.width}x{mask.height} pixels, its photo {bird.width}x"
            f"{bird.height}; restore CUB's segmentations."
        )
    buffer = io.BytesIO()
    shrunk(compose(bird, mask, _open(row.background)), size).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()


def make_waterbirds(
    cub: Path,
    places: Path,
    out: Path,
    recipe: Recipe,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Make the set under ``out/data/NAME`` and return that folder; ``metadata.csv`` comes last.

    Images that an earlier, interrupted call with the same settings finished are kept. Equal folders and settings
    give equal files.

    Raises:
        UserError: for a share outside of [0, 1], a damaged or incomplete source, too few backgrounds, a folder that
            holds another set.
    """
    for flag, value in (("--confounder-strength", recipe.strength), ("--val-fraction", recipe.validation)):
        if not 0 <= value <= 1:
            raise UserError(f"{flag} is {value:g}, expected a share between 0 and 1.")
    if recipe.size is not None and recipe.size < 1:
        raise UserError(f"--size is {recipe.size}, expected at least 1 pixel.")
    folder = out / "data" / recipe.name
    if folder.parent != out / "data" or recipe.name in ("", ".", ".."):
        raise UserError(f"--name is '{recipe.name}', expected the plain name of a folder.")
    rows = _plan(cub, places, recipe)
    table = _metadata(rows)
    digest = hashlib.sha256(table.encode("utf8")).hexdigest()
    plan = json.dumps({**asdict(recipe), "quality": QUALITY, "metadata_sha256": digest}, indent=2) + "\n"
    _prepare(folder, plan, rows, overwrite)
    for done, row in enumerate(rows, start=1):
        if not (folder / row.file).is_file():
            _write(folder / row.file, _made(cub, row, recipe.size))
        if done % SAY_EVERY == 0 or done == len(rows):
            say(f"{done} of {len(rows)} images")
    _write(folder / "metadata.csv", table)
    for line in _summary(rows):
        say(line)
    return folder


def _summary(rows: Sequence[_Row]) -> list[str]:
    counts = Counter((row.split, row.label, row.place) for row in rows)
    lines = []
    for split, name in enumerate(("train", "validation", "test")):
        parts = [
            f"{('landbird', 'waterbird')[label]} on {('land', 'water')[place]} {counts[split, label, place]}"
            for label in (0, 1)
            for place in (0, 1)
        ]
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="make-waterbirds", description=(__doc__ or "").strip())
    parser.add_argument(
        "--cub", type=Path, required=True, help="CUB-200-2011, with images/ and segmentations/"
    )
    parser.add_argument(
        "--places", type=Path, required=True, help="photos of Places: a folder for each category"
    )
    parser.add_argument("--out", type=Path, required=True, help="the set is made under OUT/data/NAME")
    parser.add_argument(
        "--confounder-strength",
        type=float,
        default=0.95,
        help="share of training birds on their own place (0.95)",
    )
    parser.add_argument(
        "--name", default=None, help="folder (waterbird_complete<100 x strength>_forest2water2)"
    )
    parser.add_argument("--val-fraction", type=float, default=0.2, help="share of CUB's training split (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="draws of split, places and backgrounds (0)")
    parser.add_argument(
        "--size", type=int, default=None, help="shorter side at most, in pixels (as the photo)"
    )
    parser.add_argument(
        "--labels",
        choices=("published", "corrected"),
        default="published",
        help="published: Eastern Towhee, Western Meadowlark and Western Wood Pewee are waterbirds, for the letters "
        "'tern' in their names; corrected: they are not (published)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a set of other settings")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``make-waterbirds``; returns the exit code."""
    given = _parser().parse_args(normalise_flags(sys.argv[1:] if arguments is None else arguments))

    def body() -> None:
        name = given.name
        if name is None:
            name = f"waterbird_complete{100 * given.confounder_strength:.0f}_forest2water2"
        recipe = Recipe(
            name, given.confounder_strength, given.val_fraction, given.seed, given.size, given.labels
        )
        folder = make_waterbirds(given.cub, given.places, given.out, recipe, overwrite=given.overwrite)
        print(f"made: {folder}")

    return guarded(body, "the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
