"""An environment for each framework, made by one command and described by a file.

A framework's folder holds ``env`` (a virtual environment of the Python it needs), ``setup.log``
(everything that pip said) and either ``installed.json`` or, if it could not be installed,
``failed.json`` with the reason in a sentence. Both are written last, so that a setup that was
interrupted counts as none and is begun again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc_compress.automl.frameworks import Framework
from amc_compress.automl.interpreters import check_interpreter, check_java, find_interpreter
from amc_env import MissingDependencyError, RunFolderError
from amc_env.files import only_one, read_json, write_json

VERSION = 1
_INSTALLED, _FAILED = "amc-automl-installed", "amc-automl-failed"

# "ERROR: No matching distribution ..." of pip; "package.module.SomeError: ..." of Python
_ERROR_LINE = re.compile(r"ERROR: |[\w.]*(Error|Exception)\b")


@dataclass(frozen=True)
class Installed:
    """A framework that can be run.

    Args:
        name: Its name.
        interpreter: The Python of its environment.
        python: That Python's version.
        base: The interpreter that the environment was made from.
        requirements: What pip was asked for.
        packages: Package -> version, of everything that is installed.
        seconds: How long the setup took.
    """

    name: str
    interpreter: str
    python: str
    base: str
    requirements: tuple[str, ...]
    packages: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A framework that could not be installed.

    Args:
        name: Its name.
        reason: Why, one sentence.
        requirements: What pip was asked for.
    """

    name: str
    reason: str
    requirements: tuple[str, ...]


class SetupError(MissingDependencyError):
    """A framework could not be installed; the reason is in its ``failed.json`` too."""


def setup(
    framework: Framework,
    *,
    root: Path,
    python: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Installed:
    """Installs a framework into an environment of its own, unless that has been done.

    May be repeated: after a failure it begins anew, after a success with the same requirements
    (and interpreter, if one is given) it does nothing.

    Args:
        framework: What to install.
        root: Folder of all environments.
        python: Interpreter to build on, instead of the one that is found.
        environment: Environment variables for pip, in place of this process's.

    Raises:
        SetupError: If it could not be installed.
        MissingDependencyError: If ``python`` does not run, or the framework does not work on it.
        RunFolderError: If another process is setting it up, or its file is damaged.
        OSError: If the folder cannot be written.
    """
    folder = folder_of(framework, root)
    chosen = check_interpreter(framework, python) if python else None
    with only_one(folder):
        found = read_status(framework, root)
        if isinstance(found, Installed) and (chosen is None or str(chosen) == found.base):
            return found
        variables = isolated(os.environ if environment is None else environment)
        return _set_up(framework, folder, chosen, variables)


def read_status(framework: Framework, root: Path) -> Installed | Failed | None:
    """Returns what :func:`setup` made of a framework, None if it was not set up (with these pins).

    Raises:
        RunFolderError: If the file that says so is damaged.
    """
    folder = folder_of(framework, root)
    status: Installed | Failed
    if (folder / "installed.json").exists():
        status = Installed(**_fields(folder / "installed.json", _INSTALLED))
        if not Path(status.interpreter).exists():
            return None  # the environment was removed, or the folder moved
    elif (folder / "failed.json").exists():
        status = Failed(**_fields(folder / "failed.json", _FAILED))
    else:
        return None
    return status if status.requirements == framework.requirements else None


def folder_of(framework: Framework, root: Path) -> Path:
    """Returns the folder of a framework."""
    return root.expanduser().absolute() / framework.name


def isolated(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns environment variables without those that would let packages of ours in."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP", "PYTHONWARNINGS")
    return {name: value for name, value in variables.items() if name not in ours}


def reason_from(output: str) -> str:
    """Returns the line of a log that says what went wrong.

    That is the last error of pip or exception of Python, or else the last line.

    Args:
        output: What a failing command printed.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return "it ended without a word"
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines)[-1].removeprefix("ERROR:").strip()[:300]


# ---- steps


def _set_up(
    framework: Framework, folder: Path, chosen: Path | None, variables: Mapping[str, str]
) -> Installed:
    folder.mkdir(parents=True, exist_ok=True)
    _forget(folder)
    try:
        base = chosen or find_interpreter(framework)
        check_java(framework)
        installed = _install(framework, base, folder, variables)
    except MissingDependencyError as error:
        reason = str(error)
        document = {"format": _FAILED, "version": VERSION}
        failed = Failed(framework.name, reason, framework.requirements)
        write_json(folder / "failed.json", {**document, **asdict(failed)})
        raise SetupError(f"{framework.name} could not be installed: {reason}") from error
    document = {"format": _INSTALLED, "version": VERSION}
    write_json(folder / "installed.json", {**document, **asdict(installed)})
    return installed


def _install(
    framework: Framework, base: Path, folder: Path, variables: Mapping[str, str]
) -> Installed:
    began = time.monotonic()
    environment = folder / "env"
    python = environment / "bin" / "python"
    log = folder / "setup.log"
    log.write_text("")
    steps: tuple[tuple[Sequence[str], str], ...] = (
        ([str(base), "-m", "venv", str(environment)], "the environment could not be made"),
        # This takes the newest pip that still runs on this Python.
        (_pip(python, "--upgrade", "pip"), "pip could not be brought up to date"),
        (_pip(python, *framework.requirements), "pip failed"),
        ([str(python), "-c", _imports(framework)], "it is installed but cannot be imported"),
    )
    for command, failure in steps:
        _step(command, failure, log, variables)
    listed = _step(_list_command(python), "pip cannot list packages", log, variables)
    version = _step(
        [str(python), "-c", "import platform; print(platform.python_version())"],
        "its Python does not run",
        log,
        variables,
    )
    return Installed(
        framework.name,
        str(python),
        version.strip().splitlines()[-1],
        str(base),
        framework.requirements,
        {row["name"]: row["version"] for row in json.loads(listed.strip().splitlines()[-1])},
        round(time.monotonic() - began, 1),
    )


def _step(command: Sequence[str], failure: str, log: Path, variables: Mapping[str, str]) -> str:
    """Runs a step of an installation and returns its stdout; all it prints goes to the log."""
    try:
        done = subprocess.run(
            command, env=dict(variables), capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, cwd=log.parent, check=False,
        )  # fmt: skip
    except OSError as error:
        raise MissingDependencyError(f"{failure}: {error}") from error
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        raise MissingDependencyError(f"{failure}: {reason_from(done.stdout + done.stderr)}")
    return done.stdout


def _pip(python: Path, *arguments: str) -> list[str]:
    return [
        str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
        *arguments,
    ]  # fmt: skip


def _list_command(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]


def _imports(framework: Framework) -> str:
    return "import " + ", ".join(framework.modules)


def _forget(folder: Path) -> None:
    for name in ("installed.json", "failed.json"):
        (folder / name).unlink(missing_ok=True)
    if (folder / "env").exists():
        shutil.rmtree(folder / "env")


def _fields(path: Path, form: str) -> dict[str, Any]:
    document = read_json(path, form, VERSION)
    del document["format"], document["version"]
    try:
        document["requirements"] = tuple(document["requirements"])
        kind = Installed if form == _INSTALLED else Failed
        kind(**document)
    except (KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} is damaged ({error}); remove it and set the framework up again."
        ) from error
    return document
