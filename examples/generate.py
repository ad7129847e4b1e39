"""Continue prompts with a model that `train_fsdp.py` trained, in one plain process.

python examples/generate.py RUN_DIR --prompt "It is a truth universally"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from checkpoints import complete_checkpoints, load_weights, read_state
from documents import load_tokenizer, separator_id
from errors import InputError, one_line_errors
from gpt import GPT, GPTConfig
from torch import Tensor


def generate(
    run_dir: Path,
    prompts: Sequence[str],
    *,
    step: int | None = None,
    max_tokens: int = 120,
    temperature: float = 0.0,
    seed: int = 1,
) -> list[str]:
    """The continuation of each prompt, without the prompt, from the newest checkpoint or that of a step.

    Stops at the end of a document. Temperature 0 takes the likeliest token. InputError if there is no such checkpoint.
    """
    model = load_model(run_dir, step)
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    separator = separator_id(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for prompt in prompts:
        # An empty prompt starts where every document starts: after the separator of the one before.
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids or [separator]
        new_ids = continue_ids(model, ids, separator, max_tokens, temperature, generator)
        texts.append(tokenizer.decode(new_ids, skip_special_tokens=False))
    return texts


def load_model(run_dir: Path, step: int | None = None) -> GPT:
    """The model of a checkpoint, on the CPU."""
    checkpoints = complete_checkpoints(run_dir)
    if not checkpoints:
        raise InputError(f"{run_dir}: no complete checkpoint; train one with train_fsdp.py --run-dir {run_dir}")
    if step is not None and step not in checkpoints:
        raise InputError(f"--step {step}: no such checkpoint; there are {', '.join(map(str, checkpoints))}")
    directory = checkpoints[max(checkpoints) if step is None else step]
    model = GPT(GPTConfig(**read_state(directory).model))
    load_weights(directory, model)
    return model.eval()


@torch.inference_mode()
def continue_ids(
    model: GPT, ids: list[int], separator: int, max_tokens: int, temperature: float, generator: torch.Generator
) -> list[int]:
    """Up to max_tokens new token ids. The whole window is read anew for each: fast enough for a small model."""
    new_ids: list[int] = []
    while len(new_ids) < max_tokens:
        window = (ids + new_ids)[-model.config.sequence_length :]
        next_id = choose(model.next_token_logits(torch.tensor([window]))[0], temperature, generator)
        if next_id == separator:
            break
        new_ids.append(next_id)
    return new_ids


def choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """One token id from logits [vocab_size]."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Continue prompts with a model that train_fsdp.py trained.")
    parser.add_argument("run_dir", type=Path, help="run directory")
    parser.add_argument(
        "--prompt", nargs="+", action="extend", required=True, help="texts to continue; may be repeated"
    )
    parser.add_argument("--step", type=int, help="checkpoint to use; default: the newest")
    parser.add_argument("--max-tokens", type=int, default=120, help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the sampling (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a prompt: prompt, text")
    args = parser.parse_args()
    with one_line_errors():
        if args.temperature < 0:
            raise InputError(f"--temperature {args.temperature}: must be 0 or more")
        texts = generate(
            args.run_dir,
            args.prompt,
            step=args.step,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            seed=args.seed,
        )
    for prompt, text in zip(args.prompt, texts, strict=True):
        print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) if args.json else f"{prompt}{text}\n")


if __name__ == "__main__":
    main()
