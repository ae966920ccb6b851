"""Who asks Azure: an identity that azure-identity finds, and no key that somebody keeps.

Found are, in this order: what stands in the environment, a workload identity (Kubernetes), a
managed identity, and on somebody's own machine the Azure CLI.
"""

import logging
from typing import Any

ADVICE = (
    "on a machine in Azure give it a managed identity (docs/azure.md), and name it where it has "
    "several; elsewhere `az login`"
)


def find(client_id: str | None = None) -> Any:
    """Return the identity of this process; `client_id` is that of a managed identity.

    Nothing is asked yet.

    Raises:
        ImportError: azure-identity is not installed.
    """
    from azure.identity import DefaultAzureCredential

    # At length it tells of each kind that it did not find; errors of ours say it in a line.
    logging.getLogger("azure.identity").setLevel(logging.ERROR)
    # Only what is given: None would keep it from looking into the environment.
    given = {"managed_identity_client_id": client_id} if client_id else {}
    return DefaultAzureCredential(**given)


def is_absent(error: Exception) -> bool:
    """Tell whether an error of Azure's libraries says that no identity was found."""
    from azure.core.exceptions import ClientAuthenticationError

    return isinstance(error, ClientAuthenticationError) and error.response is None
