"""A real API over two runs, on a free port in this process, for pages that run in this process too."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import update_index
from search_api import Settings
from tests.support.export_maker import MadeStep, make_attempt
from tests.support.live_server import live_server
from tests.support.pages_run import PagesRun, make_pages_run
from train_hooks.export_format.writing.attempts import RunSpec
from ui.pages import api


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The run that most tests look at, and a small one beside it: no tokenizer, no metrics, no documents."""

    run: PagesRun
    plain_run_dir: Path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Both runs, made once."""
    directory = tmp_path_factory.mktemp("pages")
    plain = directory / "plain"
    spec = RunSpec(sequence_length=8, vocab_size=100, run_id="plain", config={})
    steps = [MadeStep(microbatches={0: [np.arange(16).reshape(2, 8) + step]}) for step in range(6)]
    make_attempt(plain, spec, steps)
    update_index(plain)
    return Served(run=make_pages_run(directory), plain_run_dir=plain)


@pytest.fixture(scope="session")
def api_of_one(runs: Served) -> Iterator[str]:
    """An API of one run, with SQL."""
    with live_server(Settings(run_dirs=(runs.run.run_dir,), sql=True)) as url:
        yield url


@pytest.fixture(scope="session")
def api_of_two(runs: Served) -> Iterator[str]:
    """An API of two runs, without SQL."""
    with live_server(Settings(run_dirs=(runs.run.run_dir, runs.plain_run_dir))) as url:
        yield url


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pages ask this API from now on."""
    monkeypatch.setenv("KISEKI_API_URL", url)
    api.client.clear()


@pytest.fixture
def one_run(api_of_one: str, runs: Served, monkeypatch: pytest.MonkeyPatch) -> PagesRun:
    """The pages show one run."""
    ask(api_of_one, monkeypatch)
    return runs.run


@pytest.fixture
def two_runs(api_of_two: str, runs: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The pages show two runs, and the API answers no SQL."""
    ask(api_of_two, monkeypatch)
    return runs
