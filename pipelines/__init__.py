"""The Prefect flow, its worker, the services beside it and the command line."""

from torchyard.import_guard import check_import_name

check_import_name(__name__, __file__)
