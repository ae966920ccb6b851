"""A run's machine in Azure: the virtual machine, and the attested channel to the agent on it.

The machine's folder on this host holds what a later process needs to go on or to clean up: which
machine it is, the secret that it was made with, and the channel. Everything here may be done again:
a virtual machine that is there is found, and an agent that was claimed is claimed again.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aicert import tpm2
from aicert.agent import azure
from aicert.agent.azure_vm import AzureVmError, AzureVms, Vm, VmConfig
from aicert.agent.channel import Remote, UnreachableError
from aicert.agent.client import AgentClient

CHANNEL = "channel.json"
BOOT_SECONDS = 900.0
LOOK_SECONDS = 2.0

_ABOUT = "azure.json"


class SilentError(AzureVmError):
    """The machine was made, and its agent does not answer."""

    code = "azure-vm.silent"


@dataclass(frozen=True, slots=True)
class AzureMachine:
    """Which virtual machine to make, and the port that its agent listens on."""

    vm: VmConfig
    port: int = 8443

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; it holds no secret."""
        seconds = self.vm.lifetime.total_seconds()
        return {"vm": {**asdict(self.vm), "lifetime": seconds}, "port": self.port}

    @classmethod
    def from_json(cls, value: Any) -> "AzureMachine":
        """Read what `to_json` made, on this host."""
        lifetime = timedelta(seconds=value["vm"]["lifetime"])
        return cls(VmConfig(**{**value["vm"], "lifetime": lifetime}), value["port"])


def prepare(machine: AzureMachine, directory: Path) -> None:
    """Write down, before anything is asked for, what is needed to find it again."""
    about = {
        "machine": machine.to_json(),
        "secret": secrets.token_hex(azure.SECRET_BYTES),
        "expires": (datetime.now(UTC) + machine.vm.lifetime).isoformat(),
    }
    _write(directory / _ABOUT, json.dumps(about))


def is_prepared(directory: Path) -> bool:
    """Tell whether a folder is that of a machine in Azure."""
    return (directory / _ABOUT).exists()


def settings(directory: Path) -> AzureMachine:
    """Return which machine a folder is of."""
    return AzureMachine.from_json(_about(directory)["machine"])


def expires(directory: Path) -> datetime:
    """Return when the machine's time is over."""
    return datetime.fromisoformat(_about(directory)["expires"])


def provision(
    directory: Path,
    run: str,
    tags: Mapping[str, str],
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Make a run's machine, or find it; wait for its agent, and make sure that it is that one.

    Args:
        directory: the machine's folder, prepared.
        run: the run.
        tags: whose it is, besides the run.
        say: is told how it goes.

    Raises:
        AzureVmError: there is no machine, or its agent does not answer.
        ChannelError: something else answers; nothing was sent to it.
    """
    machine, secret = settings(directory), bytes.fromhex(_about(directory)["secret"])
    vms = AzureVms(machine.vm)
    for warning in vms.plan(run).warnings:
        say(warning)
    say(f"asking Azure for a {machine.vm.size} in {machine.vm.location}")
    vm = vms.create(run, tags, user_data=azure.user_data(secret))
    address = vm.public_address or vm.private_address
    say(f"{vm.name} is there, until {vm.expires.isoformat()} at most; waiting for {address}")
    try:
        remote = _await(vm, address, machine.port, secret)
    except SilentError:
        _tell_console(vms, run, say)  # for it is deleted now, and its console with it
        raise
    with AgentClient(remote) as client:
        client.claim(remote)
        # That the key lives in a TPM of Azure's is for the policy to say, by the chain in the
        # certificate; that it is this machine's is what the secret shows.
        client.attest(remote, tpm2.parse_public(client.identity().ak_public), secret)
    (directory / CHANNEL).unlink(missing_ok=True)
    remote.save(directory / CHANNEL)


def destroy(directory: Path, run: str) -> None:
    """Delete the machine of a run; nothing happens where it is gone.

    Raises:
        AzureVmError: something is left; calling again is safe.
    """
    AzureVms(settings(directory).vm).destroy(run)


def _await(vm: Vm, address: str, port: int, secret: bytes) -> Remote:
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            return Remote.find(address, port, secret)
        except UnreachableError as error:
            if time.monotonic() > deadline:
                raise SilentError(
                    "the machine was made, and its agent does not answer",
                    got=f"{vm.name}: {error.got}",
                    expected=f"within {BOOT_SECONDS:g} s",
                    advice="the log says what the machine wrote on its console: if the agent "
                    "started, let the worker reach that port (its network, the security group)",
                ) from error
            time.sleep(LOOK_SECONDS)


def _tell_console(vms: AzureVms, run: str, say: Callable[[str], None]) -> None:
    try:
        lines = vms.console(run)
    except AzureVmError as error:
        say(f"what the machine wrote on its console is not to be had: {error.message}; {error.got}")
        return
    say("the last that the machine wrote on its console:" if lines else "its console is empty")
    for line in lines:
        say(f"  {line}")


def _about(directory: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((directory / _ABOUT).read_text("ascii"))
    return about


def _write(path: Path, text: str) -> None:
    """Write a new file that only this user can read, whole or not at all."""
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    part.rename(path)
