"""The attacks of PART's final tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from part.config import PartConfig
from part.plan import final_protocol
from robust_core.evaluation import Protocol

CONFIG = PartConfig(test_epsilon=0.03, step_size=0.01)


def test_the_final_protocol_is_what_committed_records_hold():
    margin = {"eps": 0.03, "norm": "linf", "step_size": 0.01, "steps": 20}
    found = final_protocol(CONFIG)
    assert found.name == "part"
    assert [(member.name, member.kind, member.settings) for member in found.members] == [
        ("pgd-20", "pgd", margin),
        ("mma", "mma", {**margin, "targets": 3}),
        ("autoattack", "autoattack", {"eps": 0.03, "norm": "linf", "version": "standard"}),
    ]
    assert Protocol.from_json(found.as_json()) == found


@pytest.mark.parametrize(("aa_images", "images"), [(-1, [None]), (7, [7]), (0, [])])
def test_autoattack_has_its_own_number_of_images(aa_images, images):
    members = final_protocol(replace(CONFIG, aa_images=aa_images)).members
    assert [member.images for member in members] == [None, None, *images]


def test_the_short_final_test_is_pgd_alone():
    assert [m.name for m in final_protocol(replace(CONFIG, final_tests="pgd-20")).members] == ["pgd-20"]
