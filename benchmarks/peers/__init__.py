"""The same work, done by others: each is a script that prints one JSON line."""
