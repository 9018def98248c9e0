"""Running statistics of the log, beyond what the golden sequences hold."""

from __future__ import annotations

import pytest
import torch

from gdro_at.statistics import Statistics, csv_columns, csv_row
from gdro_at.units import UnitMeans
from robust_core.errors import UserError


def two_batches():
    statistics = Statistics.start(3, torch.float64)
    for means, hits, counts in (
        ([1.0, 2.0, 0.0], [1.0, 0.5, 0.0], [1.0, 2.0, 0.0]),
        ([3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]),
    ):
        counts, hits = (torch.tensor(row, dtype=torch.float64) for row in (counts, hits))
        losses = UnitMeans(torch.tensor(means, dtype=torch.float64), counts)
        statistics = statistics.updated(losses, hits, None, (losses.means * counts).sum() / counts.sum())
    return statistics


def test_means_over_the_samples_since_the_reset():
    statistics = two_batches()
    assert statistics.loss.tolist() == [2.5, 2, 0]
    assert statistics.accuracy.tolist() == [0.25, 0.5, 0]
    assert statistics.processed.tolist() == statistics.updated_data.tolist() == [4, 2, 0]
    assert statistics.updated_batches.tolist() == [2, 1, 0]
    assert float(statistics.average_loss) == pytest.approx(14 / 6)
    assert float(statistics.average_accuracy) == pytest.approx(2 / 6)
    assert float(statistics.actual) == pytest.approx((5 / 3 + 3) / 2)


def test_no_batch_gives_zeros():
    statistics = Statistics.start(2)
    row = csv_row(0, 0, statistics, torch.zeros(2), norm_sq=1.0, weight_decay=0.0)
    assert list(row) == csv_columns(2)
    assert row["avg_per_sample_loss"] == row["avg_acc"] == 0


def test_statistics_go_through_a_checkpoint():
    statistics = two_batches()
    again = Statistics.from_dict(statistics.to_dict(), 3)
    assert all(torch.equal(value, again.to_dict()[name]) for name, value in statistics.to_dict().items())
    with pytest.raises(UserError, match="resume with the data"):
        Statistics.from_dict(statistics.to_dict(), 4)
