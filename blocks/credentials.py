"""Credentials: what the sources of inputs and images ask for. They travel apart from the spec."""

from collections.abc import Mapping
from typing import Any

from prefect.types import SecretDict
from pydantic import Field, field_validator

from aicert.agent.spec import Spec
from blocks.base import AicertBlock
from blocks.checks import Check

IMAGE = "image"
"""The name under which the credentials of the image's registry are kept; no input may have it."""

_INPUT_KINDS = ("headers", "storage_options", "token")
_IMAGE_KINDS = ("password", "username")


class InputCredentials(AicertBlock):
    """Credentials for the inputs of a training, by the names of the inputs.

    They are sent to the agent with the step that needs them, and are never measured, logged or
    published. Each input may have `token` (Hugging Face, git), `headers` (HTTP) and
    `storage_options` (object stores); the name `image` stands for the image's registry, with
    `username` and `password`.

    Attributes:
        secrets: By input, what its source asks for.

    Example:
        Save the token for one input:
        ```python
        from blocks import InputCredentials

        InputCredentials(secrets={"data": {"token": token}}).save("BLOCK_NAME")
        credentials = InputCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "aicert Input Credentials"
    _block_type_slug = "aicert-input-credentials"

    secrets: SecretDict = Field(
        title="Secrets by input",
        description='JSON, for instance {"data": {"token": "…"}, "image": {"username": "…", '
        '"password": "…"}}. An input may have token, headers and storage_options.',
    )

    @field_validator("secrets")
    @classmethod
    def _by_input(cls, secrets: SecretDict) -> SecretDict:
        for name, item in secrets.get_secret_value().items():
            # The value is not shown: it may well be the secret itself.
            if not isinstance(item, Mapping):
                raise ValueError(
                    f"what stands under {name!r} is not a mapping: write "
                    f'{{"{name}": {{"token": "…"}}}}'
                )
        return secrets

    def for_spec(self, spec: Spec) -> dict[str, dict[str, Any]]:
        """Return the secrets that this spec needs, by input, and those of its image."""
        names = {IMAGE, *(item.name for item in spec.inputs)}
        secrets = self.secrets.get_secret_value()
        return {name: dict(item) for name, item in secrets.items() if name in names}

    def for_input(self, name: str) -> dict[str, Any]:
        """Return the secrets of one input, if there are any."""
        return dict(self.secrets.get_secret_value().get(name, {}))

    def check(self) -> list[Check]:
        """Look whether what is held has a shape that a source can use; no value is shown."""
        found = []
        for name, item in sorted(self.secrets.get_secret_value().items()):
            known = _IMAGE_KINDS if name == IMAGE else _INPUT_KINDS
            problem = None
            if not isinstance(item, dict) or not item:
                problem = "no object with at least one of " + ", ".join(known)
            elif unknown := sorted(item.keys() - set(known)):
                problem = f"unknown: {', '.join(unknown)}"
            kinds = ", ".join(sorted(item)) if isinstance(item, dict) else ""
            advice = f"Use {', '.join(known)}"
            found.append(Check.of(f"credentials of {name}", problem, kinds, advice))
        return found or [Check("credentials", True, "none")]
