"""Facts about the data of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc_env.errors import RunFolderError
from amc_env.validation.checks import checked
from amc_env.validation.sentences import joined

_LONGEST_SIDE = 2**16  # of images; longer ones are no images
_MOST_CLASSES = 2**24  # a layer for more of them could not be made


@checked
@dataclass(frozen=True)
class DataFacts:
    """Facts about the data that are needed to rebuild the network without them.

    Args:
        data_name: Name of the data set.
        n_classes: Outputs of the network; None if unknown.
        image_shape: ``(channels, height, width)``; None if the samples are no images.
        class_names: One per class, possibly empty.
        notes: What was mapped or left out when the data were read; says nothing about whether
            they are the same.
        content: Of a run on objects: what each of them is, in words and digests.
        inputs: What the network is called with, where the samples are no images, see
            ``learners.packing.example``.
        has_test: Whether there are test data that nothing but the last figures sees.
    """

    data_name: str
    n_classes: int | None
    image_shape: tuple[int, int, int] | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    content: dict[str, str] = field(default_factory=dict)
    has_test: bool = True
    inputs: Any = None

    def __post_init__(self) -> None:
        n, names = self.n_classes, len(self.class_names)
        fits = names == 0 if n is None else 1 <= n <= _MOST_CLASSES and names in (0, n)
        if not fits or not all(1 <= side <= _LONGEST_SIDE for side in self.image_shape or ()):
            raise ValueError(
                f"expected classes and images, got {n} classes with {names} names and images of "
                f"shape {self.image_shape}"
            )

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> DataFacts:
        """Reads what ``dataclasses.asdict`` made, as it comes from a file.

        Raises:
            LookupError: If something is missing.
            TypeError, ValueError: If something is of another type, or out of its range.
        """
        return cls(
            row["data_name"],
            row["n_classes"],
            None if (shape := row["image_shape"]) is None else tuple(shape),
            class_names=tuple(row.get("class_names", ())),
            notes=tuple(row.get("notes", ())),
            content=row.get("content", {}),
            has_test=row.get("has_test", True),
            inputs=row.get("inputs"),
        )

    def check_content(self, now: DataFacts, path: Path) -> None:
        """Checks that given objects are those that a run began with.

        Args:
            now: Facts about the objects that are given now.
            path: The folder of the run.

        Raises:
            RunFolderError: If one of them is another, or missing on one side.
        """
        names = self.content.keys() | now.content.keys()
        if others := sorted(n for n in names if self.content.get(n) != now.content.get(n)):
            raise RunFolderError(
                f"The run in {path} began with another {joined(others)}: expected the same "
                f"content as then; give the same again, or choose another --out."
            )
