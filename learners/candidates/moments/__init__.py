"""How the moments of a layer's inputs are taken."""
