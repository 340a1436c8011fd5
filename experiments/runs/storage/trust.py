"""Trust: which code a run folder, or the file of ``--config``, may load.

A folder may come from anywhere, and its ``config.json`` may name code: a model, data, a teacher, a
reward, a cost. Code is run, and pickles are opened, because the command says so, never because a
folder does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_compress.config.run_config import RunConfig
from amc_compress.config.texts import is_factory
from amc_compress.config.values import own_cost_references
from amc_env import RunFolderError

CODE = ("model", "teacher", "reward", "cost", "data", "task", "metric", "loss", "learner_class")
"""Options of a folder that may name code. Agents are built from the command's own options only."""

PURPOSE = ("data", "task", "metric", "loss", "learner_class")
"""Those of a folder whose network is trained or evaluated."""

_PLAIN_AGENT = re.compile(r"[\w-]+(:\s*\w+\s*=.*)?")


class UntrustedFolderError(RunFolderError):
    """A folder or file names code that the command does not name."""


@dataclass(frozen=True)
class Trust:
    """Code and pickles that a command allows a folder to load.

    Args:
        everything: Whatever it asks for (``--trust``).
        named: The code that the command itself names, as :func:`call_text` writes it.
        pickle: Weights files that may run code (``--allow-pickle``).
    """

    everything: bool = False
    named: frozenset[str] = frozenset()
    pickle: bool = False

    def check(self, config: RunConfig, path: Path, uses: Collection[str]) -> None:
        """Checks that all code that a folder asks for may be run.

        Args:
            config: Of the folder.
            path: The folder.
            uses: The options whose code will be run.

        Raises:
            UntrustedFolderError: With the code that is asked for.
        """
        if self.everything:
            return
        asked = {o: c for o, c in code_of(config).items() if o in uses and not c <= self.named}
        if asked:
            names = ", ".join(
                f"the {option} {reference!r}"
                for option, references in asked.items()
                for reference in sorted(references - self.named)
            )
            raise UntrustedFolderError(
                f"{path} names code to be run: {names}; look at it, then add --trust (in Python "
                f"trust=True), or leave alone what you do not know."
            )

    def allows_pickle(self, config: RunConfig) -> bool:
        """Whether weights files may run code."""
        return self.pickle or (self.everything and config.allow_pickle)


NOTHING = Trust()
EVERYTHING = Trust(everything=True)


def call_text(reference: str, arguments: Sequence[str]) -> str:
    """Returns code with what it is called with: ``"net:make(checkpoint=old.pt)"``.

    Arguments count, because they may say which file the code opens.
    """
    return f"{reference}({', '.join(sorted(arguments))})" if arguments else reference


def code_of(config: RunConfig) -> Mapping[str, frozenset[str]]:
    """Returns option -> the code that it names, for the options that name any."""
    values = {
        "model": (call_text(config.model, config.model_args),),
        "data": (config.data,) if is_factory(config.data) else (),
        "teacher": (config.teacher,),
        "reward": (config.reward,),
        "task": (config.task or "",),
        "metric": (config.metric or "",),
        "loss": (config.loss or "",),
        "learner_class": (config.learner_class or "",),
        "cost": tuple(own_cost_references(config.cost).values()),
    }
    found = {
        # What is no text, or has a colon in another form, is none of our names either.
        option: frozenset(str(v) for v in texts if not isinstance(v, str) or ":" in v)
        for option, texts in values.items()
    }
    # Samplers may keep pickles in the storage of a study.
    if not _PLAIN_AGENT.fullmatch(config.agent) or "storage" in config.agent:
        found["agent"] = frozenset({config.agent})
    return {option: texts for option, texts in found.items() if texts}
