"""A plugin of each kind for `torchyard plugins new`; `new_thing` and `NewThing` are replaced."""
