"""Every published flag is accepted with its published meaning and default, or warns as advised."""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import part.cli
from part import regional
from part.cli import PUBLISHED_FLAGS
from part.config import SCALES, PartConfig, resolve
from part.phases import build_phases
from robust_core.cli import add_flags, normalise_flags
from robust_core.errors import UserError

IMAGE = torch.Size((3, 32, 32))


@pytest.fixture(autouse=True)
def _autoattack_is_there(monkeypatch):
    monkeypatch.setattr("robust_core.extras.autoattack_available", lambda: True)


def settings(*words, method="part"):
    parser = argparse.ArgumentParser()
    add_flags(parser, PartConfig)
    return resolve(vars(parser.parse_args(normalise_flags(words))), method=method)


def main_phase(*words, method="part", steps=10):
    return build_phases(settings(*words, method=method)[0], steps)[-1]


def test_published_defaults():
    config, notes = settings()
    published = {
        "batch_size": 128, "epochs": 80, "weight_decay": 2e-4, "lr": 0.01, "momentum": 0.9, "no_cuda": False,
        "epsilon": 8 / 255, "low_epsilon": 7 / 255, "num_steps": 10, "step_size": 2 / 255, "beta": 6.0,
        "adjust_first": 60, "adjust_second": 90, "rand_init": True, "pre_trained": False, "seed": 1,
        "log_interval": 100, "save_freq": 10, "save_weights": 1, "data": "cifar10", "model": "resnet18",
        "warm_up": 20, "cam": "gradcam", "attack": "pgd", "test_epsilon": 8 / 255, "validation": 0,
        "selection": "last", "aa_images": -1,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in published} == published
    assert notes == []


DIRECTORIES = {
    ("part", "CIFAR10", "resnet"): "./checkpoint/CIFAR10/ResNet_18/PART",
    ("part-t", "SVHN", "wideresnet"): "./checkpoint/SVHN/WideResnet-34/PART_T",
    ("part-m", "TinyImagenet", "resnet"): "./checkpoint/TinyImagenet/ResNet_18/PART_M",
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_model_dir_defaults_to_the_published_place(case):
    method, data, model = case
    config, _ = settings("--data", data, "--model", model, method=method)
    assert config.run_dir == DIRECTORIES[case]
    assert settings("--model-dir", "elsewhere", method=method)[0].run_dir == "elsewhere"
    assert settings("--run-dir", "elsewhere", method=method)[0].run_dir == "elsewhere"


SIMPLE = [
    ("--batch-size 64", "batch_size", 64),
    ("--epochs 30", "epochs", 30),
    ("--weight-decay 1e-3", "weight_decay", 1e-3),
    ("--wd 1e-3", "weight_decay", 1e-3),
    ("--lr 0.1", "lr", 0.1),
    ("--momentum 0.8", "momentum", 0.8),
    ("--no-cuda", "no_cuda", True),
    ("--epsilon 4/255 --low-epsilon 3/255", "epsilon", 4 / 255),
    ("--low-epsilon 5/255", "low_epsilon", 5 / 255),
    ("--num-steps 7", "num_steps", 7),
    ("--num-class 10", "num_class", 10),
    ("--step-size 1/255", "step_size", 1 / 255),
    ("--adjust-first 20", "adjust_first", 20),
    ("--adjust-second 25", "adjust_second", 25),
    ("--seed 7", "seed", 7),
    ("--log-interval 3", "log_interval", 3),
    ("--save-freq 5", "save_freq", 5),
    ("--save-weights 2", "save_weights", 2),
    ("--warm-up 3", "warm_up", 3),
    ("--cam layercam", "cam", "layercam"),
    ("--model wideresnet", "model", "wrn-34-10"),
    ("--data SVHN", "data", "svhn"),
]


@pytest.mark.parametrize(("words", "name", "value"), SIMPLE)
@pytest.mark.parametrize("method", ["part", "part-t", "part-m"])
def test_a_flag_sets_its_setting(words, name, value, method):
    assert getattr(settings(*words.split(), method=method)[0], name) == value
    flags = [w.replace("-", "_").replace("__", "--") if w.startswith("--") else w for w in words.split()]
    assert getattr(settings(*flags, method=method)[0], name) == value


def test_attack_flags_reach_the_attack():
    attack = main_phase(
        "--epsilon", "4/255", "--low-epsilon", "3/255", "--num-steps", "7", "--step-size", "1/255"
    ).method.attack
    assert (attack.eps, attack.steps, attack.step_size) == (4 / 255, 7, 1 / 255)


@pytest.mark.parametrize(
    ("method", "objective", "start"), [("part-t", "kl", "normal"), ("part-m", "ce", "normal")]
)
def test_beta_reaches_the_loss(method, objective, start):
    phase = main_phase("--beta", "2", method=method)
    assert phase.method.outer.beta == 2.0
    assert (phase.method.attack.objective, phase.method.attack.start) == (objective, start)


@pytest.mark.parametrize("scale", ["reduced", "paper"])
def test_the_published_rate_falls_in_the_last_epoch_at_every_scale(scale):
    def rates(*words):
        (config, _) = settings("--scale", scale, *words)
        return [
            phase.rate.at(epoch * 10, phase.steps, 10)
            for phase in build_phases(config, 10)
            for epoch in range(phase.steps // 10)
        ]

    first, *middle, last = rates("--official")
    assert middle == pytest.approx([first] * len(middle))
    assert last == pytest.approx(first / 10)
    assert sum(rate < 0.99 * first for rate in rates()) > 1


def test_milestones_count_over_the_whole_run_or_restart():
    words = ("--epochs", "6", "--warm-up", "2", "--adjust-first", "4", "--adjust-second", "9")
    total, restarted = main_phase(*words), main_phase(*words, "--lr-counter", "restarted")
    assert [total.rate.at(step * 10, 40, 10) for step in range(4)] == pytest.approx(
        [0.01, 0.001, 0.001, 0.001]
    )
    assert [restarted.rate.at(step * 10, 40, 10) for step in range(4)] == pytest.approx(
        [0.01, 0.01, 0.01, 0.001]
    )


def test_warm_up_is_part_of_the_epochs():
    warm, main = build_phases(settings("--epochs", "6", "--warm-up", "2")[0], 10)
    assert (warm.name, warm.steps, main.name, main.steps) == ("warm-up", 20, "main", 40)
    (only,) = build_phases(settings("--warm-up", "0")[0], 10)
    assert only.name == "main"


def test_mma_trains_warm_up_and_masked_phase_of_part():
    phases = build_phases(settings("--attack", "mma")[0], 10)
    assert [phase.method.attack.kind for phase in phases] == ["mma", "mma"]
    assert [phase.method.attack.targets for phase in phases] == [3, 3]


def test_rand_init_is_about_the_masked_mma_attack():
    phases = build_phases(settings("--attack", "mma", "--rand_init", "False")[0], 10)
    assert [phase.method.attack.start for phase in phases] == ["uniform", "none"]


IDLE = [
    (("--beta", "2"), "part", "beta"),
    (("--forwards", "two"), "part-m", "forwards"),
    (("--attack", "mma"), "part-t", "attack"),
    (("--attack", "mma"), "part-m", "attack"),
    (("--start", "unclipped"), "part-t", "start"),
    (("--rand-init", "False"), "part", "rand-init"),
    (("--pre-trained", "True"), "part", "pre-trained"),
    (("--low-epsilon", "6/255"), "at", "low-epsilon"),
    (("--mask-control", "random"), "trades", "mask-control"),
    (("--epochs", "3", "--main-steps", "5"), "part", "epochs"),
    (("--warm-up", "3", "--warm-up-steps", "5"), "part", "warm-up"),
    (("--adjust-first", "2", "--schedule", "linear"), "part", "adjust-first"),
    (("--lr-counter", "total", "--scale", "demo"), "part", "lr-counter"),
    (("--attack", "mma"), "natural", "attack"),
    (("--warm-up", "3"), "natural", "warm-up"),
    (("--save-weights", "3", "--mask-refresh", "step"), "part", "save-weights"),
    (("--aa-images", "5", "--final-tests", "pgd-20"), "part", "aa-images"),
    (("--num-steps", "5"), "natural", "num-steps"),
    (("--eps-ramp",), "natural", "eps-ramp"),
    (("--eps-ramp", "--warm-up", "0"), "part", "eps-ramp"),
    *(
        ((*words, *given), "part", flag)
        for words in (("--pre-trained", "--mask-refresh", "batch"), ("--epochs", "3", "--warm-up", "3"))
        for flag, *given in (
            ("low-epsilon", "--low-epsilon", "6/255"),
            ("cam", "--cam", "layercam"),
            ("cam-class", "--cam-class", "label"),
            ("mask-rule", "--mask-rule", "jet"),
            ("mask-control", "--mask-control", "random"),
            ("save-weights", "--save-weights", "2"),
        )
    ),
    (("--epochs", "3", "--warm-up", "3", "--mask-refresh", "batch"), "part", "mask-refresh"),
    (("--epochs", "3", "--warm-up", "3", "--start", "unclipped"), "part", "start"),
    (
        ("--epochs", "3", "--warm-up", "3", "--pre-trained", "--mask-refresh", "batch"),
        "part",
        "pre-trained",
    ),
]


@pytest.mark.parametrize(("words", "method", "flag"), IDLE)
def test_a_flag_without_effect_warns_once(words, method, flag):
    _, notes = settings(*words, method=method)
    assert len([note for note in notes if note.startswith(f"warning: --{flag} has no effect")]) == 1


USED = [
    (("--num-steps", "5", "--eps-ramp"), "at"),
    (("--low-epsilon", "6/255", "--cam", "layercam", "--mask-control", "random"), "part"),
    (("--pre-trained", "--mask-refresh", "batch"), "part"),
    (("--epochs", "3", "--warm-up", "3", "--main-steps", "2", "--low-epsilon", "6/255"), "part"),
]


@pytest.mark.parametrize(("words", "method"), USED)
def test_a_flag_with_effect_does_not_warn(words, method):
    _, notes = settings(*words, method=method)
    assert [note for note in notes if "--epochs" not in note and "--warm-up" not in note] == []


SHORT = [
    (("--epochs", "3"), 2, 1),
    (("--epochs", "20"), 19, 1),
    (("--epochs", "1"), 0, 1),
    (("--epochs", "21"), 20, 0),
    (("--scale", "demo", "--epochs", "3"), 2, 1),
    (("--scale", "reduced", "--epochs", "4"), 3, 1),
    (("--scale", "reduced", "--epochs", "5"), 4, 0),
    (("--scale", "demo"), 20, 0),
    (("--main-steps", "5"), 20, 0),
    (("--epochs", "3", "--warm-up", "3"), 3, 0),
]


@pytest.mark.parametrize(("words", "warm_up", "told"), SHORT)
def test_a_warm_up_that_nobody_gave_fits_into_the_epochs(words, warm_up, told):
    config, notes = settings(*words)
    assert config.warm_up == warm_up
    assert [f"--warm-up {warm_up} instead of" in note for note in notes] == [True] * told


def test_a_run_on_one_quadrant_has_no_flags_without_effect(capsys):
    with pytest.raises(SystemExit):
        regional.main(["--help"])
    said = capsys.readouterr().out
    assert "--low-epsilon" in said
    for flag in ("--aa-images", "--save-freq", "--final-tests"):
        assert flag not in said


def test_svhn_brings_its_published_settings_and_explicit_values_win():
    config, notes = settings("--data", "SVHN", "--lr", "0.05")
    assert (config.batch_size, config.weight_decay, config.step_size, config.lr) == (
        128,
        3.5e-3,
        1 / 255,
        0.05,
    )
    assert any("SVHN" in note and "0.0035" in note for note in notes)
    assert not any("lr " in note for note in notes)


def test_the_svhn_note_names_what_holds():
    config, (note,) = settings("--data", "SVHN", "--scale", "reduced")
    assert (config.lr, config.weight_decay) == (0.1, 5e-4)
    assert note == "SVHN: published settings batch_size 128, step_size 0.00392157"
    every = ("--batch-size", "64", "--weight-decay", "0", "--lr", "0.1", "--step-size", "2/255")
    assert settings("--data", "SVHN", *every)[1] == []


def test_pre_trained_budgets_are_read_by_batch_number(tmp_path, monkeypatch):
    budgets = [np.full((4, 3, 32, 32), value, dtype=np.float32) for value in (0.01, 0.02)]
    np.savez(tmp_path / "weighted_eps_list.npz", *budgets)
    monkeypatch.chdir(tmp_path)
    method = main_phase("--pre-trained", "--mask-refresh", "batch").method
    assert float(method.budgets.read(1, 4, (0, 2), IMAGE).max()) == pytest.approx(0.02)
    assert method.budgets.read(1, 4, (1, 4), IMAGE).shape == (3, 3, 32, 32)
    with pytest.raises(UserError, match="batch 2"):
        method.budgets.read(2, 4, (0, 4), IMAGE)
    with pytest.raises(UserError, match=r"has \(4, 3, 32, 32\) for batch 0; expected \(4, 3, 64, 64\)"):
        method.budgets.read(0, 4, (0, 4), torch.Size((3, 64, 64)))


@pytest.mark.parametrize("value", [5.0, -0.1, float("nan")])
def test_impossible_stored_budgets_are_refused(tmp_path, monkeypatch, value):
    np.savez(tmp_path / "weighted_eps_list.npz", np.full((4, 3, 32, 32), value, dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"budgets outside of \[0, 1\] in arr_0"):
        main_phase("--pre-trained", "--mask-refresh", "batch")


def test_stored_budgets_belong_to_part_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no file here: it must not even be looked for
    words = ("--pre-trained", "--mask-refresh", "batch")
    assert main_phase(*words, method="part-t").method.budgets is None
    assert any("belong to PART" in note for note in settings(*words, method="part-t")[1])


def _archive(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _array(value):
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


ODD_BUDGETS = {
    "missing": None,
    "no archive": b"no archive",
    "empty": b"",
    "one array": _array(np.zeros((4, 3, 32, 32))),
    "cut short": _archive(arr_0=np.zeros((4, 3, 32, 32)))[:200],
    "texts": _archive(arr_0=np.array(["a"])),
    "other names": _archive(eps=np.zeros((4, 3, 32, 32))),
}


@pytest.mark.parametrize("content", ODD_BUDGETS.values(), ids=ODD_BUDGETS)
def test_missing_or_odd_budgets_are_one_sentence(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("weighted_eps_list.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"weighted_eps_list\.npz"):
        main_phase("--pre-trained", "--mask-refresh", "batch")


def test_official_switches_all_axes_and_explicit_flags_win():
    config, _ = settings("--official", "--mask-rule", "cam")
    assert (config.mask_rule, config.mask_refresh, config.lr_counter) == ("cam", "batch", "restarted")
    assert (config.forwards, config.start) == ("two", "unclipped")


@pytest.mark.parametrize(("flag", "one", "two"), [("--start", True, False)])
def test_random_start_is_clipped_or_not(flag, one, two):
    assert main_phase(flag, "clipped").method.attack.clip_start is one
    assert main_phase(flag, "unclipped").method.attack.clip_start is two
    warm, _ = build_phases(settings(flag, "unclipped")[0], 10)
    assert warm.method.attack.clip_start is True


def test_forwards_of_trades():
    assert main_phase(method="part-t").method.outer.forwards == 1
    assert main_phase("--forwards", "two", method="part-t").method.outer.forwards == 2


@pytest.mark.parametrize("scale", ["smoke", "demo", "reduced"])
def test_scales_set_defaults_and_explicit_flags_win(scale):
    config, _ = settings("--scale", scale, "--num-steps", "3")
    assert config.num_steps == 3
    assert config.aa_images == 0
    assert config.validation > 0
    assert config.model in ("resnet8-s2", "resnet18-w16")


def test_epochs_replace_the_steps_of_a_scale():
    config, notes = settings("--scale", "demo", "--epochs", "3", "--warm-up", "1")
    natural, warm, main = build_phases(config, 10)
    assert (natural.steps, warm.steps, main.steps) == (200, 10, 20)
    assert notes == []
    config, _ = settings("--scale", "demo", "--warm-up", "2")
    assert [phase.steps for phase in build_phases(config, 10)] == [200, 20, SCALES["demo"]["main_steps"]]


def test_milestones_replace_the_linear_schedule_of_a_scale():
    config, notes = settings("--scale", "demo", "--adjust-first", "2", "--lr-counter", "restarted")
    assert (config.schedule, config.adjust_first, notes) == ("step", 2, [])


def test_images_for_autoattack_bring_all_final_tests():
    assert settings("--scale", "smoke", "--aa-images", "5")[0].final_tests == "all"
    assert settings("--scale", "smoke")[0].final_tests == "pgd-20"


def test_milestones_count_all_that_came_before():
    words = ("--natural-steps", "10", "--warm-up-steps", "20", "--main-steps", "30", "--adjust-first", "5")
    _, warm, main = build_phases(settings(*words)[0], 10)
    assert [warm.rate.at(step, 20, 10) for step in (0, 10)] == pytest.approx([0.01, 0.01])
    assert [main.rate.at(step, 30, 10) for step in (0, 10, 20)] == pytest.approx([0.01, 0.001, 0.001])


IMPOSSIBLE = {
    "--epochs 0 --warm-up 0": "leaves nothing to train",
    "--epochs 10 --warm-up 11": "lower --warm-up",
    "--aa-images -2": "--aa-images -2 is not possible",
    "--curve-images -1": "--curve-images -1 is not possible",
    "--seed 99999999999999999999": "--seed 99999999999999999999 is not possible",
    "--low-epsilon 9/255": "must lie between 0 and --epsilon",
}


@pytest.mark.parametrize("words", IMPOSSIBLE)
def test_impossible_settings_name_flag_and_remedy(words):
    with pytest.raises(UserError, match=IMPOSSIBLE[words]):
        settings(*words.split())


def test_a_baseline_takes_a_small_budget_alone():
    assert settings("--epsilon", "4/255", method="at")[0].epsilon == 4 / 255
    assert settings("--epsilon", "4/255", method="trades")[0].epsilon == 4 / 255


PREFIXES = {
    "--eps": "--epsilon", "--warm": "--warm-up", "--pre": "--pre-trained", "--ca": "--cam", "--dat": "--data",
    "--no": "--no-cuda", "--batch": "--batch-size", "--save_f": "--save-freq",
}  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_one_published_flag_is_that_flag(prefix):
    assert normalise_flags([prefix, "x"], PUBLISHED_FLAGS) == [PREFIXES[prefix], "x"]
    assert normalise_flags([f"{prefix}=x"], PUBLISHED_FLAGS) == [f"{PREFIXES[prefix]}=x"]


def test_every_flag_means_itself():
    parser = argparse.ArgumentParser()
    add_flags(parser, PartConfig)
    flags = [flag for flag in re.findall(r"--[a-z0-9-]+", parser.format_help()) if not flag.endswith("-")]
    assert set(PUBLISHED_FLAGS) <= set(flags)
    assert normalise_flags(flags, PUBLISHED_FLAGS) == flags


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("train_eval_part", "part, at, natural (default: part)"),
        ("train_eval_part_t", "part-t, trades (default: part-t)"),
        ("train_eval_part_m", "part-m, mart (default: part-m)"),
    ],
)
def test_help_shows_what_the_script_trains(script, shown, capsys):
    with pytest.raises(SystemExit):
        getattr(part.cli, script)(["--help"])
    assert shown in " ".join(capsys.readouterr().out.split())


def test_places_are_stored_so_that_a_run_resumes_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings("--data-dir", "images")[0].data_dir == str(tmp_path / "images")
    assert settings()[0].data_dir == str(tmp_path / "data")


def test_smoke_is_a_tenth_of_the_demo():
    smoke, demo = (settings("--scale", scale)[0] for scale in ("smoke", "demo"))
    for name in ("natural_steps", "warm_up_steps", "main_steps"):
        assert getattr(smoke, name) * 10 == getattr(demo, name)
