"""The settings of ``run_expt.py``: the published flags with their published defaults, and ours beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gdro_at.checks import check_combinations, check_names, check_numbers
from gdro_at.networks import check_name
from gdro_at.options import ModelOptions
from robust_core.config import expect, option
from robust_core.data import DatasetInfo
from robust_core.errors import UserError

__all__ = ["GROUP_RULE_TYPES", "PUBLISHED_EPS", "TEST_TYPES", "TRAIN_TYPES", "UNIT_TYPES", "GdroConfig"]

GROUP_RULE_TYPES = ("erm", "pgd", "trades")
"""Train types whose loss the group weights of ``--robust`` weigh."""
UNIT_TYPES = ("WAT", "CFA", "FAT", "DAFA")
"""Fairness baselines with weights of units."""
TRAIN_TYPES = (*GROUP_RULE_TYPES, "BAT", "WAT", "CFA", "DAFA", "FAT", "CGD", "uni", "unitrades", "unimart")
TEST_TYPES = ("erm", "pgd", "AA")
PUBLISHED_EPS = 0.00196


@dataclass(frozen=True, kw_only=True)
class GdroConfig(ModelOptions):
    """Settings of a run of ``run_expt.py``."""

    train_type: str = option("erm", "method", choices=TRAIN_TYPES, group="method")
    test_type: str = option(
        "erm", "attack that validates and tests (erm: none)", choices=TEST_TYPES, group="evaluation"
    )
    robust: bool = option(False, "weigh groups (Group-DRO); off: the plain mean", group="weights")
    trades_new: bool = option(False, "own weights for the adversarial term", group="weights")
    train_grad: bool = option(
        False, "running means of the losses in the natural weights (WULG)", group="weights"
    )
    limit_nat: bool = option(False, "bound the natural weights", group="weights")
    limit_adv: bool = option(False, "bound the adversarial weights", group="weights")
    limit_eps: float = option(0.2, "half width of the bounds, in units of 1/G", group="weights")
    robust_step_size: float = option(0.01, "step of the group weights", group="weights")
    alpha: float = option(0.2, "--btl: share of the worst part (1 or more: all groups)", group="weights")
    gamma: float = option(0.1, "rate of the exponential average of the group losses", group="weights")
    generalization_adjustment: str = option(
        "0.0", "C, added to group g's loss as C/sqrt(n_g): one number or one per group", group="weights"
    )
    use_normalized_loss: bool = option(False, "losses over their sum in the weights", group="weights")
    btl: bool = option(False, "greedy weights of the worst --alpha of the groups", group="weights")
    minimum_variational_weight: float = option(
        0.0, "--btl: share of the plain mean (ignored with --official)", group="weights"
    )
    hinge: bool = option(
        False,
        "hinge loss instead of cross-entropy, with erm and pgd (two classes; official: in every validation)",
        group="method",
    )
    weights: str = option(
        "official", "rule of the group weights", choices=("official", "corrected"), group="weights"
    )
    weights_sign: str = option(
        "", "one change: sign of the adversarial weights", choices=("", "plus", "minus"), group="weights"
    )
    weights_updates: str = option(
        "", "one change: multiplications a step", choices=("", "once", "published"), group="weights"
    )
    weights_bound: str = option(
        "", "one change: how weights are bounded", choices=("", "projection", "clip"), group="weights"
    )
    weights_absent: str = option(
        "",
        "one change: groups without images in a batch",
        choices=("", "untouched", "moved"),
        group="weights",
    )
    weights_running_mean: str = option(
        "", "one change: what resets the running mean", choices=("", "epoch", "log"), group="weights"
    )
    weights_adjust: str = option(
        "", "one change: where C enters", choices=("", "copy", "in_place"), group="weights"
    )
    adv_scale: str = option(
        "",
        "factor of the adversarial term: 1, number of groups, 4",
        choices=("", "mean", "sum", "four"),
        group="weights",
    )
    adv_weights: str = option(
        "",
        "adversarial weights: own, uniform, or the natural ones",
        choices=("", "own", "uniform", "natural"),
        group="weights",
    )
    beta: float = option(6.0, "factor of the KL term (FAT: in its TRADES phase)", group="method")
    eta: float = option(0.1, "step of WAT's weights; with CGD use --robust-step-size", group="method")
    tau: float | None = option(None, "uni*: scale of the soft ball (default: --alpha_)", group="method")
    lr_tau: float | None = option(None, "uni*: rate of lambda (default 0.02)", group="method")
    lamda: float | None = option(None, "uni*: first lambda (default 1)", group="method")
    alpha_: float | None = option(
        None, "uni*: step of the attack (default epsilon/4)", kind="fraction", group="method"
    )
    forwards: str = option(
        "",
        "TRADES' passes of the natural images a step; two, as published, moves the running statistics once more",
        choices=("", "one", "two"),
        group="method",
    )
    fair_over: str = option(
        "",
        "units of a fairness baseline (DAFA: class, others: group)",
        choices=("", "group", "class"),
        group="method",
    )
    uniform_term: bool = option(True, "BAT: pull both predictions to uniform", group="method")
    is_combine: bool = option(
        False, "train the last layer anew on half of the validation split", group="method"
    )
    combine_epochs: int = option(10, "--is-combine: epochs of the last layer", group="method")
    warm_start: str | None = option(
        None,
        "FAT: begin with these robust weights (default: TRADES for two thirds of the epochs)",
        group="method",
    )

    seed: int = option(0, "seed of everything random")
    epochs: int = option(4, "epochs", flags=("--n-epochs",), group="training")
    batch_size: int = option(32, "images per step, over all processes", group="training")
    lr: float = option(0.001, "learning rate", group="training")
    weight_decay: float = option(5e-5, "weight decay of SGD", flags=("--wd",), group="training")
    scheduler: bool = option(
        False,
        "rate x 0.1 after 5 epochs without a better validation loss under --test-type",
        group="training",
    )
    schedule: str = option(
        "constant", "rate over the run", choices=("constant", "step", "linear"), group="training"
    )
    selection: str = option(
        "best",
        "which weights are tested: best worst group under --test-type on the validation split; official: the same, "
        "but ERM by its natural accuracy",
        choices=("best", "last", "official"),
        group="training",
    )
    natural_steps: int = option(0, "steps on natural images before the method", group="training")
    main_steps: int = option(0, "steps of the method (0: --n-epochs)", group="training")

    epsilon: float = option(
        0.03, "budget of the training attack, in pixels of [0, 1]", kind="fraction", group="attack"
    )
    num_steps: int = option(10, "steps of the training attack", flags=("--attack-iters",), group="attack")
    step_size: float = option(
        0.0, "step of the attacks (0: a quarter of the budget)", kind="fraction", group="attack"
    )
    random_init: float | None = option(
        None,
        "standard deviation of the attack's normal start (default epsilon/32)",
        kind="fraction",
        group="attack",
    )
    clmin: float = option(0.0, "lowest pixel of adversarial images", group="attack")
    clmax: float = option(1.0, "highest pixel of adversarial images", group="attack")
    pixels: str = option(
        "unit",
        "unit: images in [0, 1], normalised inside of the network; official: no normalisation, COVID normalised "
        "before the attack",
        choices=("unit", "official"),
        group="attack",
    )
    test_epsilon: float | None = option(
        None,
        "budget of the test attack (default: --epsilon; official: 0.00196)",
        kind="fraction",
        group="evaluation",
    )
    test_start: str = option(
        "",
        "start of the test attack: uniform in its ball, or officially in +-0.0001, unclipped (default: ball; official "
        "with --official)",
        choices=("", "ball", "official"),
        group="evaluation",
    )
    validation_images: int = option(
        0,
        "validation images that an epoch's end looks at, as many of each group (0: all)",
        group="evaluation",
    )
    suite_images: int = option(
        0,
        "the first of the test images for the suite: binary-aa (two classes) or AutoAttack (0: none)",
        group="evaluation",
    )
    sweep_images: int = option(
        0, "the first of the test images for budgets of 0.5, 1, 2, 4 and 8/255 (0: none)", group="evaluation"
    )
    official: bool = option(False, "all published behaviour at once", group="method")
    zennit_show: bool = option(
        False, "draw attack saliency of --checkpoints instead of training", group="run"
    )
    checkpoints: str | None = option(
        None, "--zennit-show: NAME=PATH of each column", kind="words", group="run"
    )
    scale: str = option(
        "paper", "size of the run", choices=("paper", "reduced", "demo", "smoke"), group="run"
    )

    @property
    def adjustments(self) -> tuple[float, ...]:
        """C as numbers; ``UserError`` for anything else."""
        try:
            values = tuple(float(part) for part in self.generalization_adjustment.split(","))
        except ValueError:
            values = (math.nan,)
        if not all(math.isfinite(value) for value in values):
            raise UserError(
                f"--generalization-adjustment {self.generalization_adjustment} is not possible; expected one number "
                "or one per group, with commas, e.g. 2 or 1,2,2,1."
            )
        return values

    def step_within(self, eps: float) -> float:
        """Return the step of an attack of budget ``eps``: a quarter of it, or ``--step-size`` in its own proportion."""
        return eps * self.step_size / self.epsilon if self.step_size and self.epsilon else eps / 4

    @property
    def evaluation_batch_size(self) -> int:
        """Images per batch of evaluations: photographs are fifty times as large as drawn images."""
        return 32 if self.dataset in ("CUB", "CelebA", "Covid", "table") else super().evaluation_batch_size

    @property
    def normalizes_before_attack(self) -> bool:
        """Whether images are normalised before the attack sees them, as published for COVID."""
        return self.pixels == "official" and self.dataset == "Covid"

    @property
    def normalizes(self) -> bool:
        """Whether the network sees normalised images, wherever that happens."""
        return self.pixels == "unit" or self.normalizes_before_attack

    @property
    def validates_by_hinge(self) -> bool:
        """Whether the validation loss is the hinge: where training's is, officially with every train type."""
        return self.hinge and (self.official or self.train_type in ("erm", "pgd"))

    @property
    def natural_forwards(self) -> int:
        """How often TRADES passes the natural images."""
        return 2 if self.forwards == "two" or (self.official and not self.forwards) else 1

    @property
    def swaps_augmentation(self) -> bool:
        """Whether CIFAR-10 is augmented the other way round, evaluated images as well."""
        return self.augmentation == "official" or (self.official and not self.augmentation)

    @property
    def published_test_start(self) -> bool:
        """Whether the test attack starts next to the images, however large its budget is."""
        return self.test_start == "official" or (self.official and not self.test_start)

    @property
    def test_eps(self) -> float:
        """The budget of the attack that validates and tests."""
        if self.test_epsilon is not None:
            return self.test_epsilon
        return PUBLISHED_EPS if self.official else self.epsilon

    @property
    def unit_kind(self) -> str:
        """Whose weights a fairness baseline moves."""
        return self.fair_over or ("class" if self.train_type == "DAFA" else "group")

    @property
    def begins_with_trades(self) -> bool:
        """Whether FAT begins with two thirds of its steps or epochs of TRADES, if that is any."""
        own = self.train_type == "FAT" and self.warm_start is None and not self.official
        return own and not self.only_test and 2 * (self.main_steps or self.epochs) // 3 > 0

    @property
    def balances_groups(self) -> bool:
        """``--reweight-groups``."""
        return self.reweight_groups

    @property
    def selection_score(self) -> str:
        """The validation figure by which the best network is chosen."""
        if self.selection == "official" and self.train_type == "erm":
            return "natural_worst_group"
        return "natural_worst_group" if self.test_type == "erm" else "attacked_worst_group"

    @property
    def long_tailed(self) -> bool:
        """Whether CIFAR-10's training images are made long-tailed."""
        return (
            self.dataset in ("Cifar", "CIFAR10")
            and self.shift_type == "confounder"
            and self.imbalance_ratio is not None
        )

    def check_model(self) -> None:
        """Refuse an unknown network; raises ``UserError``."""
        check_name(self.model)

    @property
    def evaluates_epochs(self) -> bool:
        """Whether validation images are looked at after each epoch: always."""
        return True

    @property
    def selects_best(self) -> bool:
        """Whether the best network on the validation split is tested, not the last."""
        return self.selection != "last" and not self.only_test

    def has_validation(self, info: DatasetInfo) -> bool:
        """Return whether there are validation images; under label shift ``--val-fraction`` keeps them apart."""
        return super().has_validation(info) or self.shift_type == "label_shift_step"

    def validate(self) -> None:
        """Refuse settings that cannot work; raises ``UserError`` naming the flag, its value and what is expected."""
        check_names(self)
        super().validate()
        check_numbers(self)
        check_combinations(self)

    def validate_for(self, info: DatasetInfo) -> None:
        """Refuse settings that do not fit the data as it was found."""
        super().validate_for(info)
        by_class = self.unit_kind == "class" and self.train_type in ("CGD", *UNIT_TYPES)
        count = info.num_classes if by_class else len(info.groups or info.classes)
        units = f"{count} {'classes' if by_class else 'groups'}"
        expect(
            len(self.adjustments) in (1, count),
            "generalization_adjustment",
            self.generalization_adjustment,
            f"one number, or one for each of the {units}",
        )
        expect(
            self.class_num in (0, count) or self.train_type not in ("WAT", "CFA", "FAT"),
            "class_num",
            self.class_num,
            f"the {units} of the data, or no such flag",
        )
        if self.hinge and info.num_classes != 2:
            raise UserError(
                f"--hinge is about two classes, but the data have {info.num_classes}; leave the flag out."
            )
