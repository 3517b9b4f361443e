"""What every section of the schema is: a frozen record whose keys are all known and whose types are exact."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the YAML. Values arrive already fitted to their key (config/fitting.py), so types are strict here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


Positive = Annotated[int, Field(gt=0)]
"""A whole number from 1."""
Natural = Annotated[int, Field(ge=0)]
"""A whole number from 0."""
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A number above 0."""
NaturalNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A number from 0."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
PositiveShare = Annotated[float, Field(gt=0, le=1)]
"""A number above 0, up to 1."""
