"""AutoAttack (Croce and Hein 2020) as its authors' package computes it; never an imitation under its name."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robust_core.attacks.checks import (
    check_call,
    check_count,
    check_generator,
    check_labels_fit,
    check_no_nan,
)
from robust_core.attacks.engine import Classifier, natural_logits, network_for
from robust_core.errors import UserError, unknown_name

__all__ = ["AUTOATTACK_REMEDY", "AutoAttackResult", "autoattack", "autoattack_available"]

AUTOATTACK_REMEDY = (
    "AutoAttack needs the package pyautoattack, which is not installed: "
    "pip install pyautoattack, or install with the extra 'eval' (pip install 'packages/core[eval]')."
)
VERSIONS = ("standard", "plus", "rand")
_NORMS = {"linf": "Linf", "l2": "L2"}
# The fewest classes that a member can work with.
_CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}


class AutoAttackResult(NamedTuple):
    """``images`` ``(N, C, H, W)``: adversarial where an attack succeeded, natural elsewhere.

    ``members`` were run, in this order. ``skipped`` says which were not, and why. ``flags`` are the package's
    own warnings: reasons not to trust the figure as it is.
    """

    images: Tensor
    members: tuple[str, ...]
    skipped: tuple[str, ...]
    flags: tuple[str, ...]


def autoattack_available() -> bool:
    """Return whether the package ``pyautoattack`` is installed."""
    return importlib.util.find_spec("pyautoattack") is not None


def autoattack(
    model: nn.Module | Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    version: str = "standard",
    only: Sequence[str] | None = None,
    batch_size: int = 250,
    log: Callable[[str], None] | None = None,
    generator: torch.Generator | None = None,
) -> AutoAttackResult:
    """Return what the members of AutoAttack find, each on the images that the others left classified right.

    Args:
        model: like ``images``, ``labels`` and ``eps`` (here a number) as for :func:`robust_core.attacks.pgd`.
        version: ``standard`` (APGD-CE, targeted APGD, targeted FAB, Square), ``plus`` or ``rand``. With fewer
            than four classes the members that need more are skipped.
        only: run these of its members alone (``fab-t``); what they find is theirs, not AutoAttack's.
        log: takes the package's messages while it runs.
        generator: gives the seed; None: 0. The global random state is put back.

    Raises:
        UserError: the package is not installed, or as for PGD.
    """
    highest = check_call(images, labels, eps=eps, norm=norm)
    check_count("batch_size", batch_size, 1)
    check_generator(generator)
    radius: Any = eps
    if isinstance(radius, Tensor):
        raise UserError("AutoAttack takes one eps for all images: give a number, e.g. 8/255.")
    if version not in VERSIONS:
        raise unknown_name("AutoAttack version", str(version), VERSIONS)
    if not autoattack_available():
        raise UserError(AUTOATTACK_REMEDY)
    network = network_for(model, images)
    logits = natural_logits(network, images[:1])
    check_labels_fit(highest, logits, 1)
    check_no_nan(logits)
    seed = (
        0
        if generator is None
        else int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    )
    package = importlib.import_module("pyautoattack")
    messages: list[logging.LogRecord] = []
    with _forked_random_state(), _traced_as_before(), _listening(messages, log) as caught:
        attack = package.AutoAttack(
            network, eps=float(radius), norm=_NORMS[norm], version=version, seed=seed, device=images.device
        )
        if only is not None:
            attack.attacks_to_run = [name for name in attack.attacks_to_run if name in only]
        skipped = _fit_to_classes(attack, logits.shape[1])
        adversarial, _ = attack.run_standard_evaluation(images.detach(), labels, batch_size=batch_size)
    flags = [record.getMessage() for record in messages if record.levelno >= logging.WARNING]
    flags += [str(warning.message) for warning in caught]
    return AutoAttackResult(
        adversarial.detach(), tuple(attack.attacks_to_run), skipped, tuple(dict.fromkeys(flags))
    )


def _fit_to_classes(attack: Any, classes: int) -> tuple[str, ...]:
    """Take out the members that need more classes, bound the number of targets; return what was left out."""
    skipped = tuple(
        f"{name} needs {_CLASSES_NEEDED[name]} classes, the model has {classes}"
        for name in attack.attacks_to_run
        if classes < _CLASSES_NEEDED.get(name, 0)
    )
    attack.attacks_to_run = [
        name for name in attack.attacks_to_run if classes >= _CLASSES_NEEDED.get(name, 0)
    ]
    attack.apgd_targeted.n_target_classes = min(attack.apgd_targeted.n_target_classes, classes - 1)
    attack.fab.n_target_classes = min(attack.fab.n_target_classes, classes - 1)
    return skipped


@contextlib.contextmanager
def _forked_random_state() -> Iterator[None]:
    """Put the global random states of torch, numpy and Python back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextlib.contextmanager
def _traced_as_before() -> Iterator[None]:
    """Put the trace function back, which one of the package's checks removes (coverage needs it)."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)


@contextlib.contextmanager
def _listening(
    messages: list[logging.LogRecord], log: Callable[[str], None] | None
) -> Iterator[list[warnings.WarningMessage]]:
    """Collect the package's log records and give its Python warnings; its logger is left as it was."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record)
            if log is not None:
                log(record.getMessage())

    logger, collector = logging.getLogger("auto-attack"), Collector()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate
