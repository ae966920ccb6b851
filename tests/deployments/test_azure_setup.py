"""What setup.sh asks Azure for: with a stand-in for the command `az` that writes down its words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aicert.agent import azure_roles

SETUP = Path(__file__).parents[2] / "deployments" / "azure" / "setup.sh"
SUBSCRIPTION = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
AZ = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["AZ_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if "--query" in sys.argv:
    print("the-" + sys.argv[sys.argv.index("--query") + 1])
if sys.argv[1:4] == ["network", "vnet", "show"]:
    sys.exit(3)
"""


@pytest.fixture
def asked(tmp_path: Path) -> list[list[str]]:
    """Run the script; return what it asked for, and keep what it said."""
    program = tmp_path / "bin" / "az"
    program.parent.mkdir()
    program.write_text(AZ)
    program.chmod(0o755)
    log = tmp_path / "log"
    done = subprocess.run(
        ["sh", str(SETUP)],
        env={
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "AZ_LOG": str(log),
            "SUBSCRIPTION": SUBSCRIPTION,
            "LOCATION": "westeurope",
            "STORE": "acme",
            "PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "https://acmecerts.blob.core.windows.net/certificates" in done.stdout
    return [json.loads(line) for line in log.read_text().splitlines()]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_the_worker_gets_the_least_roles_each_where_it_needs_them(asked: list[list[str]]) -> None:
    sub = f"/subscriptions/{SUBSCRIPTION}"
    group = f"{sub}/resourceGroups/aicert"
    given = [words for words in asked if words[:3] == ["role", "assignment", "create"]]
    kinds = {
        option(words, "--assignee-object-id"): option(words, "--assignee-principal-type")
        for words in given
    }
    assert kinds == {"the-principalId": "ServicePrincipal", "the-id": "User"}
    publishing = [words for words in given if option(words, "--assignee-object-id") == "the-id"]
    assert {option(words, "--role"): option(words, "--scope") for words in publishing} == {
        "aicert publisher": group,
        "aicert publishing looker": sub,
    }
    given = [words for words in given if words not in publishing]
    certs = f"{group}/providers/Microsoft.Storage/storageAccounts/acmecerts"
    assert {option(words, "--role"): option(words, "--scope") for words in given} == {
        "aicert looker": sub,
        "aicert runs": f"{sub}/resourceGroups/aicert-runs",
        "aicert network": group,
        "aicert image reader": f"{group}/providers/Microsoft.Compute/galleries/aicert",
        "aicert store": f"{certs}/blobServices/default/containers/certificates",
    }
    # The one that is left out is for machines with an identity of their own, which none needs.
    assert {option(words, "--role") for words in given} == {*azure_roles.WORKER} - {
        "aicert identity user"
    }


def test_every_role_is_defined_for_this_subscription_alone(asked: list[list[str]]) -> None:
    made = [words for words in asked if words[:3] == ["role", "definition", "create"]]
    roles = [json.loads(option(words, "--role-definition")) for words in made]
    publishers = {"aicert publisher", "aicert publishing looker"}
    assert {*azure_roles.WORKER, *publishers} == {role["Name"] for role in roles}
    assert all(role["AssignableScopes"] == [f"/subscriptions/{SUBSCRIPTION}"] for role in roles)


def test_the_providers_that_a_look_asks_for_are_registered(asked: list[list[str]]) -> None:
    registered = {option(w, "--namespace") for w in asked if w[:2] == ["provider", "register"]}
    assert registered > set(azure_roles.PROVIDERS)


def test_certificates_are_open_to_no_key_and_to_no_stranger(asked: list[list[str]]) -> None:
    accounts = [words for words in asked if words[:3] == ["storage", "account", "create"]]
    assert [option(words, "--allow-blob-public-access") for words in accounts] == ["false"] * 2
    (update,) = [words for words in asked if words[:3] == ["storage", "account", "update"]]
    assert option(update, "--name") == "acmecerts"
    assert option(update, "--allow-shared-key-access") == "false"


def test_both_subnets_have_a_way_out(asked: list[list[str]]) -> None:
    made = [words for words in asked if words[:4] == ["network", "vnet", "subnet", "create"]]
    assert {option(words, "--name"): option(words, "--nat-gateway") for words in made} == {
        "worker": "aicert-out",
        "runs": "aicert-out",
    }
