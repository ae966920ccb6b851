"""Print the roles of roles.json, one a line, as `az role definition create` takes them.

python deployments/azure/roles.py /subscriptions/ID
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Print the roles, for one subscription."""
    (scope,) = sys.argv[1:]
    roles = json.loads(Path(__file__).with_name("roles.json").read_text())
    for name, role in roles.items():
        print(
            json.dumps(
                {
                    "Name": name,
                    "IsCustom": True,
                    "Description": role["description"],
                    "Actions": role["actions"],
                    "DataActions": role.get("dataActions", []),
                    "AssignableScopes": [scope],
                }
            )
        )


if __name__ == "__main__":
    main()
