"""Where plans are evaluated: in this process, or by workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from amc_compress.evaluations.dispatcher import Dispatcher
from amc_compress.evaluations.payload import Payload
from amc_compress.evaluations.plans import PlanEvaluator, RemoteEvaluations
from amc_compress.evaluations.processes import Processes
from amc_compress.evaluations.ray_workers import RayWorkers, check_installed
from amc_compress.evaluations.worker import Backend
from amc_env import Evaluations
from amc_env.scores.compressible import Compressible
from amc_env.scores.evaluations import InProcess
from amc_env.scores.stages import Stages


@dataclass(frozen=True)
class Where:
    """What does the work.

    Args:
        workers: Processes; one is this one.
        timeout: Seconds after which an evaluation is stopped and tried again; None for never.
        threads: Threads of a worker.
        ray: Address of the Ray cluster that the workers are actors of, see ``RayWorkers``; with
            one worker, as many as it has room for.
    """

    workers: int = 1
    timeout: float | None = None
    threads: int = 1
    ray: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether that is this process."""
        return self.workers == 1 and self.timeout is None and self.ray is None

    def backend(self, payload: Payload) -> Backend:
        """Returns the backend whose workers build a payload.

        Raises:
            MissingDependencyError: If it is Ray, which is not installed.
            ArgumentError: If the cluster cannot be reached.
        """
        if self.ray is not None:
            count = None if self.workers == 1 else self.workers
            return RayWorkers(payload, count, self.threads, self.ray)
        return Processes(payload, self.workers, self.threads)

    @contextlib.contextmanager
    def evaluations(
        self, learner: Compressible, stages: Stages | None = None
    ) -> Iterator[Evaluations]:
        """Opens the evaluations service of a learner, and ends it.

        Workers start at the first plan that is submitted. That raises :class:`ArgumentError` if
        the learner cannot travel to another process, or the cluster cannot be reached.

        Args:
            learner: Evaluates.
            stages: How plans are evaluated in stages; None for on all samples at once.

        Raises:
            MissingDependencyError: If Ray is to do it, which is not installed.
        """
        if self.is_here:
            yield InProcess(learner, stages)
            return
        if self.ray is not None:
            check_installed()

        def start() -> Dispatcher:
            backend = self.backend(Payload.of(PlanEvaluator(learner, stages)))
            return Dispatcher(backend, timeout=self.timeout)

        with RemoteEvaluations(start, learner, stages) as service:
            yield service
