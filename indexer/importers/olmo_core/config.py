"""What OLMo-core's `config.json` says of the data: token files, sequence length, global batch size.

Only what determines the order is read: `dataset` of class `NumpyFSLDatasetConfig` with explicit `paths`, and `data_loader` with
`global_batch_size` in tokens. What would change the order in another way (mixes, source mixtures, other dataset classes, longer
target lengths) is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train_hooks.export_format.errors import InputError

__all__ = ["OlmoData", "read_config"]

CLASS = "NumpyFSLDatasetConfig"
_OTHER_ORDERS = ("mix", "source_mixture_config", "source_permutation_seed", "label_mask_paths")


@dataclass(frozen=True, kw_only=True, slots=True)
class OlmoData:
    """paths: token files in the order of the configuration; batch: sequences of a global batch; eos: None where not said."""

    paths: tuple[Path, ...]
    dtype: str
    sequence_length: int
    batch: int
    vocab_size: int
    eos: int | None

    def num_instances(self) -> list[int]:
        """Sequences of each file; a rest shorter than one is not used."""
        size = np.dtype(self.dtype).itemsize * self.sequence_length
        return [path.stat().st_size // size for path in self.paths]


def read_config(config: Path, data_dir: Path | None = None) -> OlmoData:
    """The configuration's data. data_dir: where the token files are now, by their names, if not where they were.

    Raises InputError for what is missing or not supported.
    """
    try:
        document = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{config}: expected OLMo-core's config.json, {error}") from error
    dataset, loader = (_section(document, name, config) for name in ("dataset", "data_loader"))
    _refuse_other_orders(dataset, config)
    tokenizer = _section(dataset, "tokenizer", config)
    length = _number(dataset, "sequence_length", config)
    batch_tokens = _number(loader, "global_batch_size", config)
    if batch_tokens % length:
        raise InputError(f"{config}: global_batch_size {batch_tokens} is no multiple of sequence_length {length}")
    vocab_size = _number(tokenizer, "vocab_size", config)
    dtype = str(dataset.get("dtype") or ("uint16" if vocab_size <= 1 << 16 else "uint32"))
    if dtype not in ("uint16", "uint32"):
        raise InputError(f"{config}: expected dtype uint16 or uint32, found {dtype}")
    return OlmoData(
        paths=_paths(dataset, data_dir, config),
        dtype=dtype,
        sequence_length=length,
        batch=batch_tokens // length,
        vocab_size=vocab_size,
        eos=_token_id(tokenizer, "eos_token_id", config),
    )


def _section(document: Any, name: str, config: Path) -> Mapping[str, Any]:
    found = document.get(name) if isinstance(document, Mapping) else None
    if not isinstance(found, Mapping):
        raise InputError(f'{config}: expected an object "{name}" in it, found {type(found).__name__}')
    return found


def _number(section: Mapping[str, Any], name: str, config: Path) -> int:
    found = section.get(name)
    if type(found) is not int or found < 1:
        raise InputError(f'{config}: expected a whole number in "{name}", found {found!r}')
    return found


def _token_id(section: Mapping[str, Any], name: str, config: Path) -> int | None:
    found = section.get(name)
    if found is not None and (type(found) is not int or found < 0):
        raise InputError(f'{config}: expected a token id in "{name}", found {found!r}')
    return found


def _refuse_other_orders(dataset: Mapping[str, Any], config: Path) -> None:
    kind = str(dataset.get("_CLASS_", CLASS)).rpartition(".")[2]
    if kind != CLASS:
        raise InputError(f"{config}: its dataset is a {kind}; the order is known of {CLASS} alone")
    length, target = dataset.get("sequence_length"), dataset.get("max_target_sequence_length")
    odd = [name for name in _OTHER_ORDERS if dataset.get(name) is not None]
    if target not in (None, length):
        odd.append("max_target_sequence_length")
    if odd:
        raise InputError(f"{config}: {', '.join(odd)} of the dataset is not supported; the order would be another")


def _paths(dataset: Mapping[str, Any], data_dir: Path | None, config: Path) -> tuple[Path, ...]:
    names = dataset.get("paths")
    if not isinstance(names, list) or not names or dataset.get("expand_glob"):
        raise InputError(f'{config}: expected the token files one by one in "paths", found none, or a pattern')
    paths = tuple(Path(name) if data_dir is None else data_dir / Path(name).name for name in map(str, names))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{config}: {len(missing)} of {len(paths)} token files are not there, the first is {missing[0]}; give their "
            "directory with --data-dir"
        )
    return paths
