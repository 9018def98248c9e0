"""Every published flag of the six training scripts: its default, what it changes, or the warning it gets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import golden
import pytest
import torch
from runs import image_set, write_folders

from ancra.cli import PUBLISHED_FLAGS, train_cifar10_resnet, training_script
from ancra.config import ALL_STRATEGIES, AncraConfig
from ancra.plan import AncraPlan
from ancra.scripts import SCRIPTS
from robust_core.data import dataset_info
from robust_core.errors import UserError

ANCRA = [name for name in SCRIPTS if "baseline" not in name]
BASELINES = [name for name in SCRIPTS if "baseline" in name]


def settings(*words, script="train_CIFAR10_ResNet"):
    read = training_script(script)
    return read.resolve(read.parse(words)[0])


def method_of(*words, script="train_CIFAR10_ResNet"):
    (phase,) = AncraPlan().phases(settings(*words, script=script)[0], 10)
    return phase.method


@pytest.mark.golden
@pytest.mark.parametrize("script", SCRIPTS)
def test_published_defaults(script):
    official = golden.load_json("ancra", "hyper.json")["scripts"][script]
    config, notes = settings(script=script)
    assert notes == []
    for name, value in official.items():
        if name == "num_classes":
            assert dataset_info(config.data).num_classes == value
        elif name in AncraConfig.__dataclass_fields__:
            assert getattr(config, name) == value, name


DIRECTORIES = {
    "train_CIFAR10_ResNet": "./model/ANCRA",
    "train_CIFAR10_WideResNet": "./model/ANCRA-WideResNet34-TRADES",
    "train_Tiny_ImageNet_PreActResNet": "./model/ANCRA-PreActResNet18-TRADES",
    "train_ResNet18_baseline": "./model/TRADES-ResNet18",
    "train_WideResNet_baseline": "./model/TRADES-WideResNet",
    "train_PreActResNet_baseline": "./model/TRADES-PreAct",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_model_dir_is_the_beginning_of_the_directory(script):
    tail = "-strategy-random_adv-alpha-1.0-beta-6.0-zeta-3.0-seed-1"
    assert settings(script=script)[0].run_dir == DIRECTORIES[script] + tail
    words = ("--model-dir", "m/A", "--seed", "4", "--zeta", "2", "--strategy", "soft", "--alpha", "0.5")
    assert (
        settings(*words, script=script)[0].run_dir == "m/A-strategy-soft-alpha-0.5-beta-6.0-zeta-2.0-seed-4"
    )
    assert settings("--run-dir", "exact", script=script)[0].run_dir == "exact"


SIMPLE = [
    ("--batch-size 64", "batch_size", 64),
    ("--test-batch-size 50", "evaluation_batch_size", 50),
    ("--epochs 30", "epochs", 30),
    ("--weight-decay 1e-3", "weight_decay", 1e-3),
    ("--wd 1e-3", "weight_decay", 1e-3),
    ("--lr 0.2", "lr", 0.2),
    ("--momentum 0.8", "momentum", 0.8),
    ("--no-cuda", "no_cuda", True),
    ("--seed 7", "seed", 7),
    ("--log-interval 3", "log_interval", 3),
    ("--save-freq 5", "save_freq", 5),
    ("-s 5", "save_freq", 5),
    ("--dataset CIFAR-100", "data", "cifar100"),
    ("--data tiny_imagenet", "data", "tiny-imagenet"),
    ("--model wrn-28-10", "model", "wrn-28-10"),
    ("--sample_c 2", "sample_class_number", 2),
]


@pytest.mark.parametrize(("words", "name", "value"), SIMPLE)
@pytest.mark.parametrize("script", ["train_CIFAR10_ResNet", "train_ResNet18_baseline"])
def test_a_flag_sets_its_setting(words, name, value, script):
    assert getattr(settings(*words.split(), script=script)[0], name) == value


IN_THE_METHOD = [
    ("--epsilon 4/255", "eps", 4 / 255),
    ("--num-steps 7", "steps", 7),
    ("--step-size 1/255", "step_size", 1 / 255),
    ("--beta 2", "beta", 2.0),
    ("--alpha 0.5", "alpha", 0.5),
    ("--zeta 1", "zeta", 1.0),
    ("--cr_beta 1", "cr", 1.0),
    ("--cr_beta 1", "attack_cr", 1.0),
    ("--inner-loss kl", "inner_loss", "kl"),
    ("--attention-by predicted", "attention_by", "predicted"),
    ("--method mart", "family", "mart"),
    ("--no-contrast", "zeta", 0.0),
]


@pytest.mark.parametrize(("words", "name", "value"), IN_THE_METHOD)
def test_a_flag_reaches_the_method(words, name, value):
    assert getattr(method_of(*words.split()), name) == value


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
def test_strategy_and_numbers_of_negatives_reach_the_choice(strategy):
    choice = method_of("--strategy", strategy, "--sample_class_number", "3", "--sample_number", "2").negatives
    assert choice.strategy == strategy.removesuffix("_adv")
    assert choice.attacked == strategy.endswith("_adv")
    assert (choice.classes, choice.images) == (3, 2)


@pytest.mark.parametrize("script", BASELINES)
@pytest.mark.parametrize("words", ["--alpha 0.5", "--zeta 2", "--strategy soft", "--cr_beta 1"])
def test_what_names_a_baselines_directory_only_is_said(script, words):
    config, notes = settings(*words.split(), script=script)
    assert any("has no effect here" in note for note in notes)
    assert not config.contrasted
    assert method_of(*words.split(), script=script).zeta == 0.0


@pytest.mark.parametrize(
    ("words", "last"),
    [
        ("--scale demo --strategy hard", 5),  # 360 steps of 75 an epoch
        ("--scale smoke --strategy soft", 1),
        ("--epochs 10 --strategy hard_adv", 10),
        ("--scale demo --epochs 10 --strategy easy", 10),
        ("--scale reduced --epochs 3 --strategy easy", 3),
    ],
)
def test_a_strategy_that_the_run_ends_before_is_said(words, last):
    (note,) = [note for note in settings(*words.split())[1] if "--strategy" in note]
    assert note == (
        f"warning: --strategy {words.split()[-1]} chooses at random here: soft, hard and easy begin with epoch 11, and "
        f"the run ends in epoch {last}"
    )


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--scale demo",
        "--scale demo --strategy random",
        "--epochs 10 --strategy random_adv",
        "--epochs 11 --strategy hard",
        "--scale demo --main-steps 461 --strategy hard",
        "--scale reduced --strategy hard",
        "--data cifar100 --model resnet8-s2 --strategy soft_adv",
    ],
)
def test_a_strategy_that_acts_is_not_warned_of(words):
    assert not [note for note in settings(*words.split())[1] if "strategy" in note]


def test_the_rate_falls_at_the_published_epochs_and_counts_from_the_restart(tmp_path):
    (phase,) = AncraPlan().phases(settings()[0], 10)
    assert phase.steps == 1200
    rates = [phase.rate.at(10 * (epoch - 1), phase.steps, 10) for epoch in (74, 75, 90, 100, 120)]
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-5])
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"x")
    words = ("--restart_epoch", "75", "--ckpt_url", str(weights))
    (phase,) = AncraPlan().phases(settings(*words)[0], 10)
    assert phase.steps == 460
    assert phase.rate.at(0, phase.steps, 10) == pytest.approx(1e-3)
    assert phase.method.first_epoch == 75


@pytest.mark.parametrize("nested", [False, True])
def test_restarting_takes_the_weights_of_either_form(tmp_path, nested):
    from ancra.networks import build_network

    donor = build_network("resnet8-s2", 10, seed=9).state_dict()
    torch.save({"model": donor, "optimizer": {}} if nested else donor, tmp_path / "w.pt")
    words = ("--restart_epoch", "2", "--ckpt_url", str(tmp_path / "w.pt"), "--model", "resnet8-s2")
    network = AncraPlan().network(settings(*words)[0], dataset_info("cifar10"), fresh=True)
    assert all(torch.equal(value, donor[name]) for name, value in network.state_dict().items())


def test_weights_of_another_kind_of_network_are_refused(tmp_path):
    from robust_core.models import build_model

    for model in ("resnet8-s2", "preactresnet18-w4"):
        torch.save(build_model(model, 10).state_dict(), tmp_path / "w.pt")
        (tmp_path / "config.json").write_text('{"config": {"attention": "none"}}')
        words = ("--restart_epoch", "2", "--ckpt_url", str(tmp_path / "w.pt"), "--model", model)
        config, _ = settings(*words)
        with pytest.raises(UserError, match="with --attention none, this run has reverse"):
            AncraPlan().network(config, dataset_info("cifar10"), fresh=True)
    # of a run's checkpoints the run's record speaks
    checkpoint = tmp_path / "checkpoints/step-00000001.pt"
    checkpoint.parent.mkdir()
    torch.save({"model": build_model(model, 10).state_dict()}, checkpoint)
    with pytest.raises(UserError, match="with --attention none, this run has reverse"):
        AncraPlan().network(replace(config, ckpt_url=str(checkpoint)), dataset_info("cifar10"), fresh=True)
    (tmp_path / "config.json").unlink()
    torch.save(build_model("resnet8-s2", 10).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match="another architecture"):
        AncraPlan().network(replace(config, model="resnet8-s2"), dataset_info("cifar10"), fresh=True)
    AncraPlan().network(config, dataset_info("cifar10"), fresh=False)  # a checkpoint fills it


def test_every_published_flag_is_known_and_help_shows_the_scripts_defaults(capsys):
    for name, script in SCRIPTS.items():
        with pytest.raises(SystemExit):
            training_script(name).parse(["--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert all(flag in said for flag in PUBLISHED_FLAGS)
        assert f"(default: {script.defaults['model']})" in said
        assert f"(default: {script.defaults.get('lr', 0.01)})" in said


@pytest.mark.parametrize("words", ["--method mart", "--attention ones", "--inner-loss kl"])
def test_another_method_has_another_directory(words):
    assert settings(*words.split())[0].run_dir != settings()[0].run_dir


def test_selecting_on_the_test_images_keeps_none_apart():
    assert settings("--select-on", "test")[0].validation == 0
    assert settings("--select-on", "test", "--validation", "5")[0].validation == 5


def test_official_restores_every_axis():
    config, _ = settings("--official", "--cr_beta", "1")
    assert (config.attack_cr, config.select_on, config.validation) == ("two", "test", 0)
    assert method_of("--official", "--cr_beta", "1").attack_cr == 2.0
    assert not method_of("--official").train_mode_attack
    assert method_of("--official", script="train_ResNet18_baseline").train_mode_attack
    assert not method_of(script="train_ResNet18_baseline").train_mode_attack


REFUSED = [
    ("--restart_epoch 5", "is no file"),
    ("--restart_epoch 500", "lies behind the last epoch"),
    ("--epochs 0", "--epochs 0 is not possible"),
    ("--alpha 2", "--alpha 2.0 is not possible"),
    ("--zeta nan", "--zeta nan is not possible"),
    ("--cr_beta -1", "--cr-beta -1.0 is not possible"),
    ("--sample_class_number 0", "--sample-class-number 0 is not possible"),
    ("--milestones a,b", "--milestones a,b is not possible"),
    ("--attack-mode train", "needs --attention none"),
    ("--dataset cifar11", "did you mean 'cifar10'"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED)
def test_mistakes_are_named(words, told):
    with pytest.raises(UserError, match=told):
        settings(*words.split())


@pytest.mark.parametrize(("present", "words"), [(10, ["10"]), (2, ["5"]), (2, ["2"])])
def test_more_negative_classes_than_the_images_have(present, words):
    config, _ = settings("--sample_class_number", *words)
    data = image_set(20)
    data = replace(data, labels=torch.arange(20) % present)
    with pytest.raises(UserError, match=rf"{words[0]} is more than the other classes \({present - 1}\)"):
        config.check_classes(data)
    replace(config, sample_class_number=present - 1).check_classes(data)


def test_images_of_one_class_are_refused_at_the_start(tmp_path, in_process):
    for folder in write_folders(tmp_path / "one/cifar10").glob("*/*"):
        if folder.name != "cat":
            shutil.rmtree(folder)
    words = ["--data-dir", str(tmp_path / "one"), "--model", "resnet8-s2", "--validation", "2"]
    done = in_process(train_cifar10_resnet, [*words, "--run-dir", "run"])
    assert done.code == 2
    assert "are of one class, so none has a negative; train with --zeta 0" in done.err
    assert not Path("run").exists()
