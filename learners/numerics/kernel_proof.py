"""Fast kernels, used only for shapes that were verified on this processor.

A library picks its kernel by number format, geometry and the full shape of the input, the batch
included. Such a kernel may be wrong for a few shapes only, or read memory that nothing has written
and give other numbers on every call. So each combination is tried once in a process, before its
first use: on generic random values, twice, in memory that was filled with NaN and then with large
numbers. Both results must be equal, bit by bit, and agree with float32. What a trial finds
depends on the shape and the processor alone, not on the data of who asked first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest deviation from float32, relative to the largest absolute output of the shape."""

DISTINCT_IMAGES = 3
"""How many different images a trial's batch is tiled from: float32 computes only these."""

_FRAME = 4096  # bytes of NaN on either side of an input; a multiple of every vector's alignment
_LARGEST_BLOCK = 2**25  # bytes; the C library maps larger blocks afresh, always with zeros
_SMALL_BLOCKS = (64, 64, 256, 256, 1024, 4096, 16384, 65536, 2**18)  # bytes
_PERIOD = 262139
_FILLS = (float("nan"), 1e30)


@dataclass
class _Ledger:
    """Shapes tried in this process."""

    verdicts: dict[Hashable, bool]
    seconds: float = 0.0


_ledger = _Ledger({})


@dataclass(frozen=True)
class Proofs:
    """Results and seconds of the trials in this process.

    Args:
        tried: Combinations of kernel and shape.
        failed: Those that run another way since.
        seconds: CPU-seconds of all trials.
    """

    tried: int
    failed: int
    seconds: float


def proofs() -> Proofs:
    """Returns what trials found and cost in this process so far."""
    verdicts = _ledger.verdicts.values()
    return Proofs(len(verdicts), sum(not verdict for verdict in verdicts), _ledger.seconds)


def forget() -> None:
    """Forgets all trials: every shape is tried again."""
    _ledger.verdicts.clear()
    _ledger.seconds = 0.0


def proved(key: Hashable, trial: Callable[[], bool]) -> bool:
    """Whether a trial succeeded; it runs the first time that ``key`` is asked about.

    Args:
        key: All that the choice of the kernel may depend on. The number of threads is added.
        trial: Tries the kernel. An exception means that there is none for this shape.
    """
    key = (key, torch.get_num_threads())
    if key not in _ledger.verdicts:
        start = time.process_time()
        try:
            # Whatever watches the caller's operators has no business with those of a trial.
            with torch._C.DisableTorchFunction():
                _ledger.verdicts[key] = trial()
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            _ledger.verdicts[key] = False
        _ledger.seconds += time.process_time() - start
    return _ledger.verdicts[key]


def right_twice(
    run: Callable[[], Sequence[Tensor]],
    expected: Sequence[Tensor],
    dtype: torch.dtype,
    sizes: Sequence[int],
) -> bool:
    """Whether two runs give the same bits, and the expected numbers within the tolerance.

    Args:
        run: Computes the results, each of ``expected``'s shape; called twice.
        expected: In float32. A result may hold more images than these, if it repeats them in
            order along its first axis.
        dtype: What the kernel computes in; decides the tolerance.
        sizes: Bytes of inputs and results: blocks of the kernel's own memory may be as large.
    """
    found: list[Sequence[Tensor]] = []
    for fill in _FILLS:
        _poison(sizes, fill)
        found.append(run())
    pairs = zip(*found, strict=True)
    if not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
        return False
    tolerance = TOLERANCES[dtype]
    return all(_agrees(a, b, tolerance) for a, b in zip(found[0], expected, strict=True))


def normal_values(n: int, start: int = 0) -> Tensor:
    """Returns ``n`` standard normal float32 values, the same on every call.

    Drawing is most of what a trial would cost, so the values are drawn once and repeat. Their
    period is prime: no row, channel or image is like the one before.
    """
    pool = _pool()
    if start + n > pool.numel():
        pool = pool.repeat(-(-(start + n) // pool.numel()))
    return pool[start : start + n]


@lru_cache
def _pool() -> Tensor:
    with torch.inference_mode(mode=False):
        return torch.randn(_PERIOD, generator=torch.Generator().manual_seed(0))


def random_like(like: Tensor, dtype: torch.dtype, start: int) -> Tensor:
    """Returns normal values with the shape and strides of ``like``, rounded to ``dtype``.

    They lie in the middle of NaN: a kernel that reads beyond its input shows.
    """
    values = normal_values(like.numel(), start).to(dtype).to(like.dtype)
    return framed(values.view(like.shape), like.stride())


def tiled_like(like: Tensor, dtype: torch.dtype, start: int) -> tuple[Tensor, Tensor]:
    """Returns a batch as :func:`random_like`, and the few images that it repeats, float32."""
    n, *size = like.shape
    few = min(n, DISTINCT_IMAGES)
    values = normal_values(few * math.prod(size), start).to(dtype)
    images = (
        values.as_strided((few, *size), like.stride())
        if _is_dense(like)
        else values.view(few, *size)
    )
    batch = _framed_empty(like)
    whole = n // few * few
    batch[:whole].unflatten(0, (-1, few)).copy_(images)  # type: ignore[no-untyped-call]
    batch[whole:].copy_(images[: n - whole])
    return batch, images.float()


def _is_dense(x: Tensor) -> bool:
    """Whether images follow each other without gaps, so that the first few are a tensor too."""
    return x.stride(0) == x[0].numel() and (
        x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    )


def framed(values: Tensor, strides: Sequence[int]) -> Tensor:
    """Returns a copy with the given strides, in a block with NaN before and behind it."""
    like = torch.empty_strided(values.shape, strides, dtype=values.dtype, device="meta")
    return _framed_empty(like).copy_(values)


def _framed_empty(like: Tensor) -> Tensor:
    reach = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True))
    if reach < like.numel():  # expanded: several elements share a place
        return torch.empty(like.shape, dtype=like.dtype)
    margin = _FRAME // like.element_size()
    block = torch.empty(reach + 2 * margin, dtype=like.dtype)
    nan = float("nan")
    if reach > like.numel():
        block.fill_(nan)
    else:
        block[:margin].fill_(nan)
        block[-margin:].fill_(nan)
    return block.as_strided(like.shape, like.stride(), margin)


def _poison(sizes: Sequence[int], fill: float) -> None:
    """Fills freed memory, so that what is allocated next, and read unwritten, shows."""
    exact = {size for size in sizes if 0 < size <= _LARGEST_BLOCK}
    blocks = [
        # NaN of bfloat16, twice in a row, is NaN of float32 as well; so with large numbers.
        torch.full((-(-size // 2),), fill, dtype=torch.bfloat16)
        # One becomes the result, and there are others for what the kernel asks for.
        for size in (*_SMALL_BLOCKS, *exact, *exact, *(size for size in exact if size < 2**20))
    ]
    blocks.clear()


def _agrees(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    n = expected.shape[0] if expected.dim() else 0
    bound = tolerance * float(expected.abs().max()) if expected.numel() else 0.0
    if not n or found.shape == expected.shape:
        return found.shape == expected.shape and _within(found, expected, bound)
    if found.shape[1:] != expected.shape[1:]:
        return False
    whole = found.shape[0] // n * n
    tiles = found[:whole].unflatten(0, (-1, n))  # type: ignore[no-untyped-call]
    rest = found.shape[0] - whole
    if not _within(found[whole:], expected[:rest], bound):
        return False
    # Usually all tiles are equal, which takes less time to see than how far off they are.
    same = torch.equal(tiles, tiles[:1].expand_as(tiles))
    return _within(tiles[:1] if same else tiles, expected, bound)


def _within(found: Tensor, expected: Tensor, bound: float) -> bool:
    # Not the other way round: NaN is within no bound.
    return not found.numel() or float((found - expected).abs_().max()) <= bound
