"""Pages made from templates: a value is escaped, whatever it says, unless a template made it."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
        template: Name of a file in ``templates``.
        values: What it shows.
    """
    return environment().get_template(template).render(values)


@functools.cache
def environment() -> Environment:
    """Returns where templates are found, and how they are filled in."""
    environment = Environment(
        loader=PackageLoader(__package__ or __name__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["px"] = "{:.1f}".format
    return environment
