"""ANCRA's settings: the published flags with their defaults, and ours besides."""

from __future__ import annotations

from dataclasses import dataclass

from ancra.attacks import INNER_LOSSES
from ancra.attention import ATTENTIONS
from ancra.methods import FAMILIES, MILESTONES
from ancra.negatives import STRATEGIES
from robust_core.config import RunConfig, expect, option
from robust_core.data import ImageSet
from robust_core.errors import UserError

__all__ = ["AncraConfig"]

ALL_STRATEGIES = (*STRATEGIES, *(f"{name}_adv" for name in STRATEGIES))


@dataclass(frozen=True, kw_only=True)
class AncraConfig(RunConfig):
    """Settings of ANCRA-PGD, -TRADES and -MART, their ablations and their baselines."""

    data: str = option(
        "cifar10",
        "cifar10, cifar100, svhn, tiny-imagenet or shapes",
        flags=("--dataset",),
        group="data",
    )
    epochs: int = option(120, "number of the last epoch, counted from 1", group="training")
    selection: str = option(
        "best", "which weights are evaluated at the end", choices=("last", "best"), group="training"
    )
    step_size: float = option(0.007, "step of the attacks", kind="fraction", group="attack")
    run_dir: str | None = option(None, "directory of the run (default: made from --model-dir)")
    model_dir: str = option(
        "./model/ANCRA", "beginning of the run's directory; strategy, alpha, beta, zeta and seed are added"
    )

    method: str = option("trades", "the loss that is built on", choices=FAMILIES, group="method")
    attention: str = option(
        "reverse",
        "weights of the last blocks' features: reverse (the classifier's row), own (a classifier per block), ones "
        "(auxiliary logits alone), none (a plain network)",
        choices=(*ATTENTIONS, "none"),
        group="method",
    )
    attention_by: str = option(
        "label",
        "class whose row weighs the training features: the true label, as published, or the predicted one",
        choices=("label", "predicted"),
        group="method",
    )
    inner_loss: str = option(
        "ce",
        "what the training attack climbs (ce: as released; kl: as TRADES)",
        choices=INNER_LOSSES,
        group="method",
    )
    beta: float = option(6.0, "weight of the robust term (trades, mart)", group="method")
    zeta: float = option(3.0, "weight of the contrast (0: none)", group="method")
    alpha: float = option(1.0, "share of the contrast that freezes the natural side", group="method")
    cr_beta: float = option(2.0, "weight of the auxiliary logits in losses and attacks", group="method")
    strategy: str = option(
        "random_adv",
        "choice of negatives; with _adv they are attacked",
        choices=ALL_STRATEGIES,
        group="method",
    )
    sample_class_number: int = option(1, "negative classes per image", group="method")
    sample_number: int = option(1, "negative images per class", group="method")

    contrast: bool = option(
        True,
        "contrast with negatives (no: --zeta, --alpha and --strategy name the directory only)",
        group="method",
    )

    official: bool = option(
        False, "the published behaviour on every axis below", group="official or corrected"
    )
    attack_cr: str = option(
        "cr-beta",
        "weight of the auxiliary logits in the untargeted attack: --cr-beta, or 2 whatever that is",
        choices=("cr-beta", "two"),
        group="official or corrected",
    )
    attack_mode: str = option(
        "frozen",
        "network that the training attack of a plain network sees: the frozen view, or the live one in training mode",
        choices=("frozen", "train"),
        group="official or corrected",
    )
    select_on: str = option(
        "validation",
        "images for curves and the choice of the best weights",
        choices=("validation", "test"),
        group="official or corrected",
    )

    restart_epoch: int = option(1, "first epoch; above 1 the weights come from --ckpt-url", group="training")
    ckpt_url: str = option(
        "/", "state dict, or checkpoint that holds one, for --restart-epoch", group="training"
    )
    milestones: str = option(
        ",".join(map(str, MILESTONES)),
        "epochs from which the rate is a tenth, a hundredth, ...",
        group="training",
    )
    natural_steps: int = option(0, "steps on natural images before everything else", group="training")
    warm_up_steps: int = option(
        0, "steps of AT under a rising budget before the method (small networks need it)", group="training"
    )
    main_steps: int = option(0, "steps of the method (0: --epochs sets them)", group="training")
    schedule: str = option(
        "step",
        "learning rate: lower at the milestones, or falling to 0 over --main-steps",
        choices=("step", "linear"),
        group="training",
    )
    save_freq: int = option(10, "epochs between state dicts under the published names", flags=("-s",))
    test_epsilon: float = option(
        8 / 255, "budget of the final tests (published: fixed)", kind="fraction", group="evaluation"
    )
    test_batch_size: int = option(100, "images per batch of evaluations", group="evaluation")
    aa_images: int = option(
        0, "AutoAttack at the end on the first N test images (0: none)", group="evaluation"
    )
    scale: str = option(
        "paper", "defaults for a machine", choices=("smoke", "demo", "reduced", "paper"), group="evaluation"
    )

    @property
    def evaluation_batch_size(self) -> int:
        """Images per batch of evaluations."""
        return self.test_batch_size

    @property
    def selects_on_test(self) -> bool:
        """Whether curves and selection see the test images, as published."""
        return self.select_on == "test"

    @property
    def contrasted(self) -> bool:
        """Whether the loss has its exclusion term."""
        return self.contrast and self.zeta > 0.0

    @property
    def epochs_of_the_rate(self) -> tuple[int, ...]:
        """``milestones`` as numbers.

        Raises:
            UserError: if they are not whole numbers.
        """
        try:
            return tuple(int(word) for word in self.milestones.split(",") if word.strip())
        except ValueError:
            raise UserError(
                f"--milestones {self.milestones} is not possible; expected epochs such as 75,90,100."
            ) from None

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        super().validate()
        _ = self.epochs_of_the_rate
        for name in ("beta", "zeta", "cr_beta"):
            value = getattr(self, name)
            expect(0.0 <= value < float("inf"), name, value, "a number of 0 or more")
        expect(0.0 < self.test_epsilon <= 1.0, "test_epsilon", self.test_epsilon, "e.g. 8/255")
        expect(0.0 <= self.alpha <= 1.0, "alpha", self.alpha, "a number in [0, 1]")
        for name in ("sample_class_number", "sample_number", "save_freq", "test_batch_size", "restart_epoch"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("natural_steps", "warm_up_steps", "main_steps", "aa_images"):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        expect(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        if self.restart_epoch > self.epochs:
            raise UserError(
                f"--restart-epoch {self.restart_epoch} lies behind the last epoch, --epochs {self.epochs}."
            )
        if self.attack_mode == "train" and self.attention != "none":
            raise UserError(
                "--attack-mode train is the published baselines' attack; it needs --attention none (ANCRA itself "
                "attacks in evaluation mode)."
            )

    def check_classes(self, train: ImageSet) -> None:
        """Refuse training images without classes to be contrasted with; a partial copy has fewer than its release.

        Raises:
            UserError: for one class, or more negative classes than there are others.
        """
        if not self.contrasted:
            return
        name, present = train.info.title, len(train.labels.unique())
        if present < 2:
            raise UserError(
                f"The training images of {name} are of one class, so none has a negative; train with --zeta 0, or on "
                "other data."
            )
        if self.sample_class_number > present - 1:
            raise UserError(
                f"--sample-class-number {self.sample_class_number} is more than the other classes ({present - 1}) that "
                f"{name} has training images of; lower it."
            )
