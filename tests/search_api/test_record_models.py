"""Models that are made from records: their fields, and the columns of rows that fit them."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel

from indexer.selection.rows import Selection
from search_api import schemas
from search_api.record_models import arrow_schema, fields_of
from train_hooks.export_format.records import SequenceAddress, StepStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """An inner record."""

    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """An outer record."""

    address: SequenceAddress
    selection: Selection
    status: StepStatus
    inner: tuple[Inner, ...]
    best: Inner | None
    secret: str
    loss: float | None = None


def test_fields_come_from_the_record() -> None:
    @fields_of(Inner)
    class InnerModel(BaseModel):
        pass

    @fields_of(Outer, without=["secret"], descriptions={"address": "Where it stands."})
    class OuterModel(BaseModel):
        """A model."""

        loss: str | None
        more: bool

    fields = {name: info.annotation for name, info in OuterModel.model_fields.items()}
    assert fields == {
        "address": str, "selection": dict[str, Any],
        "status": Literal["applied", "skipped_update", "skipped_data", "rerun"], "inner": list[InnerModel],
        "best": InnerModel | None, "loss": str | None, "more": bool,
    }  # fmt: skip
    assert list(fields) == ["address", "selection", "status", "inner", "best", "loss", "more"]
    assert all(info.is_required() for info in OuterModel.model_fields.values())
    assert OuterModel.model_fields["address"].description == "Where it stands."
    assert (OuterModel.__doc__, InnerModel.__doc__) == ("A model.", "An inner record.")
    assert arrow_schema(InnerModel) == pa.schema([("pairs", pa.list_(pa.list_(pa.int64())))])


def test_a_nested_record_needs_a_model() -> None:
    @dataclass(frozen=True)
    class Hidden:
        value: int

    @dataclass(frozen=True)
    class Holder:
        """Annotations are looked up by value here: `Hidden` is local."""

        hidden: Hidden

    with pytest.raises(TypeError, match="no model yet"):

        @fields_of(Holder)
        class HolderModel(BaseModel):
            pass


def test_columns_of_rows() -> None:
    assert arrow_schema(schemas.Gap) == pa.schema(
        [
            ("attempt", pa.int64()), ("global_step", pa.int64()), ("dp_rank", pa.int64()), ("num_rows", pa.int64()),
            ("reason", pa.string()),
        ]
    )  # fmt: skip
    sequence = arrow_schema(schemas.Sequence)
    assert sequence.field("token_ids").type == pa.list_(pa.int64())
    assert sequence.field("segments").type.value_type.field("redacted").type == pa.bool_()
