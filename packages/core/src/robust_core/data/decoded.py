"""From a table of image files to images in memory: decoded once, then read from a file on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch

from robust_core.data.decoding import decoded_in_order, usable_processors, workers_for
from robust_core.data.pixel_files import (
    FileState,
    PixelFile,
    content_key,
    locked,
    read_memo,
    write_memo,
    write_pixels,
)
from robust_core.data.presence import row_of
from robust_core.data.table import SPLITS, ImageTable
from robust_core.data.transforms import Pipeline
from robust_core.data.types import ImageSet
from robust_core.errors import UserError, unknown_name
from robust_core.image_files import DamagedImage, plain_error, read_content

__all__ = ["load_table", "user_cache"]

_SPLIT_WORDS = {"train": "training"}
_SECONDS_PER_LINE = 15.0
_Log = Callable[[str], None] | None


def load_table(
    table: ImageTable,
    split: str,
    pipeline: Pipeline,
    *,
    cache_dir: Path | None = None,
    workers: int | None = None,
    skip_unreadable: bool = False,
    log: _Log = None,
) -> ImageSet:
    """Return a split of a table as images decoded by ``pipeline``, memory-mapped from a file in the cache.

    The file is built once, by ``workers`` processes (None: one per processor; few images are decoded here), and
    belongs to names and bytes of the images and to the pipeline. It lies in ``cache_dir``, by default in ``.decoded``
    beside the images or, where that cannot be written, in the user's cache folder. Later runs look at size and time of
    change of each image and hash those that differ. A file that is cut short, altered in size or has a damaged footer
    is built anew; single pixels altered later are not noticed. ``indices`` are 0..N-1; ``info.size`` is the
    pipeline's (height, for the published stretch); ``digest`` covers names, bytes and pipeline, labels and groups.

    Raises:
        UserError: for an unknown or empty split, a missing or unreadable image (row and file named; with
            ``skip_unreadable`` they are left out and ``notes`` tells how many), no place to write, a full disk.
    """
    if split not in SPLITS:
        raise unknown_name(f"split of {table.info.title}", split, SPLITS)
    part = table.select(table.positions(split))
    if not len(part):
        raise UserError(f"No row of {table.source} belongs to the split '{split}'; correct its split column.")
    work = _Work(part, split, pipeline, workers_for(len(part), workers), skip_unreadable, log)
    pixels = work.pixels(cache_dir)
    work.refuse(pixels.left_out)
    kept = torch.tensor([row for row in range(len(part)) if row not in pixels.left_out], dtype=torch.int64)
    rows = part.select(kept)
    notes = [*table.notes, *work.notes(pixels.left_out)]
    if pixels.size[0] != pixels.size[1]:
        notes.append(f"{table.info.title}: images are {pixels.size[0]} high and {pixels.size[1]} wide")
    return ImageSet(
        info=replace(table.info, size=pipeline.size[0]),
        split=split,
        images=pixels.mapped(),
        labels=rows.labels,
        indices=torch.arange(len(rows)),
        groups=rows.groups,
        digest=_content_digest(pixels.key, rows),
        notes=tuple(notes),
        mapped=True,
    )


def user_cache() -> list[Path]:
    """Return where images go whose own folder cannot be written: ``~/.cache/robust_core``, if there is a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return [(Path(base) if base else Path.home() / ".cache") / "robust_core"]
    except RuntimeError:
        return []


@dataclass(frozen=True)
class _Work:
    """The images of one split, and how they are decoded."""

    part: ImageTable
    split: str
    pipeline: Pipeline
    workers: int
    skip_unreadable: bool
    log: _Log

    def say(self, line: str) -> None:
        if self.log is not None:
            self.log(line)

    def say_waiting(self) -> None:
        self.say(f"Waiting for another run that decodes the {self.subject}")

    @property
    def subject(self) -> str:
        return f"{_SPLIT_WORDS.get(self.split, self.split)} images of {self.part.info.title}"

    @cached_property
    def paths(self) -> list[str]:
        return [str(self.part.root / name) for name in self.part.names]

    @cached_property
    def states(self) -> list[FileState]:
        return [_state(path) for path in self.paths]

    @cached_property
    def stem(self) -> str:
        """The name of lock, memo and temporary files: one for each question, whatever the answer."""
        question = [str(self.part.root.resolve()), self.pipeline.key, self.part.names]
        return "decoded-" + hashlib.sha256(json.dumps(question).encode("utf8")).hexdigest()[:16]

    def pixels(self, cache_dir: Path | None) -> PixelFile:
        """Return the decoded file, found or built."""
        missing = {row: "missing" for row, state in enumerate(self.states) if state.size < 0}
        self.refuse(missing)
        folders = [cache_dir] if cache_dir is not None else [self.part.root / ".decoded", *user_cache()]
        memos = {folder: read_memo(folder / f"{self.stem}.json") for folder in folders}
        known = {name: entry for _, files in reversed(memos.values()) for name, entry in files.items()}
        digests = self.digests(known)
        files = zip(self.part.names, self.states, digests, strict=True)
        key = content_key(self.pipeline.key, ((name, state.size, digest) for name, state, digest in files))
        for folder in folders:
            found = PixelFile.open(folder / _file_name(key), key)
            if found is not None:
                if any(known.get(name) != now for name, now in self.facts(digests)):
                    self.remember(folder, found, digests)
                return found
        why = ""
        for folder in folders:
            with contextlib.ExitStack() as stack:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(folder, self.stem, self.say_waiting))
                except OSError as error:
                    why = f"'{folder}' ({plain_error(error)})"
                    continue
                return self.built(folder, key, digests, memos[folder][0])
        raise UserError(
            f"Decoded images cannot be kept in {why}; name a folder to write to with --cache-dir."
        )

    def facts(self, digests: Sequence[str]) -> Iterator[tuple[str, tuple[FileState, str]]]:
        return zip(self.part.names, zip(self.states, digests, strict=True), strict=True)

    def digests(self, known: dict[str, tuple[FileState, str]]) -> list[str]:
        """Return the SHA-256 of each file, "" for one that cannot be read; hashed where ``known`` does not tell."""
        digests = []
        for name, state in zip(self.part.names, self.states, strict=True):
            before, digest = known.get(name, (None, ""))
            digests.append(digest if before == state else "")
        anew = [row for row, digest in enumerate(digests) if not digest]
        parts = [anew[first : first + 64] for first in range(0, len(anew), 64)]

        def hashed(rows: list[int]) -> list[str]:
            return [_digest(self.paths[row]) for row in rows]

        with ThreadPoolExecutor(usable_processors()) as threads:  # hashing lets other threads run
            for row, digest in zip(anew, chain.from_iterable(threads.map(hashed, parts)), strict=True):
                digests[row] = digest
        return digests

    def built(self, folder: Path, key: str, digests: Sequence[str], former: str) -> PixelFile:
        """Return the decoded file of ``folder``, whose lock is held: what another run has built, or our own."""
        path = folder / _file_name(key)
        found = PixelFile.open(path, key)
        if found is None:
            crew = "one process" if self.workers == 1 else f"{self.workers} processes"
            self.say(f"Decoding {len(self.part):,} {self.subject} with {crew}, once, into {folder}")
            begin = time.perf_counter()
            with contextlib.closing(self.results(digests)) as results:
                found = write_pixels(path, key, self.pipeline.size, results, len(self.part), self.stem)
            self.say(f"Decoded {found.count:,} images in {time.perf_counter() - begin:.1f} s")
        self.remember(folder, found, digests)
        if former and former != path.name and Path(former).name == former:  # what the images were before
            with contextlib.suppress(OSError):
                (folder / former).unlink()
        return found

    def remember(self, folder: Path, found: PixelFile, digests: Sequence[str]) -> None:
        write_memo(folder / f"{self.stem}.json", found.path.name, self.part.names, self.states, digests)

    def results(self, digests: Sequence[str]) -> Generator[bytes | str, None, None]:
        """Yield pixels or, where images may be left out, why there are none; tells from time to time how far it is."""
        told, bad = time.perf_counter(), dict[int, str]()
        decoding = decoded_in_order(self.paths, digests, self.pipeline.steps, self.workers)
        with contextlib.closing(decoding) as results:
            for row, result in enumerate(results):
                if result is None:
                    raise UserError(
                        f"The image {self.paths[row]} changed while it was read; start again when it is complete."
                    )
                if isinstance(result, str):
                    bad[row] = result
                    self.refuse(bad)
                if time.perf_counter() - told > _SECONDS_PER_LINE:
                    told = time.perf_counter()
                    self.say(f"Decoded {row + 1:,} of {len(self.part):,} {self.subject}")
                yield result
        if len(bad) == len(self.part):
            raise UserError(
                f"None of the {self.subject} can be read; the first: {self.sentence(bad)}; correct the folder."
            )

    def refuse(self, left_out: dict[int, str]) -> None:
        """Raise for the first image that cannot be had, unless such images are left out."""
        if left_out and not self.skip_unreadable:
            raise UserError(
                f"{self.sentence(left_out)}; replace it, or go on without such images by --skip-unreadable."
            )

    def sentence(self, left_out: dict[int, str]) -> str:
        row = min(left_out)
        why = "is missing" if self.states[row].size < 0 else f"cannot be used ({left_out[row]})"
        return f"The image {self.paths[row]} ({row_of(self.part, row)}) {why}"

    def notes(self, left_out: dict[int, str]) -> list[str]:
        if not left_out:
            return []
        counted = f"{len(left_out):,} of {len(self.part):,} {self.subject} were left out"
        return [f"{counted} (--skip-unreadable); the first: {self.sentence(left_out)}"]


def _content_digest(key: str, rows: ImageTable) -> str:
    """Return the SHA-256 of the pixels' key, and of labels, groups and what the groups are called."""
    named = [key, rows.labels.tolist(), rows.groups.tolist(), rows.info.groups]
    return hashlib.sha256(json.dumps(named).encode("utf8")).hexdigest()


def _file_name(key: str) -> str:
    return f"{key[:32]}.pixels"


def _state(path: str) -> FileState:
    try:
        state = os.stat(path)  # noqa: PTH116 - a hundred thousand times, without an object each
    except (OSError, ValueError):
        return FileState(-1, 0)
    return FileState(state.st_size, state.st_mtime_ns)


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(read_content(path)).hexdigest()
    except DamagedImage:
        return ""
