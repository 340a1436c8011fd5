"""Files of trained policies: actor and critics, to start another search from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from amc_compress.agents.trials import AgentError
from amc_env.errors import InputDataError
from amc_env.files import save_bytes

FORMAT = "amc-policy"
VERSION = "1"


@dataclass(frozen=True)
class SavedPolicy:
    """A policy from a file.

    Args:
        path: The file.
        agent: Name of the agent that trained it.
        reward_scale: What its rewards were divided by.
        tensors: ``state_dict`` of the SB3 policy.
    """

    path: Path
    agent: str
    reward_scale: float
    tensors: Mapping[str, Tensor]

    def give_to(self, model: OffPolicyAlgorithm) -> float:
        """Loads the weights into a model; returns the scale of its rewards.

        Raises:
            AgentError: If the model is another algorithm, has other sizes, or sees or does other
                things than the policy did.
        """
        own = model.policy.state_dict()
        other = [
            name
            for name in sorted(own.keys() | self.tensors.keys())
            if name not in own
            or name not in self.tensors
            or own[name].shape != self.tensors[name].shape
        ]
        if other:
            raise AgentError(
                f"The policy in {self.path}, trained by {self.agent!r}, does not fit this search "
                f"({len(other)} tensors, {other[0]!r} for one): expected the same algorithm, sizes "
                f"of networks and kinds of decisions."
            )
        model.policy.load_state_dict(dict(self.tensors))
        return self.reward_scale


def write_policy(path: Path, model: OffPolicyAlgorithm, agent: str, reward_scale: float) -> None:
    """Writes the policy of a model, whole or not at all."""
    tensors = {name: value.contiguous() for name, value in model.policy.state_dict().items()}
    facts = {"format": FORMAT, "version": VERSION, "agent": agent, "scale": repr(reward_scale)}
    save_bytes(path, safetensors.torch.save(tensors, metadata=facts))


def read_policy(path: Path) -> SavedPolicy:
    """Reads what :func:`write_policy` wrote.

    Raises:
        InputDataError: If the file is missing, damaged, something else, or of another version.
    """
    if not path.is_file():
        raise InputDataError(f"Expected the file of a policy, but {path} is none.")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            facts: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputDataError(f"The policy in {path} is damaged or cut short: {error}.") from error
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise InputDataError(
            f"Expected a policy of version {VERSION} in {path}, got {facts.get('format')!r} of "
            f"version {facts.get('version')!r}; train it again with this release."
        )
    return SavedPolicy(path, facts["agent"], float(facts["scale"]), tensors)
