"""Python that cannot run here, held against our sources: imported names exist, and calls fit the signatures.

Sources are read, not imported: an adapter imports its framework. `...` as an argument stands for what the reader puts there.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.docs.markdown import ROOT

__all__ = ["check_names"]

OURS = ("kiseki", "train_hooks", "indexer", "search_api", "ui")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Named:
    """A function or class of ours, and the module that has it."""

    module: str
    node: ast.AST


@dataclass(frozen=True, slots=True)
class Signature:
    """What a call may say."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: frozenset[str]
    more_positional: bool
    more_keywords: str | None


def check_names(text: str) -> int:
    """Check a program; returns how many calls of ours were checked. Raises SyntaxError, AssertionError."""
    tree = ast.parse(text)
    names: dict[str, Named] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            for alias in node.names:
                found = _find(node.module, alias.name)
                assert found is not None, f"{node.module} has no {alias.name}"
                names[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            made = _made_by(node.value, names)
            if made is not None:
                names[node.targets[0].id] = made
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sum(_check_call(call, names) for call in calls)


def _check_call(call: ast.Call, names: dict[str, Named]) -> bool:
    called = _called(call.func, names)
    signature = None if called is None else _signature(called)
    if signature is None:
        return False
    what = ast.unparse(call.func)
    given = [argument for argument in call.args if not _is_ellipsis(argument)]
    starred = len(given) < len(call.args) or any(isinstance(argument, ast.Starred) for argument in given)
    named = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    known = signature.keywords | (_attach_keywords() if signature.more_keywords == "options" else frozenset())
    if signature.more_keywords in (None, "options"):
        assert named <= known, f"{what} has no {', '.join(sorted(named - known))}; it has {', '.join(sorted(known))}"
    if not signature.more_positional:
        assert len(given) <= len(signature.positional), f"{what} takes {len(signature.positional)} positional arguments"
    if not starred and all(keyword.arg is not None for keyword in call.keywords):
        missing = signature.required - named - set(signature.positional[: len(given)])
        assert not missing, f"{what} also needs {', '.join(sorted(missing))}"
    return True


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _called(function: ast.expr, names: dict[str, Named]) -> Named | None:
    if isinstance(function, ast.Name):
        return names.get(function.id)
    if isinstance(function, ast.Attribute) and (owner := _called(function.value, names)) is not None:
        return _member(owner, function.attr)
    return None


def _member(owner: Named, name: str) -> Named | None:
    """A method or a nested class. Raises AssertionError where a class whose bases are all ours has none of this name."""
    if not isinstance(owner.node, ast.ClassDef):
        return None
    for node in owner.node.body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return Named(owner.module, node)
    bases = [_find(owner.module, base.id) if isinstance(base, ast.Name) else None for base in owner.node.bases]
    for base in bases:
        if base is not None and (found := _member(base, name)) is not None:
            return found
    fields = {n.target.id for n in owner.node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    set_in_init = {
        n.attr for n in ast.walk(owner.node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    if None not in bases:
        assert name in fields | set_in_init, f"{owner.node.name} has no {name}"
    return None


def _made_by(call: ast.Call, names: dict[str, Named]) -> Named | None:
    """The class of what a call returns."""
    called = _called(call.func, names)
    if called is None or isinstance(called.node, ast.ClassDef):
        return called
    returns = called.node.returns if isinstance(called.node, Function) else None
    if not isinstance(returns, ast.Name):
        return None
    if returns.id == "Self" and isinstance(call.func, ast.Attribute):
        return _called(call.func.value, names)
    return _find(called.module, returns.id)


def _signature(named: Named) -> Signature | None:
    """None where a framework's class decides."""
    node = named.node
    if isinstance(node, Function):
        static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in node.decorator_list)
        arguments = [*node.args.posonlyargs, *node.args.args]
        own = bool(arguments) and arguments[0].arg in ("self", "cls") and not static
        return _of_arguments(node.args, skip=int(own))
    if not isinstance(node, ast.ClassDef):
        return None
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_arguments(item.args, skip=1)
    if any("dataclass" in ast.unparse(item) for item in node.decorator_list) and not node.bases:
        return _of_fields(node)
    return None


def _of_arguments(arguments: ast.arguments, skip: int) -> Signature:
    positional = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args]][skip:]
    needed = positional[: len(positional) - len(arguments.defaults)] if arguments.defaults else positional
    only = [argument.arg for argument in arguments.kwonlyargs]
    needed_only = [name for name, default in zip(only, arguments.kw_defaults, strict=True) if default is None]
    return Signature(
        positional=tuple(positional),
        keywords=frozenset([*positional, *only]),
        required=frozenset([*needed, *needed_only]),
        more_positional=arguments.vararg is not None,
        more_keywords=arguments.kwarg.arg if arguments.kwarg else None,
    )


def _of_fields(node: ast.ClassDef) -> Signature:
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    names = [item.target.id for item in fields if isinstance(item.target, ast.Name)]
    keyword_only = any("kw_only=True" in ast.unparse(item) for item in node.decorator_list)
    return Signature(
        positional=() if keyword_only else tuple(names),
        keywords=frozenset(names),
        required=frozenset(name for name, item in zip(names, fields, strict=True) if item.value is None),
        more_positional=False,
        more_keywords=None,
    )


def _attach_keywords() -> frozenset[str]:
    """`**options` of an adapter are those of `ExportHook.attach`."""
    hook = _find("train_hooks.hook.hook", "ExportHook")
    attach = _member(hook, "attach") if hook else None
    signature = _signature(attach) if attach else None
    assert signature is not None
    return signature.keywords


@cache
def _find(module: str, name: str) -> Named | None:
    """A name of a module: defined there, or imported there from another one of ours."""
    path = _path(module)
    if path is None:
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _statements(tree):
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return Named(module, node)
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in _targets(node):
            return Named(module, node)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name) if node.module.partition(".")[0] in OURS else None
    return Named(module, ast.Pass()) if _path(f"{module}.{name}") else None


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from node.body


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _path(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
