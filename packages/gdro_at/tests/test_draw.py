import json
import runpy
import struct
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from purity import unchanged

from gdro_at import draw
from gdro_at.draw import chosen_rows, draw_overlays
from gdro_at.networks import build_network
from gdro_at.overlays import SALIENCIES, overlays_of
from robust_core.data import DatasetInfo, ImageSet, dataset_info
from robust_core.errors import UserError

COUNT = 12
GROUPED = dataset_info("shapes-grouped")
PICTURE_DPI = 180


def grouped(info=GROUPED):
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([3, 0, 0, 1, 0, 2, 2, 0, 3, 1, 0, 0])
    return ImageSet(
        info=info,
        split="test",
        images=torch.randint(256, (COUNT, 3, 32, 32), generator=generator, dtype=torch.uint8),
        labels=groups // 2,
        indices=torch.arange(COUNT),
        groups=groups if info.groups else None,
    )


def network(seed=0, name="resnet8-s2", normalize=False):
    mean, std = (GROUPED.mean, GROUPED.std) if normalize else (None, None)
    return build_network(name, 2, image_size=32, mean=mean, std=std, seed=seed)


@pytest.fixture(autouse=True)
def drawn_set(monkeypatch):
    """Let the script load a few images; the data set's own take a second to draw."""
    asked = []

    def load(name, root, split, log):
        asked.append((name, root, split))
        return grouped()

    monkeypatch.setattr(draw, "load_dataset", load)
    return asked


def saved(folder, seed=0, **settings):
    """Return a run directory with the weights that it selected."""
    folder.mkdir()
    torch.save(network(seed, normalize=settings.get("normalize", False)).state_dict(), folder / "best.pt")
    config = {"model": "resnet8-s2", "data": "shapes-grouped", "selection": "best", **settings}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return folder


def size_of(path):
    content = Path(path).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def shown(count=3):
    data = grouped().subset(torch.arange(count))
    return data.pixels(slice(None)), data.labels


@pytest.mark.parametrize("saliency", SALIENCIES)
def test_overlays_leave_the_network_alone(saliency):
    model = network().train()
    images, labels = shown()
    with unchanged(model):
        found = overlays_of(model, images, labels, layer="layer2", eps=8 / 255, steps=2, saliency=saliency)
    for pictures in (found.natural, found.attacked):
        assert pictures.shape == images.shape
        assert pictures.min() >= 0
        assert pictures.max() <= 1
    with torch.no_grad():
        assert torch.equal(found.natural_prediction, model.eval()(images).argmax(dim=1))


def test_an_image_that_is_not_attacked_shows_no_divergence():
    images, labels = shown()
    found = overlays_of(network(), images, labels, layer="layer2", eps=0.0, steps=1, saliency="kl")
    grey = images.mean(dim=1, keepdim=True).expand_as(images)
    torch.testing.assert_close(found.attacked, grey)
    assert (found.natural != grey).any()
    assert torch.equal(found.natural_prediction, found.attacked_prediction)


def test_the_picture_grows_with_rows_and_columns_and_is_the_same_each_time(tmp_path):
    images, labels = shown()
    settings = {"layer": "layer2", "eps": 0.01, "steps": 1, "classes": GROUPED.classes}
    one = draw_overlays({"a": network()}, images, labels, path=tmp_path / "one.png", **settings)
    again = draw_overlays({"a": network()}, images, labels, path=tmp_path / "again.png", **settings)
    assert one.read_bytes() == again.read_bytes()
    two = draw_overlays(
        {"a": network(), "b": network(1)}, images[:2], labels[:2], path=tmp_path / "two.png", **settings
    )
    assert size_of(one) == (round((1.15 * 3 + 0.4) * PICTURE_DPI), round((1.4 * 3 + 0.8) * PICTURE_DPI))
    assert size_of(two) == (round((1.15 * 5 + 0.4) * PICTURE_DPI), round((1.4 * 2 + 0.8) * PICTURE_DPI))
    assert "matplotlib.pyplot" not in sys.modules or not mpl.pyplot.get_fignums()


def test_columns_are_named_in_errors(tmp_path):
    images, labels = shown()
    columns = {"good": network(), "bad": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))}
    with pytest.raises(UserError, match="Column 'bad': Unknown layer 'layer2'"):
        draw_overlays(columns, images, labels, layer="layer2", path=tmp_path / "x.png", steps=1)
    with pytest.raises(UserError, match="nothing to draw"):
        draw_overlays({}, images, labels, layer="layer2", path=tmp_path / "x.png")
    with pytest.raises(UserError, match="Unknown saliency 'klass'; did you mean 'class'"):
        overlays_of(network(), images, labels, layer="layer2", saliency="klass")


@pytest.mark.parametrize(("count", "groups"), [(4, [0, 1, 2, 3]), (6, [0, 0, 1, 1, 2, 3]), (50, None)])
def test_rows_come_from_all_groups(count, groups):
    data = grouped()
    positions, names = chosen_rows(data, count)
    found = data.groups[positions].tolist()
    assert found == (sorted(data.groups.tolist()) if groups is None else groups)
    assert names == [GROUPED.groups[group] for group in found]
    assert len(set(positions.tolist())) == len(positions)


def test_rows_of_data_without_groups_come_from_all_classes():
    info = DatasetInfo(name="x", title="X", classes=("a", "b"), size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    _, names = chosen_rows(grouped(info), 5)
    assert names == ["a", "a", "a", "b", "b"]


def test_run_directories_side_by_side(tmp_path, capsys, drawn_set):
    first = saved(tmp_path / "erm", 0, normalize=True, data_dir="somewhere")
    second = saved(tmp_path / "gdro", 1)
    out = tmp_path / "pictures" / "cam.png"
    flags = ["--layer", "layer2", "--eps", "8/255", "--images", "4", "--steps", "1", "--out", str(out)]
    assert draw.main(["--checkpoints", f"ERM={first}", str(second), *flags]) == 0
    assert f"figure: {out}" in capsys.readouterr().out
    assert size_of(out)[0] == round((1.15 * 5 + 0.4) * PICTURE_DPI)
    assert drawn_set == [("shapes-grouped", "somewhere", "test")]


def test_what_a_run_normalised_before_its_attack_the_drawn_network_normalises(tmp_path):
    from gdro_at.cli import resolve
    from gdro_at.drawn_networks import find_sources, load_network
    from gdro_at.phases import IMAGENET
    from gdro_at.weighted import normalized

    words = {"model": "resnet8-s2", "pixels": "official", "train_type": "erm", "train_from_scratch": True}
    info = replace(GROUPED, mean=IMAGENET[0], std=IMAGENET[1])
    images, _ = shown(4)
    for dataset, expected in (("Covid", normalized(images, *IMAGENET)), ("CIFAR10", images)):
        folder = saved(tmp_path / dataset)
        config = resolve({**words, "dataset": dataset})[0]
        (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
        (source,) = find_sources([str(folder)], {})
        with torch.no_grad():
            assert torch.allclose(load_network(source, info)(images), network().eval()(expected), atol=1e-5)


def test_a_run_without_a_best_network_shows_its_newest_checkpoint(tmp_path, monkeypatch):
    from robust_core.training.checkpoint import CheckpointStore

    folder = saved(tmp_path / "run", 0, selection="last")
    model, average = network(1), network(2)
    store = CheckpointStore(folder / "checkpoints")
    found = []
    monkeypatch.setattr(draw, "draw_overlays", lambda columns, *_, **__: found.append(columns["run"]))
    store.save({"model": model.state_dict(), "step": 5}, 5)
    assert draw.main(["--checkpoints", str(folder)]) == 0
    store.save({"model": model.state_dict(), "average": {"weights": average.state_dict()}}, 6)
    assert draw.main(["--checkpoints", str(folder)]) == 0
    (folder / "config.json").write_text(
        json.dumps({"config": {"model": "resnet8-s2", "data": "shapes-grouped"}})
    )
    assert draw.main(["--checkpoints", str(folder)]) == 0
    for shown_network, seed in zip(found, (1, 2, 0), strict=True):
        assert torch.equal(shown_network.conv1.weight, network(seed).conv1.weight)
        assert not shown_network.training


def test_a_plain_state_dict_needs_the_name_of_its_network(tmp_path, capsys):
    torch.save(network().state_dict(), tmp_path / "lr=0.1.pt")
    out = tmp_path / "cam.pdf"
    flags = ["--checkpoints", str(tmp_path / "lr=0.1.pt"), "--out", str(out), "--images", "2", "--steps", "1"]
    assert draw.main(flags) == 2
    assert "name it by --model" in capsys.readouterr().err
    assert draw.main([*flags, "--model", "resnet8-s2", "--saliency", "published"]) == 0
    assert out.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{run}", "{run}"], "two columns called 'run'"),
        (["nowhere"], "is not there"),
        (["{empty}"], "no run directory"),
        (["{run}", "--model", "resnet50"], "--model resnet50 contradicts the run"),
        (["{run}", "other={other}"], "One picture shows the same images"),
        (["{odd}"], "has model 3, expected str"),
        (["{unborn}"], "neither best.pt nor a checkpoint"),
        (["{run}", "--layer", "layre2"], "did you mean 'layer2'"),
        (["{run}", "--out", "cam.jpg"], "ends in .png or .pdf"),
        (["{run}", "--images", "0"], "--images 0"),
        (["{run}", "--eps", "2"], "--eps 2.0"),
        (["{run}", "--steps", "0"], "--steps 0"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, capsys, flags, message):
    folders = {
        "run": saved(tmp_path / "run"),
        "other": saved(tmp_path / "other", data="cifar10"),
        "odd": saved(tmp_path / "odd", model=3),
        "unborn": saved(tmp_path / "unborn", selection="last"),
        "empty": tmp_path / "empty",
    }
    folders["empty"].mkdir()
    given = [flag.format(**{key: str(value) for key, value in folders.items()}) for flag in flags]
    assert draw.main(["--checkpoints", *given]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("flags", [[], ["--checkpoints", "x", "--no-such-flag"]])
def test_wrong_flags_end_in_one_sentence(capsys, flags):
    with pytest.raises(SystemExit) as exit_:
        draw.main(flags)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_script_runs(monkeypatch, capsys):
    script = Path(__file__).parents[1] / "draw_attack_cam.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(script), run_name="__main__")
    assert exit_.value.code == 0
    assert "--checkpoints" in capsys.readouterr().out
