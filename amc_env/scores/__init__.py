"""What learners answer: scores, and the metrics behind them."""
