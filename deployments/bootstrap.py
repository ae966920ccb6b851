"""Set up a Prefect server for aicert: all that it needs, as often as you like.

    python deployments/bootstrap.py [--slots 4] [--notify slack-webhook/NAME]

Makes what is missing and leaves what an operator has changed: the work pool, the block types, two
blocks to start with, the limits on machines, the deployments of `prefect.yaml`, and automations for
runs that failed, crashed or vanished. Of a deployment that is there already, the code, the form and
the description are brought up to date; its parameters, schedules, tags, limit, variables and queue,
and whether it is paused, stay as they are. PREFECT_API_URL names the server.
"""

import argparse
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints
from uuid import UUID

import yaml
from prefect.automations import Automation
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

import blocks
from aicert.agent.machine import MachineConfig
from aicert.agent.places import default_state

ROOT = Path(__file__).parent.parent
POOL = "aicert"
KINDS: tuple[str, ...] = get_args(get_type_hints(MachineConfig)["kind"])
HEARTBEAT = "prefect.flow-run.heartbeat"
MEMORY_LEASES = "prefect.server.concurrency.lease_storage.memory"
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.aicert"}


def main() -> int:
    """Set everything up; say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, help="machines of a kind at a time (4 if not set)")
    parser.add_argument("--zombie-seconds", type=int, default=120, help="silence that means death")
    parser.add_argument(
        "--notify", metavar="TYPE/NAME", help="notification block that hears of failed runs"
    )
    options = parser.parse_args()
    if not PREFECT_API_URL.value():
        print("PREFECT_API_URL is not set: start a server, and name it", file=sys.stderr)
        return 2
    with get_client(sync_client=True) as client:
        notify = _notifier(client, options.notify)
        if options.notify and notify is None:
            print(f"there is no block {options.notify}: make it first", file=sys.stderr)
            return 2
        say("work pool", POOL, _pool(client))
        for block in blocks.TYPES:
            block.register_type_and_schema()
        say("block types", ", ".join(t.get_block_type_slug() for t in blocks.TYPES), "registered")
        for slug, block in _first_blocks().items():
            say("block", slug, _save(client, slug, block))
        for kind in KINDS:
            say("limit", f"aicert-{kind}", _limit(client, f"aicert-{kind}", options.slots))
        before = {name: _deployed(client, name) for name in _deployments()}
        if status := _deploy():
            return status
        for name, known in before.items():
            note = "" if known is None else _put_back(client, known)
            say("deployment", f"{name}{note}", "made" if known is None else "there")
        reaper = client.read_deployment_by_name("reap/reap").id
        for automation in automations(options.zombie_seconds, reaper, notify):
            say("automation", automation.name, _automate(automation))
        _warn_of_leases(client)
    if notify is None:
        print("note: nobody is told of failed runs; name a notification block with --notify")
    return 0


def say(kind: str, name: str, what: str) -> None:
    """Print what became of one thing."""
    print(f"{kind:12} {what:10} {name}", flush=True)


def _warn_of_leases(client: SyncPrefectClient) -> None:
    """Say that slots will leak, where the server forgets at a restart who has them."""
    # Prefect's client has no method for this.
    answer = client.request("GET", "/admin/settings")  # type: ignore[arg-type]
    concurrency = answer.json().get("server", {}).get("concurrency", {})
    if concurrency.get("lease_storage") == MEMORY_LEASES:
        print(
            "note: the server keeps in memory who holds which slot, and a restart of it leaves "
            "slots taken; start it with PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="
            + MEMORY_LEASES.replace("memory", "filesystem")
        )


def _pool(client: SyncPrefectClient) -> str:
    """Make the pool. Its workers start a run with this Python at once.

    Left to itself, Prefect first starts another Python, which looks for the one to start: a second
    and more for each run. Workers have this checkout at the same path as it is.
    """
    command = shlex.join([sys.executable, "-m", "prefect.engine"])
    try:
        known = client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        template["variables"]["properties"]["command"]["default"] = command
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL,
                type="process",
                description="Hosts that train, with a TPM.",
                base_job_template=template,
            )
        )
        return "made"
    template = known.base_job_template
    variable = template["variables"]["properties"].get("command")
    if variable is None or variable.get("default") is not None:
        return "there"  # as an operator wants it
    variable["default"] = command
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    return "updated"


def _first_blocks() -> dict[str, Block]:
    store = blocks.FolderStore(folder=default_state() / "store")
    return {
        "aicert-local-machine/default": blocks.LocalMachine(),
        "aicert-folder-store/default": store,
    }


def _save(client: SyncPrefectClient, slug: str, block: Block) -> str:
    """Save a block unless there is one by its name, which may be an operator's own."""
    kind, name = slug.split("/")
    try:
        client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        block.save(name)
        return "made"
    return "there"


def _limit(client: SyncPrefectClient, name: str, slots: int | None) -> str:
    try:
        known = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        limit = GlobalConcurrencyLimitCreate(name=name, limit=slots or 4, active=True)
        client.create_global_concurrency_limit(limit)
        return f"made: {limit.limit}"
    if slots is not None and slots != known.limit:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=slots))
        return f"set: {slots}"
    return f"there: {known.limit}"


def _deployments() -> list[str]:
    """Return the names of the deployments of `prefect.yaml`, each by its flow's and its own."""
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return [f"{item['entrypoint'].rpartition(':')[2]}/{item['name']}" for item in listed]


def _deployed(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _deploy() -> int:
    """Deploy with the command that the documentation names."""
    command = [sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    return done.returncode


def _put_back(client: SyncPrefectClient, known: DeploymentResponse) -> str:
    """Put back what an operator may have changed of a deployment, for Prefect has just reset it.

    Return in a few words what that was.
    """
    now = client.read_deployment(known.id)
    properties = (now.parameter_openapi_schema or {}).get("properties", {})
    # A parameter that this release no longer has would end every run.
    gone = sorted(known.parameters.keys() - properties.keys())
    reset, own = _own(now), _own(known)
    own["parameters"] = {k: v for k, v in known.parameters.items() if k not in gone}
    # The automations and the reaper know our runs by these tags; a variable may be new.
    own["tags"] = sorted({*reset["tags"], *known.tags})
    own["job_variables"] = _over(reset["job_variables"], known.job_variables)
    kept = [name for name, value in own.items() if _plain(value) != _plain(reset[name])]
    if kept:
        update = {name: own[name] for name in kept if name != "schedules"}
        client.update_deployment(
            known.id, DeploymentUpdate(**update, work_pool_name=known.work_pool_name)
        )
    if "schedules" in kept:
        # Not by an update: that wants a slug of each, which those made in the UI have not.
        for schedule in now.schedules:
            client.delete_deployment_schedule(known.id, schedule.id)
        if own["schedules"]:
            client.create_deployment_schedules(known.id, own["schedules"])
    notes = []
    if kept:
        notes.append(f"its own {', '.join(kept).replace('_', ' ')} kept")
    if gone:
        notes.append(f"DROPPED what is no parameter any more: {', '.join(gone)}")
    return f": {'; '.join(notes)}" if notes else ""


def _own(known: DeploymentResponse) -> dict[str, Any]:
    """Return the fields of a deployment that are an operator's to choose."""
    limit = known.global_concurrency_limit
    schedules = [
        DeploymentScheduleCreate(
            schedule=item.schedule,
            active=item.active,
            max_scheduled_runs=item.max_scheduled_runs,
            parameters=item.parameters,
            slug=item.slug,
        )
        for item in known.schedules
    ]
    return {
        "parameters": known.parameters,
        "schedules": schedules,
        "paused": known.paused,
        "tags": known.tags,
        "concurrency_limit": None if limit is None else limit.limit,
        "job_variables": known.job_variables,
        "work_queue_name": known.work_queue_name,
    }


def _over(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Lay the old over the new, so that a variable that this release adds is there."""
    return {
        name: _over(new[name], value)
        if isinstance(value, dict) and isinstance(new.get(name), dict)
        else value
        for name, value in {**new, **old}.items()
    }


def _plain(value: Any) -> Any:
    """Return a value to compare: an interval counts from the moment that it was deployed."""
    if isinstance(value, list):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, DeploymentScheduleCreate):
        return value.model_dump(exclude={"schedule": {"anchor_date"}})
    return value


def _notifier(client: SyncPrefectClient, slug: str | None) -> UUID | None:
    """Return the id of a block."""
    kind, _, name = (slug or "").partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id if name else None
    except ObjectNotFound:
        return None


def automations(zombie_seconds: int, reaper: UUID, notify: UUID | None) -> list[Automation]:
    """Return the automations: for runs that vanished, that crashed and, where asked, that failed.

    Args:
        zombie_seconds: a run that sends no heartbeat for so long counts as dead.
        reaper: the deployment that cleans up.
        notify: the notification block that hears of failures, or None.
    """
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled")}
    found = [
        Automation(
            name="aicert: runs that vanished",
            description="A run whose process no longer sends heartbeats is marked as crashed.",
            trigger=EventTrigger(
                # From its first moment: one that dies before its first heartbeat is dead too.
                after={HEARTBEAT, "prefect.flow-run.Running"},
                expect={HEARTBEAT, *ended, "prefect.flow-run.Crashed"},
                match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
                match_related=ResourceSpecification(OURS),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=zombie_seconds),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name="Crashed",
                    message="its process vanished: no heartbeat for "
                    f"{zombie_seconds} s. Retry the run",
                )
            ],
        ),
        Automation(
            name="aicert: clean up after a crash",
            description="What a crashed run left behind is removed.",
            trigger=_when({"prefect.flow-run.Crashed"}),
            actions=[RunDeployment(source="selected", deployment_id=reaper)],
        ),
    ]
    if notify is not None:
        body = "{{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
        found.append(
            Automation(
                name="aicert: tell of failed runs",
                description="A person is told of runs that failed or crashed.",
                trigger=_when({"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}),
                actions=[
                    SendNotification(
                        block_document_id=notify,
                        subject="aicert: a run {{ flow_run.state.name }}",
                        body=body,
                    )
                ],
            )
        )
    return found


def _when(events: set[str]) -> EventTrigger:
    """Return the trigger for events of our runs, at once and each time."""
    return EventTrigger(
        expect=events,
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification(OURS),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def _automate(automation: Automation) -> str:
    """Make the automation, or bring the one by its name up to date."""
    try:
        known = Automation.read(name=automation.name)
    except ValueError:
        automation.create()
        return "made"
    automation.id = known.id
    automation.enabled = known.enabled  # an operator may have turned it off
    automation.update()
    return "updated" if _differs(known, automation) else "there"


def _differs(known: Automation, wanted: Automation) -> bool:
    fields = {"name", "description", "trigger", "actions"}
    exclude = {"trigger": {"id"}}
    return known.model_dump(include=fields, exclude=exclude) != wanted.model_dump(
        include=fields, exclude=exclude
    )


if __name__ == "__main__":
    sys.exit(main())
