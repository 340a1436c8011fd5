"""What a meter has measured, as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_TENSOR, _PLACE = "tensor of a meter", "its device"


def meter_state(meter: Any, fresh: Any) -> dict[str, Any] | None:
    """Returns what a meter has measured, as tensors, numbers and strings.

    Args:
        meter: Anything with ``update`` and ``compute``; ``torchmetrics`` too.
        fresh: Another one as it was at first: what both share is a setting.

    Returns:
        ``None`` if there is more in it than such values.
    """
    if isinstance(meter, nn.Module):
        return _library_state(meter)
    found: dict[str, Any] = {}
    for name, value in vars(meter).items():
        if _is_meter(value):
            inner = meter_state(value, vars(fresh).get(name))
            if inner is None:
                return None
            found[name] = inner
        elif _is_plain(value):
            found[name] = _packed(value)
        elif not _is_shared(value, vars(fresh).get(name)):
            return None
    return found


def load_meter(meter: Any, state: Mapping[str, Any]) -> None:
    """Restores what :func:`meter_state` returned, in a fresh meter."""
    if isinstance(meter, nn.Module):
        for name, module in meter.named_modules():
            for key, value in state.get(name, {}).items():
                setattr(module, key, _unpacked(value))
        return
    for name, value in state.items():
        inner = vars(meter).get(name)
        if _is_meter(inner):
            load_meter(inner, value)
        else:
            setattr(meter, name, _unpacked(value))


def _is_meter(value: Any) -> bool:
    return callable(getattr(value, "update", None)) and callable(getattr(value, "compute", None))


def _is_shared(value: Any, other: Any) -> bool:
    # A method is another object each time that it is looked up.
    return value is other or (callable(value) and bool(value == other))


def _library_state(metric: nn.Module) -> dict[str, Any] | None:
    """The states of a ``torchmetrics`` metric, or of all of a collection."""
    if isinstance(metric, nn.ModuleDict):
        list(metric.values())  # metrics that share a state get it here
    found = {}
    for name, module in metric.named_modules():
        states = getattr(module, "metric_state", None)
        if isinstance(states, Mapping) and not isinstance(module, nn.ModuleDict):
            if not all(map(_is_plain, states.values())):
                return None
            own = {key: _packed(value) for key, value in states.items()}
            found[name] = own | {"_update_count": getattr(module, "update_count", 1)}
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(v) for key, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def _packed(value: Any) -> Any:
    """A value with the device of each tensor noted: checkpoints are read on the processor."""
    if isinstance(value, Tensor):
        return {_TENSOR: value.detach().clone(), _PLACE: str(value.device)}
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_packed(item) for item in value)
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR, _PLACE}:
            return value[_TENSOR].to(value[_PLACE])
        return {key: _unpacked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(item) for item in value)
    return value
