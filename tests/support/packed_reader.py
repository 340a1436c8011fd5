"""The reader of packed files that their page shows, which shares no code with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "packed_files.md"


def reader() -> dict[str, Any]:
    """The names that the page's program defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(next(block for block in blocks if "def read(" in block), scope)
    return scope
