"""The front door of Python: a network and loaders in, a smaller network out."""
