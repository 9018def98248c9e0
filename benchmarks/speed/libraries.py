"""(b) PGD-10 against the attack libraries that install, at equal settings, without a random start."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed.contest import Contender, contest
from benchmarks.speed.rows import Row
from benchmarks.speed.setting import EPS, STEP_SIZE, Setting, say
from robust_core.attacks import pgd
from robust_core.models import FrozenView

__all__ = ["LIBRARIES", "compare"]


def _torchattacks(setting: Setting) -> Contender:
    import torchattacks

    def attack(steps: int) -> Tensor:
        made = torchattacks.PGD(setting.network, eps=EPS, alpha=STEP_SIZE, steps=steps, random_start=False)
        return made(setting.images, setting.labels)  # type: ignore[no-any-return]

    return Contender("torchattacks", attack)


def _foolbox(setting: Setting) -> Contender:
    import foolbox

    model = foolbox.PyTorchModel(setting.network, bounds=(0, 1), device=setting.device)
    criterion = foolbox.criteria.Misclassification(setting.labels)

    def attack(steps: int) -> Tensor:
        made = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps, random_start=False)
        return made.run(model, setting.images, criterion, epsilon=EPS)  # type: ignore[no-any-return]

    return Contender("foolbox", attack)


def _art(setting: Setting) -> Contender:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    size = tuple(setting.images.shape[1:])
    classifier = PyTorchClassifier(
        setting.network,
        loss=nn.CrossEntropyLoss(),
        input_shape=size,
        nb_classes=setting.dataset.info.num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if setting.device.type == "cuda" else "cpu",
    )
    images, labels = setting.images.cpu().numpy(), setting.labels.cpu().numpy()

    def attack(steps: int) -> Tensor:
        made = ProjectedGradientDescentPyTorch(
            classifier,
            norm=np.inf,
            eps=EPS,
            eps_step=STEP_SIZE,
            max_iter=steps,
            batch_size=len(images),
            verbose=False,
        )
        return torch.from_numpy(made.generate(images, labels)).to(setting.device)

    return Contender("adversarial-robustness-toolbox", attack, note="counts its successes besides")


def _cleverhans(setting: Setting) -> Contender:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    def attack(steps: int) -> Tensor:
        result: Tensor = projected_gradient_descent(
            setting.network,
            setting.images,
            EPS,
            STEP_SIZE,
            steps,
            np.inf,
            clip_min=0.0,
            clip_max=1.0,
            y=setting.labels,
            rand_init=False,
            sanity_checks=False,
        )
        return result.detach()

    return Contender("cleverhans", attack)


def _secml(setting: Setting) -> Contender:
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.perturbation_models import LpPerturbationModels
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier

    classifier = BasePyTorchClassifier(setting.network)
    loader = DataLoader(TensorDataset(setting.images, setting.labels), batch_size=len(setting.images))

    def attack(steps: int) -> Tensor:
        made = PGD(
            perturbation_model=LpPerturbationModels.LINF,
            epsilon=EPS,
            num_steps=steps,
            step_size=STEP_SIZE,
            random_start=False,
            backend=Backends.NATIVE,
        )
        return torch.cat([images for images, _ in made(classifier, loader)]).to(setting.device)

    return Contender("secml-torch", attack, first=2, note="keeps the best of the iterates before the last")


LIBRARIES: dict[str, Callable[[Setting], Contender]] = {
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "adversarial-robustness-toolbox": _art,
    "cleverhans": _cleverhans,
    "secml-torch": _secml,
}


def _found(setting: Setting) -> list[Contender]:
    """Return the libraries that are installed and that finish one step."""
    found = []
    for name, make in LIBRARIES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender = make(setting)
                contender.attack(1)
        except Exception as error:  # whatever a library fails with, the others are still measured
            reason = (str(error).splitlines() or [""])[0]
            say(f"(b) {name}: left out, {type(error).__name__}: {reason}")
        else:
            say(f"(b) {name} {version(name)}")
            found.append(contender)
    return found


def _ours(view: FrozenView, setting: Setting, steps: int) -> Tensor:
    view.refresh()
    return pgd(
        view,
        setting.images,
        setting.labels,
        eps=EPS,
        step_size=STEP_SIZE,
        steps=steps,
        random_start=False,
    )


def compare(setting: Setting) -> list[Row]:
    """Return a row for each library and precision."""
    others = _found(setting)
    if not others:
        say("(b) no attack library is installed: nox -s bench installs them")
        return []
    ours = {name: partial(_ours, view, setting) for name, view in setting.views.items()}
    low = 4.0 if setting.matrix_units else 2.6
    targets = {name: 1.15 if name.startswith("float32") else low for name in ours}
    return contest("b", setting, ours, others, targets=targets, seconds=0.46 * setting.seconds)
