"""Commands, models, data and recipes on top of the environment, the agents and the learners."""
