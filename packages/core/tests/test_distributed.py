"""What the processes of one run agree on before they compute."""

from __future__ import annotations

import pytest

from robust_core.randomness import rows_of_rank
from robust_core.training import Processes


class Recorded(Processes):
    def __init__(self, rank):
        super().__init__(rank, world_size=2)
        self.events = []

    def barrier(self):
        self.events.append("barrier")


@pytest.mark.parametrize(
    ("rank", "events"), [(0, ["download", "barrier"]), (1, ["barrier", "download"])], ids=["main", "other"]
)
def test_the_first_process_downloads_and_the_others_wait(rank, events):
    processes = Recorded(rank)

    def action():
        processes.events.append("download")
        return "data"

    assert processes.main_first(action) == "data"
    assert processes.events == events


def test_rows_of_ranks_cover_a_batch_once_or_whole():
    assert [rows_of_rank(5, rank, 2) for rank in range(2)] == [(0, 2), (2, 5)]
    assert [rows_of_rank(1, rank, 2) for rank in range(2)] == [(0, 1), (0, 1)]


def test_a_batch_of_fewer_images_than_processes_is_known_to_be_copied():
    processes = Recorded(1)
    there = [processes.on_batch(size) for size in (1, 2, 5)]
    assert [found.copies for found in there] == [2, 1, 1]
    assert processes.copies == 1
    assert all(type(found) is Recorded and (found.rank, found.world_size) == (1, 2) for found in there)
    assert Processes().on_batch(1).copies == 1
