"""User networks: their forms, inputs and outputs."""
