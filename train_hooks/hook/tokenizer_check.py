"""Whether a tokenizer can be used for a run: what the index would refuse months later is refused when the training begins."""

from pathlib import Path

from tokenizers import Tokenizer

from train_hooks.export_format.errors import InputError

__all__ = ["check_tokenizer"]


def check_tokenizer(path: Path, vocab_size: int) -> None:
    """Raises InputError for a file that is no `tokenizers` file, or whose highest token id is not below `vocab_size`."""
    if not path.is_file():
        raise InputError(f"expected a tokenizer file at {path}, found none")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise InputError(
            f"{path}: expected a tokenizer.json of Hugging Face's tokenizers, which the index can read, found something else "
            f"({error}); convert it, or attach without tokenizer="
        ) from error
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= vocab_size:
        raise InputError(
            f"vocab_size: expected more than {highest}, the highest token id of {path}, found {vocab_size}; give the size of "
            "the model's embedding (tokenizer.get_vocab_size() counts the tokens, and ids may have holes)"
        )
