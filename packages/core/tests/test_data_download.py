"""Downloads, from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import socket
import tarfile
import threading

import pytest
from fake_data import cifar_batch, svhn_file

from robust_core.data import download, load_dataset
from robust_core.data.download import fetch
from robust_core.data.official import OFFICIAL_MD5, Remote, official_files
from robust_core.errors import UserError
from robust_core.storage import held


def md5(content):
    return hashlib.md5(content).hexdigest()


def tar_gz(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def server(monkeypatch):
    """A server whose ``files`` are what it serves; ``cut`` ends each answer early."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - self.server.cut])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.cut = {}, 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cifar(server, monkeypatch):
    """CIFAR-10 in small, on the server."""
    members = {f"cifar-10-batches-py/data_batch_{k}": cifar_batch([k, 0]) for k in range(1, 6)}
    members |= {
        "cifar-10-batches-py/test_batch": cifar_batch([7]),
        "cifar-10-batches-py/readme.html": b"hello",
    }
    content = tar_gz(members)
    server.files["/cifar.tar.gz"] = content
    remote = Remote(f"{server.url}/cifar.tar.gz", "cifar.tar.gz", md5(content), "cifar-10-batches-py")
    monkeypatch.setattr(download, "official_files", lambda name: [remote])
    return remote


def left_over(folder):
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.startswith(".") or "tar" in p.name
    )


def test_the_official_releases_are_those_that_torchvision_knows():
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN

    for name, known in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        assert official_files(name) == [Remote(known.url, known.filename, known.tgz_md5, known.base_folder)]
        assert OFFICIAL_MD5[name] == {"train": dict(known.train_list), "test": dict(known.test_list)}
    assert [tuple(remote[:3]) for remote in official_files("svhn")] == [
        tuple(SVHN.split_list[split]) for split in ("train", "test")
    ]
    assert official_files("tiny-imagenet") == []


def test_cifar_is_downloaded_once(tmp_path, server, cifar):
    lines = []
    train = load_dataset("cifar10", tmp_path, log=lines.append)
    assert train.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert lines == [f"Downloading {cifar.url}"]
    assert left_over(tmp_path) == []
    server.files.clear()
    assert load_dataset("cifar10", tmp_path, "test", log=lines.append).labels.tolist() == [7]
    assert len(lines) == 1


def test_what_a_killed_download_left_is_removed_and_a_living_one_is_not(tmp_path, cifar):
    left, living = tmp_path / "cifar10" / ".download.left", tmp_path / "cifar10" / ".download.living"
    for folder in (left, living):
        folder.mkdir(parents=True)
        (folder / "cifar.tar.gz").write_text("half an archive")
    with held(living):
        assert load_dataset("cifar10", tmp_path, "test").labels.tolist() == [7]
    assert not left.exists()
    assert (living / "cifar.tar.gz").exists()


@pytest.mark.parametrize("inside", ["", "svhn"])
def test_svhn_is_downloaded_with_both_splits(tmp_path, server, monkeypatch, inside):
    remotes = []
    for split in ("train", "test"):
        name = f"{split}_32x32.mat"
        server.files[f"/{name}"] = svhn_file([10, 3])
        remotes.append(Remote(f"{server.url}/{name}", name, md5(server.files[f"/{name}"])))
    monkeypatch.setattr(download, "official_files", lambda name: remotes)
    root = tmp_path / inside
    root.mkdir(exist_ok=True)
    assert load_dataset("svhn", root).labels.tolist() == [0, 3]
    assert (tmp_path / "svhn" / "test_32x32.mat").is_file()


def test_nothing_is_downloaded_when_told_not_to(tmp_path, cifar):
    with pytest.raises(UserError, match="holds no CIFAR-10"):
        load_dataset("cifar10", tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_is_refused(tmp_path, server, cifar):
    server.files["/cifar.tar.gz"] += b"x"
    with pytest.raises(UserError, match=f"has the MD5 .*, expected {cifar.md5}; it was removed") as caught:
        load_dataset("cifar10", tmp_path)
    assert "cifar10-jpeg-train.tar.xz" in str(caught.value)  # the tree follows
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["missing", "cut", "no server"])
def test_a_failed_download_leaves_nothing(tmp_path, server, cifar, monkeypatch, what):
    if what == "missing":
        server.files.clear()
    elif what == "cut":
        server.cut = 10
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
        monkeypatch.setattr(download, "official_files", lambda name: [cifar._replace(url=url)])
    reason = {"missing": "404", "cut": "IncompleteRead|bytes arrived", "no server": "refused"}[what]
    with pytest.raises(UserError, match=f"Could not download http.*{reason}") as caught:
        load_dataset("cifar10", tmp_path)
    assert "Expected one of" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "could not be unpacked"),
        (tar_gz({"cifar-10-batches-py/a": bytes(5000)})[:-20], "could not be unpacked"),
        (tar_gz({"../evil": b"x"}), "leads outside"),
        (tar_gz({"/evil": b"x"}), "leads outside"),
    ],
    # a compressed archive holds the time: no name for a test that several processes collect
    ids=["no archive", "cut short", "above", "absolute"],
)
def test_a_bad_archive_is_refused(tmp_path, server, cifar, monkeypatch, content, message):
    server.files["/cifar.tar.gz"] = content
    monkeypatch.setattr(download, "official_files", lambda name: [cifar._replace(md5=md5(content))])
    with pytest.raises(UserError, match=message):
        load_dataset("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, cifar):
    (tmp_path / "cifar10").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"could not be stored in .*cifar10"):
        load_dataset("cifar10", tmp_path)


def test_tiny_imagenet_is_not_ours_to_fetch(tmp_path):
    with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip"):
        load_dataset("tiny-imagenet", tmp_path)


def test_fetch_replaces_only_when_complete(tmp_path, server):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    server.files["/file"] = b"new content"
    with pytest.raises(UserError, match="MD5"):
        fetch(f"{server.url}/file", target, md5(b"another"))
    assert target.read_bytes() == b"old"
    fetch(f"{server.url}/file", target, md5(b"new content"))
    assert target.read_bytes() == b"new content"
    assert left_over(tmp_path) == []
