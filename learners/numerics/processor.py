"""The processor that results may depend on."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch


def processor_name() -> str:
    """Returns the processor in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model na"))
    except (OSError, StopIteration):
        pass
    return f"{name} ({platform.machine()})"


@functools.cache
def processor() -> str:
    """Returns the processor and the instructions that torch uses of it, once for a process."""
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
