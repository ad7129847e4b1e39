"""docs/api.md has every limit, problem, action and endpoint; the examples of the OpenAPI description run."""

import re
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from search_api import Limits, Settings, create_app
from search_api.permissions import Action
from search_api.problems import PROBLEMS
from search_api.settings import RequestLimits, limit_rows
from tests.conftest import TextRun

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_limits_and_problems_are_documented() -> None:
    for name, default, what in [*limit_rows(Limits), *limit_rows(RequestLimits)]:
        assert f"| `{name}` | {default} | {what} |" in DOCS
    for name, kind in PROBLEMS.items():
        assert f"| `{name}` | {kind.status} | {kind.title} | {kind.help} |" in DOCS
    documented = set(re.findall(r"^\| `([a-z_-]+)` \|", DOCS, re.MULTILINE))
    assert documented == {name for name, *_ in [*limit_rows(Limits), *limit_rows(RequestLimits)]} | set(PROBLEMS)
    assert all(f"`{action}`" in DOCS for action in Action)


def test_endpoints_are_documented(text_run: TextRun) -> None:
    paths = create_app(Settings(run_dirs=(text_run.run_dir,))).openapi()["paths"]
    described = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert described == set(re.findall(r"^\| `((?:GET|POST|DELETE) [^`]+)` \|", DOCS, re.MULTILINE))


def test_every_operation_says_what_it_answers(text_run: TextRun) -> None:
    document = create_app(Settings(run_dirs=(text_run.run_dir,))).openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            good = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
            assert good and all(answer["content"] for answer in good), operation["summary"]
            schemas = [of["schema"] for answer in good for of in answer["content"].values()]
            assert all(schema for schema in schemas), operation["summary"]
            assert operation["responses"]["404"]["content"]["application/problem+json"]


def test_examples_run(text_run: TextRun) -> None:
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), sql=True))) as client:
        document = client.get("/openapi.json").json()
        num = 0
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                for example in examples(document, operation):
                    response = client.request(method, path.replace("{index}", "text"), json=here(example))
                    assert response.status_code in (200, 202), (path, response.text)
                    num += 1
        assert num >= 6


def examples(document: dict[str, Any], operation: dict[str, Any]) -> list[Any]:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return []
    found: list[Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"]
    return found


def here(example: Any) -> Any:
    """An example of the demo's run, for the run of the tests."""
    if "addresses" in example:
        return {"addresses": [address.replace("demo-run", "text") for address in example["addresses"]]}
    return example
