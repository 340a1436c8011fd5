"""Learners: how a plan becomes a smaller network, and how networks are trained."""

import lazy_loader

# Each name is imported when it is first used: most of them bring more than a caller needs.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
