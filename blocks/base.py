"""What all blocks share: errors that show no input, and a description that reads well."""

from prefect.blocks.core import Block
from pydantic import ConfigDict, Secret, SecretStr


class AicertBlock(Block):
    """A block of ours. What it was given is shown in no error: it may be a secret."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @classmethod
    def get_description(cls) -> str | None:
        """Return the description with a line for each paragraph.

        Prefect's UI breaks a line wherever the source does.
        """
        description = super().get_description()
        if description is None:
            return None
        return "\n\n".join(" ".join(part.split()) for part in description.split("\n\n"))

    @property
    def exposed(self) -> bool:
        """Tell whether it holds a secret and was not saved: so whoever gave it gave that openly."""
        if self._block_document_id is not None:
            return False
        fields = (getattr(self, name) for name in type(self).model_fields)
        return any(
            isinstance(value, Secret | SecretStr) and bool(value.get_secret_value())
            for value in fields
        )
