from contracts.agent_contract import AgentContract

from agents import DDPG, LocalSearch, RandomSearch, Uniform


class TestUniform(AgentContract):
    def make(self, **options):
        return Uniform(**options)


class TestRandomSearch(AgentContract):
    def make(self, **options):
        return RandomSearch(**options)


class TestLocalSearch(AgentContract):
    def make(self, **options):
        return LocalSearch(**options)


class TestDDPG(AgentContract):
    def make(self, **options):
        return DDPG(warmup_episodes=3, hidden=32, updates_per_step=1, elite_share=0.3, **options)


class TestDDPGWithBroadcastReward(AgentContract):
    def make(self, **options):
        return DDPG(warmup_episodes=3, hidden=32, credit="broadcast", warmup="random", **options)
