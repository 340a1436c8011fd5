"""Who should choose? Agents on the same tasks, with equal judgements, compared over seeds."""
