"""The same flow on a virtual machine: a certificate that shows everything from the firmware up."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicert import reference, trust
from aicert.agent import qemu
from aicert.assurance import Assurance
from aicert.policy import Policy
from aicert.verify import verify
from blocks import FolderStore, QemuMachine
from deployments.image.reference import policy
from examples.images import tiny
from flows.certify import certify
from tests.support.pipeline import CERTIFY, machines, write_spec
from tests.support.vm import MARKS

pytestmark = MARKS

# What a training would need to extend a PCR: the TPM, or the agent's files. It says what it got.
BREAK_OUT = """
touch /outputs/reached.txt
for path in /outputs /dev/tpm0 /dev/tpmrm0 /sys/kernel/security/tpm0 /var/aicert /run/aicert; do
    if [ -e $path ]; then echo "sees $path" >> /outputs/reached.txt; fi
done
for path in /dev/tpm0 /dev/tpmrm0 /sys/class/tpm/tpm0/ppi/request /proc/sysrq-trigger; do
    if (echo 0 > $path) 2> /dev/null; then echo "writes $path" >> /outputs/reached.txt; fi
done
if busybox mknod /tmp/tpm c 10 224 2> /dev/null; then echo "makes it" >> /outputs/reached.txt; fi
for kind in devtmpfs securityfs sysfs; do
    if busybox mount -t $kind none /tmp 2> /dev/null; then echo $kind >> /outputs/reached.txt; fi
done
"""


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="aicert-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_run_on_the_image_is_measured_from_the_firmware_up(
    image: qemu.Image, signed: bytes, state: Path, tmp_path: Path, prefect_server: str
) -> None:
    tiny.build(tmp_path / "image")
    spec = write_spec(tmp_path, f"{BREAK_OUT}{CERTIFY}", image="oci:image")
    store = tmp_path / "store"
    ended = certify(
        spec_file=str(spec),
        machine=QemuMachine(state=state, image=image.folder),
        store=FolderStore(folder=store),
        publish_weights=True,
        return_state=True,
    )
    assert ended.is_completed(), ended.message
    done = ended.result()
    assert machines(state) == []

    # The operator's own policy takes the TPM for what it is.
    assert done["assurance"] == "simulated"
    (published,) = (store / "certificates").iterdir()
    assert (published / "weights" / "reached.txt").read_text() == "sees /outputs\n"

    # Under a policy that takes the CA for that of real TPMs, everything is there to be measured.
    (tmp_path / "reference.json").write_bytes(signed)
    signer = reference.parse(signed).signer
    (tmp_path / "measured.yaml").write_text(policy(signer, "reference.json"))
    root = state / "qemu-ca" / "authority" / "root.pem"
    roots = trust.TrustStore.builtin().with_roots(root, "hardware")
    asked = Policy.load(tmp_path / "measured.yaml")
    data = (published / "certificate.json").read_bytes()
    verdict = verify(
        data, trust=asked.trust_store(roots), policy=asked, model=published / "weights"
    )
    assert verdict.assurance is Assurance.MEASURED
    assert verdict.run.channel_key is not None
    assert json.loads(data)["evidence"]["bootEventLog"] is not None
