"""Checks of arguments, references, documents and answers: one sentence for each fault."""
