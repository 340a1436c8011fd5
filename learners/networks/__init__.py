"""A user's network: the forms it comes in, what it takes and returns."""
