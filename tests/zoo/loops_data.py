"""Where micro-batches come from: torch's loaders, mixtures, threads, resumed and repeated data."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info

from tests.zoo.job import Job
from tests.zoo.models import Lm, batches, plain, sgd, update
from tests.zoo.table import loop
from train_hooks.documents.in_batches import CarryingDocuments

Item = dict[str, Any]


class Rows(Dataset[Item]):
    """Single sequences, with documents and sample_index on request."""

    def __init__(self, num: int, first: int = 0, *, documents: bool = False) -> None:
        make = batches if documents else plain
        self._rows = [{name: value[0] for name, value in batch.items()} for batch in make(num, first, slots=1)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        return self._rows[index]


class Stream(IterableDataset[Item]):
    """Sequences shared out to the workers."""

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rows = Rows(12)
        return (rows[index] for index in range(first, 12, step))


def train(hook: Any, model: Lm, loader: Any, first_step: int = 1, num_steps: int | None = None) -> int:
    """One step for each micro-batch; gives the newest step."""
    optimizer, step = sgd(model), first_step - 1
    for step, batch in enumerate(itertools.islice(loader, num_steps), first_step):
        update(optimizer, model(**batch))
        hook.commit(step)
    return step


@loop("exact", num_workers=0)
@loop("exact", num_workers=2)
def a_loader_with_workers(job: Job, num_workers: int) -> None:
    """A map-style DataLoader that shuffles, prefetches in workers and drops the last rows."""
    model = Lm()
    hook = job.attach(model)
    rows = Rows(11, documents=True)
    from torch.utils.data import default_collate

    loader = DataLoader(
        rows,
        batch_size=2,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        collate_fn=CarryingDocuments(default_collate),
    )
    assert train(hook, model, hook.wrap(loader)) == 5


@loop("exact", num_workers=0)
@loop("exact", num_workers=2)
def an_iterable_dataset(job: Job, num_workers: int) -> None:
    """Streams read by workers, whose last micro-batch has fewer rows."""
    model = Lm()
    hook = job.attach(model)
    train(hook, model, hook.wrap(DataLoader(Stream(), batch_size=5, num_workers=num_workers)))


@loop("exact")
def a_sampler_with_replacement(job: Job) -> None:
    """Rows come again and again, also in one micro-batch."""
    model = Lm()
    hook = job.attach(model)
    rows = Rows(3)
    sampler = RandomSampler(rows, replacement=True, num_samples=12)
    train(hook, model, hook.wrap(DataLoader(rows, batch_size=2, sampler=sampler)))


@loop("exact")
def several_epochs(job: Job) -> None:
    """The wrapped loader is iterated again for each epoch, and the last epoch ends early."""
    model = Lm()
    hook = job.attach(model)
    loader = hook.wrap(DataLoader(Rows(6), batch_size=2, shuffle=True))
    step = 0
    for _ in range(3):
        step = train(hook, model, loader, step + 1)
    train(hook, model, loader, step + 1, num_steps=1)


@loop("refused", order="cycle of the wrapped loader")
@loop("exact", order="wrapped cycle of the loader")
def an_endless_loader(job: Job, order: str) -> None:
    """`itertools.cycle` keeps the first epoch's micro-batches and hands them out again: behind the hook, nobody fetches
    them anew."""
    model = Lm()
    hook = job.attach(model)
    loader: Any = list(batches(3))
    loader = itertools.cycle(hook.wrap(loader)) if order.startswith("cycle") else hook.wrap(itertools.cycle(loader))
    train(hook, model, loader, num_steps=7)


@loop("exact")
def a_mixture_of_loaders(job: Job) -> None:
    """Web, code and books from loaders of their own, in turn by their weights."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    web, code = iter(hook.wrap(batches(6))), iter(hook.wrap(batches(4, 40)))
    for step in range(1, 4):
        for source in (web, web, code):
            model(**next(source)).backward()
        optimizer.step()
        hook.commit(step)


@loop("exact")
def a_loader_of_loaders(job: Job) -> None:
    """Multitask loaders yield one micro-batch for each task at once, each wrapped on its own."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    tasks = {name: hook.wrap(batches(3, first)) for name, first in (("qa", 0), ("code", 20), ("math", 40))}
    for step, together in enumerate(zip(*tasks.values(), strict=True), 1):
        for batch in together:
            model(**batch).backward()
        optimizer.step()
        hook.commit(step)


@loop("exact")
def concatenated_datasets(job: Job) -> None:
    """ConcatDataset behind one loader."""
    model = Lm()
    hook = job.attach(model)
    train(hook, model, hook.wrap(DataLoader(ConcatDataset([Rows(4), Rows(4, 30)]), batch_size=4, shuffle=True)))


class Stateful:
    """As torchdata's StatefulDataLoader: it goes on where its state says."""

    def __init__(self) -> None:
        self._num_yielded = 0

    def __iter__(self) -> Iterator[Item]:
        for batch in batches(8 - self._num_yielded, self._num_yielded):
            self._num_yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"num_yielded": self._num_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._num_yielded = state["num_yielded"]


@loop("exact")
def a_stateful_loader_resumed(job: Job) -> None:
    """The loader's state goes into the model checkpoint, and the next attempt goes on from it; steps behind the
    checkpoint are trained again."""
    model = Lm()
    hook = job.attach(model)
    loader = hook.wrap(Stateful())
    train(hook, model, loader, num_steps=2)
    hook.checkpoint_barrier(2)
    saved = hook.state_dict(), loader.state_dict()
    train(hook, model, loader, first_step=3, num_steps=2)
    hook.close()

    hook = job.attach(model, resume=saved[0])
    loader = hook.wrap(Stateful())
    loader.load_state_dict(saved[1])
    train(hook, model, loader, first_step=3)


@loop("exact", through="the wrapped loader")
@loop("exact", through="forget_fetched")
@loop("exact", through="the loader")
def data_skipped_at_a_resume(job: Job, through: str) -> None:
    """Loops without a state skip what earlier attempts had by iterating over it."""
    model = Lm()
    hook = job.attach(model)
    train(hook, model, hook.wrap(batches(2)))
    hook.checkpoint_barrier(2)
    token = hook.state_dict()
    hook.close()

    hook = job.attach(model, resume=token)
    loader: Any = iter(batches(5))
    if through != "the loader":
        loader = hook.wrap(loader)
    for _ in range(2):
        next(loader)
    if through == "forget_fetched":
        hook.forget_fetched()
    train(hook, model, hook.wrap(loader) if through == "the loader" else loader, first_step=3)


@loop("exact")
def a_first_look(job: Job) -> None:
    """Loops fetch a micro-batch to learn its shapes, throw it away, and begin the loader anew."""
    model = Lm()
    hook = job.attach(model)
    loader = hook.wrap(DataLoader(Rows(6), batch_size=2))
    shape = next(iter(loader))["input_ids"].shape
    assert shape == (2, 16)
    train(hook, model, loader)


@loop("exact")
def one_micro_batch_ahead(job: Job) -> None:
    """Prefetchers on a stream fetch the next micro-batch while this one is trained."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(4)))
    ahead: Item | None = next(data)
    for step in itertools.count(1):
        if ahead is None:
            break
        batch, ahead = ahead, next(data, None)
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact")
def a_thread_that_fetches(job: Job) -> None:
    """A thread of the loop's own fetches from the wrapped loader into a queue."""
    model = Lm()
    hook = job.attach(model)
    fetched: queue.Queue[Item | None] = queue.Queue(maxsize=2)

    def work() -> None:
        for batch in hook.wrap(batches(6)):
            fetched.put(batch)
        fetched.put(None)

    thread = threading.Thread(target=work)
    thread.start()
    train(hook, model, iter(fetched.get, None))
    thread.join()


@loop("refused")
@loop("exact", record="forward")
def augmented_behind_the_loader(job: Job, record: str = "loader") -> None:
    """Token dropout, BPE dropout or noise between loader and model, in a generator that makes new micro-batches."""
    model = Lm()
    hook = job.attach(model)
    train(hook, model, map(noisy, hook.wrap(batches(3), record=record)))


@loop("exact")
def augmented_before_the_hook(job: Job) -> None:
    """The same with the hook behind it."""
    model = Lm()
    hook = job.attach(model)
    train(hook, model, hook.wrap(map(noisy, batches(3))))


def noisy(batch: Item) -> Item:
    """Two tokens of each row replaced, in memory of their own."""
    ids: Tensor = batch["input_ids"].clone()
    ids[:, torch.randperm(ids.shape[1])[:2]] = 1
    return {**batch, "input_ids": ids}


@loop("exact")
def a_loader_that_is_not_wrapped_for_evaluation(job: Job) -> None:
    """Evaluation reads the training data too, from the same data set through a loader of its own."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    evaluation = DataLoader(Rows(4), batch_size=2)
    for step, batch in enumerate(hook.wrap(DataLoader(Rows(4), batch_size=2)), 1):
        model.eval()
        with torch.inference_mode():
            for other in evaluation:
                model(**other)
        model.train()
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", through=torch.clone)
@loop("exact", through=torch.Tensor.contiguous)
def views_of_one_block(job: Job, through: Callable[[Tensor], Tensor]) -> None:
    """nanoGPT and Megatron cut inputs and labels out of one block of length + 1 tokens."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    blocks = [torch.randint(0, 90, (2, 17)) for _ in range(3)]
    data = [{"input_ids": block[:, :-1], "labels": block[:, 1:]} for block in blocks]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(through(batch["input_ids"]), through(batch["labels"])))
        hook.commit(step)
