"""What several tasks share: means, answers of the original network, one class per place."""
