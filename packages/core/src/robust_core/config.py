"""The settings that every training script shares: one typed dataclass, from which the flags derive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

from robust_core.data import DatasetInfo
from robust_core.errors import RESTORE_OR_ANEW, UserError
from robust_core.models import check_model_name

__all__ = [
    "RunConfig",
    "config_from_dict",
    "expect",
    "flag_of",
    "idle_warnings",
    "option",
    "option_names",
    "scale_defaults",
]


def option(
    default: Any,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    kind: str = "",
    group: str = "run",
) -> Any:
    """Return a dataclass field with what its flag needs.

    ``kind`` is ``fraction`` for budgets (``8/255`` is a number); ``flags`` are further spellings; ``choices`` are
    the accepted words.
    """
    metadata = {"help": help, "flags": flags, "choices": choices, "kind": kind, "group": group}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a training run; papers extend it."""

    data: str = option("shapes", "dataset by name", group="data")
    data_dir: str | None = option(None, "the dataset's folder or its parent", group="data")
    train_subset: int = option(0, "train on N class-balanced images only (0: all)", group="data")
    validation: int = option(1000, "N training images kept apart for curves and selection", group="data")
    subset_seed: int = option(0, "seed that draws --train-subset and --validation", group="data")
    test_images: int = option(0, "evaluate on the first N test images (0: all)", group="data")
    curve_images: int = option(
        500, "validation images attacked at each epoch's end (with --selection best: all)", group="data"
    )

    model: str = option("resnet18", "network by name", group="model")
    normalize: bool = option(
        False, "normalise with the dataset's mean and std inside the model", group="model"
    )

    batch_size: int = option(128, "images per step, over all processes", group="training")
    epochs: int = option(80, "epochs in all", group="training")
    lr: float = option(0.01, "initial learning rate", group="training")
    momentum: float = option(0.9, "momentum of SGD", group="training")
    weight_decay: float = option(2e-4, "weight decay of SGD", flags=("--wd",), group="training")
    nesterov: bool = option(False, "Nesterov momentum", group="training")
    accumulate: int = option(1, "cut each batch into N pieces and add their gradients", group="training")
    ema: float = option(
        0.0, "decay of an average of the weights that is evaluated instead (0: none)", group="training"
    )
    selection: str = option(
        "last", "which weights are evaluated at the end", choices=("last", "best"), group="training"
    )

    epsilon: float = option(
        8 / 255, "budget of the attack, in pixels of [0, 1]", kind="fraction", group="attack"
    )
    step_size: float = option(2 / 255, "step of the attack", kind="fraction", group="attack")
    num_steps: int = option(10, "steps of the training attack", group="attack")

    seed: int = option(1, "seed of everything random")
    device: str = option("auto", "cpu, cuda, cuda:N or auto")
    no_cuda: bool = option(False, "stay on the CPU")
    threads: int = option(0, "CPU threads (0: torch's choice)")
    precision: str = option("auto", "arithmetic of the attack's network", choices=("auto", "float32", "bf16"))
    train_precision: str = option("float32", "arithmetic of the training step", choices=("float32", "bf16"))
    compile: str = option(
        "auto", "compile the attack's network (auto: where it pays)", choices=("auto", "on", "off")
    )
    sync_bn: bool = option(False, "batch-norm statistics over all processes")
    log_interval: int = option(100, "steps between lines of the log")
    checkpoint_every: int = option(0, "steps between checkpoints (0: each epoch)")
    tensorboard: bool = option(False, "also write TensorBoard events (needs the extra of that name)")
    run_dir: str | None = option(None, "directory of the run", flags=("--model-dir",))

    @property
    def evaluation_batch_size(self) -> int:
        """Images per batch of evaluations; of few attacks the figures depend on it (``evaluate`` names them)."""
        return 128

    @property
    def selection_score(self) -> str:
        """The validation figure that ``--selection best`` maximises."""
        return "pgd20_accuracy"

    @property
    def balances_groups(self) -> bool:
        """Whether an epoch draws its images anew, every group alike, instead of visiting each once."""
        return False

    @property
    def selects_on_test(self) -> bool:
        """Whether curves and selection see the test images, as some published code does."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict for ``config.json``."""
        return asdict(self)

    @property
    def evaluates_epochs(self) -> bool:
        """Whether validation images are looked at after each epoch."""
        return self.curve_images > 0 or self.selects_best

    @property
    def selects_best(self) -> bool:
        """Whether the best network on the validation images is evaluated at the end, not the last."""
        return self.selection == "best"

    def check_model(self) -> None:
        """Refuse a network that does not exist; raises ``UserError``."""
        check_model_name(self.model)

    def validate(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        self.check_model()
        for name in ("batch_size", "accumulate", "log_interval"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            "train_subset",
            "validation",
            "curve_images",
            "test_images",
            "num_steps",
            "checkpoint_every",
            "threads",
            "epochs",
        ):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("seed", "subset_seed"):
            expect(0 <= getattr(self, name) < 2**63, name, getattr(self, name), "0 to 2^63 - 1")
        # OpenMP itself crashes on absurd numbers
        expect(self.threads <= 1024, "threads", self.threads, "at most 1024")
        for name in ("epsilon", "step_size"):
            value = getattr(self, name)
            shown = f"{value:g} ({value * 255:g}/255)"
            expect(0.0 <= value <= 1.0, name, shown, "between 0 and 1, in pixels of [0, 1], e.g. 8/255")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            expect(0.0 <= value < float("inf"), name, value, "a number of 0 or more")
        expect(0.0 <= self.momentum < 1.0, "momentum", self.momentum, "a number in [0, 1)")
        expect(0.0 <= self.ema < 1.0, "ema", self.ema, "a number in [0, 1)")
        if self.nesterov and self.momentum == 0.0:
            raise UserError("--nesterov needs --momentum above 0.")

    def validate_for(self, info: DatasetInfo) -> None:
        """Refuse settings that do not fit the data as it was found; papers add what depends on it.

        Raises:
            UserError: naming the flag, its value and what is expected.
        """
        if self.selects_best and not self.selects_on_test and not self.has_validation(info):
            raise UserError("--selection best needs --validation N above 0: the test split never selects.")

    def has_validation(self, info: DatasetInfo) -> bool:
        """Return whether there are validation images: the data's own, or those that are kept apart."""
        return info.own_validation or self.validation > 0


def expect(good: bool, name: str, value: object, expected: str) -> None:
    """Raise ``UserError`` about a setting unless it is ``good``, naming its flag, value and what is expected."""
    if not good:
        raise UserError(f"{flag_of(name)} {value} is not possible; expected {expected}.")


def flag_of(name: str) -> str:
    """Return how the flag of a setting is written.

    >>> flag_of("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def idle_warnings(
    conditions: Mapping[str, tuple[bool, str]],
    given: Collection[str],
    spelled: Callable[[str], str] = flag_of,
) -> list[str]:
    """Return one warning for each given setting that has no effect.

    ``conditions`` say by setting whether it is used, and why not if it is not.
    """
    return [
        f"warning: {spelled(name)} has no effect here: {why}"
        for name, (used, why) in conditions.items()
        if name in given and not used
    ]


def scale_defaults(
    defaults: Mapping[str, Any], given: Mapping[str, Any], replaced: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Return a scale's defaults without those that would override what a given flag means.

    ``replaced`` names, for a flag, the settings that take its place: who writes ``--epochs`` wants epochs, not the
    scale's number of steps.
    """
    dropped = {name for flag, names in replaced.items() if flag in given for name in names}
    return {name: value for name, value in defaults.items() if name not in dropped}


Config = TypeVar("Config", bound=RunConfig)


def option_names(kind: type[RunConfig]) -> set[str]:
    """Return the names of all settings of a configuration class."""
    return {entry.name for entry in fields(kind)}


def config_from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Return the configuration that :meth:`RunConfig.to_dict` gave.

    Raises:
        UserError: if settings are missing or unknown, as in a run of another version, or not of their type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f'The run\'s config.json has no settings under "config"; {RESTORE_OR_ANEW}')
    known = {entry.name for entry in fields(kind)}
    required = {entry.name for entry in fields(kind) if entry.default is MISSING}
    odd = sorted(set(values) - known) + sorted(required - set(values))
    if odd:
        told = ", ".join(odd[:3]) + ", ..." * (len(odd) > 3)
        raise UserError(
            f"The run's config.json has other settings than this script ({told}): another script "
            "or another version began it; resume it with that one, or start the run anew in another --run-dir."
        )
    hints = get_type_hints(kind)
    for entry in fields(kind):
        value = values.get(entry.name, entry.default)
        choices = entry.metadata.get("choices", ())
        if not _is_of_type(value, hints[entry.name]) or (choices and value not in choices):
            expected = " or ".join(choices or _told_types(hints[entry.name]))
            raise UserError(
                f"The run's config.json has {entry.name} {value!r}; expected {expected}; {RESTORE_OR_ANEW}"
            )
    return kind(**dict(values))


# How the types of settings are told.
_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


def _is_of_type(value: object, hint: Any) -> bool:
    """Return whether a value of a JSON file is of a field's type: a whole number is a number, a truth is none."""
    kinds = get_args(hint) or (hint,)
    return type(value) in kinds or (float in kinds and type(value) is int)


def _told_types(hint: Any) -> list[str]:
    return [_TYPES.get(kind, str(kind)) for kind in get_args(hint) or (hint,)]
