"""Keys of an entry of ``teachers``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from flowrl.config.section import Section


class MemberConfig(Section):
    """A frozen policy."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="folder, hub id or embedded world of another model, of the same family and vocabulary or latent "
        "space; null = model.path, and its weights beside the policy's own where they are an adapter",
    )
    adapter: str | None = Field(default=None, description="LoRA on it: folder, .safetensors file or hub id")
    device: str | None = Field(default=None, description="of another model; null = model.device")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of another model; null = model.dtype"
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None, description="of another model: its linear layers in 4 or 8 bits"
    )
    call: dict[str, Any] | None = Field(
        default=None, description="of another pipeline: arguments of its call; null = model.call"
    )
    guidance: NonNegativeFloat | None = Field(
        default=None, description="diffusion: its guidance scale; null = that of the samples"
    )

    @property
    def is_peer(self) -> bool:
        """Whether it is a model of its own, whatever else there is."""
        own = (self.device, self.dtype, self.quantize, self.call)
        return self.path is not None or any(value is not None for value in own)


class TeacherConfig(MemberConfig):
    """A frozen policy, or one for each value of a column of the prompts."""

    column: str | None = Field(default=None, description="column of the prompts that chooses one of members")
    members: dict[str, MemberConfig] = Field(
        default={}, description="teachers by the value of that column: {ocr: {adapter: ...}, counting: {path: ...}}"
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        alone = self.path is not None or self.adapter is not None
        if bool(self.members) != (self.column is not None):
            raise ValueError("column chooses one of members by the prompt's value in it; give both, or neither")
        if alone == bool(self.members):
            raise ValueError("give path or adapter of a teacher, or column and members of several")
        if any(member.path is None and member.adapter is None for member in self.members.values()):
            raise ValueError("every member needs a path or an adapter")
        return self


def every_teacher(teachers: Mapping[str, TeacherConfig]) -> Iterator[tuple[str, str, MemberConfig]]:
    """``(key in the config, name that the policy knows it by, its keys)`` of every single teacher."""
    for name, teacher in teachers.items():
        if not teacher.members:
            yield f"teachers.{name}", name, teacher
        for value, member in teacher.members.items():
            yield f"teachers.{name}.members.{value}", f"{name}.{value}", member
