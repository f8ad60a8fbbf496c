"""The project's own functions, timed alone in a process of their own; imports do not count."""
