"""Real tokens for benchmarks, on any machine: the text of the installed packages and of the example corpus.

They are tokenized with a byte-level BPE of 32,000 ids that is trained on a part of them, and kept under .bench/ until the
packages change. A file of token ids of your own (`--tokens FILE.npy`, u16 [n]) serves instead.
"""

import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["CACHE", "TOKENIZER", "VOCAB", "real_tokens"]

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".bench"
TOKENIZER = CACHE / "tokenizer.json"
VOCAB, SEPARATOR_ID = 32_000, 0
SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".js", ".json"}
Tokens = npt.NDArray[np.uint16]


def documents() -> Iterator[str]:
    """Texts of 1 to 300 kB: the example corpus first, then the files of the installed packages, by name."""
    for path in sorted((ROOT / "examples" / "corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*")):
        if path.suffix in SUFFIXES and path.is_file() and 1_000 <= path.stat().st_size <= 300_000:
            yield path.read_text(encoding="utf-8", errors="replace")


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for index, text in enumerate(documents()) if index % 12 == 0), trainer)
    return tokenizer


def real_tokens(num_tokens: int, held_out: int, given: Path | None = None) -> tuple[Tokens, Tokens]:
    """(training tokens u16 [num_tokens], held-out tokens u16 [held_out]): documents of both lie apart.

    Raises SystemExit where there is not enough text.
    """
    tokens = np.load(given, mmap_mode="r") if given is not None else _cached(num_tokens + held_out)
    if len(tokens) < num_tokens + held_out:
        raise SystemExit(
            f"expected {num_tokens + held_out:,} tokens, found {len(tokens):,}; ask for fewer, or give --tokens"
        )
    return np.array(tokens[:num_tokens], np.uint16), np.array(tokens[-held_out:], np.uint16)


def _cached(num_tokens: int) -> Tokens:
    CACHE.mkdir(exist_ok=True)
    key = hashlib.sha256(repr(sorted(Path(sysconfig.get_path("purelib")).iterdir())).encode()).hexdigest()[:12]
    path = CACHE / f"tokens-{key}.npy"
    if path.exists() and len(found := np.load(path, mmap_mode="r")) >= num_tokens:
        return np.asarray(found)
    print("tokenizing the installed packages, once …", flush=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(TOKENIZER))
    pieces, total, batch = [], 0, []
    seen: set[bytes] = set()
    for text in documents():
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        if digest in seen:
            continue
        seen.add(digest)
        batch.append(text)
        if len(batch) == 512:
            pieces += [[*encoded.ids, SEPARATOR_ID] for encoded in tokenizer.encode_batch(batch)]
            total, batch = sum(map(len, pieces)), []
            if total >= num_tokens:
                break
    order = np.random.default_rng(0).permutation(len(pieces))
    tokens = np.concatenate([np.array(pieces[index], np.uint16) for index in order])
    np.save(path, tokens)
    return tokens
