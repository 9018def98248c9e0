"""Flags derive from the configuration; mistakes are one sentence and exit code 2."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, replace

import pytest

from robust_core.cli import Parser, add_flags, fraction, guarded, main, normalise_flags, truth
from robust_core.config import RunConfig, config_from_dict, option
from robust_core.data import DatasetInfo
from robust_core.errors import UserError, UserNote, unknown_name


def parse(words, kind=RunConfig):
    parser = Parser(prog="test")
    add_flags(parser, kind)
    return vars(parser.parse_args(normalise_flags(words)))


def test_only_given_flags_appear():
    assert parse([]) == {}
    assert parse(["--batch-size", "7"]) == {"batch_size": 7}


@pytest.mark.parametrize("words", [["--data-dir", "a_b"], ["--data_dir", "a_b"], ["--data_dir=a_b"]])
def test_dashes_and_underscores(words):
    assert parse(words) == {"data_dir": "a_b"}


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("1", 1.0), ("2.5/255", 2.5 / 255)]
)
def test_fractions(text, value):
    assert fraction(text) == value
    assert parse(["--epsilon", text]) == {"epsilon": value}


@pytest.mark.parametrize("text", ["8/0", "eight", "1/2/3", ""])
def test_what_is_no_fraction(text):
    with pytest.raises(argparse.ArgumentTypeError):
        fraction(text)


@pytest.mark.parametrize(("words", "value"), [([], True), (["no"], False), (["True"], True), (["0"], False)])
def test_switches_take_words(words, value):
    assert parse(["--nesterov", *words]) == {"nesterov": value}


def test_switches_have_an_opposite():
    assert parse(["--no-nesterov"]) == {"nesterov": False}
    assert parse(["--no-cuda"]) == {"no_cuda": True}


def test_what_is_no_truth():
    with pytest.raises(argparse.ArgumentTypeError):
        truth("perhaps")


@pytest.mark.parametrize("words", [["--unknown", "1"], ["--selection", "bset"], ["--seed", "one"]])
def test_unknown_flags_and_words_exit_with_2(words, capsys):
    with pytest.raises(SystemExit) as left:
        parse(words)
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: test: ")
    assert told.count("\n") == 1
    assert "bset" not in words or "did you mean 'best'" in told


def test_prefixes_are_accepted():
    assert parse(["--batch", "9"]) == {"batch_size": 9}


def test_the_set_of_flags_is_kept():
    parser = argparse.ArgumentParser()
    add_flags(parser, RunConfig)
    names = {action.dest for action in parser._actions} - {"help"}
    assert names == {
        *("data", "data_dir", "train_subset", "validation", "subset_seed", "test_images", "curve_images"),
        *("model", "normalize", "batch_size", "epochs", "lr", "momentum", "weight_decay", "nesterov"),
        *("accumulate", "ema", "selection", "epsilon", "step_size", "num_steps", "seed", "device", "no_cuda"),
        *("threads", "precision", "train_precision", "compile", "sync_bn", "log_interval"),
        *("checkpoint_every", "tensorboard", "run_dir"),
    }


def test_mistakes_are_one_sentence(capsys):
    def mistake():
        raise UserError("The value 3 is wrong; use 2.")

    assert guarded(mistake) == 2
    assert capsys.readouterr().err == "error: The value 3 is wrong; use 2.\n"


def test_notes_are_one_line_and_other_warnings_as_they_were(capsys):
    def doubt():
        warnings.simplefilter("always")
        warnings.warn("No image of class 3.", UserNote, stacklevel=2)
        warnings.warn("something of a library", stacklevel=1)

    with warnings.catch_warnings(record=True) as told:
        assert guarded(doubt) == 0
    assert capsys.readouterr().err == "warning: No image of class 3.\n"
    assert [str(warning.message) for warning in told] == ["something of a library"]


def test_interruption_has_its_code():
    def stop():
        raise KeyboardInterrupt

    assert guarded(stop) == 130
    assert guarded(lambda: None) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 0}, "--batch-size 0"),
        ({"epsilon": -0.1}, "--epsilon -0.1"),
        ({"epsilon": float("nan")}, "--epsilon nan"),
        ({"epsilon": 8.0}, "pixels of"),
        ({"step_size": float("nan")}, "--step-size nan"),
        ({"lr": -1.0}, "--lr -1.0"),
        ({"momentum": 1.0}, "--momentum 1.0"),
        ({"ema": 1.5}, "--ema 1.5"),
        ({"num_steps": -1}, "--num-steps -1"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov"),
    ],
)
def test_impossible_settings_are_refused(changes, told):
    with pytest.raises(UserError, match=told):
        RunConfig(**changes).validate()


def test_the_best_needs_validation_images_whoever_brings_them():
    config = RunConfig(selection="best", validation=0)
    config.validate()
    info = DatasetInfo("any", "any", ("a", "b"), 32, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(UserError, match="test split never selects"):
        config.validate_for(info)
    config.validate_for(replace(info, own_validation=True))
    RunConfig(selection="best", validation=5).validate_for(info)


def test_configuration_survives_the_file():
    config = RunConfig(batch_size=7, epsilon=4 / 255, data_dir="x")
    assert config_from_dict(RunConfig, config.to_dict()) == config


def test_a_configuration_of_another_version_is_refused():
    with pytest.raises(
        UserError, match=r"other settings than this script \(gone\): another script or another version"
    ):
        config_from_dict(RunConfig, {**RunConfig().to_dict(), "gone": 1})


def test_options_of_a_subclass_come_along():
    @dataclass(frozen=True, kw_only=True)
    class Own(RunConfig):
        depth: int = option(3, "depth", group="own")

    assert parse(["--depth", "4", "--seed", "2"], Own) == {"depth": 4, "seed": 2}


def test_unknown_names_suggest_the_nearest():
    assert "did you mean 'svhn'" in str(unknown_name("dataset", "SVNH", ["svhn", "cifar10"]))
    assert "did you mean" not in str(unknown_name("dataset", "zzz", ["svhn"]))


def test_report_of_what_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "error:" in capsys.readouterr().err
