"""What a worker must be allowed to do in Azure: the least, by scope, as Azure names it.

`deployments/azure/roles.json` makes roles of these; a test holds them against what is really asked.
"""

import re
from collections.abc import Iterable
from typing import Any

RUNS = (
    "Microsoft.Compute/disks/delete",
    "Microsoft.Compute/disks/read",
    "Microsoft.Compute/disks/write",
    "Microsoft.Compute/virtualMachines/delete",
    "Microsoft.Compute/virtualMachines/read",
    "Microsoft.Compute/virtualMachines/retrieveBootDiagnosticsData/action",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.DevTestLab/schedules/delete",
    "Microsoft.DevTestLab/schedules/read",
    "Microsoft.DevTestLab/schedules/write",
    "Microsoft.Network/networkInterfaces/delete",
    "Microsoft.Network/networkInterfaces/join/action",
    "Microsoft.Network/networkInterfaces/read",
    "Microsoft.Network/networkInterfaces/write",
    "Microsoft.Resources/subscriptions/resourceGroups/read",
    "Microsoft.Resources/subscriptions/resourceGroups/resources/read",
)
"""In the resource group that machines are made in."""

PUBLIC = (
    "Microsoft.Network/publicIPAddresses/delete",
    "Microsoft.Network/publicIPAddresses/join/action",
    "Microsoft.Network/publicIPAddresses/read",
    "Microsoft.Network/publicIPAddresses/write",
)
"""There too, where machines have public addresses."""

SUBNET = (
    "Microsoft.Network/virtualNetworks/subnets/join/action",
    "Microsoft.Network/virtualNetworks/subnets/read",
)
SECURITY_GROUP = (
    "Microsoft.Network/networkSecurityGroups/join/action",
    "Microsoft.Network/networkSecurityGroups/read",
)
IMAGE = (
    "Microsoft.Compute/galleries/images/read",
    "Microsoft.Compute/galleries/images/versions/read",
)
IDENTITY = (
    "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
    "Microsoft.ManagedIdentity/userAssignedIdentities/read",
)
SUBSCRIPTION = (
    "Microsoft.Compute/locations/diskOperations/read",
    "Microsoft.Compute/locations/operations/read",
    "Microsoft.Compute/locations/usages/read",
    "Microsoft.Compute/skus/read",
    "Microsoft.Network/locations/operations/read",
    "Microsoft.Resources/subscriptions/providers/read",
)
"""In the subscription: what there is, and how an operation stands."""

STORE = ("Microsoft.Storage/storageAccounts/blobServices/containers/read",)
STORE_DATA = (
    "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/add/action",
    "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read",
    "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write",
)
"""In the container that certificates are published in: nothing can be deleted with them."""

PUBLISHER = (
    "Microsoft.Compute/galleries/images/read",
    "Microsoft.Compute/galleries/images/versions/read",
    "Microsoft.Compute/galleries/images/versions/write",
    "Microsoft.Compute/galleries/images/write",
    "Microsoft.Compute/galleries/read",
    "Microsoft.Storage/storageAccounts/listKeys/action",
    "Microsoft.Storage/storageAccounts/read",
)
PUBLISHER_DATA = STORE_DATA
"""In the group of the gallery. Azure wants whoever makes an image of a blob to be able to read the
account's keys, so that account is best for images alone. No worker needs any of this."""

PUBLISHER_SUBSCRIPTION = ("Microsoft.Compute/locations/capsOperations/read",)
"""In the subscription, for whoever publishes: how the making of an image stands."""

WORKER = (
    "aicert runs", "aicert network", "aicert image reader", "aicert identity user",
    "aicert looker", "aicert store",
)  # fmt: skip
"""The names of the roles of a worker."""

PROVIDERS = ("Microsoft.Compute", "Microsoft.DevTestLab", "Microsoft.Network")
"""The resource providers that must be registered in the subscription."""


def missing(permissions: Iterable[Any], wanted: Iterable[str]) -> list[str]:
    """Return which of the wanted actions are not allowed.

    `permissions` are those of the caller at a scope, one for each role: what a role's `actions`
    name and its `not_actions` do not is allowed (Azure's additive model).
    """
    roles = [
        (_pattern(item.actions or ()), _pattern(item.not_actions or ())) for item in permissions
    ]
    return [
        action
        for action in wanted
        if not any(
            allowed.fullmatch(action) and not denied.fullmatch(action) for allowed, denied in roles
        )
    ]


def _pattern(actions: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for actions, in which `*` stands for anything, whatever the case."""
    forms = (re.escape(action).replace(r"\*", ".*") for action in actions)
    return re.compile("|".join(forms) or r"(?!)", re.IGNORECASE)
