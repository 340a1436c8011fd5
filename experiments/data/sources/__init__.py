"""Where images come from: tables, folders, the Hugging Face hub."""
