"""`kiseki serve` and `kiseki keys`."""

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_api.permissions import Action
from train_hooks.export_format.errors import InputError
from ui.commands.arguments import JsonOption
from ui.terminal import console

if TYPE_CHECKING:
    from search_api.keys import Key

__all__ = ["keys_app", "serve_command"]

DAY_S = 86_400.0
keys_app = typer.Typer(help="Keys to the API: who may ask what.", no_args_is_help=True, rich_markup_mode=None)
KeysArgument = Annotated[Path, typer.Argument(help="File of keys; `kiseki serve --keys` takes it.", show_default=False)]


def serve_command(
    run: Annotated[list[Path], typer.Argument(help="Run directories.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback alone by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8700,
    api_only: Annotated[bool, typer.Option("--api-only", help="No pages.")] = False,
    keys: Annotated[Path | None, typer.Option(help="File of keys; without it everybody may ask everything.")] = None,
    read_log: Annotated[Path | None, typer.Option(help="Append every question to this file.")] = None,
    insecure_no_keys: Annotated[
        bool, typer.Option("--insecure-no-keys", help="Serve strangers: listen beyond loopback without keys.")
    ] = False,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a limit in docs/api.md; repeat it.")] = None,
    sql: Annotated[bool, typer.Option("--sql", help="Answer /v1/sql, for keys without restricted sources.")] = False,
    log: Annotated[bool, typer.Option("--log", help="A JSON line a request on standard error.")] = False,
) -> None:
    """Serve the pages and the API of runs."""
    from ui.serve import ServeOptions, serve_runs

    options = ServeOptions(
        host=host, port=port, pages=not api_only, keys=keys, read_log=read_log, insecure_no_keys=insecure_no_keys,
        limits=limit or (), sql=sql, log=log,
    )  # fmt: skip
    serve_runs(run, options)


@keys_app.command("create")
def create_command(
    keys: KeysArgument,
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    run: Annotated[list[str] | None, typer.Option(help="Run id that it may ask; all by default. Repeat it.")] = None,
    action: Annotated[
        list[Action] | None, typer.Option(help="What it may do; everything by default. Repeat it.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="Source that it may see; all by default. Repeat it.")] = None,
    hide_source: Annotated[list[str] | None, typer.Option(help="Source that it may not see. Repeat it.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires; never by default.", min=0)] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Tokens of training data that it is shown a day.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Instead of the server's limit.")] = None,
    snippet_tokens: Annotated[int | None, typer.Option(help="Tokens of context beside a hit, at most.")] = None,
) -> None:
    """Make a key, and print it: once, it is kept nowhere."""
    from search_api.keys import KeyFile

    key, token = KeyFile(keys).create(
        name,
        expires_unix_s=None if days is None else time.time() + days * DAY_S,
        runs=None if run is None else tuple(run),
        actions=None if action is None else tuple(str(item) for item in action),
        sources=None if source is None else tuple(source),
        hidden_sources=tuple(hide_source or ()),
        tokens_per_day=tokens_per_day,
        requests_per_minute=requests_per_minute,
        snippet_tokens=snippet_tokens,
    )
    console.errors.print(f"key {key.key_id} for {key.name}; keep what follows, it is shown this once", markup=False)
    print(token)


@keys_app.command("list")
def list_command(keys: KeysArgument, as_json: JsonOption = False) -> None:
    """List the keys, without what would let anybody use them."""
    from indexer.answers.plain_data import plain_data

    found = _read(keys)
    if as_json:
        console.print_json([{**plain_data(key), "in_force": key.in_force(time.time())} for key in found])
        return
    for key in found:
        state = "in force" if key.in_force(time.time()) else "revoked" if key.revoked_unix_s else "expired"
        console.output.print(f"{key.key_id}  {state:8}  {key.name}  {_scope(key)}", markup=False)


@keys_app.command("revoke")
def revoke_command(
    keys: KeysArgument, key_id: Annotated[str, typer.Argument(help="Id, as `kiseki keys list` shows it.")]
) -> None:
    """End a key; running servers refuse it at once."""
    from search_api.keys import KeyFile

    key = KeyFile(keys).revoke(key_id)
    console.output.print(f"key {key.key_id} of {key.name} is revoked", markup=False)


def _read(path: Path) -> "list[Key]":
    from search_api.keys import KeyFile

    if not path.exists():
        raise InputError(f"expected a file of keys at {path}, found none; `kiseki keys create` makes it")
    return KeyFile(path).read()


def _scope(key: "Key") -> str:
    parts = []
    for what, values in (("runs", key.runs), ("actions", key.actions), ("sources", key.sources)):
        if values is not None:
            parts.append(f"{what} {', '.join(values) or 'none'}")
    if key.hidden_sources:
        parts.append(f"without sources {', '.join(key.hidden_sources)}")
    for name in ("tokens_per_day", "requests_per_minute", "snippet_tokens"):
        if getattr(key, name) is not None:
            parts.append(f"{getattr(key, name):,} {name.replace('_', ' ')}")
    if key.expires_unix_s is not None:
        until = datetime.datetime.fromtimestamp(key.expires_unix_s, datetime.UTC)
        parts.append(f"until {until:%Y-%m-%d %H:%M} UTC")
    return "; ".join(parts) or "everything"
