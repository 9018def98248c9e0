"""Accuracy overall, per class and per group under a protocol of attacks, with a record per image."""

from __future__ import annotations

from robust_core.evaluation.comparison import compare
from robust_core.evaluation.intervals import (
    MIN_IMAGES,
    Interval,
    PairedDifference,
    bootstrap_minimum,
    enough_images,
    holm,
    paired_difference,
    t_interval,
    wilson,
)
from robust_core.evaluation.loop import Progress, evaluate
from robust_core.evaluation.members import AttackCall, MemberUnavailable, Runner
from robust_core.evaluation.protocols import PROTOCOLS, Member, Protocol, protocol
from robust_core.evaluation.record import Evaluation, MemberRun, load_evaluation
from robust_core.evaluation.summary import INTERVAL_NOTE, summarize

__all__ = [
    "INTERVAL_NOTE",
    "MIN_IMAGES",
    "PROTOCOLS",
    "AttackCall",
    "Evaluation",
    "Interval",
    "Member",
    "MemberRun",
    "MemberUnavailable",
    "PairedDifference",
    "Progress",
    "Protocol",
    "Runner",
    "bootstrap_minimum",
    "compare",
    "enough_images",
    "evaluate",
    "holm",
    "load_evaluation",
    "paired_difference",
    "protocol",
    "summarize",
    "t_interval",
    "wilson",
]
