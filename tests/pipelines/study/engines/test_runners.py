"""A cluster of a study's own takes orders from its leader alone."""

import distributed
import pytest

from torchyard.core.study.plan import StudySettings
from torchyard.pipelines.study.engines.runners import task_runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # a cluster starts


def test_a_stranger_gets_no_code_run_by_a_dask_cluster(tmp_path):
    settings = StudySettings(trials=1, engine="dask", workers=1)
    with task_runner(settings, str(tmp_path)) as runner:
        address = runner.client.scheduler.address
        port = address.rpartition(":")[2]
        for one in (f"tcp://127.0.0.1:{port}", f"tls://127.0.0.1:{port}"):
            with pytest.raises((OSError, TypeError)):
                distributed.Client(one, timeout=5, set_as_default=False)
        assert runner.client.submit(sum, [1, 2]).result(timeout=120) == 3
