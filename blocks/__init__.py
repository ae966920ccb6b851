"""Prefect blocks: where trainings run, where certificates are kept, what they are held against.

`prefect block register -m blocks` makes them known to a server. A block's name, slug and fields
survive upgrades: fields are added with defaults, never removed, renamed or given another type
(`tests/blocks/schemas.json` holds them fast).
"""

from prefect.blocks.core import Block

from blocks.checks import Check
from blocks.credentials import InputCredentials
from blocks.machines import (
    AnyMachine,
    AzureHostMachine,
    AzureMachine,
    HostMachine,
    LocalMachine,
    Machine,
    QemuMachine,
)
from blocks.policies import VerificationPolicy
from blocks.stores import AzureBlobStore, CertificateStore, FolderStore, FsspecStore

TYPES: tuple[type[Block], ...] = (
    LocalMachine,
    HostMachine,
    QemuMachine,
    AzureHostMachine,
    AzureMachine,
    FolderStore,
    FsspecStore,
    AzureBlobStore,
    VerificationPolicy,
    InputCredentials,
)
"""The block types that are registered."""

__all__ = [
    "TYPES",
    "AnyMachine",
    "AzureBlobStore",
    "AzureHostMachine",
    "AzureMachine",
    "CertificateStore",
    "Check",
    "FolderStore",
    "FsspecStore",
    "HostMachine",
    "InputCredentials",
    "LocalMachine",
    "Machine",
    "QemuMachine",
    "VerificationPolicy",
]
