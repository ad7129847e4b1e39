"""A killed indexer leaves every answer right for the generation it names, and can be completed."""

from pathlib import Path

import pytest

from tests.support.index_kills import play

pytestmark = pytest.mark.alone


def test_kill_9_while_indexing_with_readers(tmp_path: Path) -> None:
    hit, answers, wrong = play(tmp_path / "run", kills=4, seed=1)
    assert wrong == []
    assert hit >= 1 and answers > 20
