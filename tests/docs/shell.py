"""The shell commands of a block, run in this process: a `kiseki` of its own for each would take seconds.

`kiseki serve` becomes a server on a free port, which the URLs of the block are led to. `kiseki index --follow` looks once.
Besides `kiseki` and `python -m kiseki` there are `curl` (by httpx), `echo` with `>` and `|`, and variables before a command.
Any other command, and any that finds nothing, is an error.
"""

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import indexer.build.follow
import ui.serve
from indexer.build.update import IndexOptions, IndexReport, update_index
from search_api import Settings
from search_api.settings import limits_of
from tests.support.live_server import live_server
from ui.serve import ServeOptions

__all__ = ["Shell", "commands_of"]

_URL = re.compile(r"(?:http://)?(?:127\.0\.0\.1|localhost):8700")


def commands_of(text: str) -> list[str]:
    """Logical lines, without comments and empty ones."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@dataclass(kw_only=True)
class Shell:
    """Runs the blocks of one test in the working directory. Close it: that ends its servers."""

    capture: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    url: str | None = None
    printed: str = ""
    servers: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.monkeypatch.setattr(ui.serve, "serve_runs", self._serve)
        self.monkeypatch.setattr(indexer.build.follow, "follow", _follow_once)

    def close(self) -> None:
        self.servers.close()

    def run(self, text: str, exit_code: int = 0) -> None:
        """All commands of a block; the last one ends with `exit_code`, the others with 0."""
        lines = commands_of(text)
        self.printed = ""
        for number, line in enumerate(lines):
            expected = exit_code if number == len(lines) - 1 else 0
            code, out, err = self._line(line)
            assert code == expected, f"{line}\nended with {code}, expected {expected}\n{out}{err}"
            if expected == 0 and not line.endswith("&"):
                _expect_something(line, out)
            self.printed += out + err

    def with_server(self, run_dir: Path) -> str:
        """The URL of a server of this run."""
        if self.url is None:
            self.url = self.servers.enter_context(live_server(Settings(run_dirs=(run_dir,), sql=True)))
        return self.url

    def lead_urls(self, text: str) -> str:
        """The text with the documented address in place of that of the server, if there is one."""
        return text if self.url is None else _URL.sub(self.url, text)

    def _line(self, line: str) -> tuple[int, str, str]:
        words = shlex.split(line.removesuffix("&"), comments=True)
        if ">" in words:
            place = words.index(">")
            assert words[0] == "echo" and len(words) == place + 2, f"only `echo … > FILE` is run: {line}"
            Path(words[place + 1]).write_text(" ".join(words[1:place]) + "\n", encoding="utf-8")
            return 0, "written", ""
        if "|" in words:
            place = words.index("|")
            assert words[0] == "echo", f"only `echo … |` is run: {line}"
            return self._command(words[place + 1 :], " ".join(words[1:place]) + "\n")
        return self._command(words, "")

    def _command(self, words: list[str], given: str) -> tuple[int, str, str]:
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            self.monkeypatch.setenv(name, value)
        if words[:3] == ["python", "-m", "kiseki"]:
            words = words[2:]
        if words[0] == "curl":
            return self._curl(words[1:])
        assert words[0] == "kiseki", f"expected a kiseki command, found {shlex.join(words)}"
        return self._kiseki(words, given)

    def _kiseki(self, words: list[str], given: str) -> tuple[int, str, str]:
        from kiseki.__main__ import main

        self.monkeypatch.setattr(sys, "argv", words)
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        self.capture.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        out, err = self.capture.readouterr()
        return int(code or 0), out, err

    def _curl(self, words: list[str]) -> tuple[int, str, str]:
        body, headers, url = None, {}, ""
        rest = iter(words)
        for word in rest:
            if word in ("-H", "--header"):
                name, _, value = next(rest).partition(":")
                headers[name] = value.strip()
            elif word in ("-d", "--data"):
                body = next(rest)
            elif not word.startswith("-"):
                url = self.lead_urls(word)
        assert url.startswith("http://127.0.0.1:"), f"no server for {url}"
        answer = httpx.request("GET" if body is None else "POST", url, content=body, headers=headers, timeout=60)
        assert answer.is_success, answer.text
        return 0, answer.text, ""

    def _serve(self, runs: list[Path], options: ServeOptions) -> None:
        options.check()
        limits = limits_of(dict(text.split("=", 1) for text in options.limits))
        settings = Settings(
            run_dirs=tuple(runs), limits=limits, keys_file=options.keys, read_log=options.read_log, sql=options.sql
        )
        self.url = self.servers.enter_context(live_server(settings))
        print("serving")


def _follow_once(run: Path, options: IndexOptions, *, interval_s: float) -> Iterator[IndexReport]:
    assert interval_s > 0
    yield update_index(run, options)


def _expect_something(line: str, out: str) -> None:
    """What a command printed is more than that there is nothing."""
    words = shlex.split(line, comments=True)
    if "--output" in words:
        assert Path(words[words.index("--output") + 1]).stat().st_size, f"{line}\nwrote nothing"
        return
    assert out.strip(), f"{line}\nprinted nothing"
    nothing: dict[str, Callable[[str], bool]] = {
        "search": lambda text: not re.match(r"[1-9][\d,]* segment", text),
        "count": lambda text: not re.match(r"[1-9]", text),
        "sql": lambda text: len(text.strip().splitlines()) < 2,
    }
    kind = words[1] if words[0] == "kiseki" and len(words) > 1 else ""
    if kind in nothing:
        assert not nothing[kind](out), f"{line}\nfound nothing:\n{out}"
    if words[0] == "curl" and out.startswith("{"):
        answer = json.loads(out)
        for name in ("spans", "rows", "sequences", "segments", "count"):
            assert name not in answer or answer[name], f"{line}\nfound nothing: {out[:500]}"
