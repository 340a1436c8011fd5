"""The layers of compressed networks."""
