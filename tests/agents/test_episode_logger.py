import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amc_compress.agents import DDPG, EpisodeLogger, RandomSearch, Uniform
from amc_compress.agents.testing.contract import make_env

COMMON = {
    "reward/last",
    "reward/best",
    "info/accuracy",
    "info/compress_ratio",
    "cost_ratio/macs",
    "cost_ratio/params",
    "cost_ratio/bytes",
    "time/seconds_per_episode",
    *(f"preserve_rate/{i}" for i in range(4)),
}


def events(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def logged(folder, agent, episodes=6):
    with EpisodeLogger(folder, picture_every=2) as logger:
        return agent.search(make_env(), episodes, seed=0, logger=logger)


@pytest.mark.parametrize("agent", [Uniform(), RandomSearch(), DDPG(warmup_episodes=2, hidden=16)])
def test_every_agent_writes_the_same_tags(tmp_path, agent):
    logged(tmp_path, agent)
    tags = events(tmp_path).Tags()
    assert set(tags["scalars"]) >= COMMON
    assert {"plan/last", "plan/best"} <= set(tags["images"])
    assert {"settings/text_summary", "info/best_policy/text_summary"} <= set(tags["tensors"])


def test_the_x_axis_is_the_episode_and_the_values_are_the_trials(tmp_path):
    result = logged(tmp_path, RandomSearch())
    scalars = events(tmp_path).Scalars("reward/last")
    assert [e.step for e in scalars] == [t.episode for t in result.trials]
    assert [e.value for e in scalars] == pytest.approx([t.reward for t in result.trials])
    best = [e.value for e in events(tmp_path).Scalars("reward/best")]
    assert best == sorted(best)


def test_ddpg_adds_exploration_and_losses(tmp_path):
    logged(tmp_path, DDPG(warmup_episodes=2, hidden=16))
    accumulator = events(tmp_path)
    sigmas = [e.value for e in accumulator.Scalars("exploration/sigma")]
    assert sigmas[0] == 0.0  # episode 1; the uniform plan, episode 0, has no noise to speak of
    assert sigmas[1] > sigmas[2] > 0.0
    # Losses of the updates before the episode: none before the warm-up is over.
    assert [e.step for e in accumulator.Scalars("train/critic_loss")] == [2, 3, 4, 5]
    assert {"train/actor_loss"} <= set(accumulator.Tags()["scalars"])


def test_a_resumed_search_draws_no_curve_twice(tmp_path):
    logged(tmp_path, RandomSearch(), episodes=3)
    logged(tmp_path, RandomSearch(), episodes=6)
    assert [e.step for e in events(tmp_path).Scalars("reward/last")] == list(range(6))


def test_hyperparameters_stay_in_the_same_run_with_the_final_metrics(tmp_path):
    result = logged(tmp_path, DDPG(warmup_episodes=2, hidden=16))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    accumulator = events(tmp_path)
    assert "_hparams_/session_start_info" in accumulator.summary_metadata
    final = accumulator.Scalars("final/reward")
    assert [e.value for e in final] == pytest.approx([result.reward])


def test_a_negative_picture_interval_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="picture_every"):
        EpisodeLogger(tmp_path, picture_every=-1)
