"""The library under plugins and pipelines. It imports neither of them."""

from torchyard.import_guard import check_import_name

check_import_name(__name__, __file__)
