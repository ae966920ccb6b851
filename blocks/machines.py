"""Machines: where the agent runs. They are started and ended by `aicert.agent.machine`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field

from aicert import trust
from aicert.agent import machine
from aicert.agent.client import AgentClient
from aicert.agent.machine import MachineConfig, MachineHandle
from aicert.errors import Error
from blocks import checks
from blocks.checks import Check

_STATE = (
    "Folder for the machines and for the keys of your CA; the same one for all machines whose "
    "certificates should chain to one root. Empty: ~/.local/state/aicert of the worker's user."
)
_ALGORITHM = "Algorithm of the attestation key."
_ENGINE = "Container engine. 'auto' takes Podman where both are installed."
_KEEP_FAILED = (
    "Keep the folder of a machine whose run failed, inputs and all, to look into it. "
    "You remove it yourself."
)
_OUTLIVE = (
    "Seconds that a machine outlives a run whose process died, or whose certificate could not be "
    "published: a retry of the run within that time goes on where it stood. 0: it starts over."
)


class Machine(Block, ABC):
    """Where the agent of a run lives. A run takes a machine of its own and destroys it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @abstractmethod
    def config(self) -> MachineConfig:
        """Return how to start the machine."""

    @abstractmethod
    def check(self) -> list[Check]:
        """Look whether a machine could be started here; change nothing."""

    @contextmanager
    def provision(self, run: str) -> Iterator[MachineHandle]:
        """Start a machine for the run `run`, and destroy it at the end, however that comes.

        Raises:
            MachineError: it could not be started; nothing of it is left.
        """
        config = self.config()
        handle = machine.start(config, run)
        failed = True
        try:
            yield handle
            failed = False
        finally:
            machine.destroy(handle, keep=failed and config.keep)

    def attach(self, handle: MachineHandle) -> AgentClient:
        """Return a client of the machine's agent."""
        return machine.attach(handle)

    def destroy(self, handle: MachineHandle) -> None:
        """End a machine and remove its folder; safe to call twice, from any process."""
        machine.destroy(handle)


def _engine(choice: str) -> Literal["podman", "docker"] | None:
    return None if choice == "auto" else "docker" if choice == "docker" else "podman"


def _common(config: MachineConfig) -> list[Check]:
    return [
        checks.root(),
        checks.namespaces(),
        checks.module("tpm2_pytss", "pip install 'aicert[agent]', after `make setup`"),
        checks.engine(config.engine),
        checks.state(config.state),
    ]


class LocalMachine(Machine):
    """A machine on the worker's own host, with a software TPM. For trying things out.

    Its certificates show how everything works, and prove nothing against whoever runs the host:
    their assurance is `simulated`. Nothing but the worker, swtpm and a container engine is needed.

    Attributes:
        state: Folder for the machines and for the keys of your CA.
        algorithm: Algorithm of the attestation key.
        engine: Container engine.
        keep_failed: Keep the folder of a machine whose run failed.
        outlive: Seconds that a machine outlives its run's process.

    Example:
        Run something on a machine of its own:
        ```python
        from blocks import LocalMachine

        machine = LocalMachine.load("BLOCK_NAME")
        with machine.provision(run) as handle, machine.attach(handle) as agent:
            print(agent.health())
        ```
    """

    _block_type_name = "aicert Local Machine"
    _block_type_slug = "aicert-local-machine"

    state: Path | None = Field(default=None, title="State folder", description=_STATE)
    algorithm: Literal["ecc", "rsa"] = Field(
        default="ecc", title="Key algorithm", description=_ALGORITHM
    )
    engine: Literal["auto", "podman", "docker"] = Field(
        default="auto", title="Container engine", description=_ENGINE
    )
    keep_failed: bool = Field(default=False, title="Keep failed machines", description=_KEEP_FAILED)
    outlive: int = Field(default=0, ge=0, le=86_400, title="Outlive", description=_OUTLIVE)

    def config(self) -> MachineConfig:
        """Return how to start the machine."""
        return MachineConfig(
            kind="local",
            state=_state(self.state),
            algorithm=self.algorithm,
            engine=_engine(self.engine),
            keep=self.keep_failed,
            outlive=self.outlive,
        )

    def check(self) -> list[Check]:
        """Look whether a machine could be started here; change nothing."""
        advice = "apt-get install swtpm swtpm-tools, or `make setup`"
        return [
            *_common(self.config()),
            checks.program("swtpm", advice),
            checks.program("swtpm_setup", advice),
        ]


class HostMachine(Machine):
    """The worker's host itself, with its own TPM.

    The TPM's endorsement key certificate must chain to a root that you trust; your CA then
    certifies the attestation key. The host is not measured: its operator is trusted not to tamper
    with the training while it runs. One run at a time.

    Attributes:
        ek_roots: PEM file with the roots of the TPM's maker.
        tcti: Where the TPM is.
        state: Folder for the machine and for the keys of your CA.
        algorithm: Algorithm of the attestation key.
        engine: Container engine.
        keep_failed: Keep the folder of a machine whose run failed.
        outlive: Seconds that a machine outlives its run's process.

    Example:
        Find out whether this host can run certified trainings:
        ```python
        from blocks import HostMachine

        machine = HostMachine.load("BLOCK_NAME")
        for check in machine.check():
            print(check)
        ```
    """

    _block_type_name = "aicert Host Machine"
    _block_type_slug = "aicert-host-machine"

    ek_roots: Path = Field(
        title="Roots of the TPM's maker",
        description="PEM file on the worker with the root certificates that the TPM's endorsement "
        "key certificate may chain to. Your TPM's maker publishes them.",
    )
    tcti: str = Field(
        default="device:/dev/tpmrm0",
        title="TPM",
        description="Where the TPM is, as a TCTI of the TPM2 Software Stack.",
        examples=["device:/dev/tpmrm0"],
    )
    state: Path | None = Field(default=None, title="State folder", description=_STATE)
    algorithm: Literal["ecc", "rsa"] = Field(
        default="ecc", title="Key algorithm", description=_ALGORITHM
    )
    engine: Literal["auto", "podman", "docker"] = Field(
        default="auto", title="Container engine", description=_ENGINE
    )
    keep_failed: bool = Field(default=False, title="Keep failed machines", description=_KEEP_FAILED)
    outlive: int = Field(default=0, ge=0, le=86_400, title="Outlive", description=_OUTLIVE)

    def config(self) -> MachineConfig:
        """Return how to start the machine."""
        return MachineConfig(
            kind="host",
            state=_state(self.state),
            algorithm=self.algorithm,
            engine=_engine(self.engine),
            tcti=self.tcti,
            ek_roots=self.ek_roots.expanduser().absolute(),
            keep=self.keep_failed,
            outlive=self.outlive,
        )

    def check(self) -> list[Check]:
        """Look whether a machine could be started here; change nothing."""
        config = self.config()
        kind, _, place = config.tcti.partition(":")
        return [
            *_common(config),
            *([checks.device(Path(place or "/dev/tpm0"))] if kind == "device" else []),
            _roots(config.ek_roots),
        ]


class AzureHostMachine(Machine):
    """The worker's host, which is an Azure VM with Trusted Launch, or a confidential one.

    The VM's TPM holds an attestation key that Azure certified, so that certificates chain to
    Azure's root, which every verifier knows: no CA of yours is needed. On a confidential VM with an
    AMD CPU they also carry the CPU's report. One run at a time.

    Attributes:
        intermediates: PEM file with more CA certificates of Azure.
        tcti: Where the TPM is.
        state: Folder for the machine.
        engine: Container engine.
        keep_failed: Keep the folder of a machine whose run failed.
        outlive: Seconds that a machine outlives its run's process.

    Example:
        Find out whether this VM can run certified trainings:
        ```python
        from blocks import AzureHostMachine

        machine = AzureHostMachine.load("BLOCK_NAME")
        for check in machine.check():
            print(check)
        ```
    """

    _block_type_name = "aicert Azure Host Machine"
    _block_type_slug = "aicert-azure-host-machine"

    intermediates: Path | None = Field(
        default=None,
        title="Intermediate certificates",
        description="PEM file on the worker with CA certificates of Azure's virtual TPMs, where "
        "aicert does not carry the one that is needed and the VM cannot reach Azure's CAs.",
    )
    tcti: str = Field(
        default="device:/dev/tpmrm0",
        title="TPM",
        description="Where the TPM is, as a TCTI of the TPM2 Software Stack.",
        examples=["device:/dev/tpmrm0"],
    )
    state: Path | None = Field(default=None, title="State folder", description=_STATE)
    engine: Literal["auto", "podman", "docker"] = Field(
        default="auto", title="Container engine", description=_ENGINE
    )
    keep_failed: bool = Field(default=False, title="Keep failed machines", description=_KEEP_FAILED)
    outlive: int = Field(default=0, ge=0, le=86_400, title="Outlive", description=_OUTLIVE)

    def config(self) -> MachineConfig:
        """Return how to start the machine."""
        more = self.intermediates
        return MachineConfig(
            kind="azure-host",
            state=_state(self.state),
            engine=_engine(self.engine),
            tcti=self.tcti,
            intermediates=None if more is None else more.expanduser().absolute(),
            keep=self.keep_failed,
            outlive=self.outlive,
        )

    def check(self) -> list[Check]:
        """Look whether a machine could be started here; change nothing."""
        config = self.config()
        kind, _, place = config.tcti.partition(":")
        return [
            *_common(config),
            *([checks.device(Path(place or "/dev/tpm0"))] if kind == "device" else []),
            *(
                []
                if config.intermediates is None
                else [_roots(config.intermediates, "intermediate certificates")]
            ),
        ]


def _state(folder: Path | None) -> Path:
    return machine.default_state() if folder is None else folder.expanduser().absolute()


def _roots(path: Path | None, name: str = "roots of the TPM's maker") -> Check:
    assert path is not None
    try:
        found = trust.load_certificates(path)
    except Error as error:
        return Check.failed(name, error)
    return Check(name, True, f"{len(found)} in {path}")
