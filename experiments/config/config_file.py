"""The file of ``--config``: options in YAML, which the ``config.json`` of a run is as well."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from amc_compress.config.option import Option, flag
from amc_compress.config.run_config import OPTIONS, SPELLINGS, types_of_options
from amc_env import Budget
from amc_env.validation.checks import shown

CONFIG_FORMAT = "amc-run"
"""What the ``config.json`` of a run says it is."""


def read_options(path: Path, of_command_line: Collection[str] = ()) -> dict[str, Any]:
    """Reads the options in a file; nothing that the file says is run or imported.

    Args:
        path: YAML or JSON: option -> value, or the ``config.json`` of a run. Options are named as
            on the command line or in Python; values may be written as on the command line.
        of_command_line: Names of options that exist, but that a file cannot give.

    Raises:
        ValueError: If the file cannot be read, or holds something else, or an unknown option.
    """
    types = types_of_options()
    values: dict[str, Any] = {}
    for key, found in _rows(path).items():
        name = SPELLINGS.get(key.replace("-", "_"))
        if name is None:
            raise ValueError(_unknown(key, path, of_command_line))
        values[name] = _value(name, OPTIONS[name], types[name], found, path)
    return values


def _rows(path: Path) -> dict[str, Any]:
    try:
        # Every scalar is a text: YAML would read --pattern 2:4 as 124 and 1e-3 as a word.
        document = yaml.load(path.read_bytes(), yaml.BaseLoader)
    except OSError as error:
        raise ValueError(
            f"Expected --config as a YAML or JSON file of options, got {path}: {error.strerror}."
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ValueError(f"{path} is neither YAML nor JSON: {problem}{line}.") from error
    if isinstance(document, dict) and document.get("format") == CONFIG_FORMAT:
        document = document.get("options")
    if not isinstance(document, dict) or not document:
        raise ValueError(
            f"Expected options in {path}, one a line, e.g. evaluations: 200; got none."
        )
    return document


def _unknown(key: str, path: Path, of_command_line: Collection[str]) -> str:
    if (name := key.replace("-", "_")) in of_command_line:
        return f"{path} gives {key!r}, which only the command line takes; give {flag(name)} there."
    near = difflib.get_close_matches(name, OPTIONS, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return (
        f"{path} gives {key!r}, which is no option of a run{hint} "
        f"`amc compress --help-all` lists them."
    )


def _value(name: str, option: Option, hint: Any, found: Any, path: Path) -> Any:
    """Returns the value of an option; a text of another form is left to the checks of the run."""
    kinds = (hint, *get_args(hint))
    if NoneType in kinds and found in ("null", "~", ""):
        return None
    row = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple), None)
    takes_pairs = Budget in kinds or row is str
    if takes_pairs and isinstance(found, dict) and all(isinstance(x, str) for x in found.values()):
        pairs = [f"{key}={part}" for key, part in found.items()]  # as on the command line
        found = ",".join(pairs) if row is None else pairs
    parts = found if isinstance(found, list) else [found]
    if not all(isinstance(part, str) for part in parts) or (row is None and parts is found):
        raise ValueError(
            f"Expected {name} in {path} as {'a list' if row else 'one value'}, got {shown(found)}."
        )
    if option.read is None:
        return _plain(kinds, found)
    if row is None:
        return option.read(flag(name), found)
    return option.read(flag(name), parts if row is str else ",".join(parts)) if parts else ()


def _plain(kinds: tuple[Any, ...], text: str) -> Any:
    if bool in kinds:
        return {"true": True, "false": False}.get(text.lower(), text)
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(text)
    return text
