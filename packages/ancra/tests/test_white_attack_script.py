"""``test_white_attack.py`` as a user starts it: lines, table, files, every flag, mistakes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ancra import white_attack
from ancra.checkpoint import SubjectConfig, load_subject
from ancra.inspection import InspectionScript
from ancra.published import published_cw
from ancra.white_attack import PUBLISHED_FLAGS, WhiteAttackConfig, main, white_protocol
from robust_core.attacks import draw_start, pgd
from robust_core.attacks.autoattack import AutoAttackResult
from robust_core.evaluation import Keeper, load_evaluation
from robust_core.evaluation.keeping import PARTIAL
from robust_core.randomness import generator_for

pytestmark = pytest.mark.usefixtures("drawn_once")
QUICK = ["--num-steps", "2", "--attacks", "natural,pgd,fgsm,cw", "--test-images", "12"]


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the trained run of ANCRA."""
    return Path(shutil.copytree(trained / "ancra", tmp_path / "run"))


def config(*words):
    script = InspectionScript("test", "", "", WhiteAttackConfig, lambda _c, _g: None, PUBLISHED_FLAGS)
    return WhiteAttackConfig(**script.parse(words))


def member(name, *words):
    return {entry.name: entry for entry in white_protocol(config(*words)).members}[name]


def starts(images, name, eps):
    drawn = [
        draw_start(
            image[None], eps=eps, kind="uniform", generator=generator_for(1, f"evaluate-{name}", index)
        )
        for index, image in enumerate(images)
    ]
    return torch.cat(drawn)


def test_lines_table_logs_and_record(in_process, run):
    done = in_process(main, ["--ckpt_url", run, *QUICK, "--epsilon", "16/255"])
    assert done.code == 0, done.err
    subject = load_subject(
        str(run), SubjectConfig(test_images=12), {"test_images": 12}, flag="", say=lambda _: None
    )
    network, images, labels = subject.network, subject.images.pixels(slice(12)), subject.images.labels[:12]
    eps = 16 / 255

    def share(attacked):
        return (network(attacked).argmax(dim=1) == labels).float().mean().item()

    with torch.no_grad():
        natural = share(images)
    attack = {"eps": eps, "step_size": 0.007}
    attacked = pgd(network, images, labels, start=starts(images, "pgd-2", eps), steps=2, **attack)
    stepped = pgd(network, images, labels, start=starts(images, "fgsm", eps), eps=eps, step_size=eps, steps=1)
    batch_sum = published_cw(
        network, images, labels, start=starts(images, "cw-batch-sum", eps), steps=20, **attack
    )
    lines = [
        f"natural acc: {natural:.4f}, pgd2 robust acc: {share(attacked):.4f}",
        f"fgsm robust acc: {share(stepped):.4f}",
        f"cw robust_acc: {share(batch_sum):.4f}",
    ]
    assert [line for line in done.out.splitlines() if " acc: " in line or "_acc: " in line] == lines
    log = (run / "test.log").read_text().splitlines()
    assert [line.partition("] - ")[2] for line in log[1:]] == lines
    for told in ("epsilon=0.0627", "model=resnet8-s2", "data=shapes", "best.pt", "test_images=12"):
        assert told in log[0]
    assert not (run / "autoattack.log").exists()
    for told in (
        "PGD-2 ",
        "FGSM ",
        "C&W, batch sum ",
        "C&W ",
        "worst case ",
        "every iterate",
        "only this breaks",
    ):
        assert told in done.out
    record = load_evaluation(run / "evaluation", "white-attack")
    assert list(record.last) == ["pgd-2", "fgsm", "cw-batch-sum", "cw"]
    worst = record.worst_case()
    assert all(np.array_equal(worst & record.robust[name], worst) for name in record.robust)
    assert record.batch_size == 200


def test_the_published_name_of_the_weights_and_a_plain_network(in_process, trained, tmp_path):
    shutil.copy(trained / "trades/model-1.pt", tmp_path / "model_120.pth")
    words = [
        "--ckpt-url",
        tmp_path,
        "--dataset",
        "shapes",
        "--model",
        "resnet8-s2",
        *QUICK,
        "--attacks",
        "natural",
    ]
    refused = in_process(main, words)
    assert refused.code == 2
    assert "network without reverse attention" in refused.err
    done = in_process(main, [*words, "--attention", "none"])
    assert done.code == 0, done.err
    assert "model_120.pth" in done.out
    assert "natural acc: " in done.out
    assert "pgd" not in (tmp_path / "test.log").read_text().splitlines()[-1]


def test_without_the_package_autoattack_says_what_to_install_and_the_rest_goes_on(
    in_process, run, monkeypatch
):
    monkeypatch.setattr("robust_core.attacks.autoattack_available", lambda: False)
    done = in_process(main, ["--run-dir", run, *QUICK, "--attacks", "aa,pgd"])
    assert done.code == 0, done.err
    assert "pgd2 robust acc: 0." in done.out
    assert "Autoattack robust_acc: not run: AutoAttack needs the package pyautoattack" in done.out
    assert "pip install pyautoattack" in (run / "autoattack.log").read_text()


def test_autoattack_attacks_the_images_it_is_given_and_its_log_is_kept(in_process, run, monkeypatch):
    sizes = []

    def fake(network, images, labels, *, version, eps, norm, batch_size=0, generator=None):
        assert (version, norm, eps) == ("standard", "linf", 4 / 255)
        sizes.append(len(images))
        network(images)
        logging.getLogger("auto-attack").warning("robust accuracy: as it is")
        return AutoAttackResult((images + eps).clamp(0, 1), ("apgd-ce",), (), ("a flag",))

    monkeypatch.setattr("robust_core.attacks.autoattack_available", lambda: True)
    monkeypatch.setattr("robust_core.attacks.autoattack", fake)
    words = ["--ckpt_url", run, *QUICK, "--attacks", "aa", "--epsilon", "4/255", "--aa-images", "7"]
    done = in_process(main, [*words, "--test-batch-size", "5"])
    assert done.code == 0, done.err
    assert sizes == [5, 2]
    log = (run / "autoattack.log").read_text().splitlines()
    assert log[1].endswith(" - robust accuracy: as it is")
    assert " - Autoattack robust_acc: 0." in log[-1]
    assert json.loads((run / "evaluation/white-attack.json").read_text())["runs"]["autoattack"]["images"] == 7
    settings = json.loads((run / "config.json").read_text())
    # what the run asks for is the default, if it is a number of images; -1 is all in another package
    for asked, attacked in ((3, [3]), (-1, [12]), ("7", [12]), (True, [12])):
        sizes.clear()
        (run / "evaluation/white-attack.json").unlink()
        settings["config"]["aa_images"] = asked
        (run / "config.json").write_text(json.dumps(settings))
        done = in_process(main, words[:-2])
        assert done.code == 0, done.err
        assert sizes == attacked


class Killed(BaseException):
    """What a test ends a command with."""


def test_what_was_stopped_goes_on_with_the_attack_that_it_had_reached(in_process, run, monkeypatch):
    runner = white_attack._published_cw

    def killed(call):
        raise Killed

    monkeypatch.setattr(white_attack, "_published_cw", killed)
    with pytest.raises(Killed):
        in_process(main, ["--ckpt_url", run, *QUICK])
    assert (run / "evaluation/white-attack-partial.json").exists()
    monkeypatch.setattr(white_attack, "_published_cw", runner)
    attacked = []
    monkeypatch.setattr(white_attack, "_progress", lambda: lambda member, *_: attacked.append(member))
    assert in_process(main, ["--ckpt_url", run, *QUICK]).code == 0
    assert set(attacked) == {"natural", "cw-batch-sum", "cw"}
    assert not (run / "evaluation/white-attack-partial.json").exists()


def test_the_published_cw_of_another_batch_size_is_another_attack(in_process, run, monkeypatch):
    runner = white_attack.published_cw
    sizes = []

    def counted(network, images, labels, **options):
        sizes.append(len(images))
        return runner(network, images, labels, **options)

    def killed(*_):
        raise Killed

    monkeypatch.setattr(white_attack, "published_cw", counted)
    monkeypatch.setattr(Keeper, "finish", killed)
    monkeypatch.setattr(
        Keeper, "keep", lambda keeper, found: found.save(keeper.folder, f"{keeper.name}{PARTIAL}")
    )
    words = ["--ckpt_url", run, *QUICK, "--attacks", "cw", "--test-batch-size"]
    for size in ("12", "12", "6"):
        with pytest.raises(Killed):
            in_process(main, [*words, size])
    assert sizes == [12, 6, 6]


def test_ctrl_c_says_that_it_goes_on(in_process, run, monkeypatch):
    def stopped(call):
        raise KeyboardInterrupt

    monkeypatch.setattr(white_attack, "_published_cw", stopped)
    done = in_process(main, ["--ckpt_url", run, *QUICK, "--attacks", "cw"])
    assert done.code == 130
    assert done.err == "interrupted: the same command goes on with the attack that it had reached\n"


def test_autoattack_is_taken_over_from_the_run_that_made_it_of_the_same_weights(in_process, run, monkeypatch):
    sizes = []

    def fake(network, images, labels, *, version, eps, norm, batch_size=0, generator=None):
        sizes.append(len(images))
        return AutoAttackResult(images, ("apgd-ce",), (), ())

    monkeypatch.setattr("robust_core.attacks.autoattack_available", lambda: True)
    monkeypatch.setattr("robust_core.attacks.autoattack", fake)
    words = ["--ckpt_url", run, *QUICK, "--attacks", "aa"]
    assert in_process(main, words).code == 0
    for ending in ("json", "npz"):
        shutil.copy(run / f"evaluation/white-attack.{ending}", run / f"evaluation/pgd.{ending}")
    before = len(sizes)
    again = in_process(main, words)
    assert "autoattack: taken over" in again.out
    assert (
        json.loads((run / "evaluation/white-attack.json").read_text())["runs"]["autoattack"]["images"] == 12
    )
    assert "taken over" in (run / "autoattack.log").read_text()
    in_process(main, [*words, "--epsilon", "4/255"])
    in_process(main, [*words, "--seed", "7"])
    assert len(sizes) == before + 2


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("", "ckpt_url", "./checkpoint/baseline/Mart_128_resnet18_cifar100"),
        ("--ckpt_url a", "ckpt_url", "a"),
        ("--ckpt-url a", "ckpt_url", "a"),
        ("--model_dir a", "ckpt_url", "a"),
        ("", "test_batch_size", 200),
        ("--test-batch-size 50", "test_batch_size", 50),
        ("--test_batch 50", "test_batch_size", 50),
        ("--dataset CIFAR-100", "data", "CIFAR-100"),
        ("--seed 3", "seed", 3),
        ("--no-cuda", "no_cuda", True),
    ],
)
def test_a_flag_sets_its_setting(words, name, value):
    assert getattr(config(*words.split()), name) == value


@pytest.mark.parametrize(
    ("words", "name", "setting", "value"),
    [
        ("", "pgd-40", "steps", 40),
        ("", "pgd-40", "step_size", 0.007),
        ("", "pgd-40", "eps", 8 / 255),
        ("", "pgd-40", "random_start", "uniform"),
        ("--num-steps 7", "pgd-7", "steps", 7),
        ("--num_steps 7", "cw", "steps", 20),
        ("--step-size 1/255", "pgd-40", "step_size", 1 / 255),
        ("--step-size 1/255", "cw-batch-sum", "step_size", 1 / 255),
        ("--step-size 1/255", "fgsm", "step_size", 8 / 255),
        ("--epsilon 4/255", "fgsm", "step_size", 4 / 255),
        ("--epsilon 4/255", "autoattack", "eps", 4 / 255),
        ("--epsilon 0.02", "cw", "eps", 0.02),
        ("--random False", "pgd-40", "random_start", False),
        ("--random 0", "fgsm", "random_start", False),
        ("--random", "fgsm", "random_start", "uniform"),
        ("", "cw", "loss", "margin"),
    ],
)
def test_a_flag_reaches_its_attack(words, name, setting, value):
    assert member(name, *words.split()).settings[setting] == value


def test_cw_always_starts_at_random_and_the_chosen_attacks_keep_their_order():
    assert "random_start" not in member("cw-batch-sum", "--random", "no").settings
    assert member("autoattack").images is None
    assert config("--attacks", "cw, natural").chosen == ("natural", "cw")
    assert [entry.name for entry in white_protocol(config("--attacks", "fgsm,natural")).members] == ["fgsm"]
    names = ["pgd-40", "fgsm", "cw-batch-sum", "cw", "autoattack"]
    assert [entry.name for entry in white_protocol(config()).members] == names


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--attacks pdg", "Unknown attack 'pdg'; did you mean 'pgd'"),
        ("--attacks ,", "--attacks ',' is not possible"),
        ("--epsilon 8", "--epsilon 8.0 is not possible"),
        ("--epsilon eight", "'eight' is no number"),
        ("--num-steps 0", "--num-steps 0 is not possible"),
        ("--test-batch-size 0", "--test-batch-size 0 is not possible"),
        ("--aa-images -1", "--aa-images -1 is not possible"),
        ("--random maybe", "neither true nor false"),
        ("--unheard-of", "unrecognized arguments"),
        ("", "Mart_128_resnet18_cifar100', which is not there"),
        ("--device cuda:99", "cuda"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(in_process, trained, words, told):
    place = ["--ckpt-url", trained / "ancra"] if "--device" in words else []
    done = in_process(main, [*place, *words.split()])
    assert done.code == 2
    assert told in done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_help_names_every_published_flag(in_process):
    said = " ".join(in_process(main, ["--help"]).out.split())
    assert all(flag in said for flag in PUBLISHED_FLAGS)
    assert "(default: 8/255)" in said


def test_pytest_leaves_the_script_of_this_name_alone(package):
    assert "test_white_attack.py" in (package / "conftest.py").read_text()
    assert (package / "test_white_attack.py").exists()
