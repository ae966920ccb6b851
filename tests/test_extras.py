"""Each extra in an interpreter of its own: its first use works, and without it the error says so.

In the tests' own process somebody has always imported a library's submodule before, so that code
which forgets to do so works by chance.
"""

import asyncio
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aicert.errors import Error

ROOT = Path(__file__).parents[1]
CERTIFICATE = ROOT / "tests" / "conformance" / "cases" / "good-ecc" / "certificate.json"
NOBODY = "http://127.0.0.1:9"
"""Where no service is: what gets as far as asking it has all its imports."""

PACKAGES = {
    "azure": ("azure", "adlfs", "msal"),
    "s3": ("s3fs", "aiobotocore", "botocore"),
    "gcs": ("gcsfs", "google"),
    "hf": ("huggingface_hub",),
    "timestamp": ("rfc3161_client",),
    "card": ("segno",),
}
"""What each extra brings, by the names to import."""


def resolve(uri: str, **options: object) -> None:
    """Ask for an input."""
    from aicert.agent.fetch import InputRequest, Retry
    from aicert.agent.fetch import resolve as ask

    quick = Retry(attempts=1, first_wait=0.01, longest_wait=0.01)
    secrets = {"storage_options": options} if options else {}
    ask(InputRequest("it", uri), base=None, secrets=secrets, retry=quick)


def store(url: str, **options: object) -> None:
    """Open a store and look at it."""
    from aicert.agent.store import Store

    Store(url, options).check()


def machines() -> None:
    """Look for machines of a run in Azure."""
    from aicert.agent.azure_vm import AzureVms, VmConfig

    group = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/g/providers"
    config = VmConfig(
        subscription="00000000-0000-0000-0000-000000000000",
        group="g",
        location="westeurope",
        size="Standard_NC40ads_H100_v5",
        image=f"{group}/Microsoft.Compute/galleries/g/images/i/versions/1.0.0",
        subnet=f"{group}/Microsoft.Network/virtualNetworks/v/subnets/s",
        endpoint=NOBODY.replace("http:", "https:"),
    )

    class Credential:
        def get_token_info(self, *scopes: str, options: object = None) -> Any:
            from azure.core.credentials import AccessTokenInfo

            return AccessTokenInfo("none", 1 << 40)

    AzureVms(config, Credential(), retry_total=0).owned()


def push() -> None:
    """Push a model to the Hub."""
    import tempfile

    from aicert import oms
    from aicert.agent import hub
    from aicert.trust import TrustStore
    from aicert.verify import Assurance, verify

    data = CERTIFICATE.read_bytes()
    trust = TrustStore.builtin().with_roots(ROOT / "tests" / "conformance" / "roots.pem")
    with tempfile.TemporaryDirectory() as place:
        for name, text in {"metrics.json": "{}", "model.safetensors": "weights"}.items():
            (Path(place) / name).write_text(text)
        vars(oms)["check"] = lambda *_: None  # the signature, which is not what matters here
        verdict = verify(data, trust=trust, model=Path(place), least=Assurance.SIMULATED)
        hub.push("o/n", data, verdict, Path(place), b"{}", token="hf_none", endpoint=NOBODY)


def request_timestamp() -> None:
    """Make a request for a timestamp."""
    from aicert import timestamp
    from aicert.certificate import Certificate

    assert timestamp.make_request(Certificate.parse(CERTIFICATE.read_bytes())).der


def page() -> None:
    """Write the card as a page, with its QR code."""
    from click.testing import CliRunner

    from aicert.cli import main

    done = CliRunner().invoke(main, ["export", str(CERTIFICATE), "--format", "html"])
    if done.exit_code != 0:
        raise Error(f"exit status {done.exit_code}", advice=done.stderr)
    assert b"<svg" in done.stdout_bytes


USES: dict[str, tuple[str, Callable[[], None], str]] = {
    "azure-input": ("azure", lambda: resolve("abfs://c@a.dfs.core.windows.net/x"), "connect"),
    "azure-store": ("azure", lambda: store("abfs://c@a.dfs.core.windows.net/x", account_key="bm9u"),
                    "connect"),
    "azure-machines": ("azure", machines, "refused"),
    "s3-input": ("s3", lambda: resolve("s3://b/x", anon=True, endpoint_url=NOBODY), "connect"),
    "s3-store": ("s3", lambda: store("s3://b/x", anon=True, endpoint_url=NOBODY), "connect"),
    "gcs-input": ("gcs", lambda: resolve("gs://b/x", token="anon", endpoint_url=NOBODY), "connect"),
    "gcs-store": ("gcs", lambda: store("gs://b/x", token="anon", endpoint_url=NOBODY), "connect"),
    "hf-input": ("hf", lambda: resolve("hf://o/n@main"), "refused"),
    "hf-push": ("hf", push, "connect"),
    "timestamp": ("timestamp", request_timestamp, ""),
    "card": ("card", page, ""),
}  # fmt: skip
"""For each use its extra, what to do, and what the error says where nobody answers."""


def _main(use: str, without: str) -> None:
    """Do one thing in this interpreter, which has loaded nothing for it, and print what came."""
    from tests.support import guard

    # What libraries wait before they try again.
    real = asyncio.sleep
    vars(asyncio)["sleep"] = lambda delay, result=None: real(min(delay, 0.01), result)
    vars(time)["sleep"] = lambda seconds, real=time.sleep: real(min(seconds, 0.01))
    tried: list[str] = []
    guard.install(tried.append)
    blocked = PACKAGES.get(without, ())

    class Blocked:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] in blocked:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocked)
    assert not {name.partition(".")[0] for name in sys.modules} & set(PACKAGES[USES[use][0]])
    said = {}
    try:
        USES[use][1]()
    except Error as error:
        said = error.to_json()
    print(json.dumps(said | {"tried": "; ".join(tried)}))


def use(name: str, without: str = "") -> dict[str, str]:
    """Do one thing in an interpreter of its own."""
    code = f"from tests import test_extras; test_extras._main({name!r}, {without!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HF_ENDPOINT": NOBODY, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_every_extra_of_a_cloud_or_a_view_is_used_here() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(extras["optional-dependencies"]) - {"agent", "pipeline", "train"}
    assert known == set(PACKAGES) == {extra for extra, _, _ in USES.values()}


@pytest.mark.parametrize("name", USES)
def test_the_first_use_of_an_extra_works(name: str) -> None:
    answer = use(name)
    says = USES[name][2]
    if says:  # as far as it comes where nobody answers
        assert says in answer.get("got", "").lower(), answer
    else:
        assert "code" not in answer, answer


@pytest.mark.parametrize("name", USES)
def test_without_an_extra_the_error_says_what_to_install(name: str) -> None:
    extra = USES[name][0]
    answer = use(name, without=extra)
    assert f"pip install '.[{extra}]'" in answer.get("advice", ""), answer
    assert answer["tried"] == ""
