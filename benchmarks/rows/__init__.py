"""The rows: a module each, with `TITLE` and `measure(bench)`."""
