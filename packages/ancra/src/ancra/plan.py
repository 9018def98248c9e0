"""ANCRA's part of a session: its network, one phase, files under the published names, the final tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ancra.config import AncraConfig
from ancra.methods import Ancra, NegativeChoice
from ancra.networks import build_network
from robust_core.data import DatasetInfo, dataset_info
from robust_core.errors import UserError
from robust_core.evaluation import Evaluation, protocol
from robust_core.models import load_weights
from robust_core.plan import Plan, Session
from robust_core.run_data import Data, Say
from robust_core.storage import write_tensors
from robust_core.training import Phase, Rate, RunDirectory, run_folder

__all__ = ["AncraPlan", "ancra_method", "published_lines", "write_newest"]

PUBLISHED_STEP = 0.007
BEST, NEWEST = "best_adv_model.pt", "model-wrn-last.pt"
MAIN = "main"


def ancra_method(config: AncraConfig, num_classes: int) -> Ancra:
    """Return the configured method for data of so many classes."""
    published = config.contrasted or config.attention != "none"
    family = {"pgd": "AT", "trades": "TRADES", "mart": "MART"}[config.method]
    return Ancra(
        name=f"ANCRA-{config.method.upper()}" if published else family,
        family=config.method,
        num_classes=num_classes,
        eps=config.epsilon,
        step_size=config.step_size,
        steps=config.num_steps,
        beta=config.beta,
        zeta=config.zeta if config.contrasted else 0.0,
        alpha=config.alpha,
        cr=config.cr_beta,
        attack_cr=2.0 if config.attack_cr == "two" else config.cr_beta,
        inner_loss=config.inner_loss,
        attention_by=config.attention_by,
        train_mode_attack=config.attack_mode == "train",
        negatives=NegativeChoice(
            config.strategy.removesuffix("_adv"),
            config.strategy.endswith("_adv"),
            config.sample_class_number,
            config.sample_number,
        ),
        first_epoch=config.restart_epoch,
    )


def warm_up_method(config: AncraConfig, num_classes: int, *, steps: int) -> Ancra:
    """Return what comes before the method: AT under a rising budget, on natural images without attack ``steps``."""
    return Ancra(
        name="AT" if steps else "natural",
        family="pgd",
        num_classes=num_classes,
        eps=config.epsilon,
        step_size=config.step_size,
        steps=steps,
        zeta=0.0,
        cr=config.cr_beta,
        attack_cr=config.cr_beta,
        attention_by=config.attention_by,
        ramp=True,
    )


class AncraPlan(Plan[AncraConfig]):
    """What ANCRA adds to a session."""

    def data(self, config: AncraConfig, say: Say) -> Data:
        """Return the core's data; ``UserError`` if there are no classes to be contrasted."""
        data = super().data(config, say)
        config.check_classes(data[0])
        return data

    def phases(self, config: AncraConfig, epoch_steps: int) -> list[Phase]:
        """Return natural steps and a warm-up if any, then the method from ``--restart_epoch`` to ``--epochs``."""
        done = config.restart_epoch - 1
        classes = dataset_info(config.data).num_classes
        rate = Rate(config.schedule, config.lr, config.epochs_of_the_rate, epoch_offset=done)
        if config.schedule == "linear":
            rate = Rate("linear", config.lr)
        steps = config.main_steps or (config.epochs - done) * epoch_steps
        before = (("natural", config.natural_steps, 0), ("warm-up", config.warm_up_steps, config.num_steps))
        phases = [
            Phase(name, warm_up_method(config, classes, steps=attacks), count, Rate("constant", config.lr))
            for name, count, attacks in before
            if count
        ]
        return [*phases, Phase(MAIN, ancra_method(config, classes), steps, rate)]

    def network(self, config: AncraConfig, info: DatasetInfo, *, fresh: bool) -> nn.Module:
        """Return the network with the configured attention, and with ``--restart_epoch`` its weights.

        Raises:
            UserError: if these are not there, or of another network.
        """
        network = build_network(
            config.model,
            info.num_classes,
            attention=config.attention,
            image_size=info.size,
            mean=info.mean if config.normalize else None,
            std=info.std if config.normalize else None,
            seed=config.seed,
        )
        if config.restart_epoch > 1 and fresh:
            check_attention(Path(config.ckpt_url), config.attention)
            load_weights(network, config.ckpt_url)
        return network

    def export(self, config: AncraConfig, folder: Path) -> Callable[[Phase, int, nn.Module], None]:
        """Return what writes the method's state dicts: the newest after each epoch, a numbered one at multiples."""

        def write(phase: Phase, epoch: int, model: nn.Module) -> None:
            if phase.name != MAIN:  # published numbers count the method's epochs
                return
            number = config.restart_epoch - 1 + epoch
            write_tensors(folder / NEWEST, model.state_dict())
            if number % config.save_freq == 0:
                write_tensors(folder / f"model-{number}.pt", model.state_dict())

        return write

    def published_files(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of the state dicts, the numbered ones as a pattern."""
        del settings
        return (NEWEST, BEST, "model-[0-9]*.pt")

    def conclude(self, session: Session[AncraConfig]) -> dict[str, Any]:
        """Test natural images, PGD-20, PGD-40 (step 0.007), AutoAttack; write weights and gallery."""
        config = session.config
        write_newest(session.run)
        if config.selection == "best":
            write_tensors(session.run.path / BEST, session.model.state_dict())
        attacks = protocol(
            "pgd",
            eps=config.test_epsilon,
            step_size=PUBLISHED_STEP,
            autoattack_images=config.aa_images,
        )
        evaluation = session.evaluate(attacks)
        for line in published_lines(evaluation):
            session.say(line)
        session.save_gallery(attacks)
        method = ancra_method(config, session.train_set.info.num_classes).name
        return {"method": method, "seed": config.seed, "summary": evaluation.summary()}


def write_newest(run: RunDirectory) -> None:
    """Write what was trained last under its published name: the last steps may be no whole epoch of the method."""
    state = run.checkpoints.latest()
    if state is not None:
        average = state["average"]
        write_tensors(run.path / NEWEST, state["model"] if average is None else average["weights"])


def check_attention(weights: Path, attention: str) -> None:
    """Refuse weights that the ``config.json`` beside them says to be of a network with another attention.

    Names and shapes do not tell: those of WideResNet and PreActResNet are the same with and without.

    Raises:
        UserError: naming both.
    """
    try:
        record = json.loads((run_folder(weights) / "config.json").read_text(encoding="utf8"))
        found = record["config"].get("attention", "none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if found != attention:
        raise UserError(
            f"{weights} is of a network with --attention {found}, this run has {attention}; give weights of the same "
            "kind of network, or change --attention."
        )


def published_lines(evaluation: Evaluation) -> list[str]:
    """Return natural and last-iterate accuracies as counts and percentages, as the official scripts print them.

    Each counts the images that it attacked; what could not run says why.
    """
    natural, total = evaluation.natural, len(evaluation.natural)
    lines = [f"Test: Accuracy {int(natural.sum())}/{total} ({100 * natural.mean():.2f}%)"]
    for member in evaluation.protocol.members:
        name, run = member.name, evaluation.runs[member.name]
        if not run.ran:
            lines.append(f"Test: {name.upper()} not run: {run.remedy}")
            continue
        right = evaluation.last[name][evaluation.attacked[name]]
        lines.append(
            f"Test: {name.upper()} Accuracy_adv {int(right.sum())}/{len(right)} ({100 * right.mean():.2f}%)"
        )
    return lines
