"""Where the old Pythons are, and Java: what a framework needs that pip cannot install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from amc_compress.automl.frameworks import Framework
from amc_env import MissingDependencyError


def find_interpreter(framework: Framework) -> Path:
    """Returns an interpreter that the framework works on: on PATH, else among pyenv's.

    Raises:
        MissingDependencyError: If there is none.
    """
    for version in framework.pythons:
        for candidate in _candidates(version):
            if version_of(candidate) == version:
                return candidate
    raise MissingDependencyError(
        f"{framework.name} needs Python {_or(framework.pythons)}, and none was found on PATH or in "
        f"pyenv's folder; install one (e.g. pyenv install {framework.pythons[0]}) or name it: "
        f"amc automl setup {framework.name} --python PATH"
    )


def check_interpreter(framework: Framework, python: Path) -> Path:
    """Returns an interpreter that the user named, as an absolute path.

    Raises:
        MissingDependencyError: If it does not run, or the framework does not work on it.
    """
    found = shutil.which(str(python.expanduser()))
    version = version_of(Path(found)) if found else None
    if found is None or version is None:
        raise MissingDependencyError(
            f"{python} is no Python that runs; {framework.name} needs Python "
            f"{_or(framework.pythons)}."
        )
    if version not in framework.pythons:
        raise MissingDependencyError(
            f"{framework.name} needs Python {_or(framework.pythons)}, and {python} is Python "
            f"{version}."
        )
    return Path(found).absolute()


def check_java(framework: Framework) -> None:
    """Does nothing if the framework needs no Java or there is one.

    Raises:
        MissingDependencyError: If Java is needed and missing.
    """
    if framework.needs_java and not _java_runs():
        raise MissingDependencyError(
            f"{framework.name} needs Java 8 to 17, and no java that runs was found; install one "
            f"(e.g. apt install openjdk-17-jre-headless) or let JAVA_HOME name its folder."
        )


def version_of(python: Path) -> str | None:
    """Returns ``"major.minor"`` of an interpreter; None if it does not run, as shims may not."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return _output([str(python), "-c", code])


def _candidates(version: str) -> Iterator[Path]:
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [f for f in root.glob(f"versions/{version}.*") if re.fullmatch(r"[\d.]+", f.name)]
    for folder in sorted(folders, key=lambda f: [int(n) for n in f.name.split(".")], reverse=True):
        yield folder / "bin" / "python"


def _java_runs() -> bool:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    return java is not None and _output([java, "-version"]) is not None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _or(versions: tuple[str, ...]) -> str:
    if len(versions) == 1:
        return versions[0]
    return f"{', '.join(versions[:-1])} or {versions[-1]}"
