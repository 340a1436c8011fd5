"""What an agent of your own must keep, as a test class; needs pytest.

from amc_compress.agents.testing import AgentContract

class TestMyAgent(AgentContract):
def make(self, **options):
return MyAgent(**options)
"""

import pytest

pytest.register_assert_rewrite("amc_compress.agents.testing.contract")

from amc_compress.agents.testing.contract import AgentContract  # noqa: E402

__all__ = ["AgentContract"]
