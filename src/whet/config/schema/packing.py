"""Several documents in one row."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import Positive, Section


class PackingSection(Section):
    """Keys about packing and padding."""

    sample_packing: bool = Field(False, description="Fill rows of sequence_len with whole samples, isolated.")
    sample_packing_sequentially: bool = Field(False, description="Pack samples that stand behind each other, in order.")
    sample_packing_balance: bool = Field(False, description="Deal packs to steps so that each takes equal time.")
    eval_sample_packing: bool | None = Field(None, description="The same in evaluation; as sample_packing by default.")
    pad_to_sequence_len: bool | None = Field(None, description="Pad every row to sequence_len.")
    pad_to_multiple_of: Positive | None = Field(None, description="Pad every row to a multiple of this length.")
