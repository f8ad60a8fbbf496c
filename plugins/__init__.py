"""The built-in plugins."""

from torchyard.import_guard import check_import_name

check_import_name(__name__, __file__)
