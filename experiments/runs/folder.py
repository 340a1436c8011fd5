"""The run folder: what a run is on disk, written so that a crash at any moment loses nothing.

========================= =====================================================================
``config.json``           every option, facts about the data, package versions, the exact command
``state.json``            which stages have started and finished, with their results and seconds
``original.safetensors``  the uncompressed network's tensors
``plan.json``             the plan that the search chose
``stages/``               of a progressive run: trials and network of every stage
``trials.jsonl``          one line per episode
``judged_before.jsonl``   what an agent that failed had evaluated: none of it is evaluated twice
``curves.json``           the learner's estimates of single choices, if the agent asked for them
``levels/``               solved layers (GPTQ, SparseGPT) that memory does not hold
``warm_start.jsonl``      those of the run that the search began with, if it did
``pruned.safetensors``    the smaller network before fine-tuning
``model.safetensors``     the smaller network; its metadata hold plan and kept units
``model.packed``          a quantized network in the bits it has: the smallest file of it
``model.onnx``            the same for ONNX Runtime (``original.onnx`` is what it is timed against)
``summary.json``          before and after, for programs
``report.html``           before and after, for people
``tensorboard/``          event files; ``checkpoints/`` what an interrupted training resumes from
========================= =====================================================================
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amc_compress.config.config_file import CONFIG_FORMAT
from amc_compress.config.run_config import STAGES, RunConfig, package_versions
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.given import Given
from amc_compress.runs.storage.leftovers import is_filled, remove_leftovers, remove_run
from amc_compress.runs.storage.occupied import is_used
from amc_compress.runs.storage.stored_state import read_state
from amc_compress.runs.storage.trials import EVALUATED_BEFORE
from amc_compress.runs.storage.trust import CODE, NOTHING, Trust
from amc_env import CompressionError, CompressionPlan, PlanMismatchError, RunFolderError
from amc_env.files import only_one, read_content, read_json, write_atomic, write_json
from amc_env.scores.metric import Metric

RUN_VERSION = 1
PACKED = "model.packed"
"""The network in the bits it has, in the folder of a run that quantizes."""

_FREE_AFTER_FAILURE = ("agent", "evaluations", "budget", "reward", "cost", "action")
"""Options of a search on which no evaluation depends."""
_FREE = ("time_limit", "preset")
"""Options that change no evaluation: a run may continue with others, until it has used them."""


class RunFolder:
    """An open run folder; use :meth:`create`, :meth:`open` or :meth:`create_or_resume`."""

    def __init__(
        self, path: Path, config: RunConfig, facts: DataFacts, state: dict[str, Any]
    ) -> None:
        self.path = path
        self.config = config
        self.facts = facts
        self._state = state
        self._lock = contextlib.ExitStack()
        self._made: tuple[Path, ...] = ()  # the folders that this process has made for the run
        self._is_new = False
        self.allow_pickle = config.allow_pickle
        self.command = ""
        self.given: Given | None = None

    # ---- opening

    @classmethod
    def create(
        cls, path: Path, config: RunConfig, facts: DataFacts, given: Given | None = None
    ) -> RunFolder:
        """Makes a new run folder.

        Args:
            path: The folder.
            config: The options.
            facts: About the data.
            given: The objects that the run works on, if it does not by names.

        Raises:
            RunFolderError: If something lies there already.
        """
        path = path.expanduser()
        if is_used(path):
            raise RunFolderError(
                f"The folder {path} is not empty; add --resume to continue the run in it, or "
                f"choose another --out."
            )
        missing = tuple(p for p in (path, *path.parents) if not p.exists())
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path, config.settled(), facts, read_state(path / "state.json", RUN_VERSION))
        folder._take_lock()
        folder._made = missing
        folder._is_new = True
        folder.given = given
        folder.command = shlex.join(["amc", *sys.argv[1:]]) if given is None else given.call
        with folder.closed_on_error():
            folder._write_config()
        return folder

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        lock: bool = False,
        trust: Trust = NOTHING,
        uses: Collection[str] = CODE,
        given: Given | None = None,
    ) -> RunFolder:
        """Opens an existing run folder.

        Args:
            path: The folder.
            lock: Whether to keep other processes from writing into it.
            trust: Which code that the folder names may be run.
            uses: The options of the folder whose code will be run; ``()`` where it is only read.
            given: The objects that the run works on, if it does not by names.

        Raises:
            RunFolderError: If it is no run folder, damaged, of another version, or in use; or if
                its network is needed, and was given as an object.
            UntrustedFolderError: If it names code that may not be run.
        """
        path = path.expanduser()
        document = read_json(path / "config.json", CONFIG_FORMAT, RUN_VERSION)
        try:
            config = RunConfig.from_dict(document["options"])
            facts = DataFacts.from_dict(document["data"])
            command = str(document["command"])
        except RunFolderError as error:
            raise RunFolderError(f"{path / 'config.json'}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RunFolderError(
                f"{path / 'config.json'} is damaged ({type(error).__name__}: {error}); start the "
                f"run again in a new folder."
            ) from error
        state = read_state(path / "state.json", RUN_VERSION)
        trust.check(config, path, uses)
        if "network" in facts.content and given is None and "model" in uses:
            raise RunFolderError(
                f"The run in {path} is one of Python objects, which a folder does not hold; "
                f"continue it there, with compress(model, train, validation, out={str(path)!r}, "
                f"resume=True) and the options that it was started with."
            )
        folder = cls(path, config, facts, state)
        folder.allow_pickle = trust.allows_pickle(config)
        folder.command = command
        folder.given = given
        if lock:
            folder._take_lock()
        return folder

    @classmethod
    def create_or_resume(
        cls,
        path: Path,
        config: RunConfig,
        facts: DataFacts,
        *,
        resume: bool,
        given: Given | None = None,
    ) -> RunFolder:
        """Makes a run folder, or continues the one there.

        Options of stages that have not begun may change between the two commands; the others
        must be as they were.

        Raises:
            RunFolderError: If the folder is used and ``resume`` is False, or an option that has
                already taken effect differs.
        """
        if not resume or not is_used(path.expanduser()):
            return cls.create(path, config, facts, given)
        folder = cls.open(path, lock=True, uses=(), given=given)
        with folder.closed_on_error():
            folder.facts.check_content(facts, path)
            folder.reconfigure(
                config.settled(folder.config)
            )  # from now on its options are those of the command
            folder.allow_pickle = config.allow_pickle
            folder.check_facts(facts)
        return folder

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Releases the folder if the block fails."""
        try:
            yield
        except BaseException as error:
            self._left_by(error)
            raise

    @contextlib.contextmanager
    def naming_options(self) -> Iterator[None]:
        """Says in errors of the block which file the options come from."""
        try:
            yield
        except RunFolderError:
            raise
        except (CompressionError, ValueError, OSError) as error:
            raise RunFolderError(f"{self.path / 'config.json'}: {error}") from error

    def check_facts(self, facts: DataFacts) -> None:
        """Checks that the data are those that the run began with.

        Raises:
            RunFolderError: If classes or image sizes differ.
        """
        if self.facts != facts:
            raise RunFolderError(
                f"The data are not those the run in {self.path} began with: {self.facts} there, "
                f"{facts} now; give the same data, or start again in a new folder."
            )

    def reconfigure(self, config: RunConfig) -> None:
        """Changes options of stages that have not started.

        Raises:
            RunFolderError: If an option that has already taken effect differs.
        """
        config = config.settled(self.config)
        begun = {"task", *self._stages}
        if self.config.is_progressive and not self.is_done("search"):
            begun.add("finetune")  # its options hold for the fine-tuning between stages too
        searching = self.has_begun("search") and not self.is_done("search")
        if searching and config.schedule != self.config.schedule:
            raise RunFolderError(
                f"The run in {self.path} is searched with --schedule {self.config.schedule}, by "
                f"which its bytes are counted, got {config.schedule}. Repeat it, or choose "
                f"another --out."
            )
        free = () if self.is_done("search") else _FREE
        if self._stages.get("search", {}).get("failed"):
            free = (*free, *_FREE_AFTER_FAILURE)
        if differences := self.config.differences(config, begun, but=free):
            raise RunFolderError(
                f"The run in {self.path} was started with other options: "
                f"{'; '.join(differences)}. Repeat the options it was started with, or choose "
                f"another --out."
            )
        if config != self.config:
            self.config = config
            self._write_config()

    def _take_lock(self) -> None:
        self._lock.enter_context(only_one(self.path, self.path / ".lock"))
        remove_leftovers(self.path)  # of writes that were killed: no other process writes here now

    def reopen(self) -> None:
        """Locks a folder that was closed again, for further work of this process."""
        self._take_lock()
        self._state = read_state(self.path / "state.json", RUN_VERSION)

    def close(self) -> None:
        """Unlocks the folder for other processes."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self._left_by(error)

    def _left_by(self, error: BaseException | None) -> None:
        """Closes the folder; one that stays empty is removed.

        A command that fails before any work was done leaves nothing behind, so that it can be
        repeated as it is. One that is interrupted is to be resumed.
        """
        in_vain = self._is_new and not isinstance(error, KeyboardInterrupt | None)
        if in_vain and not self._holds_work():
            remove_run(self.path, self._made)
        elif error is not None and not self.is_done("search") and not self._has_evaluated():
            # The options of a search without trials may be others the next time.
            with contextlib.suppress(OSError):  # the disk may be full
                self._stages.pop("search", None)
                self._write_state()
        self.close()

    def _holds_work(self) -> bool:
        """Whether anything is there that took time to make: a training, or evaluated plans."""
        trained = self.is_done("train") and bool(self._stages["train"].get("epochs"))
        return trained or self._has_evaluated() or is_filled(self.path / "checkpoints")

    def _has_evaluated(self) -> bool:
        """Whether a search has evaluated anything."""
        places = ("trials.jsonl", EVALUATED_BEFORE, "stages")
        return any(is_filled(self.path / name) for name in places)

    def _write_config(self) -> None:
        write_json(
            self.path / "config.json",
            {
                "format": CONFIG_FORMAT,
                "version": RUN_VERSION,
                "command": self.command,
                "options": self.config.to_dict(),
                "data": asdict(self.facts),
                "packages": package_versions(),
            },
        )

    # ---- stages

    @property
    def _stages(self) -> dict[str, dict[str, Any]]:
        stages: dict[str, dict[str, Any]] = self._state["stages"]
        return stages

    def start(self, stage: str) -> None:
        """Marks a stage as started: its options are fixed from now on."""
        self._stages.setdefault(stage, {"done": False}).pop("failed", None)
        self._write_state()

    def fail_search(self) -> None:
        """Marks the search as failed in user code: it may be resumed with other code."""
        self._stages["search"] = {"done": False, "failed": not self.config.is_progressive}
        self._write_state()

    def forget(self, stage: str) -> None:
        """Resets a stage and all later ones, to run them again."""
        for later in STAGES[STAGES.index(stage) :]:
            self._stages.pop(later, None)
        self._write_state()

    def finish(self, stage: str, **results: Any) -> None:
        """Marks a stage as complete, with numbers that later stages and the report need."""
        self._stages[stage] = {"done": True, **results}
        self._write_state()

    def is_done(self, stage: str) -> bool:
        """Whether the stage is complete."""
        return bool(self._stages.get(stage, {}).get("done"))

    def has_begun(self, stage: str) -> bool:
        """Whether the stage was started, complete or not."""
        return stage in self._stages

    def results(self, stage: str) -> dict[str, Any]:
        """Returns what :meth:`finish` was given.

        Raises:
            RunFolderError: If the stage is not complete.
        """
        if not self.is_done(stage):
            raise RunFolderError(
                f"The run in {self.path} has no finished stage {stage!r}; continue it with "
                f"`amc compress ... --resume`, or run `amc {_VERB_OF.get(stage, stage)}` first."
            )
        return self._stages[stage]

    def _write_state(self) -> None:
        write_json(self.path / "state.json", self._state)

    # ---- the scores

    @property
    def metric(self) -> Metric:
        """What the scores of the run are made from."""
        return Metric.from_dict(self._state.get("metric"))

    def measure_by(self, metric: Metric) -> None:
        """Notes what scores are made from, for what reads the folder without a learner."""
        if metric != self.metric:
            self._state["metric"] = asdict(metric)
            self._write_state()

    # ---- the plan

    def write_plan(self, plan: CompressionPlan) -> None:
        """Writes ``plan.json``."""
        write_atomic(self.path / "plan.json", plan.to_json() + "\n")

    def read_plan(self) -> CompressionPlan:
        """Reads ``plan.json``.

        Raises:
            RunFolderError: If it is missing or damaged.
        """
        path = self.path / "plan.json"
        missing = f"{self.path} holds no plan.json yet; run `amc search` or `amc compress` first."
        try:
            return CompressionPlan.from_json(read_content(path, missing=missing))
        except PlanMismatchError as error:
            raise RunFolderError(f"{path} is damaged: {error}") from error

    def __truediv__(self, name: str) -> Path:
        return self.path / name


_VERB_OF: Mapping[str, str] = {"evaluate": "export"}
