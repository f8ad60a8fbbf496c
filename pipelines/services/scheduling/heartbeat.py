"""Prefect's own watch over runs: one whose heartbeat stops, because its machine died, is Crashed.

A process that runs a flow tells its server so every few minutes. A server that is not Prefect's
cloud does nothing with that until an automation says what
(https://docs.prefect.io/v3/advanced/detect-zombie-flows).
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import get_current_settings

from torchyard.pipelines.services.prefect_server import FLOW, STUDY_FLOW

NAME = "torchyard: runs whose machine died"
MISSED_BEATS = 3
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "AwaitingRetry")


def watch_heartbeats(client: SyncPrefectClient, silence: timedelta | None = None) -> None:
    """Have the server mark runs that have fallen silent, if it does not do so already.

    Args:
        client: of the server.
        silence: after how long; three heartbeats, by default. At least 10 seconds.

    Raises:
        PrefectHTTPStatusError: the server takes no automation.
    """
    beat = get_current_settings().flows.heartbeat_frequency
    if beat is None:  # switched off: every run would seem dead
        return
    wanted = _automation(silence or timedelta(seconds=MISSED_BEATS * beat))
    found = client.read_automations_by_name(NAME)
    if not found:
        client.create_automation(wanted)
    elif any(getattr(found[0], each) != getattr(wanted, each) for each in ("trigger", "actions")):
        # Whether it is paused is its user's choice.
        client.update_automation(
            found[0].id, wanted.model_copy(update={"enabled": found[0].enabled})
        )


def _automation(silence: timedelta) -> AutomationCore:
    minutes = silence.total_seconds() / 60
    return AutomationCore(
        name=NAME,
        description="Made by `torchyard deploy`. A run that is resumed begins with its checkpoint.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.role": "flow",
                "prefect.resource.name": [FLOW, STUDY_FLOW],
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"Nothing was heard of it for {minutes:g} minutes: its machine died, or is "
                "cut off.",
            )
        ],
    )
