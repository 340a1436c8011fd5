"""Searches for the cheapest plan whose score keeps a floor."""
