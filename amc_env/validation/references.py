"""User code, named as ``package.module:name``: models, agents, rewards, costs.

Everything that a user may name is found here, so that one syntax holds for all of it, and so that
an error can be told to be one of the user's code: what was found is remembered by file.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from amc_env.errors import InputDataError

FORM = "package.module:name"
"""How a user names code."""

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_REFERENCE = re.compile(rf"({_NAME}):({_NAME})")
_LIBRARIES = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Source:
    """Origin of user code.

    Args:
        what: What it was named as, e.g. ``"model"``.
        reference: Its name, ``"package.module:name"``.
        file: The file of its module; None where there is none.
        root: Folder whose files belong to it too; None if it is that file alone.
        module: Name of the module that it is defined in.
        qualname: Its name there; empty for what has none.
    """

    what: str
    reference: str
    file: str | None
    root: str | None = None
    module: str = ""
    qualname: str = ""

    @property
    def title(self) -> str:
        """Returns, e.g., ``"model 'net:make'"``."""
        return f"{self.what} {self.reference!r}"

    def covers(self, file: str) -> bool:
        """Whether a file belongs to this code; installed packages below its folder do not."""
        if file == self.file:
            return True
        if self.root is None or not file.startswith(self.root + os.sep):
            return False
        inside = file[len(self.root) :].split(os.sep)
        return not _LIBRARIES.intersection(inside) and not _is_standard(file)

    def defines(self, module: str, qualname: str) -> bool:
        """Whether a function of that name is this object, or a method of it."""
        inside = qualname == self.qualname or qualname.startswith(f"{self.qualname}.")
        return bool(self.qualname) and module == self.module and inside


_sources: dict[tuple[str, str], Source] = {}


def sources() -> tuple[Source, ...]:
    """Returns where all code comes from that was resolved in this process, the latest last."""
    return tuple(_sources.values())


def is_reference(text: str) -> bool:
    """Returns whether a text names code, as ``package.module:name`` does."""
    return _REFERENCE.fullmatch(text) is not None


def resolve(reference: str, what: str) -> Any:
    """Imports what a user named.

    The current directory is searched too, after everything else: a file in it never takes the place
    of an installed package. What the user's module raises when it is imported is not caught.

    Args:
        reference: ``"package.module:name"``; the name may have dots, as in ``"nets:Net.small"``.
        what: What it is to be, for messages: ``"model"``, ``"agent"``, ``"reward"``, ``"cost"``.

    Raises:
        InputDataError: If the text has another form, or there is no such module or name.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None or match[1].endswith(".py"):
        raise InputDataError(_other_form(reference, what))
    module_name, attribute = match.groups()
    module, is_new = _imported(module_name, reference, what)
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InputDataError(_no_such_name(reference, what, module, found, part)) from None
    _remember(_source_of(what, reference, module, found, is_new=is_new))
    return found


def _other_form(reference: str, what: str) -> str:
    text = reference.strip().replace("/", ".").replace("\\", ".")
    module, _, name = text.rpartition(":") if ":" in text else (text, "", "name")
    better = f"{module.removesuffix('.py').strip('.')}:{name or 'name'}"
    hint = f"; write {better}" if is_reference(better) and better != reference else ""
    return f"Expected the {what} as {FORM}, got {reference!r}{hint}."


def _imported(module_name: str, reference: str, what: str) -> tuple[ModuleType, bool]:
    """Returns the module, and whether its package was imported only now."""
    # A console script does not have the current directory on its path, `python -m` has.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()  # the file may have been written a moment ago
    is_new = module_name.partition(".")[0] not in sys.modules
    try:
        return importlib.import_module(module_name), is_new
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise InputDataError(
                _no_such_module(module_name, error.name, reference, what)
            ) from None
        _remember_failed(error, module_name, reference, what)
        raise
    except BaseException as error:
        _remember_failed(error, module_name, reference, what)
        raise


def _no_such_module(module_name: str, missing: str, reference: str, what: str) -> str:
    parent = sys.modules.get(missing.rpartition(".")[0])
    places = [*parent.__path__] if parent is not None and hasattr(parent, "__path__") else None
    known = [m.name for m in pkgutil.iter_modules(places or [os.getcwd()])]
    where = f"in {parent.__name__}" if parent is not None else "on the Python path"
    return (
        f"The module {module_name!r} of the {what} {reference!r} cannot be imported: there is no "
        f"{missing!r} {where}, nor in the current directory"
        f"{_near(missing.rpartition('.')[2], known)}; expected {FORM}."
    )


def _no_such_name(reference: str, what: str, module: ModuleType, found: Any, part: str) -> str:
    names = [name for name in dir(found) if not name.startswith("_")]
    place = getattr(module, "__file__", None) or "built in"
    own = os.path.join(os.getcwd(), *module.__name__.split(".")) + ".py"
    hides = os.path.isfile(own) and not (place != "built in" and os.path.samefile(own, place))
    hint = f"; it hides your {own}, which needs another name" if hides else ""
    return (
        f"The {what} {reference!r} is not there: the module {module.__name__!r} ({place}) has no "
        f"{part!r}{hint or _near(part, names)}; expected {FORM}."
    )


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


# ---- whose code it is


def _remember(source: Source) -> None:
    key = (source.what, source.reference)
    _sources.pop(key, None)
    _sources[key] = source


def _source_of(
    what: str, reference: str, module: ModuleType, found: Any, *, is_new: bool
) -> Source:
    file = getattr(module, "__file__", None)
    path = None if file is None else os.path.abspath(file)
    return Source(
        what,
        reference,
        path,
        _root(module, path, is_new=is_new),
        getattr(found, "__module__", None) or "",
        getattr(found, "__qualname__", "") if callable(found) else "",
    )


def _root(module: ModuleType, file: str | None, *, is_new: bool) -> str | None:
    """The folder of a module's code; None where it is shared with other code."""
    if file is None:
        return None
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    places = [os.path.abspath(place) for place in getattr(top, "__path__", ())]
    root = next((p for p in places if file.startswith(p + os.sep)), None)
    if not _is_installed(file):
        return root or os.path.dirname(file)
    # An installed package that was in use before, say torch, is not the user's for being named.
    return root if is_new or any(root == source.root for source in sources()) else None


def _is_installed(file: str) -> bool:
    return bool(_LIBRARIES.intersection(file.split(os.sep))) or _is_standard(file)


def _is_standard(file: str) -> bool:
    return file.startswith(sysconfig.get_path("stdlib") + os.sep)


def _remember_failed(error: BaseException, module_name: str, reference: str, what: str) -> None:
    """Remembers the file of a module whose import failed."""
    file = None
    step = error.__traceback__
    while step is not None:
        scope = step.tb_frame.f_globals
        if f"{module_name}.".startswith(f"{scope.get('__name__', '-')}.") and "__file__" in scope:
            file = str(scope["__file__"])
        step = step.tb_next
    if file is None and isinstance(error, SyntaxError):
        file = error.filename
    if file is not None:
        path = os.path.abspath(file)
        root = None if _is_installed(path) else os.path.dirname(path)
        _remember(Source(what, reference, path, root))


__all__ = ["FORM", "Source", "is_reference", "resolve", "sources"]
