"""Accuracy overall, per class and per group under a protocol of attacks, with a record per image."""

from __future__ import annotations

from robust_core.evaluation.comparison import compare
from robust_core.evaluation.examination import Examination, Examiner, Sizes, load_examination
from robust_core.evaluation.helped import feature_runner, transfer_runner
from robust_core.evaluation.intervals import (
    MIN_IMAGES,
    Interval,
    PairedDifference,
    bootstrap_minimum,
    enough_images,
    holm,
    paired_difference,
    paired_worst,
    t_interval,
    t_test,
    wilson,
    worst_group,
)
from robust_core.evaluation.judging import weights_digest
from robust_core.evaluation.keeping import Keeper, records_in
from robust_core.evaluation.loop import Progress, evaluate
from robust_core.evaluation.members import AttackCall, MemberUnavailable, Runner
from robust_core.evaluation.protocols import PROTOCOLS, Member, Protocol, protocol
from robust_core.evaluation.record import Evaluation, MemberRun, load_evaluation
from robust_core.evaluation.sanity import Check, SanityEffort, load_checks, sanity_table, save_checks
from robust_core.evaluation.summary import INTERVAL_NOTE, summarize

__all__ = [
    "INTERVAL_NOTE",
    "MIN_IMAGES",
    "PROTOCOLS",
    "AttackCall",
    "Check",
    "Evaluation",
    "Examination",
    "Examiner",
    "Interval",
    "Keeper",
    "Member",
    "MemberRun",
    "MemberUnavailable",
    "PairedDifference",
    "Progress",
    "Protocol",
    "Runner",
    "SanityEffort",
    "Sizes",
    "bootstrap_minimum",
    "compare",
    "enough_images",
    "evaluate",
    "feature_runner",
    "holm",
    "load_checks",
    "load_evaluation",
    "load_examination",
    "paired_difference",
    "paired_worst",
    "protocol",
    "records_in",
    "sanity_table",
    "save_checks",
    "summarize",
    "t_interval",
    "t_test",
    "transfer_runner",
    "weights_digest",
    "wilson",
    "worst_group",
]
