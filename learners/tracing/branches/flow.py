"""Follows data through a network: which operation reads what, and in which modules it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc_compress.learners.networks.outputs import tensors_in
from amc_compress.learners.tracing.cases import Case
from amc_compress.learners.tracing.labels.counting import visible_attention


@dataclass(frozen=True)
class Operation:
    """One operation on data; those on parameters alone are none.

    Args:
        reads: Numbers of the operations whose results it reads.
        modules: Names of all modules that it runs in.
        addends: What it adds, if it is a plain sum of two tensors of one shape.
        adds_to_first: Whether the sum is written where the first one was.
    """

    reads: tuple[int, ...]
    modules: frozenset[str]
    addends: tuple[int, int] | None = None
    adds_to_first: bool = False


@dataclass(frozen=True)
class ModuleCall:
    """What a module was called with and returned.

    Args:
        module: Its name.
        source: Position or name of its first argument that is a tensor; None if there is none.
        reads: Number of the operation behind that argument; None if it is no data.
        results: Number of the operation behind each item of its output; None for other items.
        is_plain: Whether it returned one tensor; else a tuple or a list, or something else.
        is_known: Whether it returned nothing but tensors and None.
    """

    module: str
    source: int | str | None
    reads: int | None
    results: tuple[int | None, ...]
    is_plain: bool
    is_known: bool


@dataclass
class Flow:
    """The operations of a run.

    Args:
        operations: In order; the first ones stand for the inputs.
        calls: Of modules, in the order in which they ended.
        outputs: Numbers of the operations whose results the network returns.
    """

    operations: list[Operation] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    outputs: frozenset[int] = frozenset()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow()
        self.stack: list[str] = []
        self._writer: dict[int, int] = {}
        self._sharing: dict[int, list[Tensor]] = {}  # keeps them alive: ids are not used again

    def enter(self, tensor: Tensor, number: int) -> None:
        """Notes which operation a tensor comes from."""
        self._writer[id(tensor)] = number
        self._sharing.setdefault(_memory(tensor), []).append(tensor)

    def number_of(self, tensor: Tensor) -> int | None:
        """Returns the operation that a tensor comes from; None if it is no data."""
        return self._writer.get(id(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Executes one ATen operation."""
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        reads = tuple(n for x in given if (n := self.number_of(x)) is not None)
        name = func.overloadpacket.__name__
        pair = self._addends(name, args, kwargs)
        out = func(*args, **kwargs)
        if not reads:
            return out
        number = len(self.flow.operations)
        is_written = name == "add_"
        self.flow.operations.append(Operation(reads, frozenset(self.stack), pair, is_written))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                if any(tensor is x for x in given):  # in place: all that share the memory change
                    for other in self._sharing.get(_memory(tensor), ()):
                        self._writer[id(other)] = number
                self.enter(tensor, number)
        return out

    def _addends(self, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[int, int] | None:
        if name not in ("add", "add_") or len(args) != 2 or kwargs.get("alpha", 1) != 1:
            return None
        if not all(isinstance(x, Tensor) for x in args) or args[0].shape != args[1].shape:
            return None
        first, second = (self.number_of(x) for x in args)
        return None if first is None or second is None else (first, second)


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # no memory of its own kind
        return id(tensor)


def follow_data(model: nn.Module, case: Case) -> Flow:
    """Runs a network, and returns what reads what.

    Args:
        model: The network.
        case: How to run it.
    """
    recorder = _Recorder()
    for tensor in tensors_in(case.inputs):
        recorder.flow.operations.append(Operation((), frozenset()))
        recorder.enter(tensor, len(recorder.flow.operations) - 1)
    with _watched(model, recorder), visible_attention():
        output = case.run(model, recorder)
    numbers = (recorder.number_of(x) for x in tensors_in(output))
    recorder.flow.outputs = frozenset(n for n in numbers if n is not None)
    return recorder.flow


@contextmanager
def _watched(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                for handle in (
                    module.register_forward_pre_hook(_entering(recorder, name)),
                    module.register_forward_hook(
                        _leaving(recorder, name), with_kwargs=True, always_call=True
                    ),
                ):
                    stack.callback(handle.remove)
        yield


def _entering(recorder: _Recorder, name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        recorder.stack.append(name)

    return hook


def _leaving(recorder: _Recorder, name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        recorder.stack.pop()
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        source, first = next(((key, x) for key, x in named if isinstance(x, Tensor)), (None, None))
        reads = None if first is None else recorder.number_of(first)
        is_plain = isinstance(output, Tensor)
        items = [output] if is_plain else output if isinstance(output, tuple | list) else [...]
        results = tuple(recorder.number_of(x) if isinstance(x, Tensor) else None for x in items)
        is_known = type(output) in (tuple, list) or is_plain
        is_known = is_known and all(x is None or isinstance(x, Tensor) for x in items)
        recorder.flow.calls.append(ModuleCall(name, source, reads, results, is_plain, is_known))

    return hook
