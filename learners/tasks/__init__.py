"""Tasks: what a batch is, how a network is asked, its loss, its metric and its score."""
