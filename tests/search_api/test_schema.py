"""schemathesis against every endpoint: no answer of 5xx, none that the OpenAPI description does not foresee.

Half of the cases break the description, half fit it; of those, names are drawn from what the run really holds, so that many
are answered. KISEKI_SCHEMA_CASES sets the number of cases an endpoint: 40 in the ordinary tests, thousands by hand.
"""

import copy
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from search_api import Limits, Settings, create_app
from tests.conftest import TextRun
from tests.support.live_server import live_server

CASES = int(os.environ.get("KISEKI_SCHEMA_CASES", "40"))
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]
# Method and path → how many cases must have been answered with 2xx, at least. (Equal cases are asked once.)
OPERATIONS = {
    ("GET", "/healthz"): 1, ("GET", "/readyz"): 1, ("GET", "/metrics"): 1, ("GET", "/v1/runs"): 1,
    ("GET", "/v1/runs/{run_id}"): 1, ("GET", "/v1/runs/{run_id}/attempts"): 1,
    ("GET", "/v1/runs/{run_id}/gaps"): 1, ("POST", "/v1/trace"): 3,
    ("POST", "/v1/trace:batch"): 3, ("POST", "/v1/count"): 3, ("POST", "/v1/hits"): 3,
    ("GET", "/v1/sequences/{address}"): 1, ("POST", "/v1/sequences:batchGet"): 3, ("POST", "/v1/jobs"): 3,
    ("GET", "/v1/jobs/{job}"): 1, ("GET", "/v1/jobs/{job}/results"): 1, ("GET", "/v1/jobs/{job}/events"): 1,
    ("POST", "/v1/search"): 3, ("POST", "/v1/sql"): 3, ("GET", "/v1/steps"): 1, ("GET", "/v1/steps/{global_step}:explain"): 1,
    ("GET", "/v1/documents"): 1, ("GET", "/v1/documents/{source}/{document_id}"): 1, ("DELETE", "/v1/jobs/{job}"): 1,
    ("POST", "/compat/infinigram"): 1, ("POST", "/compat/infinigram/{index}/attribution"): 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A running server, its description, and the same with names that exist."""

    url: str
    document: dict[str, Any]
    narrowed: dict[str, Any]


@pytest.fixture(scope="module")
def server(text_run: TextRun) -> Iterator[Described]:
    limits = Limits(deadline_s=30, jobs_kept=100_000, requests_per_minute=10_000_000, request_burst=1_000_000)
    with live_server(Settings(run_dirs=(text_run.run_dir,), limits=limits, sql=True)) as url:
        document = requests.get(f"{url}/openapi.json", timeout=10).json()
        passage = next(iter(text_run.documents.values()))[:60]
        job = requests.post(f"{url}/v1/jobs", json={"items": [{"text": passage}]}, timeout=10).json()["job"]
        yield Described(url=url, document=document, narrowed=narrowed(document, text_run, job))


def narrowed(document: dict[str, Any], text_run: TextRun, job: str) -> dict[str, Any]:
    """The description with names, addresses and texts of the run."""
    (source, document_id), passage = next(iter(text_run.documents.items()))
    document, passage = copy.deepcopy(document), passage[:60]
    names = {
        "run_id": ["text", "other"],
        "index": ["text"],
        "global_step": [60],
        "source": [source],
        "document_id": [document_id],
        "address": ["text/a1/s1/r0/m0/q0", "text/a1/s999/r0/m0/q0"],
        "job": [job],
    }
    queried = {
        "run": ["text"],
        "cursor": [None],
        "attempt": [1],
        "before_step": [50],
        "first_step": [1],
        "last_step": [60],
    }
    fields = {
        "run": {"enum": [None, "text"]},
        "text": {"enum": [passage, passage[:9]]},
        "cursor": {"enum": [None]},
        "index": {"enum": [None, "text"]},
        "sql": {"enum": ["SELECT 1 AS a", "SELECT * FROM steps LIMIT 3", "SELECT started FROM attempts"]},
        "query_type": {"enum": ["count", "find"]},
        "query": {"enum": ["the", "desire AND expectation"]},
        "query_ids": {"enum": [None]},
        "addresses": {"type": "array", "items": {"enum": names["address"]}, "minItems": 1, "maxItems": 3},
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                known = names.get(parameter["name"]) or queried.get(parameter["name"])
                parameter["schema"] = {"enum": known} if known else parameter["schema"]
    for name, schema in document["components"]["schemas"].items():
        if name.endswith(("Request", "Item")):
            for field in fields.keys() & schema["properties"].keys():
                schema["properties"][field] = fields[field]
            if "text" in schema["properties"]:
                schema["required"] = ["text"]
                for other in ("token_ids", "messages"):
                    schema["properties"].pop(other, None)
            if "query" in schema["properties"] and "query" not in schema["required"]:
                schema["required"].append("query")
    return document


def test_every_operation_is_listed_here(text_run: TextRun) -> None:
    paths = create_app(Settings(run_dirs=(text_run.run_dir,))).openapi()["paths"]
    assert sorted(OPERATIONS) == sorted((method.upper(), path) for path, of in paths.items() for method in of)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_fit_the_description(server: Described, method: str, path: str) -> None:
    statuses: Counter[int] = Counter()
    real, known = (schemathesis.openapi.from_dict(item)[path][method] for item in (server.document, server.narrowed))
    fitting, breaking = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    session = requests.Session()

    @settings(
        max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    @given(
        case=known.as_strategy(generation_mode=fitting)
        | real.as_strategy(generation_mode=fitting)
        | real.as_strategy(generation_mode=breaking)
    )
    def check(case: schemathesis.Case[Any]) -> None:
        response = case.call(base_url=server.url, session=session, timeout=10)
        statuses[response.status_code] += 1
        rejection = [] if response.status_code == 413 else [openapi_checks.negative_data_rejection]
        case.validate_response(response, checks=[*CHECKS, *rejection])

    check()
    session.close()
    print(method, path, dict(statuses))
    assert sum(num for status, num in statuses.items() if status < 300) >= OPERATIONS[method, path], statuses
