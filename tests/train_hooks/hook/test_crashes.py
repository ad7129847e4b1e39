"""A real two-rank FSDP2 job, killed at random and resumed: the export is what the forwards got."""

from pathlib import Path

import pytest

from tests.train_hooks.hook.crashes import crash_and_compare


@pytest.mark.job
def test_the_export_outlives_kill_9(tmp_path: Path) -> None:
    outcome = crash_and_compare(tmp_path, num_crashes=2, steps=16, checkpoint_every=3, seed=2)
    assert outcome.problems == []
    assert outcome.num_crashes == 2
    assert outcome.num_forwards == 16 * 2 * 2
