"""Every code block of README.md and docs/*.md runs on the demo run and finds something, or says why it cannot run here."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.search.search import SearchOptions, search
from kiseki import open_run
from tests.docs.markdown import LANGUAGES, ROOT, Block, every_block
from tests.docs.names import check_names
from tests.docs.shell import Shell, commands_of

pytestmark = [pytest.mark.job, pytest.mark.timeout(600)]

BLOCKS = every_block()
MAX_NOT_RUN = {"README.md": 3, "api.md": 1, "corpora.md": 3, "trainers.md": 17}
"""How many blocks of a page may say that they cannot run here. Make a number smaller where you can, never larger."""


def ids(block: Block) -> str:
    return block.name


@pytest.fixture
def workplace(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader who has trained the demo: `demo-run` (a copy), `examples`."""
    shutil.copytree(demo / "demo-run", tmp_path / "demo-run")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    assert workplace.is_dir()
    found = Shell(capture=capsys, monkeypatch=monkeypatch)
    yield found
    found.close()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash" and not b.not_run], ids=ids)
def test_commands_run_and_find_something(block: Block, shell: Shell, workplace: Path) -> None:
    run_block(block, shell, workplace)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python" and not b.not_run], ids=ids)
def test_programs_run(block: Block, shell: Shell, workplace: Path) -> None:
    run_block(block, shell, workplace)


def run_block(block: Block, shell: Shell, workplace: Path) -> None:
    """Run it, and before it those that it needs."""
    if block.needs_block_above:
        assert block.before is not None
        run_block(block.before, shell, workplace)
    if block.language == "bash":
        shell.run(block.text, block.exit_code)
        return
    assert block.language == "python"
    check_names(block.text)
    if "127.0.0.1:8700" in block.text:
        shell.with_server(workplace / "demo-run")
    shell.capture.readouterr()
    program = compile("\n" * block.line + shell.lead_urls(block.text), str(ROOT / block.page), "exec")
    exec(program, {"__name__": "__main__"})
    shell.printed = shell.capture.readouterr().out


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.is_output], ids=ids)
def test_outputs_are_as_shown(block: Block, shell: Shell, workplace: Path) -> None:
    assert block.before is not None, "an output has commands before it"
    run_block(block.before, shell, workplace)
    printed = " ".join(shell.printed.split())
    for line in block.text.splitlines():
        shown = " ".join(line.partition("…")[0].split()) if not line.strip().startswith("…") else ""
        assert shown in printed, f"{line}\nis not in\n{shell.printed}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python" and b.not_run], ids=ids)
def test_code_that_cannot_run_here_compiles_and_calls_what_is_there(block: Block) -> None:
    assert check_names(block.text) or "kiseki" not in block.text


def test_every_block_says_what_it_is() -> None:
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block.name}: expected one of {', '.join(LANGUAGES)} after the fence"
        assert not block.not_run or len(block.not_run) > 10, f"{block.name}: expected a reason"
        if block.language == "text":
            commands = [
                line for line in commands_of(block.text) if re.match(r"(\$ )?(kiseki|pip|make|python) [a-z]", line)
            ]
            assert not commands, f"{block.name}: commands stand in a block of text: {commands}"


def test_few_blocks_are_not_run() -> None:
    found = Counter(block.page for block in BLOCKS if block.not_run)
    assert found == MAX_NOT_RUN


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("from kiseki import Segment\nSegment(0, 4, 'a', 'b', 0)", "takes 0 positional"),
        (
            "from kiseki import Segment\nSegment(start=0, length=4, source='a', document_id='b', offset=0)",
            "has no offset",
        ),
        (
            "from kiseki import Segment\nSegment(start=0, length=4, source='a', document_id='b')",
            "document_token_offset",
        ),
        ("from kiseki import Sequence", "has no Sequence"),
        ("from kiseki import ExportHook\nhook = ExportHook.attach(...)\nhook.comit(1)", "has no comit"),
        ("from train_hooks.adapters.lightning import ExportCallback\nExportCallback(..., row_length=4)", "row_length"),
    ],
)
def test_what_is_wrong_is_found(program: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_names(program)


def test_commands_that_find_nothing_are_errors(shell: Shell) -> None:
    for line in ("kiseki search demo-run zyzzyva", "kiseki count demo-run zyzzyva", "kiseki trace demo-run 'any text'"):
        with pytest.raises(AssertionError):
            shell.run(line)


def test_every_example_of_the_query_language_finds_something(demo: Path) -> None:
    page = (ROOT / "docs" / "query_language.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \| ", page.partition("| write |")[2].partition("\n\n")[0], re.MULTILINE)
    queries = [query for row in rows for query in re.findall(r"`([^`]+)`", row)]
    assert len(queries) > 20
    reader = open_run(demo / "demo-run")
    assert [query for query in queries if not search(reader, query, SearchOptions(limit=0)).count] == []


def test_the_notebook_runs_as_it_is(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/examples/test_notebook.py gives it a text; here it has its own."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    from search_api import Settings
    from tests.support.live_server import live_server

    notebook = nbformat.read(ROOT / "examples" / "trace.ipynb", as_version=4)
    with live_server(Settings(run_dirs=(demo / "demo-run",))) as url:
        monkeypatch.setenv("KISEKI_URL", url)
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "demo-run/a1/s" in json.dumps(cells[3].outputs)
