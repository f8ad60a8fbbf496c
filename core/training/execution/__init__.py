"""How the arithmetic of a training is carried out; what is learned stays the same."""
