"""Decoded once, then mapped from disk: what is found again, what is noticed, what two runs and a kill do."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from robust_core.data import DatasetInfo, batches, decoded, decoding, pixel_files
from robust_core.data.decoded import load_table
from robust_core.data.table import ImageTable
from robust_core.data.transforms import face_pipeline, photo_pipeline, stretched_face_pipeline
from robust_core.errors import UserError
from robust_core.image_files import decode_files

COUNT = 12
PIPELINE = photo_pipeline(16)
CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_data_decoded import PIPELINE, table_of
from robust_core.data import decoded, decoding

decoding.FEW, decoding.CHUNK = 0, 2
folder, hold = Path(sys.argv[1]), len(sys.argv) > 2
plain = decoded.decoded_in_order

def held(*arguments):
    for number, result in enumerate(plain(*arguments)):
        yield result
        if number == 0:
            from multiprocessing import active_children
            print("held", *(child.pid for child in active_children()), flush=True)
            while not (folder / "go").exists():
                time.sleep(0.02)

if hold:
    decoded.decoded_in_order = held
images = decoded.load_table(table_of(folder), "train", PIPELINE, workers=2, log=lambda line: print(line, flush=True))
print("sum", int(images.images.sum()), flush=True)
"""


def write_images(root: Path, count: int = COUNT) -> None:
    draw = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for number in range(count):
        shape = (40, 30, 3) if number % 3 else (30, 44)  # every third is grey
        picture = Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8))
        picture.save(root / name_of(number))


def name_of(number: int) -> str:
    return f"{number}.{('jpg', 'png', 'bmp')[number % 3]}"


def table_of(root: Path, count: int = COUNT) -> ImageTable:
    info = DatasetInfo(
        "toy", "Toy", ("a", "b"), 224, (0.5,) * 3, (0.2,) * 3, groups=("a0", "a1", "b0", "b1"), crop_padding=2
    )
    numbers = torch.arange(count)
    return ImageTable(
        info=info,
        root=root,
        names=tuple(name_of(number) for number in range(count)),
        labels=numbers % 2,
        groups=numbers % 4,
        splits=(numbers == count - 1).long() * 2,  # the last one is for testing
        source=root / "metadata.csv",
        rows=numbers + 2,
        notes=("a note",),
    )


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    write_images(tmp_path / "toy")
    return tmp_path / "toy"


@pytest.fixture
def no_decoding(monkeypatch):
    """A function after which any decoding fails."""

    def forbid():
        def fail(*arguments):
            raise AssertionError("decoded again")

        monkeypatch.setattr(decoding, "decode_files", fail)

    return forbid


def load(root, split="train", **options):
    return load_table(
        options.pop("table", table_of(root)), split, options.pop("pipeline", PIPELINE), **options
    )


def pixel_file(folder):
    (path,) = folder.glob("*.pixels")
    return path


def test_what_comes_out(root):
    lines = []
    found = load(root, log=lines.append)
    expected = [torch.from_numpy(PIPELINE(Image.open(root / name_of(number)))) for number in range(COUNT - 1)]
    assert torch.equal(found.images, torch.stack(expected))
    assert found.images.dtype == torch.uint8
    assert found.labels.tolist() == [0, 1] * 5 + [0]
    assert found.groups.tolist() == [0, 1, 2, 3] * 2 + [0, 1, 2]
    assert found.indices.tolist() == list(range(COUNT - 1))
    assert (found.split, found.info.size, found.notes, found.mapped) == ("train", 16, ("a note",), True)
    assert len(found.digest) == 64
    assert lines[0].startswith("Decoding 11 training images of Toy with one process, once, into ")
    assert len(load(root, "test")) == 1
    assert not list((root / ".decoded").glob(".*"))


def test_images_are_pages_of_the_file(root):
    images = load(root).images
    path = str(pixel_file(root / ".decoded"))
    if not Path("/proc/self/maps").exists():
        pytest.skip("the system does not tell what is mapped")
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if line.endswith(path) and low <= images.data_ptr() < high:
            break
    else:
        pytest.fail("the images do not lie in the file")


def test_a_second_time_nothing_is_decoded(root, no_decoding, monkeypatch):
    first = load(root)
    no_decoding()
    monkeypatch.setattr(decoded, "_digest", None)  # nor hashed
    lines = []
    again = load(root, log=lines.append)
    assert torch.equal(first.images, again.images)
    assert first.digest == again.digest
    assert lines == []


def test_only_times_changed(root, no_decoding):
    first = load(root)
    for path in root.glob("*.*"):
        os.utime(path, ns=(1, 1))
    no_decoding()
    hashed = []
    digest = decoded._digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "_digest", lambda path: hashed.append(path) or digest(path))
        assert load(root).digest == first.digest
        assert len(hashed) == COUNT - 1
        load(root)
        assert len(hashed) == COUNT - 1  # the memo was written anew
        os.utime(root / name_of(3), ns=(2, 2))
        load(root)
    assert hashed[COUNT - 1 :] == [str(root / name_of(3))]


def test_a_folder_may_move(root, no_decoding):
    first = load(root)
    moved = root.with_name("moved")
    root.rename(moved)
    no_decoding()
    assert load(moved).digest == first.digest


def test_a_changed_image_is_noticed(root):
    first = load(root)
    before = pixel_file(root / ".decoded")
    shutil.copy(root / name_of(2), root / name_of(5))
    second = load(root)
    assert second.digest != first.digest
    assert torch.equal(second.images[5], second.images[2])
    assert not torch.equal(first.images[5], second.images[5])  # whose pages outlive the file's name
    assert pixel_file(root / ".decoded") != before


def test_other_labels_or_groups_are_other_data_of_the_same_pixels(root, no_decoding):
    table = table_of(root)
    digests = {load(root).digest}
    no_decoding()
    renamed = replace(table.info, groups=("a1", "a0", "b0", "b1"))
    for changed in (
        replace(table, labels=1 - table.labels),
        replace(table, groups=3 - table.groups),
        replace(table, info=renamed),
    ):
        digests.add(load(root, table=changed).digest)
    assert len(digests) == 4
    assert load(root).digest in digests


def test_another_pipeline_is_another_file(root):
    photos, faces = load(root), load(root, pipeline=face_pipeline(16))
    assert photos.digest != faces.digest
    assert not torch.equal(photos.images, faces.images)
    assert len(list((root / ".decoded").glob("*.pixels"))) == 2


def cut(content):
    return content[:-100]


def without_the_end(content):
    return content[: 11 * 768]


def lengthened(content):
    return b"\0" * 10 + content


def other_footer(content):
    return content.replace(b'"count": 11', b'"count": 10')


def emptied(content):
    return b""


@pytest.mark.parametrize("damage", [cut, without_the_end, lengthened, other_footer, emptied])
def test_a_damaged_file_is_built_anew(root, damage):
    expected = load(root).images.clone()
    path = pixel_file(root / ".decoded")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    lines = []
    assert torch.equal(load(root, log=lines.append).images, expected)
    assert lines[0].startswith("Decoding 11")
    assert path.read_bytes() == whole


def test_a_damaged_memo_says_nothing(root, no_decoding):
    load(root)
    (memo,) = (root / ".decoded").glob("*.json")
    no_decoding()
    for text in ("", "[]", '{"pixels": 1, "files": [[1]]}', "{"):
        memo.write_text(text)
        assert len(load(root)) == COUNT - 1


def test_worker_processes_give_the_same(root, monkeypatch):
    one = load(root)
    monkeypatch.setattr(decoding, "FEW", 0)
    monkeypatch.setattr(decoding, "CHUNK", 2)
    several = load(root, cache_dir=root / "other", workers=2)
    assert torch.equal(one.images, several.images)
    assert one.digest == several.digest


def test_how_many_workers():
    assert decoding.workers_for(10, 8) == 1
    assert decoding.workers_for(10_000, 8) == 8
    assert decoding.workers_for(10_000, None) == min(decoding.usable_processors(), 625)
    with pytest.raises(UserError, match="0 processes cannot decode images; give --workers 1 or more"):
        decoding.workers_for(10, 0)


def test_a_worker_that_dies_is_one_sentence(root, monkeypatch):
    monkeypatch.setattr(decoding, "FEW", 0)
    monkeypatch.setattr(decoding, "CHUNK", 2)
    monkeypatch.setattr(decoding, "begin_quiet_worker", os.abort)  # the first thing that a worker does
    with pytest.raises(UserError, match=r"ended from outside .* --workers 1"):
        load(root, workers=2)
    assert not list((root / ".decoded").glob("*.pixels"))


def child(folder, *arguments):
    script = folder.parent / "unguarded.py"
    script.write_text(CHILD.format(tests=str(Path(__file__).parent)))
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def line_with(process, word):
    for line in process.stdout:
        if line.startswith(word):
            return line
    raise AssertionError(f"the child said no '{word}'")


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_killed_while_building(root):
    with child(root, "hold") as process:
        workers = line_with(process, "held").split()[1:]
        process.send_signal(signal.SIGKILL)
    cache = root / ".decoded"
    assert list(cache.glob(".*.tmp"))
    assert not list(cache.glob("*.pixels"))
    assert workers
    deadline = time.monotonic() + 10
    while Path("/proc").exists() and not all(map(gone, workers)):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    assert len(load(root)) == COUNT - 1
    assert not list(cache.glob(".*.tmp"))


def test_two_at_once(root, monkeypatch):
    go, lines = threading.Event(), []
    plain = decoded.decoded_in_order

    def held(*arguments):
        go.wait(60)
        yield from plain(*arguments)

    def log(line):
        lines.append(line)
        if line.startswith("Waiting"):
            go.set()

    monkeypatch.setattr(decoded, "decoded_in_order", held)
    with ThreadPoolExecutor(
        2
    ) as threads:  # a lock belongs to an opened file, so that threads do for processes
        found = [threads.submit(load, root, log=log) for _ in range(2)]
        one, other = (future.result() for future in found)
    assert torch.equal(one.images, other.images)
    assert [line.split()[0] for line in lines].count("Decoding") == 1
    assert "Waiting for another run that decodes the training images of Toy" in lines


@pytest.mark.slow  # each process imports torch
def test_two_processes_at_once(root):
    with child(root, "hold") as one, child(root, "hold") as other:  # whichever is the first
        line = one.stdout.readline(), other.stdout.readline()
        builder, waiter = (one, other) if line[0].startswith("Decoding") else (other, one)
        assert sorted(text.split()[0] for text in line) == ["Decoding", "Waiting"]
        (root / "go").touch()
        built, waited = builder.stdout.read(), waiter.stdout.read()
    assert one.returncode == other.returncode == 0
    assert "Decoded 11 images" in built
    assert waited == f"sum {int(load(root).images.sum())}\n"
    assert built.endswith(waited)


def test_without_locks_the_last_one_wins(root, monkeypatch):
    refusing = SimpleNamespace(
        LOCK_EX=1, LOCK_NB=2, flock=lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK))
    )
    monkeypatch.setattr(pixel_files, "fcntl", refusing)
    assert len(load(root)) == COUNT - 1


def test_where_the_cache_lies(root, tmp_path, no_decoding):
    (root / ".decoded").write_text("in the way")  # as good as a folder that cannot be written
    first = load(root)
    assert pixel_file(tmp_path / "user" / "robust_core")
    no_decoding()
    assert load(root).digest == first.digest


def test_no_place_for_the_cache(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot be kept in '.*/file/x' \(Not a directory\); name .* --cache-dir"
    ):
        load(root, cache_dir=tmp_path / "file" / "x")
    (root / ".decoded").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in '.*/file/robust_core' .* --cache-dir"):
        load(root)

    def homeless():
        raise RuntimeError

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(decoded.Path, "home", homeless)
    with pytest.raises(UserError, match=r"cannot be kept in '.*/toy/\.decoded' \(File exists\); name"):
        load(root)


def test_a_full_disk(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pixel_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=8447))
        with pytest.raises(UserError, match=r"No space left .*\.decoded' \(0.0 GB are needed\); free some"):
            load(root)
    for code, message in ((errno.ENOSPC, "No space left"), (errno.EIO, "cannot be written to")):

        def fail(_, code=code):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(pixel_files.os, "fsync", fail)
            with pytest.raises(UserError, match=message):
                load(root)
        assert not list((root / ".decoded").glob("*.pixels"))
        assert not list((root / ".decoded").glob(".*"))


def test_what_is_written_is_read_again(root, monkeypatch):
    monkeypatch.setattr(pixel_files, "_checksum", lambda *_: 0)
    with pytest.raises(UserError, match="what was written reads differently"):
        load(root)


def png(mode, size=(20, 20)):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


def other(kind):
    stream = io.BytesIO()
    Image.new("L", (20, 20)).save(stream, kind)
    return stream.getvalue()


UNREADABLE = {
    "empty": (b"", "it is empty"),
    "text": (b"no image at all", "no PNG, JPEG, BMP in it"),
    "cut short": (None, "truncated"),
    "GIF": (other("GIF"), "it is GIF, but only PNG, JPEG and BMP are accepted"),
    "TIFF": (other("TIFF"), "it is TIFF, but only PNG"),
    "WebP": (other("WEBP"), "it is WebP, but only PNG"),
    "HEIF": (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "it is HEIF or AVIF, but only PNG"),
    "16 bits": (png("I;16"), "it has more than 8 bits per channel, and only 8 are accepted"),
    "bomb": (png("1", (20_000, 10_000)), "exceeds limit"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_image(root, kind, no_decoding):
    content, why = UNREADABLE[kind]
    path = root / name_of(4)
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    named = rf"The image .*toy/4\.png \(row 6 of .*metadata\.csv\) cannot be used \(.*{why}.*\); replace it"
    with pytest.raises(UserError, match=named):
        load(root)
    assert not list((root / ".decoded").glob("*.pixels"))
    found = load(root, skip_unreadable=True)
    assert len(found) == COUNT - 2
    assert found.groups.tolist() == [0, 1, 2, 3, 1, 2, 3, 0, 1, 2]
    assert found.indices.tolist() == list(range(COUNT - 2))
    note = found.notes[1]
    assert note.startswith(
        "1 of 11 training images of Toy were left out (--skip-unreadable); the first: The image"
    )
    no_decoding()
    assert load(root, skip_unreadable=True).notes == found.notes
    with pytest.raises(UserError, match=named):  # the cache that knows of it changes nothing
        load(root)


def test_a_missing_image(root):
    (root / name_of(7)).unlink()
    with pytest.raises(
        UserError, match=r"The image .*toy/7\.png \(row 9 of .*metadata\.csv\) is missing; replace"
    ):
        load(root)
    found = load(root, skip_unreadable=True)
    assert len(found) == COUNT - 2
    assert "is missing" in found.notes[1]
    write_images(root)  # it has come back
    assert len(load(root)) == COUNT - 1


def test_no_image_at_all(root):
    for path in root.glob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(
        UserError, match="None of the training images of Toy can be read; the first: The image"
    ):
        load(root, skip_unreadable=True)


def test_an_image_that_is_being_written(root, monkeypatch):
    monkeypatch.setattr(decoded, "_digest", lambda path: "0" * 64)
    with pytest.raises(UserError, match=r"0\.jpg changed while it was read"):
        load(root, skip_unreadable=True)
    assert decode_files([str(root / "none.png"), str(root)], ["1", ""], PIPELINE.steps) == [
        None,
        "it is no regular file",
    ]


def test_unknown_and_empty_splits(root):
    with pytest.raises(UserError, match="Unknown split of Toy 'val'"):
        load(root, "val")
    with pytest.raises(UserError, match=r"No row of .*metadata\.csv belongs to the split 'validation'"):
        load(root, "validation")


def test_palettes_and_transparency_become_rgb(tmp_path, root):
    colour = Image.new("RGBA", (40, 40), (200, 100, 50, 128))
    colour.save(root / name_of(1))
    colour.quantize(4).save(root / name_of(4), transparency=b"\0\1")
    images = load(root).images
    assert images[1, :, 8, 8].tolist() == [200, 100, 50]
    assert images[4].flatten(1).unique().numel() <= 3  # one colour


def test_a_mapped_set_batches_as_one_in_memory(root):
    mapped = load(root)
    plain = replace(mapped, images=mapped.images.clone(), mapped=False)
    for augment in (True, False):
        for ours, theirs in zip(
            batches(mapped, batch_size=4, seed=1, epoch=0, augment=augment),
            batches(plain, batch_size=4, seed=1, epoch=0, augment=augment),
            strict=True,
        ):
            for name in ("images", "labels", "groups", "indices"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
    rows = torch.tensor([3, 0, 9])
    assert torch.equal(mapped.pixels(rows), plain.pixels(rows))
    assert torch.equal(mapped.pixels(slice(2, 5)), plain.pixels(slice(2, 5)))
    assert torch.equal(mapped.subset(rows).images, plain.subset(rows).images)


def test_only_labels_move(root):
    moved = load(root).to("meta")
    assert moved.images.device.type == "cpu"
    assert {moved.labels.device.type, moved.indices.device.type, moved.groups.device.type} == {"meta"}
    assert moved.device.type == "meta"
    assert moved.pixels(slice(0, 3)).device.type == "meta"
    batch = next(iter(batches(moved, batch_size=4, seed=0, epoch=0)))
    assert batch.images.device.type == batch.labels.device.type == "meta"


def test_the_published_stretch_is_said(root):
    found = load(root, "test", pipeline=stretched_face_pipeline())
    assert found.images.shape == (1, 3, 178, 218)
    assert found.info.size == 178
    assert found.notes[-1] == "Toy: images are 178 high and 218 wide"


@pytest.mark.gpu
def test_batches_of_a_mapped_set_come_to_the_gpu(root):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    mapped = load(root)
    resized = replace(mapped, info=replace(mapped.info, resized_crop=True))
    for dataset in (mapped, resized):
        for ours, theirs in zip(
            batches(dataset.to("cuda"), batch_size=4, seed=1, epoch=0),
            batches(dataset, batch_size=4, seed=1, epoch=0),
            strict=True,
        ):
            assert ours.images.is_cuda
            torch.testing.assert_close(ours.images.cpu(), theirs.images, rtol=0, atol=1e-6)
    rows = torch.tensor([3, 0], device="cuda")
    assert torch.equal(mapped.to("cuda").pixels(rows).cpu(), mapped.pixels(rows.cpu()))
    assert mapped.to("cuda").subset(rows).labels.is_cuda
