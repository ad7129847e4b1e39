"""Which statements a stranger may run: one SELECT over the catalog's own tables and views.

DuckDB parses; we look at its tree, as `json_serialize_sql` gives it. What is not on a list below is refused: kinds of
query nodes (a WITH may hold COPY, INSERT …), table functions (files, settings, dynamic SQL, raw pointers), and tables
outside the main schema. This makes errors early and clear; the worker's lock and limits hold without it.
"""

import json
from collections.abc import Sequence
from typing import Any

import duckdb

__all__ = ["StatementRefused", "check_statement", "distinct_names"]

QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "json_each", "json_tree"}
REFUSED_FUNCTIONS = {"current_setting", "getenv", "getvariable", "pg_sleep", "sleep_ms", "write_log"}
SYSTEM_TABLES = ("duckdb_", "pragma_", "sqlite_", "pg_")


class StatementRefused(Exception):
    """A statement that is not for strangers, and why."""


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names of a result's columns, as keys of an object: the second one called `name` is `name_2`."""
    found: list[str] = []
    for name in names:
        number, distinct = 1, name
        while distinct in found:
            number += 1
            distinct = f"{name}_{number}"
        found.append(distinct)
    return found


def check_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raises StatementRefused for all but one harmless SELECT, duckdb.Error for what does not parse."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise StatementRefused(f"expected one statement, found {len(statements)}")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise StatementRefused(f"expected SELECT, found {statements[0].type.name}; queries here only read")
    [(serialized,)] = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
    try:
        tree = json.loads(serialized)
    except RecursionError as error:
        raise StatementRefused("the statement is nested too deeply") from error
    if tree["error"] or len(tree["statements"]) != 1:
        raise StatementRefused(f"expected one SELECT: {tree.get('error_message', 'found several statements')}")
    _check_tree(tree)


def _check_tree(tree: Any) -> None:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            _check_node(node)
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _check_node(node: dict[str, Any]) -> None:
    kind = node.get("type")
    if isinstance(kind, str) and kind.endswith("_NODE") and kind not in QUERY_NODES:
        raise StatementRefused(f"expected a query that only reads, found {kind.removesuffix('_NODE')}")
    if kind == "TABLE_FUNCTION" and (name := _name(node["function"])) not in TABLE_FUNCTIONS:
        raise StatementRefused(
            f"the table function {name} cannot be used here, only {', '.join(sorted(TABLE_FUNCTIONS))}"
        )
    if node.get("class") == "FUNCTION" and (name := _name(node)) in REFUSED_FUNCTIONS:
        raise StatementRefused(f"the function {name} cannot be used here")
    if kind == "BASE_TABLE":
        place = [part for part in (node["catalog_name"], node["schema_name"]) if part]
        if place not in ([], ["main"]) or node["table_name"].lower().startswith(SYSTEM_TABLES):
            raise StatementRefused(
                f"the table {'.'.join([*place, node['table_name']])} cannot be used here; try SHOW TABLES"
            )


def _name(function: dict[str, Any]) -> str:
    return str(function.get("function_name", function.get("type", ""))).lower()
