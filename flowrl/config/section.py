"""What all sections of a config have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from flowrl.values import coerced

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A mapping of the config file: unknown keys are errors, and values of another type are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _fit(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        return coerced(field.annotation, value)
