"""Templates of the page."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flowrl.errors import printable


def render(template: str, values: dict[str, Any]) -> str:
    """The HTML of a template of this package; what it does not find among the values is an error."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("flowrl.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: object) -> object:
    """Users' words without control characters, which HTML does not allow; our own markup as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
