"""A run for searching: English, code, Japanese, Korean and Chinese; two attempts, skipped steps, stretches without segment."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from tests.conftest import LENGTH, byte_level_bpe, pack, read_documents
from tests.indexer.search.oracle import Scanned, scan
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks import Segment, StepStatus
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

WRITERS, SLOTS, VOCAB, ROLLED_BACK = 2, 2, 3000, 6
KOREAN = (
    "언어 모델은 많은 문장을 읽고 다음 단어를 예측한다.", "학교에서 배운 것을 집에서 다시 읽었다.",
    "데이터가 없으면 아무것도 알 수 없다.",
    "기차역은 여기서 멀지 않다.", "이 도서관에는 오래된 책이 많이 있다.", "비가 오는 날에는 검색 기록을 정리한다.",
)  # fmt: skip
CHINESE = (
    "语言模型读了很多句子，然后预测下一个词。", "全文搜索引擎把文档切成词。", "他昨天在图书馆找到了一本旧书。",
    "没有数据就不知道模型学到了什么。",
    "火车站离这里不远。", "訓練資料的每一步都被記錄下來。",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """The run, its index opened, and every segment as a scan finds it."""

    run_dir: Path
    reader: IndexReader
    tokenizer: Tokenizer
    scanned: list[Scanned]
    canonical: list[Scanned]

    def __repr__(self) -> str:
        return f"Searched({len(self.scanned)} segments)"


def documents() -> dict[tuple[str, str], str]:
    """Texts of five kinds."""
    chance = random.Random(5)
    found = {
        **read_documents("devils-dictionary", 40),
        **read_documents("python-stdlib", 2),
        **read_documents("tatoeba-ja", 16),
        **read_documents("apache-httpd-docs-ja", 1),
    }
    for name, sentences in (("korean", KOREAN), ("chinese", CHINESE)):
        for number in range(6):
            chosen = [chance.choice(sentences) for _ in range(12)]
            found[name, f"{name} {number}"] = " ".join(chosen) if name == "korean" else "".join(chosen)
    return {key: text[:6000] for key, text in found.items()}


def steps_of(rows: np.ndarray, segments: list[list[Segment]]) -> list[MadeStep]:
    """Steps of two writers with two slots. A few are skipped; a few rows have no segments, or not all of them."""
    steps = []
    per_step = WRITERS * SLOTS
    for step in range(len(rows) // per_step):
        places = {
            rank: slice(step * per_step + rank * SLOTS, step * per_step + (rank + 1) * SLOTS) for rank in range(WRITERS)
        }
        of_ranks = {rank: [segments[place]] for rank, place in places.items()}
        if step % 11 == 3:
            of_ranks[0] = [[[], segments[places[0]][1][1:]]]
        status = {5: StepStatus.SKIPPED_UPDATE, 9: StepStatus.SKIPPED_DATA}.get(step % 20, StepStatus.APPLIED)
        steps.append(
            MadeStep(
                microbatches={rank: [rows[place]] for rank, place in places.items()}, segments=of_ranks, status=status
            )
        )
    return steps


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Attempt 2 resumes a few steps before the end of attempt 1; several shards."""
    directory = tmp_path_factory.mktemp("search")
    texts = documents()
    learnt = [
        text for (source, _), text in texts.items() if source not in ("korean", "chinese")
    ]  # those are cut in bytes
    tokenizer = byte_level_bpe(learnt, VOCAB)
    tokenizer.save(str(directory / "tokenizer.json"))
    mixed = list(texts.items())
    random.Random(2).shuffle(mixed)
    rows, segments = pack(dict(mixed), tokenizer)
    steps = steps_of(rows, segments)
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=VOCAB, run_id="search", tokenizer=directory / "tokenizer.json", config={}
    )
    run_dir, half = directory / "run", len(steps) // 2
    make_attempt(run_dir, spec, steps[:half], num_writers=WRITERS)
    resume = ResumeToken(run_id="search", attempt=1, global_step=half - ROLLED_BACK)
    make_attempt(run_dir, spec, steps[half:], num_writers=WRITERS, resume=resume)
    update_index(run_dir, IndexOptions(shard_tokens=LENGTH * len(rows) // 7))
    scanned = scan(all_rows(run_dir), tokenizer)
    canonical = [
        one for one in scanned if one.status == "applied" and (one.attempt == 2 or one.step <= half - ROLLED_BACK)
    ]
    assert len(canonical) < len(scanned) and len({one.key for one in scanned}) == len(scanned)
    return Searched(
        run_dir=run_dir, reader=IndexReader.open(run_dir), tokenizer=tokenizer, scanned=scanned, canonical=canonical
    )


def keys(found: list[Scanned]) -> set[tuple[str, int]]:
    """Which segments these are."""
    return {one.key for one in found}
