"""Every endpoint, for every kind of key and every source: allowed exactly when it should be, and no leak.

The oracle is a second run that was exported and indexed without the source: whatever a key without that source is told about
the whole run, a key to the poorer run is told about that. Documents lie side by side in packed sequences, so hits, contexts
and spans run up to what is hidden.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer.build.update import IndexOptions, update_index
from search_api import Limits, Settings, create_app
from search_api.keys import KeyFile
from search_api.permissions import Action
from tests.conftest import byte_level_bpe, read_documents
from tests.search_api.test_api import check_problem
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks import Segment
from train_hooks.export_format.writing.attempts import RunSpec

LENGTH, PIECE = 64, 16
OPEN, CLOSED = "devils-dictionary", "tatoeba-ja"
ADDRESS = "packed/a1/s2/r0/m0/q0"
Json = dict[str, Any]

REQUESTS: dict[str, tuple[str, str, Json | None, Action]] = {
    "runs": ("GET", "/v1/runs", None, Action.RUNS),
    "run": ("GET", "/v1/runs/packed", None, Action.RUNS),
    "attempts": ("GET", "/v1/runs/packed/attempts", None, Action.RUNS),
    "gaps": ("GET", "/v1/runs/packed/gaps", None, Action.RUNS),
    "trace": ("POST", "/v1/trace", {"min_length": 2, "num_hits": 100, "max_spans": 1000, "context_tokens": 40}, Action.TRACE),
    "batch": ("POST", "/v1/trace:batch", {}, Action.TRACE),
    "count": ("POST", "/v1/count", {}, Action.COUNT),
    "hits": ("POST", "/v1/hits", {"limit": 7, "context_tokens": 40}, Action.HITS),
    "sequence": ("GET", f"/v1/sequences/{ADDRESS}", None, Action.SEQUENCES),
    "sequences": ("POST", "/v1/sequences:batchGet", {"addresses": [ADDRESS]}, Action.SEQUENCES),
    "job": ("POST", "/v1/jobs", {}, Action.JOBS),
    "sql": ("POST", "/v1/sql", {"sql": "SELECT count(*) AS num FROM documents"}, Action.SQL),
    "search": ("POST", "/v1/search", {"query": "the", "facets": True, "limit": 100}, Action.SEARCH),
    "steps": ("GET", "/v1/steps", None, Action.STEPS),
    "explain": ("GET", "/v1/steps/3:explain", None, Action.STEPS),
    "document": ("GET", f"/v1/documents/{OPEN}/{OPEN}-5-1", None, Action.DOCUMENTS),
    "named document": ("GET", f"/v1/documents?source={OPEN}&document_id={OPEN}-5-1", None, Action.DOCUMENTS),
    "compat": ("POST", "/compat/infinigram", {"query_type": "count", "query": "the"}, Action.HITS),
    "attribution": ("POST", "/compat/infinigram/packed/attribution", {"response": "the end"}, Action.TRACE),
    "metrics": ("GET", "/metrics", None, Action.METRICS),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server of one run with a file of keys, and texts of both sources and of the seams between them."""

    client: TestClient
    keys: KeyFile
    texts: dict[str, list[str]]

    def ask(self, name: str, token: str, **more: Any) -> Any:
        method, path, body, _ = REQUESTS[name]
        if name in ("search", "sql"):
            body = {**(body or {}), **more}
        elif body is not None and name in ("batch", "job"):
            body = {"items": [more or {"text": "the"}]}
        elif name in ("compat", "attribution"):
            body = {**(body or {}), **more}
        elif body is not None and name != "sequences":
            body = {"text": "the", **body, **more}
        return self.client.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})


def pieces_of(tokens: list[int]) -> list[list[int]]:
    return [tokens[at : at + PIECE] for at in range(0, len(tokens) - PIECE, PIECE)]


def make_run(directory: Path, *, with_closed: bool) -> dict[str, list[str]]:
    """A run whose sequences alternate between the sources, a piece each. Without the closed one, its pieces are token 0."""
    sources = {name: read_documents(name, 12) for name in (OPEN, CLOSED)}
    texts = {name: "\n".join(documents.values()) for name, documents in sources.items()}
    tokenizer = byte_level_bpe(list(texts.values()), 1500)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    pieces = {name: pieces_of(tokenizer.encode(text).ids)[:48] for name, text in texts.items()}
    rows: list[list[int]] = []
    segments: list[list[Segment]] = []
    seams: list[str] = []
    for first, second in zip(pieces[OPEN], pieces[CLOSED], strict=False):
        order = [(OPEN, first), (CLOSED, second)] if len(rows) % 2 else [(CLOSED, second), (OPEN, first)]
        row = [(name, piece) for name, piece in [*order, *order]]
        seams.append(tokenizer.decode([token for _, piece in row for token in piece][8:40]))
        kept = [piece if with_closed or name == OPEN else [0] * PIECE for name, piece in row]
        rows.append([token for piece in kept for token in piece])
        segments.append(
            [
                Segment(start=at * PIECE, length=PIECE, source=name, document_id=f"{name}-{len(rows)}-{at}",
                        document_token_offset=0)
                for at, (name, _) in enumerate(row) if with_closed or name == OPEN
            ]
        )  # fmt: skip
    steps = [
        MadeStep(microbatches={0: [np.array(rows[at : at + 4])]}, segments={0: [segments[at : at + 4]]})
        for at in range(0, len(rows), 4)
    ]
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=1500, run_id="packed", tokenizer=directory / "tokenizer.json", config={}
    )
    make_attempt(directory / "run", spec, steps)
    update_index(directory / "run", IndexOptions(shard_tokens=LENGTH * 20))
    return {
        OPEN: [tokenizer.decode(piece) for piece in pieces[OPEN][:6]],
        CLOSED: [tokenizer.decode(piece) for piece in pieces[CLOSED][:6]],
        "seam": seams[:8],
    }


def serve(directory: Path, *, with_closed: bool) -> Iterator[Served]:
    texts = make_run(directory, with_closed=with_closed)
    keys = KeyFile(directory / "keys.json")
    keys.create("any")
    limits = Limits(deadline_s=30)  # the machine of the tests may be busy
    settings = Settings(run_dirs=(directory / "run",), keys_file=directory / "keys.json", sql=True, limits=limits)
    with TestClient(create_app(settings)) as client:
        yield Served(client=client, keys=keys, texts=texts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("keys") / "whole", with_closed=True)


@pytest.fixture(scope="module")
def poorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("keys") / "poorer", with_closed=False)


def test_every_endpoint_is_in_the_matrix(whole: Served) -> None:
    paths = whole.client.get("/openapi.json").json()["paths"]
    asked = {
        path.partition("?")[0]
        .replace(ADDRESS, "{address}")
        .replace("runs/packed", "runs/{run_id}")
        .replace("packed", "{index}")
        .replace("/3:", "/{global_step}:")
        .replace(f"{OPEN}/{OPEN}-5-1", "{source}/{document_id}")
        for _, path, _, _ in REQUESTS.values()
    }
    free = {"/healthz", "/readyz"}
    assert asked | free | {path for path in paths if path.startswith("/v1/jobs/")} == set(paths)


@pytest.mark.parametrize("allowed", list(Action))
def test_actions(whole: Served, allowed: Action) -> None:
    _, token = whole.keys.create("one action", actions=(str(allowed),))
    _, elsewhere = whole.keys.create("another run", actions=(str(allowed),), runs=("other",))
    for name, (_, _, _, action) in REQUESTS.items():
        response = whole.ask(name, token)
        if action != allowed:
            check_problem(response, 403, "forbidden")
            continue
        assert response.status_code in (200, 202), name
        other = whole.ask(name, elsewhere)
        if name == "runs":
            assert other.json() == {"runs": []}
        elif name not in ("metrics",):
            kind = "query" if action in NAMELESS and name != "attribution" else "run"
            assert other.json()["type"] == f"urn:kiseki:problem:{kind}", name
            assert "packed" not in other.json()["detail"].replace("'packed'", "")
        check_problem(whole.ask(name, "kiseki_0_x"), 401, "unauthorized")


NAMELESS = (
    Action.TRACE,
    Action.COUNT,
    Action.HITS,
    Action.JOBS,
    Action.SEARCH,
    Action.SQL,
    Action.STEPS,
    Action.DOCUMENTS,
)  # fmt: skip – the run is left out in these requests


def test_jobs_belong_to_their_key(whole: Served) -> None:
    _, mine = whole.keys.create("mine")
    _, theirs = whole.keys.create("theirs")
    place = whole.ask("job", mine).headers["location"]
    for method, path in (("GET", place), ("GET", place + "/results"), ("GET", place + "/events"), ("DELETE", place)):
        response = whole.client.request(method, path, headers={"Authorization": f"Bearer {theirs}"})
        check_problem(response, 404, "job")
    assert whole.client.get(place, headers={"Authorization": f"Bearer {mine}"}).status_code == 200


SCOPES: list[Json] = [{"sources": (OPEN,)}, {"sources": (OPEN, "none")}, {"hidden_sources": (CLOSED,)}]


def plain(answer: Json) -> Json:
    """An answer without what two runs may differ in."""
    dropped = ("took_ms", "num_tokens_before", "next_cursor")
    return {name: value for name, value in answer.items() if name not in dropped}


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_restricted_sources_leak_nowhere(whole: Served, poorer: Served, scope: Json) -> None:
    _, restricted = whole.keys.create("restricted", **scope)
    _, free = poorer.keys.create("free", sources=(OPEN,))
    secrets = [text for text in whole.texts[CLOSED] if len(text) > 8]
    for text in [*whole.texts[OPEN], *whole.texts[CLOSED], *whole.texts["seam"]]:
        for name in ("trace", "count", "hits"):
            answers = [served.ask(name, token, text=text) for served, token in ((whole, restricted), (poorer, free))]
            found, expected = (plain(answer.json()) for answer in answers)
            assert found == expected, (name, text)
        for name, more in (
            ("compat", {"query": text}),
            (
                "attribution",
                {"response": text, "minimumSpanLength": 2, "maximumFrequency": 1000, "maximumSpanDensity": 1.0},
            ),
        ):
            answers = [served.ask(name, token, **more) for served, token in ((whole, restricted), (poorer, free))]
            found, expected = ({**answer.json(), "latency": 0} for answer in answers)
            assert found == expected, (name, text)
        shown = json.dumps([span["hits"] for span in whole.ask("trace", restricted, text=text).json()["spans"]])
        assert CLOSED not in shown
    assert any(whole.ask("trace", restricted, text=text).json()["spans"] for text in whole.texts["seam"])
    assert all(whole.ask("count", restricted, text=text).json()["count"] == 0 for text in secrets)
    for wanted in (CLOSED, "none"):
        assert whole.ask("count", restricted, text="a", source=wanted).json()["count"] == 0
    sequence = whole.ask("sequence", restricted).json()
    assert plain(sequence)["token_ids"] == poorer.ask("sequence", free).json()["token_ids"]
    tokens, bare = (
        served.client.get(f"/v1/sequences/{ADDRESS}?tokens=true", headers={"Authorization": f"Bearer {token}"}).json()
        for served, token in ((whole, restricted), (poorer, free))
    )
    assert tokens["token_texts"] == bare["token_texts"] and tokens["loss"] is None
    assert [text is None for text in tokens["token_texts"]] == [token is None for token in sequence["token_ids"]]
    batch = whole.ask("sequences", restricted)
    for response in (
        whole.ask("sequence", restricted),
        batch,
        whole.ask("run", restricted),
        whole.ask("runs", restricted),
    ):
        assert CLOSED not in response.text and not any(secret in response.text for secret in secrets)
    assert (
        whole.ask("run", restricted).json()["num_tokens"] == whole.ask("run", free_of(whole)).json()["num_tokens"] // 2
    )
    for name in ("batch", "job"):
        response = whole.ask(name, restricted, text=whole.texts["seam"][0], min_length=2)
        if name == "job":
            place = response.headers["location"]
            headers = {"Authorization": f"Bearer {restricted}"}
            whole.client.get(place + "/events", headers=headers)
            response = whole.client.get(place + "/results", headers=headers)
        line = json.loads(response.text)
        assert line["trace"]["spans"] and CLOSED not in response.text


WORDS = ["the", "of AND a", '"of the"', "の", "の OR the", f"source:{CLOSED}", f"source:{OPEN}"]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_searches_and_documents_leak_nothing(whole: Served, poorer: Served, scope: Json) -> None:
    _, restricted = whole.keys.create("restricted", **scope)
    _, free = poorer.keys.create("free", sources=(OPEN,))
    for query in WORDS:
        answers = [served.ask("search", token, query=query) for served, token in ((whole, restricted), (poorer, free))]
        found, expected = (plain(answer.json()) for answer in answers)
        assert found == expected, query
        assert all(hit["score"] is None for hit in found["hits"]), "scores know the lengths of all segments"
        assert not any(hit["source"] == CLOSED for hit in found.get("hits", ()))
    assert whole.ask("search", free_of(whole), query="の").json()["count"] > 0
    headers = {"Authorization": f"Bearer {restricted}"}
    for name, path in (("document", "/{0}/{0}-5-0"), ("named document", "?source={0}&document_id={0}-5-0")):
        found, expected = (
            plain(served.ask(name, token).json()) for served, token in ((whole, restricted), (poorer, free))
        )
        assert found == expected and found["num_exposures"] == 1
        response = whole.client.get("/v1/documents" + path.format(CLOSED), headers=headers)
        detail = check_problem(response, 404, "document")
        assert detail == f"there is no source '{CLOSED}'; near: '{OPEN}'", "not even that it is there"
    check_problem(whole.ask("sql", restricted), 403, "forbidden")
    for name in ("steps", "explain"):
        assert CLOSED not in whole.ask(name, restricted).text


def free_of(served: Served) -> str:
    return served.keys.create("free")[1]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_pages_of_a_restricted_key(whole: Served, scope: Json) -> None:
    key, token = whole.keys.create("pages", **scope)
    _, other = whole.keys.create("other pages")
    found, body = [], {"text": " the", "limit": 3}
    page = whole.ask("hits", token, **body).json()
    first_cursor = page["next_cursor"]
    found += page["hits"]
    while page["next_cursor"]:
        page = whole.ask("hits", token, **body, cursor=page["next_cursor"]).json()
        found += page["hits"]
    assert {hit["source"] for hit in found} == {OPEN}
    assert len(found) == whole.ask("count", token, text=" the").json()["count"]
    check_problem(whole.ask("hits", other, **body, cursor=first_cursor), 400, "cursor")
    assert key.key_id not in json.dumps(found)


def test_a_key_for_nothing_sees_nothing(whole: Served) -> None:
    _, token = whole.keys.create("nothing", sources=())
    for text in (whole.texts[OPEN][0], whole.texts[CLOSED][0]):
        assert whole.ask("count", token, text=text).json()["count"] == 0
        assert whole.ask("trace", token, text=text).json()["spans"] == []
    sequence = whole.ask("sequence", token).json()
    assert set(sequence["token_ids"]) == {None} and all(segment["redacted"] for segment in sequence["segments"])
    assert whole.ask("run", token).json()["num_tokens"] == 0
