"""How the answers of commands look in a terminal, at any width, and in a pipe."""
