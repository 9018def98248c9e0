"""GDRO-AT's part of a session: groups, network, phases, validation per group, published files, final tests."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gdro_at.attacks import PUBLISHED_NOISE
from gdro_at.baselines.dfr import validation_halves
from gdro_at.config import GdroConfig
from gdro_at.data import load_groups
from gdro_at.networks import build_network
from gdro_at.phases import build_phases, method_title, rule_settings
from gdro_at.run_logs import COUNTS, TEST_ROW, counts_text, log_files, write_logs
from gdro_at.suites import BUDGETS, final_protocol, sweep_protocol
from gdro_at.validation import (
    TestAttack,
    attacked_logits,
    first_of_each_group,
    group_figures,
    published_row,
)
from gdro_at.weighted import hinge, normalized
from gdro_at.weights import GroupRule
from robust_core.attacks.objectives import cross_entropy
from robust_core.config import flag_of
from robust_core.data import DatasetInfo, ImageSet, steps_per_epoch
from robust_core.data.columns import IMAGENET
from robust_core.evaluation import Evaluation, Protocol, evaluate
from robust_core.models import load_weights
from robust_core.plan import Plan, Session
from robust_core.run_data import Data, Say
from robust_core.storage import write_json, write_tensors, write_whole
from robust_core.training import Machine, Phase, RunDirectory

__all__ = ["GdroPlan", "test_attack"]

DOUBLE_IMAGES = 200
"""Images of the binary suite that are attacked once more in float64."""


def test_attack(config: GdroConfig) -> TestAttack:
    """Return the attack of ``--test-type``; officially its budget and start are constants."""
    start = PUBLISHED_NOISE if config.published_test_start else None
    step, clip = config.step_within(config.test_eps), (config.clmin, config.clmax)
    return TestAttack(config.test_type, config.test_eps, step_size=step, start=start, clip=clip)


test_attack.__test__ = False  # type: ignore[attr-defined]


class GdroPlan(Plan[GdroConfig]):
    """What GDRO-AT adds to a session."""

    def data(self, config: GdroConfig, say: Say) -> Data:
        """Return training, validation and test images with groups."""
        train, validation, test = load_groups(config, say)
        if config.is_combine and validation is not None:
            validation_halves(validation, config.seed)  # refuses too few before anything is trained
        say(counts_text({"Training Data": train, "Validation Data": validation, "Test Data": test}).rstrip())
        return train, validation, test

    def phases(self, config: GdroConfig, epoch_steps: int) -> list[Phase]:
        """Return the phases of :func:`build_phases`."""
        return build_phases(config, epoch_steps)

    def network(self, config: GdroConfig, info: DatasetInfo, *, fresh: bool) -> nn.Module:
        """Return the network, begun with ImageNet weights, given ones or none.

        Raises:
            UserError: if the weights are not there or of another network.
        """
        inside = config.pixels == "unit"
        donated = config.resume_weights or config.only_test
        source = config.pth_name if donated else config.warm_start if config.train_type == "FAT" else None
        scratch = config.train_from_scratch or not fresh or bool(source)
        network = build_network(
            config.model,
            info.num_classes,
            image_size=info.size,
            mean=info.mean if inside else None,
            std=info.std if inside else None,
            seed=config.seed,
            weights="scratch" if scratch else Path(config.pretrained) if config.pretrained else "imagenet",
        )
        if fresh and source:
            load_weights(network, source)
        return network

    def validate(
        self, config: GdroConfig, model: nn.Module, images: ImageSet, machine: Machine
    ) -> Mapping[str, Any]:
        """Return accuracies per group, natural and under the test attack, if any, and the published row and text."""
        images = images.to(machine.device)
        if config.is_combine:  # the other half trains the last layer
            _, images = validation_halves(images, config.seed)
        return self._figures(config, model, first_of_each_group(images, config.validation_images))

    def _figures(self, config: GdroConfig, model: nn.Module, images: ImageSet) -> dict[str, Any]:
        logits = attacked_logits(
            model,
            images,
            test_attack(config),
            seed=config.seed,
            batch_size=config.evaluation_batch_size,
            prepare=_preparation(config),
        )
        worst = config.alpha if config.robust else None
        loss = hinge if config.validates_by_hinge else cross_entropy
        figures = group_figures(logits, images, worst_share=worst, loss=loss)
        row = published_row(
            model,
            logits,
            images,
            _evaluation_rule(config, images),
            epoch=0,
            batch_size=config.batch_size,
            weight_decay=config.weight_decay,
            loss=loss,
        )
        return {**figures.as_dict(), **row}

    def export(self, config: GdroConfig, folder: Path) -> Callable[[Phase, int, nn.Module], None]:
        """Return what writes state dicts of the published names and the published logs after each epoch."""

        def write(phase: Phase, epoch: int, model: nn.Module) -> None:
            number = _published_epoch(RunDirectory.open(folder).record, config, phase, epoch)
            prefix = folder / config.name_index
            if number in (0, 1) or number % config.save_step == 0:
                write_tensors(Path(f"{prefix}{number}_model.pth"), model.state_dict())
            if config.save_last:
                write_tensors(Path(f"{prefix}last_model.pth"), model.state_dict())
            write_logs(config, folder)

        return write

    def published_files(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """Return the patterns of state dicts and logs, which begin with the run's ``--name-index``."""
        # a damaged record does not tell which files are the run's
        if not {"name_index", "log_dir_text"} <= settings.keys():
            return ()
        name = glob.escape(str(settings["name_index"]))
        weights = (f"{name}{which}_model.pth" for which in ("[0-9]*", "best", "last"))
        return (*weights, *log_files(settings))

    def conclude(self, session: Session[GdroConfig]) -> dict[str, Any]:
        """Test per group under the test attack, APGD, the suite and other budgets; write logs, weights, gallery."""
        config, folder = session.config, session.run.path
        if config.save_best and config.selects_best:
            write_tensors(folder / f"{config.name_index}best_model.pth", session.model.state_dict())
        if config.save_last and not config.only_test:
            newest = session.run.checkpoints.latest()
            if newest is not None:
                write_tensors(folder / f"{config.name_index}last_model.pth", newest["model"])
        model = session.model.eval()
        images = session.test_set
        if 0 < config.test_images < len(images):
            images = images.subset(torch.arange(config.test_images))
        images = images.to(session.machine.device)
        tested = self._figures(config, model, images)
        write_json(folder / TEST_ROW, {"row": tested.pop("row"), "text": tested.pop("text")})
        parts = {"Training Data": session.train_set, "Validation Data": session.validation_set}
        counts = counts_text({**parts, "Test Data": session.test_set}, notes=True)
        write_whole(folder / COUNTS, counts.encode("utf8"))
        write_logs(config, folder)
        for line in _told(tested):
            session.say(line)
        result = {"method": method_title(config), "seed": config.seed, "test": tested}
        sets = [part for part in (*parts.values(), session.test_set) if part is not None]
        if told := [note for part in sets for note in part.notes]:
            result["data_notes"] = told
        if _preparation(config) is not None:
            note = "images lie outside of [0, 1] under --pixels official, so only the published test attack was run"
            session.say(note)
            return {**result, "note": note}
        return {**result, **self._suites(session)}

    def _suites(self, session: Session[GdroConfig]) -> dict[str, Any]:
        """Evaluate under the final protocol and the sweep of budgets."""
        config = session.config
        protocol = final_protocol(config, session.test_set.info.num_classes)
        for flag in ("suite_images", "sweep_images"):
            if not getattr(config, flag):
                session.say(f"not run: what {flag_of(flag)} N asks for (see --help)")
        evaluation = session.evaluate(protocol)
        session.save_gallery(protocol)
        summary = evaluation.summary()
        found = {
            "summary": summary,
            "average_accuracy": {kind: summary[f"{kind}_accuracy"] for kind in ("natural", "robust")},
            "train_weighted_accuracy": train_weighted(evaluation, session.train_set),
            "sweep": {},
        }
        for budget in BUDGETS if config.sweep_images else ():
            swept = _limited(session, sweep_protocol(config, budget), config.sweep_images)
            found["sweep"][f"{budget:g}/255"] = swept.summary()
        if any(member.name == "apgd-margin" for member in protocol.members):
            found["float64"] = _in_double(session, protocol).summary()
        return found


def _published_epoch(record: Mapping[str, Any], config: GdroConfig, phase: Phase, epoch: int) -> int:
    """Return the number, counted from 0 over all phases, of the epoch that ends ``epoch`` epochs into a phase."""
    names = [entry["name"] for entry in record["phases"]]
    before: int = sum(entry["steps"] for entry in record["phases"][: names.index(phase.name)])
    length = steps_per_epoch(record["data"]["train"]["images"], config.batch_size)
    return (before + epoch * length - 1) // length


def _evaluation_rule(config: GdroConfig, images: ImageSet) -> GroupRule | None:
    """Return the rule that moves during a published validation: as in training, without adjustment."""
    if not config.robust:
        return None
    count = len(images.info.groups or images.info.classes)
    groups = images.labels if images.groups is None else images.groups
    settings = {**rule_settings(config), "generalization_adjustment": (0.0,)}
    return GroupRule(training_counts=tuple(torch.bincount(groups, minlength=count).tolist()), **settings)


def _preparation(config: GdroConfig) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if config.normalizes_before_attack:
        return lambda images: normalized(images, *IMAGENET)
    return None


def train_weighted(evaluation: Evaluation, train: ImageSet) -> dict[str, float | None]:
    """Return accuracies weighted by the training proportions of the groups (Group-DRO's Waterbirds convention).

    None where a group that was trained on has no test image.
    """
    if train.groups is None or evaluation.groups is None:
        return {"natural": None, "robust": None}
    count = len(train.info.groups or ())
    shares = torch.bincount(train.groups, minlength=count) / len(train)
    found: dict[str, float | None] = {}
    for kind, right in (("natural", evaluation.natural), ("robust", evaluation.worst_case())):
        groups = torch.from_numpy(evaluation.groups)
        sums = torch.zeros(count).index_add_(0, groups, torch.from_numpy(right).float())
        sizes = torch.bincount(groups, minlength=count)
        missing = bool(((sizes == 0) & (shares > 0)).any())
        found[kind] = None if missing else float((shares * sums / sizes.clamp(min=1)).sum())
    return found


def _limited(session: Session[GdroConfig], protocol: Protocol, limit: int) -> Evaluation:
    config = session.config
    return evaluate(
        session.model,
        session.test_set,
        protocol,
        seed=config.seed,
        limit=limit,
        device=session.machine.device,
        batch_size=config.evaluation_batch_size,
    )


def _in_double(session: Session[GdroConfig], protocol: Protocol) -> Evaluation:
    """Repeat APGD on the margin in float64 on the first images; the network is float32 again afterwards."""
    members = tuple(member for member in protocol.members if member.name == "apgd-margin")
    session.model.double()
    try:
        return _limited(
            session, Protocol("float64", members), min(DOUBLE_IMAGES, session.config.suite_images)
        )
    finally:
        session.model.float()


def _told(figures: Mapping[str, float]) -> list[str]:
    """Return the test's figures, a line for natural and one for attacked images, if any: overall and worst group."""
    return [
        f"Test, {kind}: average accuracy {100 * figures[f'{kind}_accuracy']:.2f}%, worst group "
        f"{100 * figures[f'{kind}_worst_group']:.2f}%"
        for kind in ("natural", "attacked")
        if f"{kind}_accuracy" in figures
    ]
