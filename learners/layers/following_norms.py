"""Pairs of layers and the batch norms that directly follow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from amc_compress.learners.layers.masked import Masked


class ImageTracer(fx.Tracer):
    """Traces a network as it is called with images alone: all other arguments have their defaults.

    A proxy for a mask that is None by default would take the code to where there is a mask.
    """

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Makes one placeholder; ``concrete_args`` is not read."""

        def forward(root: nn.Module, images: fx.Proxy) -> Any:
            return root_fn(root, images)

        images = self.create_proxy("placeholder", "images", (), {})
        return forward, [self.root, images]


class _Tracer(ImageTracer):
    """Traces layers with weights as leaves: masked and quantized ones, and subclasses."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (Masked, _ConvNd, nn.Linear)
        return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)


def following_norms(network: nn.Module) -> dict[str, str]:
    """Returns convolution -> batch norm for all that read nothing but each other.

    Of networks that cannot be traced as a whole, such as detectors with hand-written arithmetic
    around their bodies, the largest parts that can be are looked through.
    """
    found: dict[str, str] = {}
    seen: set[nn.Module] = set()

    def search(part: nn.Module, prefix: str) -> None:
        if part in seen:  # known by another name
            return
        seen.add(part)
        try:
            graph = _Tracer().trace(part)
        except Exception:
            # As in ``fusion_works``: whatever a forward does that tracing does not take.
            for name, child in part.named_children():
                search(child, f"{prefix}{name}.")
            return
        seen.update(part.modules())
        found.update({prefix + x: prefix + y for x, y in _pairs(graph, part).items()})

    search(network, "")
    return found


def _pairs(graph: fx.Graph, network: nn.Module) -> dict[str, str]:
    """Returns the pairs in the graph of a network."""
    modules = dict(network.named_modules())
    targets = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    found = {}
    for node in graph.nodes:
        follower = _only_user(node)
        norm = _module(follower, modules)
        if _module(node, modules) is None or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        assert follower is not None
        first, second = str(node.target), str(follower.target)
        if norm.running_mean is not None and targets.count(first) == targets.count(second) == 1:
            found[first] = second
    return found


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _module(node: fx.Node | None, modules: dict[str, nn.Module]) -> nn.Module | None:
    if node is None or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return modules.get(str(node.target))
