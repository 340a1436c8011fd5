"""Who should choose? Agents on the same tasks, with equal evaluations, compared over seeds."""
