"""Cases: reproducible runs of a network (mode, data-dependent branches, randomness).

A proof compares two networks of different widths, so nothing may depend on chance: what a forward
draws (dropout, stochastic depth, noise) is the same number everywhere, whatever the shape. And it
wants to see all code: where a forward asks a tensor for a Python number (``if x.mean() > 0``), the
answer can be replaced, so that the other side of a branch runs without an image that leads there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc_compress.learners.tasks.inputs import Inputs, ask, hooked

Answer = bool | int | float

_DYNAMIC = frozenset(("nonzero", "masked_select", "unique_dim", "_unique2", "bincount"))
# Where a uniform number may lie, by seed: the first keeps most of what is dropped at random.
_UNIFORM = ((0.6, 0.9), (0.1, 0.4))


@dataclass(eq=False)
class Case:
    """How a network is run once.

    Args:
        inputs: What it is called with.
        what: The circumstances in words that follow a sentence, empty for the usual ones.
        training: In training mode.
        answers: Index of a number that is read from data -> what is answered in its place.
        seed: Of everything that the forward draws.
        is_plain: Whether nothing is drawn or answered otherwise, so that it runs as it is.
    """

    inputs: Inputs
    what: str = ""
    training: bool = False
    answers: Mapping[int, Answer] = field(default_factory=dict)
    seed: int = 0
    is_plain: bool = field(default=False, init=False)

    def run(self, model: nn.Module, *listeners: TorchDispatchMode) -> Any:
        """Runs a network that is in evaluation mode, and leaves it as it was.

        Args:
            model: The network.
            listeners: Modes that see its operations, the last one first.

        Returns:
            What its forward returns.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_same_chance(self.seed))
            if self.training:
                stack.enter_context(_trained(model))
            if not self.is_plain:
                stack.enter_context(Conductor(self))
            for listener in listeners:
                stack.enter_context(listener)
            return ask(model, self.inputs)


class Conductor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Controls data-dependent reads and random draws of a forward.

    Args:
        case: The circumstances.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answers = case.answers
        self._n_reads = 0
        self._n_draws = 0
        self._seed = case.seed
        self._numbers = random.Random(case.seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Executes one ATen operation."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self._n_reads += 1
            if self._n_reads - 1 in self._answers:
                return self._answers[self._n_reads - 1]
        elif torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(name, func, args, kwargs)
        return func(*args, **kwargs)

    def _draw(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Executes what draws; numbers that are independent all become the same one."""
        self._n_draws += 1
        low, high = _UNIFORM[self._seed % len(_UNIFORM)]
        uniform = self._numbers.uniform(low, high)
        if name == "rrelu_with_noise":  # (source, noise, lower, upper, training, generator)
            return func(*args[:4], False)
        # Not ``torch.manual_seed``: it notes the stack for every other device, 2 ms a draw.
        torch.default_generator.manual_seed(self._seed * 10_007 + self._n_draws)
        out = func(*args, **kwargs)
        first, second = _numbers(args[1:], (0.0, 1.0))
        if name in ("bernoulli", "bernoulli_"):
            out.fill_(1)  # what may be dropped stays: a dead branch proves nothing
        elif name in ("rand", "rand_like", "uniform_"):
            out.fill_(first + (second - first) * uniform if name == "uniform_" else uniform)
        elif name in ("randn", "randn_like", "normal_"):
            normal = 2 * uniform - 1
            out.fill_(first + second * normal if name == "normal_" else normal)
        elif name == "exponential_":
            out.fill_(uniform)
        return out


def _numbers(args: Sequence[object], usual: tuple[float, float]) -> tuple[float, float]:
    """Returns the two parameters of a distribution."""
    given = [float(x) for x in args if isinstance(x, (int, float))]
    first, second = [*given[:2], *usual[len(given[:2]) :]]
    return first, second


@contextmanager
def _same_chance(seed: int) -> Iterator[None]:
    """Seeds what a forward may draw from in the block, and gives the caller's streams back."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002


@contextmanager
def _trained(model: nn.Module) -> Iterator[None]:
    """Puts a network into training mode; statistics that it measures there are forgotten."""
    buffers = [
        (module, name, tensor, tensor.clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    model.train()
    try:
        yield
    finally:
        model.eval()
        for module, name, tensor, values in buffers:
            module._buffers[name] = tensor
            tensor.copy_(values)


@dataclass
class Path:
    """The code path of a network in one case.

    Args:
        operations: Names of its operations in order, with the parameters that they read.
        touched: Names of the parameters that it read.
        modules: Modules that ran.
        reads: Numbers that it read from data, as far as they were answered.
        is_dynamic: Whether shapes depend on data.
        is_random: Whether something was drawn.
    """

    operations: list[object] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    reads: list[Answer] = field(default_factory=list)
    is_dynamic: bool = False
    is_random: bool = False

    @property
    def key(self) -> int:
        """Equal for runs that executed the same code."""
        return hash(tuple(self.operations))


class PathFinder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the path of one run.

    Args:
        names: Storage of a parameter -> its names.
    """

    def __init__(self, names: Mapping[int, list[str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = Path()
        self._names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Executes one ATen operation and notes it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name == "_local_scalar_dense":
            self.path.reads.append(out)
        elif name in _DYNAMIC or (
            name == "index" and any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])
        ):
            self.path.is_dynamic = True
        self.path.is_random |= torch.Tag.nondeterministic_seeded in func.tags
        if any(x.dim() for x in tensors):  # single numbers have no channels; some are counters
            self.path.operations.append(name)
        for leaf in tensors:
            names = self._names.get(storage_key(leaf))
            if names is not None:
                self.path.touched.update(names)
                self.path.operations.append(names[0])
        return out


def storage_key(tensor: Tensor) -> int:
    """Tells whether two tensors are views of the same memory; 0 where that is unknown."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors, and others without storage
        return 0


def parameter_storages(model: nn.Module) -> dict[int, list[str]]:
    """Returns the parameters that hold numbers: storage -> names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.numel():
            names.setdefault(storage_key(parameter), []).append(name)
    return names


def follow(model: nn.Module, case: Case, names: Mapping[int, list[str]]) -> Path | None:
    """Returns the path that a network takes, None if it does not run."""
    finder = PathFinder(names)
    handles = [
        module.register_forward_pre_hook(_enter(finder.path.modules, name))
        for name, module in model.named_modules()
    ]
    try:
        with hooked(handles):
            case.run(model, finder)
    except Exception:  # a case that the network was not made for
        return None
    case.is_plain = not finder.path.is_random and not case.answers
    return finder.path


def _enter(modules: set[str], name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        modules.add(name)

    return hook
