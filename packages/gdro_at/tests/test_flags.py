"""Every published flag of ``run_expt.py``: its default, what it changes, or its warning; and what is refused."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gdro_at.cli import PUBLISHED_FLAGS, training_script
from gdro_at.config import GdroConfig
from gdro_at.data import load_groups, read_table
from gdro_at.phases import build_phases
from gdro_at.plan import GdroPlan, test_attack
from gdro_at.units import UnitMeans
from gdro_at.weights import GroupRule, RuleState, step
from robust_core.cli import normalise_flags
from robust_core.errors import UserError
from robust_core.models import build_model

PUBLISHED = [
    *("dataset", "shift_type", "target_name", "confounder_names", "resume", "pth_name"),
    *("minority_fraction", "imbalance_ratio", "fraction", "root_dir", "reweight_groups"),
    *("augment_data", "val_fraction", "class_num", "robust", "alpha", "generalization_adjustment"),
    *("automatic_adjustment", "use_normalized_loss", "btl", "hinge", "model", "train_from_scratch"),
    *("n_epochs", "n_classes", "batch_size", "lr", "scheduler", "weight_decay", "gamma"),
    *("minimum_variational_weight", "log_dir", "log_dir_text", "name_index", "log_every", "save_step"),
    *("save_best", "save_last", "seed", "show_progress", "train_type", "test_type", "only_test", "gpu"),
    *("early_stop", "is_combine", "epsilon", "random_init", "attack_iters", "clmax", "clmin"),
    *("zennit_show", "beta", "eta", "tau", "lr_tau", "lamda", "alpha_", "l2_norm", "limit_nat"),
    *("limit_adv", "train_grad", "trades_new", "limit_eps", "robust_step_size"),
]  # fmt: skip
BASE = "-s confounder -d CUB -t waterbird_complete95 -c forest2water2"
SCRIPTS = ("waterbirds.sh", "celebA.sh")


def settings(words, base=BASE):
    read = training_script()
    return read.resolve(read.parse(shlex.split(f"{base} {words}"))[0])


def config_of(words, base=BASE):
    return settings(words, base)[0]


def warnings_of(words):
    return [note for note in settings(words)[1] if note.startswith("warning")]


def published_words(package, name):
    """The words of a shell script behind ``run_expt.py``."""
    text = (package / name).read_text(encoding="utf8").replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("exec python"))
    return line.partition('run_expt.py" ')[2].removesuffix('"$@"').strip()


@pytest.mark.parametrize(
    "words",
    [
        "-d Cifar -s confounder -t x -c y --n_epochs 120",
        "-d shapes --scale reduced --n_epochs 9 --schedule linear",
    ],
)
def test_fat_has_one_schedule_over_both_phases(words):
    def rates(kind):
        phases = build_phases(config_of(f"--train_type {kind}", words), 10)
        return [phase.rate.at(step, phase.steps, 10) for phase in phases for step in range(phase.steps)]

    assert len(build_phases(config_of("--train_type FAT", words), 10)) == 2
    assert rates("FAT") == pytest.approx(rates("trades"))


@pytest.mark.parametrize("scale", ["demo", "reduced"])
def test_official_selection_is_the_published_one_at_every_scale(scale):
    assert config_of(f"--scale {scale} --train_type erm --official", "").selection == "official"
    assert config_of(f"--scale {scale} --train_type erm", "").selection == "best"


def test_the_list_of_flags_is_the_published_one():
    assert sorted(PUBLISHED_FLAGS) == sorted("--" + name.replace("_", "-") for name in PUBLISHED)


def test_defaults_are_the_published_ones():
    config = config_of("")
    published = {
        "minority_fraction": None,
        "imbalance_ratio": None,
        "fraction": 1.0,
        "reweight_groups": False,
        "augment_data": False,
        "val_fraction": 0.1,
        "robust": False,
        "alpha": 0.2,
        "generalization_adjustment": "0.0",
        "automatic_adjustment": False,
        "use_normalized_loss": False,
        "btl": False,
        "hinge": False,
        "model": "resnet50",
        "train_from_scratch": False,
        "epochs": 4,
        "batch_size": 32,
        "lr": 0.001,
        "scheduler": False,
        "weight_decay": 5e-5,
        "gamma": 0.1,
        "minimum_variational_weight": 0.0,
        "log_dir": "./logs",
        "log_dir_text": "log.txt",
        "name_index": "unit",
        "log_every": 2000,
        "save_step": 100,
        "save_best": True,
        "save_last": True,
        "seed": 0,
        "show_progress": False,
        "train_type": "erm",
        "test_type": "erm",
        "only_test": False,
        "gpu": "0",
        "early_stop": False,
        "is_combine": False,
        "epsilon": 0.03,
        "num_steps": 10,
        "clmax": 1.0,
        "clmin": 0.0,
        "zennit_show": False,
        "beta": 6.0,
        "eta": 0.1,
        "l2_norm": 0.0,
        "limit_nat": False,
        "limit_adv": False,
        "train_grad": False,
        "trades_new": False,
        "limit_eps": 0.2,
        "robust_step_size": 0.01,
        "pth_name": "",
        "momentum": 0.9,
    }
    assert {name: getattr(config, name) for name in published} == published
    assert config.root_dir == str(Path("cub").absolute())
    # where the published default has no effect, or means the number of groups, none is the default here
    assert (config.random_init, config.tau, config.lr_tau, config.lamda, config.alpha_) == (None,) * 5
    assert config.class_num == config.n_classes == 0
    assert config.weights == "official"
    assert settings("")[1] == []


def phases(config):
    return GdroPlan().phases(config, 10)


def method(config):
    return phases(config)[-1].method


def of_method(name):
    return lambda config: getattr(method(config), name)


def of_rule(name):
    return lambda config: method(config).rule[name]


def of_attack(name):
    return lambda config: getattr(method(config).attack, name)


def of_config(name):
    return lambda config: getattr(config, name)


def train_counts(config):
    train = load_groups(config, lambda _: None)[0]
    return torch.bincount(train.groups, minlength=2).tolist()


def step_of_epsilon(config):
    return round(255 * method(config).attack.step, 6), round(255 * test_attack(config).eps, 6)


CIFAR = "-s label_shift_step -d CIFAR10 --minority_fraction 0.5 --imbalance_ratio 2 --root_dir {folders}"
ROBUST = "--robust --train_type erm"
GDRO = "--robust --train_type trades --trades_new"

# the flag with its value, the words around it, what is looked at, and what is seen with the flag and without
EFFECTIVE = [
    ("--dataset CelebA", "-t Blond_Hair -c Male", of_config("data"), "celeba", "waterbirds"),
    ("--shift_type label_shift_step", "-d CIFAR10 --minority_fraction 0.5 --imbalance_ratio 3 --root_dir {folders}",
     lambda c: len(set(train_counts(c))), 2, 10),
    ("--target_name Young", "-d CelebA -c Male --root_dir {faces}", lambda c: read_table(c).info.groups[0],
     "Young = 0, Male = 0", "Blond_Hair = 0, Male = 0"),
    ("--confounder_names Male Young", "-d CelebA -t Blond_Hair --root_dir {faces}",
     lambda c: len(read_table(c).info.groups), 8, 4),
    ("--fraction 0.9", "--root_dir {birds} --image-size 32", lambda c: len(read_table(c).positions("train")), 14, 16),
    ("--root_dir {birds}", "", lambda c: Path(c.root_dir).name, "{birds.name}", "cub"),
    ("--reweight_groups", "", of_config("balances_groups"), True, False),
    ("--augment_data", "--root_dir {birds} --image-size 32",
     lambda c: load_groups(c, lambda _: None)[0].info.resized_crop, True, False),
    ("--robust", "--train_type erm", of_rule("weighting"), "exponential", "mean"),
    ("--alpha 0.4", f"{ROBUST} --btl", of_rule("alpha"), 0.4, 0.2),
    ("--generalization_adjustment 1,2,3,4", ROBUST, of_rule("generalization_adjustment"), (1.0, 2.0, 3.0, 4.0), (0.0,)),
    ("--use_normalized_loss", ROBUST, of_rule("use_normalized_loss"), True, False),
    ("--btl", ROBUST, of_rule("weighting"), "greedy", "exponential"),
    ("--minimum_variational_weight 0.3", f"{ROBUST} --btl --weights corrected", of_rule("minimum_variational_weight"),
     0.3, 0.0),
    ("--gamma 0.5", ROBUST, of_rule("gamma"), 0.5, 0.1),
    ("--robust_step_size 0.2", ROBUST, of_rule("robust_step_size"), 0.2, 0.01),
    ("--limit_eps 0.5", f"{GDRO} --limit_nat", of_rule("limit_eps"), 0.5, 0.2),
    ("--limit_nat", ROBUST, of_rule("limit_nat"), True, False),
    ("--limit_adv", GDRO, of_rule("limit_adv"), True, False),
    ("--train_grad", ROBUST, of_rule("train_grad"), True, False),
    ("--trades_new", "--robust --train_type trades", of_method("own_weights"), True, False),
    ("--hinge", "--train_type erm", of_method("hinge_loss"), True, False),
    ("--model resnet8-s2", "", of_config("model"), "resnet8-s2", "resnet50"),
    ("--train_type CFA", "", lambda c: type(method(c)).__name__, "CFA", "GroupWeighted"),
    ("--test_type AA", "", lambda c: test_attack(c).kind, "AA", "erm"),
    ("--n_epochs 7", "", lambda c: phases(c)[0].steps, 70, 40),
    ("--batch_size 64", "", of_config("batch_size"), 64, 32),
    ("--lr 0.2", "", lambda c: phases(c)[0].rate.lr, 0.2, 0.001),
    ("--scheduler", "", of_method("lower_rate"), True, False),
    ("--weight_decay 0.1", "", of_method("weight_decay"), 0.1, 5e-5),
    ("--log_dir elsewhere", "", lambda c: c.run_dir.partition("/")[0], "elsewhere", "logs"),
    ("--log_every 3", "", of_method("log_every"), 3, 2000),
    ("--seed 3", "", of_config("seed"), 3, 0),
    ("--only_test", "--pth_name w.pth", lambda c: phases(c)[0].steps, 0, 40),
    ("--is_combine", "", lambda c: len(phases(c)), 2, 1),
    ("--epsilon 4/255", "--train_type pgd", step_of_epsilon, (1.0, 4.0), (1.9125, 7.65)),
    ("--random_init 0.002", "--train_type pgd", of_attack("noise"), 0.002, None),
    ("--attack_iters 3", "--train_type pgd", of_attack("steps"), 3, 10),
    ("--clmax 0.8", "--train_type pgd", of_attack("clip"), (0.0, 0.8), (0.0, 1.0)),
    ("--clmin 0.2", "--train_type pgd", of_attack("clip"), (0.2, 1.0), (0.0, 1.0)),
    ("--beta 2", "--train_type trades", of_method("beta"), 2.0, 6.0),
    ("--eta 0.5", "--train_type WAT", of_method("eta"), 0.5, 0.1),
    ("--tau 0.02", "--train_type uni", of_method("tau"), 0.02, None),
    ("--lr_tau 0.5", "--train_type uni", of_method("lr_tau"), 0.5, 0.02),
    ("--lamda 3", "--train_type uni", of_method("lamda"), 3.0, 1.0),
    ("--alpha_ 1/255", "--train_type uni", of_method("alpha"), 1 / 255, None),
    ("--minority_fraction 0.3", CIFAR, lambda c: train_counts(c).count(min(train_counts(c))), 3, 5),
    ("--imbalance_ratio 5", CIFAR, lambda c: max(train_counts(c)) // min(train_counts(c)), 5, 2),
    ("--val_fraction 0.5", CIFAR, lambda c: len(load_groups(c, lambda _: None)[1]), 30, 6),
]  # fmt: skip
IGNORED = ["--n_classes 3", "--automatic_adjustment", "--show_progress", "--early_stop", "--l2_norm 0.5"]
# tested by name, here (gpu, class_num, pth_name, ...) or with the files that they name (test_scripts.py)
ELSEWHERE = [
    *("--resume", "--pth_name", "--class_num", "--train_from_scratch", "--gpu", "--zennit_show"),
    *("--log_dir_text", "--name_index", "--save_step", "--save_best", "--save_last"),
]


class Info:
    num_classes, size, mean, std = 2, 64, (0.5,) * 3, (0.5,) * 3


INFO = Info()


def flag_of(words):
    return words.split()[0]


def test_every_published_flag_has_a_test():
    tested = [*(flag_of(case[0]) for case in EFFECTIVE), *map(flag_of, IGNORED), *ELSEWHERE]
    assert sorted(tested) == sorted(f"--{name}" for name in PUBLISHED)


@pytest.mark.parametrize("spelling", ["_", "-"])
@pytest.mark.parametrize(
    ("words", "around", "seen", "given", "default"), EFFECTIVE, ids=[flag_of(case[0]) for case in EFFECTIVE]
)
def test_a_flag_has_its_effect(words, around, seen, given, default, spelling, birds, faces, folders):
    paths = {"birds": birds, "faces": faces, "folders": folders}
    flag, _, value = words.partition(" ")
    flag = "--" + flag[2:].replace("_", spelling)
    if flag_of(words) == "--alpha_":
        flag = f"--alpha{spelling}"
    base = "-d CIFAR10 --root_dir {folders}" if "shift_type" in words else BASE
    if "-d CelebA" in around:
        base = "-t Blond_Hair -c Male"
    without = f"{base} {around}".format(**paths)
    if flag_of(words) == "--only_test":
        without = base
    if "shift_type" in words:
        without = f"{base} --validation 10".format(**paths)
    with_flag = f"{base} {around} {flag} {value}".format(**paths)
    if isinstance(given, str):
        given = given.format(**paths)
    if flag_of(words) == "--shift_type":  # the published label shift leaves equal classes as they are
        assert seen(config_of(with_flag, "")) == given
        return
    assert seen(config_of(without, "")) == default
    assert seen(config_of(with_flag, "")) == given
    assert not [note for note in settings(with_flag, "")[1] if flag[2:].replace("_", "-") in note]


@pytest.mark.parametrize("words", IGNORED)
def test_an_ignored_flag_is_listed_as_such_and_warns(words, capsys):
    flag = flag_of(words).replace("_", "-")
    assert any(f"{flag} has no effect" in note for note in warnings_of(words))
    with pytest.raises(SystemExit):
        training_script().parse(["--help"])
    said = capsys.readouterr().out
    assert flag in said[said.index("\nignored:") :]


IDLE = [
    *("--tau 0.5", "--lr_tau 0.5", "--lamda 3", "--alpha_ 0.5", "--robust --train_type BAT", "--trades_new"),
    *("--limit_nat", "--limit_adv", "--train_grad", "--btl", "--use_normalized_loss", "--alpha 0.3", "--beta 3"),
    *("--eta 0.5", "--clmin 0.1", "--clmax 0.9", "--minority_fraction 0.3", "--imbalance_ratio 10"),
    *("--val_fraction 0.3", "--class_num 4 --hinge --train_type trades", "--minimum_variational_weight 0.1"),
    "--minimum_variational_weight 0.1 --robust --btl --official",
    *("--pth_name x", "--checkpoints a", "--metadata x.csv"),
    *("--gamma 0.3 --train_type WAT", "--robust_step_size 0.1", "--limit_eps 0.1", "--log_every 3 --train_type WAT"),
    *("--generalization_adjustment 3", "--random_init 0.1", "--attack_iters 3", "--normalize", "--weights corrected"),
    *("--weights_sign plus", "--adv_scale mean", "--weights_sign plus --robust --train_type pgd", "--forwards two"),
    *("--fair_over class", "--combine_epochs 3", "--warm_start x", "--no-uniform-term", "--scheduler --train_type BAT"),
    *("--scheduler --train_type unitrades", "--image_size 64 -d shapes", "--skip_unreadable -d CIFAR10"),
    *("--fraction 0.5 -s label_shift_step -d CIFAR10 --minority_fraction .5 --imbalance_ratio 2",),
    *("--pretrained x --only_test --pth_name y", "--trades_new --train_type pgd"),
    *("--augmentation official", "--test_start official"),
    *("--tau 0.01", "--lamda 1", "--alpha_ 0.01", "--lr_tau 0", "--generalization_adjustment 2"),
    *("--beta 3 --train_type FAT --official", "--beta 3 --train_type FAT --warm_start x"),
    *("--beta 3 --train_type FAT --n_epochs 1", "--forwards two --train_type FAT --warm_start x"),
    *("--forwards two --train_type uni", "--forwards two --train_type unimart"),
    *("--limit_adv --train_type CGD", "--limit_eps 0.3 --limit_adv --train_type CGD"),
    *("--hinge --train_type WAT", "--hinge --train_type trades --natural_steps 5 --only_test --pth_name y"),
    *("--clmax 0.9 --train_type FAT --only_test --pth_name y", "--clmax 0.9 --train_type trades --test_type AA"),
    *(f"{flag} --only_test --pth_name y" for flag in ("--lr 3", "--beta 3 --train_type trades", "--reweight_groups")),
    # the greedy rule sorts the groups: nothing is multiplied, bounded or averaged
    *(f"{flag} --robust --btl" for flag in (
        *("--robust_step_size 0.1", "--limit_nat", "--train_grad", "--use_normalized_loss", "--weights corrected"),
        *("--limit_eps 0.3 --limit_nat", "--weights_bound clip --limit_nat", "--weights_updates once"),
        *("--weights_absent moved", "--weights_running_mean log --train_grad"),
        "--weights_adjust copy --generalization_adjustment 3",
    )),
    # one change that changes nothing: the row of an ablation would be its base
    *(f"{flag} --robust --trades_new --train_type trades" for flag in (
        *("--weights_bound clip", "--weights_running_mean log --limit_nat", "--weights_adjust copy"),
        *(f"{flag} --adv_weights {kind}" for kind in ("uniform", "natural") for flag in (
            *("--limit_adv", "--weights_sign plus", "--weights_bound clip --limit_adv", "--limit_eps 0.3 --limit_adv"),
        )),
    )),
    *(f"{flag} --trades_new --train_type trades" for flag in (
        *("--weights_updates once", "--weights_absent moved --adv_weights uniform"),
        "--robust_step_size 0.1 --adv_weights natural",
    )),
]  # fmt: skip


@pytest.mark.parametrize("words", IDLE)
def test_a_flag_without_effect_on_this_run_says_so(words):
    flag = [word for word in words.split() if word.startswith("--")]
    told = " ".join(warnings_of(words))
    name = "hinge" if "hinge" in words else flag[0][2:].removeprefix("no-").replace("_", "-")
    name = "alpha_" if name == "alpha-" else name
    assert f"--{name} has no effect here" in told


NOT_IDLE = [
    "--limit_adv --train_type CGD --official",
    "--limit_eps 0.3 --train_type CGD --limit_adv --official",
    "--beta 3 --forwards two --train_type FAT",
    "--gamma 0.3 --log_every 3 --train_type FAT",
    "--alpha 1.5 --btl --robust",
    "--weights corrected --weights_adjust copy --generalization_adjustment 1,-1,1,1 --btl --robust",
    "--robust_step_size 0.1 --limit_adv --limit_eps 0.3 --btl --robust --trades_new --train_type trades",
    "--weights_absent moved --weights_bound clip --limit_adv --trades_new --train_type trades",
    "--weights_bound clip --limit_nat --robust",
    "--weights_running_mean log --train_grad --weights_updates once --robust",
    "--weights_adjust copy --generalization_adjustment 3 --robust",
    "--generalization_adjustment 1 --train_type CGD",
    "--robust_step_size 0.1 --train_type CGD",
    "--beta 3 --train_type CGD",
    "--weights corrected --train_type trades --trades_new",
    "--adv_scale four --robust --trades_new --train_type trades",
    "--imbalance_ratio 10 -d CIFAR10",
    "--image_size 64",
    "--scheduler --train_type CFA",
    "--test_epsilon 0.1",
    "--test_epsilon 0.1 --batch_size 8 --weight_decay 0.1 --hinge --only_test --pth_name y",
    "--clmax 0.9 --train_type FAT --test_type AA",
    "--hinge --train_type WAT --official",
    "--hinge --train_type trades --natural_steps 5",
    "--attack_iters 3 --train_type DAFA",
    "--early_stop no",
    # what the published commands write out, whatever is appended to them
    "--l2_norm 0.00 --lamda 1 --tau 0.01 --alpha_ 0.01 --lr_tau 0.0 --clmax 1.0 --clmin 0.0 --random_init 0.0001"
    " --generalization_adjustment 2",
]


@pytest.mark.parametrize("words", NOT_IDLE)
def test_no_warning_where_a_flag_has_an_effect_or_its_published_value(words):
    assert warnings_of(words) == []


def test_flags_of_training_share_one_warning_where_nothing_is_trained():
    words = (
        "--only_test --pth_name y --reweight_groups --lr 3 --train_type trades --n_epochs 9 --beta 3 --eta 3"
    )
    assert warnings_of(words) == [
        "warning: --reweight-groups, --lr, --n-epochs, --beta, --eta have no effect here: --only-test trains nothing"
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--train_type erm", True),
        ("--train_type trades", False),
        ("--train_type WAT", False),
        ("--train_type trades --official", True),
        ("--train_type WAT --official", True),
    ],
)
def test_the_hinge_validates_where_it_trains_and_officially_everywhere(words, told):
    assert config_of(f"--hinge {words}").validates_by_hinge == told
    assert not config_of(words).validates_by_hinge


def test_fat_validates_in_the_pixels_of_the_flags():
    assert method(config_of("--train_type FAT --clmin 0.1 --clmax 0.9")).validation_clip == (0.1, 0.9)


RULE_BASES = [
    "",
    "--robust",
    "--robust --train_grad",
    "--robust --limit_nat --limit_eps 0.3",
    "--robust --generalization_adjustment 1,0,2,0",
    "--robust --btl",
    "--robust --btl --limit_nat --train_grad --generalization_adjustment 1,2,1,1",
    "--robust --btl --generalization_adjustment 1,-4,1,1",
    "--train_type trades --trades_new",
    "--train_type trades --trades_new --limit_adv --limit_eps 0.3",
    "--train_type trades --trades_new --robust --limit_adv --train_grad --use_normalized_loss",
    "--train_type trades --trades_new --robust --btl --limit_adv --limit_nat",
    "--train_type trades --trades_new --robust --adv_weights uniform --limit_adv",
    "--train_type trades --trades_new --adv_weights uniform --limit_adv",
    "--train_type trades --trades_new --robust --btl --adv_weights natural",
]
RULE_FLAGS = [
    *("--robust_step_size 0.2", "--limit_nat", "--limit_adv", "--limit_eps 0.02", "--train_grad"),
    *("--use_normalized_loss", "--generalization_adjustment 0,9,0,0", "--minimum_variational_weight 0.3"),
    *("--weights_sign minus", "--weights_updates published", "--weights_bound clip", "--weights_absent moved"),
    *("--weights_running_mean log", "--weights_adjust in_place", "--adv_scale sum"),
]  # fmt: skip


def weights_of_some_steps(config):
    """The weights and the loss of three steps of a configuration's rule, in the first of which group 0 is absent."""
    chosen = method(config)
    rule = GroupRule(training_counts=(90.0, 4.0, 25.0, 49.0), **chosen.rule)
    state, seen = RuleState.start(rule), []
    generator = torch.Generator().manual_seed(3)
    for number in range(3):
        counts = torch.tensor([float(number > 0), 2, 5, 1 + number])
        losses = (4 * torch.rand(2, 4, generator=generator) + 0.1) * (counts > 0)
        adversarial = UnitMeans(losses[1], counts) if chosen.own_weights else None
        taken = step(rule, state, UnitMeans(losses[0], counts), adversarial)
        state = taken.state
        seen += [
            taken.loss,
            *(w for w in (taken.natural_weights, taken.adversarial_weights) if w is not None),
        ]
    return torch.cat([values.flatten() for values in seen])


@pytest.mark.parametrize("around", RULE_BASES)
def test_a_flag_of_the_weights_is_told_exactly_where_it_changes_none(around):
    base = f"--weights corrected --robust_step_size 0.1 {around}"
    config, notes = settings(base)
    plain = weights_of_some_steps(config)
    official = weights_of_some_steps(replace(config, weights="official"))
    assert ("--weights has no effect here" in " ".join(notes)) == torch.equal(plain, official)
    for flag in RULE_FLAGS:
        if flag_of(flag) in around.split():
            continue
        changed, notes = settings(f"{base} {flag}")
        told = f"--{flag_of(flag)[2:].replace('_', '-')} has no effect here" in " ".join(notes)
        assert told == torch.equal(plain, weights_of_some_steps(changed)), flag


def test_of_a_published_command_only_what_was_changed_is_told(package):
    words = published_words(package, "waterbirds.sh")
    (told,) = [note for note in settings(f"{words} --tau 0.5", "")[1] if note.startswith("warning")]
    assert "--tau has no effect here" in told


def test_beta_of_fat_is_that_of_its_trades_phase():
    first, main = phases(config_of("--train_type FAT --beta 3"))
    assert (first.method.family, first.method.beta) == ("trades", 3.0)
    assert main.method.beta == 1.0


@pytest.mark.parametrize("name", SCRIPTS)
def test_published_command_lines_parse_and_the_last_value_wins(package, name):
    words = published_words(package, name)
    config, notes = settings(words, "")
    assert notes == []
    epochs = {"waterbirds.sh": 200, "celebA.sh": 50}[name]
    assert (config.epochs, config.lr, config.weight_decay, config.beta) == (epochs, 1e-4, 5e-5, 6.0)
    assert (config.epsilon, config.random_init, config.num_steps) == (0.00196, 1e-4, 10)
    assert (config.lamda, config.tau, config.alpha_, config.lr_tau) == (1.0, 0.01, 0.01, 0.0)
    dataset = {"waterbirds.sh": "CUB", "celebA.sh": "CelebA"}[name]
    assert config.run_dir == f"logs/1-{dataset}-trades-pgd-reTrue-roTrue-0.00010.00196"
    chosen = method(config)
    assert chosen.own_weights
    assert chosen.attack.eps == pytest.approx(0.00196)
    rule = {name: chosen.rule[name] for name in ("weighting", "train_grad", "limit_nat", "limit_adv", "sign")}
    assert rule == {
        "weighting": "exponential",
        "train_grad": True,
        "limit_nat": True,
        "limit_adv": True,
        "sign": "minus",
    }
    again = config_of(f"{words} --n_epochs 1 --model resnet18-w16 --train_from_scratch --lr 0.5", "")
    assert (again.epochs, again.model, again.lr) == (1, "resnet18-w16", 0.5)


def test_published_command_lines_are_those_of_the_facts(package):
    """The command of both scripts, word for word (flags.md, section 3)."""
    common = (
        "--batch_size 32 --weight_decay 0.00005 --model resnet50 --n_epochs {epochs} --gamma 0.1"
        " --generalization_adjustment 2 --train_type trades --log_dir_text {log} --test_type pgd --random_init 0.0001"
        " --epsilon 0.00196 --attack_iters 10 --lamda 1 --tau 0.01 --alpha_ 0.01 --gpu 0 --name_index robust"
        " --log_dir 'logs' --l2_norm 0.00 --lr_tau 0.0 --beta 6.0 --clmax 1.0 --clmin 0.0 --robust --trades_new"
        " --train_grad --limit_nat --limit_adv --reweight_groups"
    )
    birds = f"{BASE} --lr 0.0001 {common.format(epochs=200, log='log.txt')}"
    faces = f"-s confounder -d CelebA -t Blond_Hair -c Male --lr 0.0001 {common.format(epochs=50, log='log_.txt')}"
    for name, words in zip(SCRIPTS, (birds, faces), strict=True):
        assert published_words(package, name).split() == words.split()


REFUSED = [
    ("--train_type TRADES", "'TRADES'"),
    ("--train_type nonsense", "Unknown train-type"),
    ("--test_type CW", "Unknown test-type"),
    ("-d Waterbird", "Unknown dataset"),
    ("-s label_shift", "Unknown shift-type"),
    (
        "-d MultiNLI -t gold_label_random -c sentence2_has_negation --model bert",
        "text, which is out of scope",
    ),
    ("--model bert", "reads text"),
    ("--model inception_v3", "inception_v3"),
    ("--model resnet17", "did you mean 'resnet18'"),
    ("-d Skin", "-d table --metadata"),
    ("-d Skin", "relative to --root-dir"),
    ("-d table", "needs --metadata"),
    ("-d CelebA -s label_shift_step", "is about CIFAR10"),
    ("-d CIFAR10 -s label_shift_step --minority_fraction 0.3", "needs --imbalance-ratio"),
    ("--generalization_adjustment 1,x", "one number or one per group"),
    ("--only_test", "name them with --pth-name"),
    ("--resume", "name them with --pth-name"),
    ("--resume --train_type pgd", "name them with --pth-name"),
    ("--resume nowhere", "nowhere"),
    ("--alpha 0 --robust", "--alpha 0.0 is not possible"),
    ("--fraction 0", "--fraction 0.0 is not possible"),
    ("--fraction nan", "--fraction nan is not possible"),
    ("--gamma -1", "--gamma -1.0 is not possible"),
    ("--gamma 3 --robust", "--gamma 3.0 is not possible"),
    ("--gpu 0,1", "--gpu 0,1 is not possible"),
    ("--epsilon 8", "--epsilon 8 "),
    ("--epsilon eight", "eight"),
    ("--clmin 0.5 --clmax 0.5", "less than --clmax"),
    ("--train_type pgd --clmin -3", "--clmin -3.0 is not possible; expected a pixel from 0 to 1"),
    ("--train_type pgd --clmax 3", "--clmax 3.0 is not possible; expected a pixel from 0 to 1"),
    ("--train_type pgd --clmax nan", "--clmax nan is not possible"),
    (
        "--train_subset 20 -d CIFAR10 --imbalance_ratio 2",
        "--train-subset 20 is not possible with --imbalance-ratio 2",
    ),
    (
        "--train_subset 20 -d CIFAR10 -s label_shift_step --minority_fraction 0.5 --imbalance_ratio 2",
        "--train-subset 20 is not possible with -s label_shift_step",
    ),
    ("--log_every 0", "--log-every 0 is not possible"),
    ("--save_step 0", "--save-step 0 is not possible"),
    ("--image_size 100", "a multiple of 32"),
    ("--train_from_scratch --pretrained x.pth", "contradict"),
    ("--train_type DAFA --fair_over group", "not possible with DAFA"),
    ("--accumulate 2", "--accumulate 2 is not possible"),
    ("-d Covid --pixels official --train_type CFA", "normalises COVID's images"),
    ("-d Covid --pixels official --test_type AA", "normalises COVID's images"),
    ("--is_combine --train_type CFA", "average of networks"),
    ("--train_type FAT --resume --pth_name a --warm_start b", "--warm-start and --pth-name both say"),
    ("--train_type FAT --only_test --pth_name a --warm_start b", "--warm-start and --pth-name both say"),
    ("--train_type CFA --ema 0.99", "--ema 0.99 is not possible with --train-type CFA"),
    ("--is_combine --ema 0.99", "--ema 0.99 is not possible with --is-combine"),
    ("--train_type uni --tau 0", "--tau 0.0 is not possible"),
    ("--train_type uni --lamda nan", "--lamda nan is not possible"),
    ("--train_type uni --lr_tau -1", "--lr-tau -1.0 is not possible"),
    ("--random_init -1 --train_type pgd", "--random-init -1.0 is not possible"),
    ("--test_epsilon 3 --test_type pgd", "--test-epsilon 3"),
    ("--combine_epochs 0 --is_combine", "--combine-epochs 0 is not possible"),
    ("--minority_fraction 2 -d CIFAR10 -s label_shift_step --imbalance_ratio 2", "--minority-fraction 2.0"),
    ("--imbalance_ratio 0.5 -d CIFAR10", "--imbalance-ratio 0.5"),
    ("--minimum_variational_weight 2 --robust --btl --weights corrected", "--minimum-variational-weight 2.0"),
    ("--name_index a/b", "--name-index a/b is not"),
    ("--no-such-flag 3", "unrecognized arguments"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_mistake_is_one_sentence_and_exit_code_2(expt, words, told, tmp_path):
    done = expt(*shlex.split(f"{BASE} {words}"))
    assert done.code == 2
    assert told in done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_data_set_must_be_named(expt):
    done = expt("--train_type", "erm")
    assert done.code == 2
    assert "needs -d" in done.err


@pytest.mark.parametrize(("missing", "flag"), [("-t waterbird_complete95", "-t"), ("-c forest2water2", "-c")])
def test_target_and_confounders_must_be_named(expt, missing, flag):
    done = expt(*BASE.replace(missing, "").split())
    assert done.code == 2
    assert f"({flag})" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--class_num 3 --train_type WAT", "--class-num 3 is not possible; expected the 4 groups"),
        (
            "--class_num 4 --train_type WAT --fair_over class",
            "--class-num 4 is not possible; expected the 2 classes",
        ),
        (
            "--generalization_adjustment 1,2,3,4 --train_type CGD --fair_over class",
            "one for each of the 2 classes",
        ),
        ("--generalization_adjustment 1,2,3", "one number, or one for each of the 4 groups"),
        (
            "--hinge -d CIFAR10 --validation 10 --root_dir {folders}",
            "--hinge is about two classes, but the data have",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused(expt, birds, folders, words, told, tmp_path):
    words = f"{BASE} --model resnet8-s2 --train_from_scratch --image-size 32 --root_dir {birds} {words}"
    done = expt(*shlex.split(words.format(folders=folders)))
    assert done.code == 2, done.err
    assert told in done.err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "words",
    [
        "--class_num 0 --train_type WAT",
        "--class_num 4 --train_type WAT",
        "--class_num 2 --train_type WAT --fair_over class",
        "--generalization_adjustment 1,2 --train_type CGD --fair_over class",
        "--generalization_adjustment 1,2,3,4 --robust --train_type erm",
    ],
)
def test_the_number_of_units_is_accepted(words, birds):
    config = config_of(f"{words} --image-size 32 --root_dir {birds}")
    config.validate_for(read_table(config).info)
    assert warnings_of(words) == []


def test_official_pixels_may_be_clipped_elsewhere():
    config = config_of("--clmin -3 --clmax 3 --train_type pgd --official")
    assert (config.clmin, config.clmax) == (-3.0, 3.0)


@pytest.mark.parametrize(
    ("data", "epsilon"), [("{cifar}", "rate"), ("{cifar} --lr 0.3", "wins")], ids=["rate", "given"]
)
def test_the_published_rate_of_cifar(data, epsilon):
    config, notes = settings(data.format(cifar="-d Cifar"), "")
    (phase,) = phases(config)
    rates = [phase.rate.at(10 * (epoch - 1), 1200, 10) for epoch in (75, 76, 91, 101)]
    expected = [1e-2, 1e-3, 1e-4, 1e-5] if epsilon == "rate" else [0.3] * 4
    assert rates == pytest.approx(expected)
    assert any(epsilon in note for note in notes)


def test_the_gpu_is_that_of_the_flag_but_each_process_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert config_of("--gpu 1").device == "cuda:1"
    assert config_of("--gpu 1 --device cpu").device == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert config_of("--gpu 0").device == "auto"
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert config_of("--gpu 1").device == "auto"


def test_weights_for_a_new_run_or_a_test_come_from_pth_name(tmp_path):
    donor = build_model("resnet8-s2", 2, image_size=64, seed=9, mean=INFO.mean, std=INFO.std).state_dict()
    torch.save(donor, tmp_path / "w.pth")
    for words in ("--resume", "--only_test"):
        config = config_of(f"{words} --pth_name {tmp_path}/w.pth --model resnet8-s2 --image-size 64")
        network = GdroPlan().network(config, INFO, fresh=True)
        assert all(torch.equal(value, donor[name]) for name, value in network.state_dict().items())


def test_the_network_is_that_of_the_flag():
    network = GdroPlan().network(config_of("--model resnet8-s2 --train_from_scratch"), INFO, fresh=True)
    assert network.state_dict().keys() == build_model("resnet8-s2", 2, image_size=64).state_dict().keys()


def test_from_scratch_fetches_nothing_and_otherwise_imagenet_weights_are_asked_for(monkeypatch):
    def refuse(name):
        raise UserError(f"fetched {name}")

    monkeypatch.setattr("gdro_at.networks._imagenet_state", refuse)
    with pytest.raises(UserError, match="fetched resnet18"):
        GdroPlan().network(config_of("--model resnet18"), INFO, fresh=True)
    GdroPlan().network(config_of("--model resnet18 --train_from_scratch"), INFO, fresh=True)
    GdroPlan().network(config_of("--model resnet18 --train_type CFA --train_from_scratch"), INFO, fresh=True)


def test_official_switches_all_published_behaviour_on():
    config = config_of("--official --train_type trades --trades_new --robust --weights corrected")
    assert (config.selection, config.pixels, config.weights) == ("official", "official", "corrected")
    assert config.test_eps == 0.00196
    assert config.natural_forwards == 2
    assert (config.swaps_augmentation, test_attack(config).start) == (True, 1e-4)
    assert method(config).attack.noise == 1e-4
    assert not method(config).attack.clip_start
    assert config_of("--official --train_type pgd --random_init 0.3").random_init == 0.3


@pytest.mark.parametrize("base", ["", "--official "])
def test_the_test_attacks_start_has_a_flag_of_its_own(base):
    assert test_attack(config_of(f"{base}--test_type pgd --test_start ball")).start is None
    assert test_attack(config_of(f"{base}--test_type pgd --test_start official")).start == 1e-4
    assert (test_attack(config_of(f"{base}--test_type pgd")).start == 1e-4) == bool(base)


@pytest.mark.parametrize("base", ["", "--official "])
def test_cifar_augmentation_has_a_flag_of_its_own(base, folders):
    def padding_and_test(words):
        config = config_of(f"{base}{words}", f"-d CIFAR10 --root_dir {folders} --validation 10")
        train, _, test = load_groups(config, lambda _: None)
        return train.info.crop_padding, test.images.numpy().tobytes()

    plain = padding_and_test("--augmentation here")
    assert plain[0] == 0
    assert padding_and_test("--augmentation here --augment_data") == (4, plain[1])
    swapped = padding_and_test("--augmentation official")
    assert swapped[0] == 4
    assert swapped[1] != plain[1]
    assert padding_and_test("--augmentation official --augment_data") == plain
    assert padding_and_test("") == (swapped if base else plain)


def test_the_rows_of_erm_are_selected_by_natural_accuracy_only_officially():
    words = "--test_type pgd"
    assert config_of(words).selection_score == "attacked_worst_group"
    assert config_of(f"{words} --selection official").selection_score == "natural_worst_group"
    assert (
        config_of(f"{words} --selection official --train_type pgd").selection_score == "attacked_worst_group"
    )


@pytest.mark.parametrize("clip", [(0.0, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize("start", ["", "--official"])
def test_the_published_test_attack_keeps_to_the_given_pixels(clip, start):
    attack = test_attack(
        config_of(f"--test_type pgd --test_epsilon 0.1 --clmin {clip[0]} --clmax {clip[1]} {start}")
    )
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(192, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 0, 1])
    images = images.clamp(*clip)
    found = attack(lambda points: points.flatten(1) @ weight, images, labels, torch.full_like(images, 0.5))
    assert float(found.min()) >= clip[0] - 1e-6
    assert float(found.max()) <= clip[1] + 1e-6
    # of a linear network the strongest point is known
    away = (weight[:, 1] - weight[:, 0]).view(3, 8, 8).sign() * (1 - 2 * labels).view(4, 1, 1, 1)
    assert torch.allclose(found, (images + 0.1 * away).clamp(*clip), atol=1e-5)


def test_saving_is_on_and_can_be_turned_off():
    assert config_of("--save_best --save_last").save_best
    config = config_of("--no_save_best --no_save_last")
    assert not config.save_best
    assert not config.save_last


def test_run_folders_are_numbered_as_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "CUB-erm-erm-reFalse-roFalse-0.010.03"
    assert config_of("").run_dir == f"logs/1-{name}"
    (tmp_path / "logs" / "anything").mkdir(parents=True)
    (tmp_path / "logs" / "file").touch()
    assert config_of("").run_dir == f"logs/2-{name}"
    (tmp_path / "logs" / f"3-{name}").mkdir()
    assert config_of("").run_dir == f"logs/4-{name}"
    assert config_of("--run-dir mine").run_dir == "mine"


def test_help_shows_the_published_defaults_and_no_hidden_setting(capsys):
    with pytest.raises(SystemExit):
        training_script().parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(re.search(rf"(^| |,){flag}[ ,]", said) for flag in PUBLISHED_FLAGS)
    assert "(default: resnet50)" in said
    assert "--resume-weights" not in said


def test_an_abbreviation_means_the_published_flag():
    assert config_of("--robust_s 0.5").robust_step_size == 0.5
    assert config_of("--augment").augment_data
    known = normalise_flags(["--alpha_", "3", "--alpha", "0.3"], PUBLISHED_FLAGS)
    assert known == ["--alpha-", "3", "--alpha", "0.3"]


def test_every_setting_of_a_configuration_survives_its_record():
    from robust_core.config import config_from_dict

    config = config_of("--train_type uni --alpha_ 1/255 --random_init 0.1")
    assert config_from_dict(GdroConfig, config.to_dict()) == config


def test_zennit_show_draws_the_given_checkpoints_and_trains_nothing(expt, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr("gdro_at.draw.run", lambda *arguments: called.append(arguments))
    done = expt(
        *BASE.split(), "--zennit_show", "--checkpoints", "BAT=a.pth", "GDRO=b.pth", "--model", "pre18"
    )
    assert done.code == 0, done.err
    _, networks, places, experiment = called[0]
    assert places == ["BAT=a.pth", "GDRO=b.pth"]
    assert networks == {"model": "pre18", "normalize": True}
    for data, normalize in (("-d Covid", True), (BASE, False)):
        expt(*data.split(), "--zennit_show", "--checkpoints", "A=a.pth", "--pixels", "official")
        assert called[-1][1]["normalize"] == normalize
    assert experiment.dataset == "CUB"
    assert not any(tmp_path.iterdir())
    done = expt(*BASE.split(), "--zennit_show")
    assert done.code == 2
    assert "--checkpoints" in done.err
