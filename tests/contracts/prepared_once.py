"""The contract of learners that take long to prepare."""

from __future__ import annotations

import pickle
from typing import ClassVar

from contracts.learner_contract import LearnerContract


class PreparedOnce(LearnerContract):
    """Preparing takes most of the time: tests get copies of what was prepared once.

    Model and learner are copied together, so that what they share stays shared.
    """

    _prepared: ClassVar[dict[tuple[str, str], bytes]] = {}

    def prepared(self, name, **options):
        if options:
            return super().prepared(name, **options)
        key = (type(self).__name__, name)
        if key not in self._prepared:
            self._prepared[key] = pickle.dumps(super().prepared(name))
        return pickle.loads(self._prepared[key])
