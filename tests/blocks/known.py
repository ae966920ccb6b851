"""The blocks that can be registered, and what of them must stay as it is.

`python -m tests.blocks.known` writes the snapshot; do that for new blocks and fields only.
"""

import json
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block

import blocks

SNAPSHOT = Path(__file__).parent / "schemas.json"

TYPES = blocks.TYPES


def snapshot(block: type[Block]) -> dict[str, Any]:
    """Return what must stay: names, and of each field its type, default and secrecy."""
    schema = block.model_json_schema()
    texts = ("description", "title", "examples", "position")
    return {
        "name": block.get_block_type_name(),
        "required": sorted(schema.get("required", [])),
        "secret_fields": schema["secret_fields"],
        "fields": {
            name: {key: value for key, value in field.items() if key not in texts}
            for name, field in schema["properties"].items()
        },
    }


def current() -> dict[str, Any]:
    """Return what the snapshot would be today."""
    return {block.get_block_type_slug(): snapshot(block) for block in TYPES}


def held() -> dict[str, Any]:
    """Return the snapshot."""
    return dict(json.loads(SNAPSHOT.read_text()))


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(current(), indent=2, sort_keys=True) + "\n")
