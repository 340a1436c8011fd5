"""Scores are any finite numbers; of accuracies more is known."""

import numpy as np
import pytest

from amc_env import CompressionEnv, EvaluationError, Metric, OneShotEnv
from amc_env.recorded_tasks.synthetic import SyntheticLearner
from amc_env.scores.metric import ACCURACY, relative_loss

PERPLEXITY = Metric("perplexity", higher_is_better=False, best_score=-1.0)
MEAN_IOU = Metric("mean_iou", best_score=1.0)


class Perplexed(SyntheticLearner):
    """A language model: its score is the negative perplexity."""

    def __init__(self, n_layers=4):
        super().__init__(n_layers)
        self.metric, self.higher_is_better, self.best_score = "perplexity", False, None
        self.original_score = -20.0

    def evaluate(self, plan):
        return -20.0 * 0.92 / super().evaluate(plan)


class Older:
    """What learners were before there were scores."""

    def __init__(self):
        self._learner = SyntheticLearner(3)
        self.graph, self.decisions = self._learner.graph, self._learner.decisions
        self.original_accuracy = 0.92

    def evaluate(self, plan):
        return self._learner.evaluate(plan)


def last_info(env):
    env.reset()
    terminated = False
    while not terminated:
        action = np.full(env.action_space.shape, 0.5, np.float32)
        _, reward, terminated, _, info = env.step(action)
    return reward, info


def test_the_last_info_says_a_score_by_the_name_and_in_the_sign_of_its_metric():
    env = CompressionEnv(Perplexed(), "macs=0.5")
    for played in (env, OneShotEnv(env)):
        reward, info = last_info(played)
        assert reward == info["score"] < -20.0
        assert info["perplexity"] == -info["score"]
        assert "accuracy" not in info
    _, info = last_info(CompressionEnv(SyntheticLearner(4), "macs=0.5"))
    assert info["accuracy"] == info["score"]


def test_a_learner_says_what_its_score_is_made_from():
    env = CompressionEnv(Perplexed(), "macs=0.5")
    assert env.metric == Metric("perplexity", higher_is_better=False)
    assert env.original_score == -20.0
    assert CompressionEnv(SyntheticLearner(4), "macs=0.5").metric == ACCURACY

    class Silent:
        graph, decisions = env.graph, env.decisions
        original_score = 3.0

        def evaluate(self, plan):
            return 2.0

    assert CompressionEnv(Silent(), "macs=0.5").metric == Metric("score")
    Silent.metric = staticmethod(relative_loss)
    assert CompressionEnv(Silent(), "macs=0.5").metric == Metric("relative_loss")


@pytest.mark.parametrize("reward", ["score", "error_log_macs", "accuracy_size", "haq"])
def test_every_reward_prefers_the_better_score(reward):
    env = CompressionEnv(Perplexed(), "macs=0.5", reward=reward)
    plan = env.uniform_plan()
    rewards = [env.outcome(plan, score).reward for score in (-500.0, -60.0, -25.0, -20.0)]
    assert rewards == sorted(set(rewards))


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), "good", None, 10**400])
def test_only_finite_scores_are_taken(answer):
    env = CompressionEnv(Perplexed(), "macs=0.5")
    env.learner.evaluate = lambda plan: answer
    with pytest.raises(EvaluationError, match=r"a finite score from Perplexed\.evaluate, got"):
        env.evaluate(env.uniform_plan())


@pytest.mark.parametrize("answer", [-0.1, 1.1, float("nan")])
def test_an_accuracy_is_between_0_and_1(answer):
    env = CompressionEnv(SyntheticLearner(4), "macs=0.5")
    with pytest.raises(EvaluationError, match=r"a finite accuracy in \[0, 1\] from the record of"):
        env.remember(env.uniform_plan(), answer)
    env.learner.original_score = answer
    with pytest.raises(EvaluationError, match=r"SyntheticLearner\.original_score, got"):
        CompressionEnv(env.learner, "macs=0.5")


def test_a_learner_of_before_there_were_scores_is_taken_with_a_warning():
    with pytest.warns(DeprecationWarning, match="'original_score' instead of 'original_accuracy'"):
        env = CompressionEnv(Older(), "macs=0.5")
    assert (env.metric, env.original_score) == (ACCURACY, 0.92)
    _, info = last_info(env)
    assert info["accuracy"] == info["score"]


def test_old_names_are_taken_with_a_warning():
    env = CompressionEnv(SyntheticLearner(4), "macs=0.5")
    plan = env.uniform_plan()
    with pytest.warns(DeprecationWarning, match="Use 'score' instead of 'accuracy'"):
        outcome = env.outcome(plan, accuracy=0.5)
    with pytest.warns(DeprecationWarning, match="Use 'score' instead of 'accuracy'") as seen:
        assert outcome.accuracy == 0.5
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("metric", "before", "after", "texts"),
    [
        (ACCURACY, 0.9833, 0.9712, ("98.33%", "accuracy 98.33%", "-1.21 points")),
        (MEAN_IOU, 0.61234, 0.6, ("0.6123", "mean IoU 0.6123", "-0.01234")),
        (PERPLEXITY, -20.5, -24.0, ("20.5", "perplexity 20.5", "+3.5 worse")),
        (PERPLEXITY, -20.5, -20.0, ("20.5", "perplexity 20.5", "-0.5 better")),
        (Metric("mse", higher_is_better=False), -2e-7, -2e-7, ("2e-07", "MSE 2e-07", "+0")),
    ],
)
def test_a_score_is_written_as_its_metric_is(metric, before, after, texts):
    assert (metric.text(before), metric.said(before), metric.change(before, after)) == texts


def test_a_metric_of_zero_has_no_sign():
    assert str(PERPLEXITY.value(0.0)) == "0.0"
    assert PERPLEXITY.named(-3.0) == {"perplexity": 3.0, "score": -3.0}
    assert Metric().named(-3.0) == {"score": -3.0}


def test_relative_losses_are_finite():
    assert relative_loss(0.0, -1e308) < -relative_loss(0.0, 1e308) * 1.01
    assert relative_loss(-1.0, -1.5) == 0.5


@pytest.mark.parametrize(
    ("name", "title"),
    [("map", "mAP"), ("mean_iou", "mean IoU"), ("accuracy", "accuracy"), ("top_5", "top 5")],
)
def test_metrics_are_written_as_people_write_them(name, title):
    assert Metric(name).title == title
