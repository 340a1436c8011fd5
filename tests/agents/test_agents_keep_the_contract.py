"""Every agent, with small settings, keeps what all of them promise."""

from amc_compress.agents import (
    CMAES,
    DDPG,
    NSGA2,
    SAC,
    TD3,
    TPE,
    TQC,
    CrossQ,
    DeepHeavy,
    Evolution,
    EvoPress,
    GaussianProcess,
    GradientScores,
    LayerErrors,
    LocalSearch,
    OptunaSearch,
    RandomSearch,
    Seeded,
    Sensitivity,
    SensitivityThreshold,
    ShallowHeavy,
    Uniform,
)
from amc_compress.agents.testing import AgentContract

QUICK = {"warmup_episodes": 3, "hidden": 32, "updates_per_episode": 1, "elite_share": 0.3}


class TestUniform(AgentContract):
    def make(self, **options):
        return Uniform(**options)


class TestDeepHeavy(AgentContract):
    def make(self, **options):
        return DeepHeavy(**options)


class TestShallowHeavy(AgentContract):
    def make(self, **options):
        return ShallowHeavy(**options)


class TestRandomSearch(AgentContract):
    def make(self, **options):
        return RandomSearch(**options)


class TestLocalSearch(AgentContract):
    def make(self, **options):
        return LocalSearch(**options)


class TestEvolution(AgentContract):
    def make(self, **options):
        return Evolution(population=4, tournament=2, **options)


class TestEvoPress(AgentContract):
    def make(self, **options):
        return EvoPress(**options)


class TestSensitivity(AgentContract):
    def make(self, **options):
        return Sensitivity(**options)


class TestSensitivityThreshold(AgentContract):
    def make(self, **options):
        return SensitivityThreshold(**options)


class TestGradientScores(AgentContract):
    def make(self, **options):
        return GradientScores(**options)


class TestLayerErrors(AgentContract):
    def make(self, **options):
        return LayerErrors(**options)


class TestTPE(AgentContract):
    def make(self, **options):
        return TPE(**options)


class TestGaussianProcess(AgentContract):
    def make(self, **options):
        return GaussianProcess(**options)


class TestCMAES(AgentContract):
    def make(self, **options):
        return CMAES(**options)


class TestNSGA2(AgentContract):
    def make(self, **options):
        return NSGA2(**options)


class TestOptunasRandom(AgentContract):
    def make(self, **options):
        return OptunaSearch("random", **options)


class TestDDPG(AgentContract):
    def make(self, **options):
        return DDPG(**QUICK, **options)


class TestDDPGWithBroadcastReward(AgentContract):
    def make(self, **options):
        return DDPG(**QUICK | {"credit": "broadcast", "warmup": "random"}, **options)


class TestDDPGWithScreenedElites(AgentContract):
    def make(self, **options):
        return DDPG(**QUICK | {"elite_share": 0.8}, n_critics=2, screen=4, optimism=1.0, **options)


class TestOneShotDDPG(AgentContract):
    def make(self, **options):
        return DDPG(**QUICK, one_shot=True, n_critics=2, screen=4, **options)


class TestTD3(AgentContract):
    def make(self, **options):
        return TD3(**QUICK, **options)


class TestSAC(AgentContract):
    def make(self, **options):
        return SAC(**QUICK, **options)


class TestTQC(AgentContract):
    def make(self, **options):
        return TQC(**QUICK, **options)


class TestCrossQ(AgentContract):
    def make(self, **options):
        return CrossQ(**QUICK, **options)


class TestDDPGSeededBySensitivity(AgentContract):
    def make(self, **options):
        return Seeded(Sensitivity(points=1), DDPG(**QUICK), **options)
