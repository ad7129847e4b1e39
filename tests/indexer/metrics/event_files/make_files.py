"""How the event files here were made, once: by PyTorch's writer, by tensorboardX and by tensorboard itself.

    python tests/indexer/metrics/event_files/make_files.py     # needs torch, tensorboard, tensorboardX

`expected.json` is what tensorboard's own reader finds in them: [step, wall time, tag, value] of every scalar.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def write(directory: Path) -> None:
    """One directory a writer."""
    import tensorboardX
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.scalar import summary_v2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory / "torch")) as torch_writer:
        for step in range(1, 9):
            torch_writer.add_scalar("train/loss", 5.0 / step, step, walltime=1000.0 + step)
            torch_writer.add_scalar("lr", 1e-3, step, new_style=True, walltime=1000.0 + step)
            torch_writer.add_scalar(
                "exact", 1 / 3 + step, step, new_style=True, double_precision=True, walltime=1e3 + step
            )
        torch_writer.add_scalar("not finite", float("nan"), 3, walltime=1003.0)
        torch_writer.add_histogram("weights", np.arange(50.0), 4)
        torch_writer.add_text("note", "a text 文字", 4)
        torch_writer.add_scalars("together", {"a": 1.0, "b": 2.0}, 5, walltime=1005.0)
    with tensorboardX.SummaryWriter(str(directory / "tensorboardx")) as other_writer:
        for step in range(1, 5):
            other_writer.add_scalar("loss", 0.5 * step, step, walltime=2000.0 + step)
            other_writer.add_scalar("文字", -step, step, walltime=2000.0 + step)
        other_writer.add_image("picture", np.zeros((3, 4, 4), np.uint8), 2)
    events = EventFileWriter(str(directory / "tensorboard"))
    for step in (0, 1, 1 << 40):
        tensor = summary_v2.scalar_pb("v2/loss", 0.25 + step % 7, description="as TensorFlow 2 writes it")
        events.add_event(event_pb2.Event(step=step, wall_time=3000.5, summary=tensor))
    many = summary_pb2.Summary()
    many.value.add(tag="first", simple_value=1.5)
    many.value.add(tag="second", simple_value=-2.5)
    events.add_event(event_pb2.Event(step=7, wall_time=time.time() // 1, summary=many))
    events.close()


def found_by_tensorboard(path: Path) -> Iterator[list[Any]]:
    """Every scalar of a file."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.util import tensor_util

    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield [event.step, event.wall_time, value.tag, value.simple_value]
            elif value.HasField("tensor") and value.tensor.dtype != 7 and not value.tensor.tensor_shape.dim:
                yield [event.step, event.wall_time, value.tag, float(tensor_util.make_ndarray(value.tensor))]


def main() -> None:
    """Write the files and what is expected of them."""
    import tempfile

    expected: dict[str, list[list[Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        for path in sorted(Path(temporary).rglob("*tfevents*")):
            parts = path.relative_to(temporary).parent.parts
            name = f"{'-'.join(parts)}.tfevents"
            (HERE / name).write_bytes(path.read_bytes())
            expected[name] = list(found_by_tensorboard(path))
    (HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
