"""The stages of a run: train, search, fine-tune, export, evaluate, report."""
