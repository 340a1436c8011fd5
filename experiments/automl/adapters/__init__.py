"""Scripts for the frameworks' own interpreters; nothing here imports or is imported by the rest."""
