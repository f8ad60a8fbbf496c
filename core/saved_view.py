"""The columns that MLflow's table of runs shows without being asked for each of them.

MLflow keeps a view that a person saves ("Views", "Save as new view") as a tag of the
experiment; this one is called Results, and is there from the first run on.
"""

from __future__ import annotations

import base64
import json
import zlib

from core.run_table import COLUMNS

KEY = "torchyard"  # in an address: …/runs?viewStateShareKey=torchyard
TAG = f"mlflow.sharedViewState.{KEY}"


def results_view() -> str:
    """The value of the tag: as MLflow 3.17's own page writes it, deflated."""
    columns = [column.field for column in COLUMNS.values() if column.place != "attributes"]
    state = {"orderByKey": "attributes.start_time", "orderByAsc": False, "selectedColumns": columns}
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    return json.dumps(view)
