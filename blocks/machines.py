"""Machines: where the agent runs. They are started and ended by `aicert.agent.machine`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from aicert import trust
from aicert.agent import azure_machine, azure_vm, machine, qemu
from aicert.agent.azure_vm import AzureVmError, AzureVms, VmConfig
from aicert.agent.client import AgentClient
from aicert.agent.machine import MachineConfig, MachineHandle
from aicert.agent.places import default_state
from aicert.errors import Error
from blocks import checks
from blocks.base import AicertBlock
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


class Machine(AicertBlock, ABC):
    """Where the agent of a run lives. A run takes a machine of its own and destroys it."""

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
        checks.module("tpm2_pytss", "run `make setup` in the checkout"),
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


class QemuMachine(Machine):
    """A virtual machine on the worker's own host that boots the measured OS image.

    Its TPM is a program of the host's, so whoever runs the host is trusted as with `LocalMachine`;
    but everything from the firmware up is measured, and a policy with reference values can ask for
    it. The training runs apart from the host, which it cannot reach. `make image` builds the image.

    Attributes:
        image: Folder of the OS image.
        memory: Memory in MiB; inputs, image and outputs lie in it too.
        cpus: Virtual processors.
        internet: Let the machine fetch inputs and images itself.
        state: Folder for the machines and for the keys of your CA.
        keep_failed: Keep the folder of a machine whose run failed.
        outlive: Seconds that a machine outlives its run's process.

    Example:
        Boot a machine, and see what its agent says:
        ```python
        from blocks import QemuMachine

        machine = QemuMachine.load("BLOCK_NAME")
        with machine.provision(run) as handle, machine.attach(handle) as agent:
            print(agent.health())
        ```
    """

    _block_type_name = "aicert QEMU Machine"
    _block_type_slug = "aicert-qemu-machine"

    image: Path | None = Field(
        default=None,
        title="OS image",
        description="Folder on the worker with the image to boot. Empty: the one that `make image` "
        "built last.",
    )
    memory: int = Field(
        default=4096,
        ge=1024,
        le=1 << 20,
        title="Memory",
        description="Memory in MiB. It holds the inputs, the container image (three times) and the "
        "outputs too, for the machine has no disk to write to. Reference values are for one size.",
    )
    cpus: int = Field(
        default=2,
        ge=1,
        le=256,
        title="Processors",
        description="Virtual processors. Reference values are for one number of them.",
    )
    internet: bool = Field(
        default=False,
        title="Internet",
        description="Let the machine fetch inputs and images over the network, by HTTP(S) and DNS "
        "alone. If not, it reaches nothing, and gets the files of this host that the spec names.",
    )
    state: Path | None = Field(default=None, title="State folder", description=_STATE)
    keep_failed: bool = Field(default=False, title="Keep failed machines", description=_KEEP_FAILED)
    outlive: int = Field(default=0, ge=0, le=86_400, title="Outlive", description=_OUTLIVE)

    def config(self) -> MachineConfig:
        """Return how to start the machine."""
        image = self.image
        return MachineConfig(
            kind="qemu",
            state=_state(self.state),
            image=qemu.default_image() if image is None else image.expanduser().absolute(),
            memory=self.memory,
            cpus=self.cpus,
            internet=self.internet,
            keep=self.keep_failed,
            outlive=self.outlive,
        )

    def check(self) -> list[Check]:
        """Look whether a machine could be started here; change nothing."""
        config = self.config()
        advice = "`make image` installs it"
        return [
            checks.root(),
            checks.namespaces(),
            checks.program(qemu.PROGRAM, advice),
            *(checks.file(path, advice) for path in (qemu.FIRMWARE, qemu.SECURE_FIRMWARE)),
            checks.program("swtpm", advice),
            checks.program("swtpm_setup", advice),
            checks.state(config.state),
            _image(config.image),
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


class AzureMachine(Machine):
    """A virtual machine in Azure, made for the run and deleted after it.

    It boots an image with the agent and nothing else, from a compute gallery; the worker talks to
    the agent over a channel that the machine's TPM vouches for. The key is certified by Azure. The
    worker needs an identity with the roles of deployments/azure, and no key.

    Attributes:
        subscription: The subscription's id.
        group: The resource group that machines are made in.
        location: The region.
        size: The size; it decides on CPUs, memory and GPUs.
        image: The version of a gallery's image.
        subnet: The network that machines get their address from.
        security: What guards the machine's start and memory.
        secure_boot: Start nothing that is not signed with a key that Azure knows.
        lifetime_hours: How long a machine lives at most.
        spot: Take a machine that Azure may end at any time, for less.
        max_price: What an hour of a spot machine may cost, in US dollars.
        public: Reach the machine at a public address.
        security_group: What may reach it.
        identity: A managed identity for the machine itself.
        worker: The client id of the worker's managed identity, where it has several.
        zone: The zone.
        disk_gib: Size of the disk.
        endpoint: Where Azure is asked.
        port: The port of the agent.
        state: Folder for the machines' channels.
        outlive: Seconds that a machine outlives a failed run.

    Example:
        See what would be made, and whether it could be:
        ```python
        from blocks import AzureMachine

        machine = AzureMachine.load("BLOCK_NAME")
        print(machine.plan())
        for check in machine.check():
            print(check)
        ```
    """

    _block_type_name = "aicert Azure Machine"
    _block_type_slug = "aicert-azure-machine"

    subscription: str = Field(
        title="Subscription", description="The id of the subscription: az account show --query id."
    )
    group: str = Field(
        title="Resource group",
        description="The resource group that machines are made in. Best one for nothing else: the "
        "worker's roles end there.",
        examples=["aicert-runs"],
    )
    location: str = Field(title="Region", description="The region.", examples=["westeurope"])
    size: str = Field(
        title="Size",
        description="The size, which decides on CPUs, memory and GPUs.",
        examples=["Standard_D4s_v5", "Standard_NC40ads_H100_v5", "Standard_DC8as_v5"],
    )
    image: str = Field(
        title="Image",
        description="The id of the version of a gallery's image, by number: what deployments/azure/"
        "publish.py prints.",
    )
    subnet: str = Field(
        title="Subnet",
        description="The id of the subnet that machines get their address from. The worker must "
        "reach it, unless machines are public.",
    )
    security: Literal["trusted-launch", "confidential"] = Field(
        default="trusted-launch",
        title="Security",
        description="'confidential' also encrypts the memory (AMD SEV-SNP: the DCas and ECas "
        "series), and certificates carry the CPU's report.",
    )
    secure_boot: bool = Field(
        default=True,
        title="Secure boot",
        description="Start nothing that is not signed with a key that Azure knows. Turn it off for "
        "an image that is not: its boot is measured in any case.",
    )
    lifetime_hours: float = Field(
        default=6,
        ge=1,
        le=720,
        title="Lifetime",
        description="Hours that a machine lives at most. Up to 23, Azure itself stops it then, "
        "whatever became of the worker; longer ones need the reaper.",
    )
    spot: bool = Field(
        default=False,
        title="Spot",
        description="Take a machine that Azure may end at any time, for much less.",
    )
    max_price: float | None = Field(
        default=None,
        gt=0,
        title="Highest price",
        description="What an hour of a spot machine may cost, in US dollars. Empty: up to the "
        "price of a regular one.",
    )
    public: bool = Field(
        default=False,
        title="Public",
        description="Give machines a public address, and reach them there. Needs a security group "
        "that lets only the worker in.",
    )
    security_group: str | None = Field(
        default=None,
        title="Security group",
        description="The id of a network security group for the machine's interface.",
    )
    identity: str | None = Field(
        default=None,
        title="Machine's identity",
        description="The id of a user-assigned managed identity for the machine. Its agent has no "
        "need of one.",
    )
    worker: str | None = Field(
        default=None,
        title="Worker's identity",
        description="The client id of the worker's managed identity, where it has several. Without "
        "this its own identity is used: workload identity, managed identity, or Azure CLI.",
    )
    zone: str | None = Field(default=None, title="Zone", description="The number of a zone.")
    disk_gib: int | None = Field(
        default=None,
        title="Disk",
        description="Size of the disk in GiB. Empty: that of the image.",
    )
    endpoint: str = Field(
        default=azure_vm.ENDPOINT,
        title="Endpoint",
        description="Azure's own, unless yours is a cloud apart.",
        examples=["https://management.usgovcloudapi.net"],
    )
    port: int = Field(
        default=8443, ge=1, le=65535, title="Port", description="The port of the agent."
    )
    state: Path | None = Field(
        default=None,
        title="State folder",
        description="Folder on the worker for the machines' channels. Empty: "
        "~/.local/state/aicert of the worker's user.",
    )
    outlive: int = Field(default=0, ge=0, le=86_400, title="Outlive", description=_OUTLIVE)

    @model_validator(mode="after")
    def _without_mistakes(self) -> Self:
        try:
            self.vm().check()
        except AzureVmError as error:
            raise ValueError(f"{error.message}: {error.got}") from None
        return self

    def vm(self) -> VmConfig:
        """Return which virtual machine to make."""
        return VmConfig(
            subscription=self.subscription,
            group=self.group,
            location=self.location,
            size=self.size,
            image=self.image,
            subnet=self.subnet,
            security=self.security,
            secure_boot=self.secure_boot,
            lifetime=timedelta(hours=self.lifetime_hours),
            spot=self.spot,
            max_price=self.max_price,
            public=self.public,
            security_group=self.security_group,
            identity=self.identity,
            worker=self.worker,
            zone=self.zone,
            disk_gib=self.disk_gib,
            endpoint=self.endpoint,
        )

    def config(self) -> MachineConfig:
        """Return how to have the machine made."""
        return MachineConfig(
            kind="azure",
            state=_state(self.state),
            azure=azure_machine.AzureMachine(self.vm(), self.port),
            outlive=self.outlive,
        )

    def vms(self) -> AzureVms:
        """Return the machines of this block.

        Raises:
            AzureVmError: the libraries are not installed, or there is no identity.
        """
        return AzureVms(self.vm())

    def plan(self) -> azure_vm.Plan:
        """Return what a run would ask for; nothing is sent but a question for the price."""
        try:
            price = azure_vm.price(self.vm())
        except AzureVmError:
            price = None
        return self.vms().plan("a-run", price=price)

    def check(self) -> list[Check]:
        """Look whether a machine could be made, and for how much; change nothing."""
        try:
            vms = self.vms()
        except AzureVmError as error:
            return [Check.failed("Azure", error)]
        return [
            *(
                Check.failed(name, found) if isinstance(found, Error) else Check(name, True, found)
                for name, found in vms.look()
            ),
            Check("price", True, self._price()),
        ]

    def _price(self) -> str:
        try:
            price = azure_vm.price(self.vm())
        except AzureVmError as error:
            return f"unknown: {error.message}"
        if price is None:
            return "the public list does not say"
        most = price * self.lifetime_hours
        return f"{price:g} US dollars an hour, at most {most:.2f} for a run; disk and network apart"


AnyMachine = LocalMachine | HostMachine | QemuMachine | AzureHostMachine | AzureMachine
"""The machines that a run's form offers."""


def _state(folder: Path | None) -> Path:
    return default_state() if folder is None else folder.expanduser().absolute()


def _image(folder: Path) -> Check:
    try:
        image = qemu.Image.load(folder)
    except Error as error:
        return Check.failed("OS image", error)
    return Check("OS image", True, f"{image.name} {image.version} in {folder}")


def _roots(path: Path | None, name: str = "roots of the TPM's maker") -> Check:
    assert path is not None
    try:
        found = trust.load_certificates(path)
    except Error as error:
        return Check.failed(name, error)
    return Check(name, True, f"{len(found)} in {path}")
