"""What the tests of the command line have in common."""

from __future__ import annotations

from amc_compress.models import pretrained_weights

WEIGHTS = str(pretrained_weights("digitsnet"))
QUICK = ["--weights", WEIGHTS, "--evaluations", "6", "--epochs", "2", "--round-to", "4",
         "--agent", "random", "--precision", "fp32"]  # fmt: skip
