"""The flow on the host's own TPM, which nobody resets between two runs."""

from pathlib import Path

import pytest

from aicert.agent.swtpm import Swtpm
from aicert.certificate import Certificate
from blocks import FolderStore, HostMachine
from flows.certify import certify
from tests.support.pipeline import machines, published, write_spec
from tests.support.tpm import Factory, relay

pytestmark = [pytest.mark.xdist_group("host"), pytest.mark.usefixtures("prefect_server")]


def test_two_runs_in_one_boot_of_a_tpm_are_certified_each_by_itself(
    image: str, state: Path, tmp_path: Path
) -> None:
    factory = Factory(tmp_path / "maker")
    roots = tmp_path / "maker.pem"
    roots.write_bytes(factory.ca.ek_roots)
    spec, store = write_spec(tmp_path, image=image), tmp_path / "store"
    found = []
    with Swtpm(factory.make()) as tpm, relay(tpm) as tcti:
        for _ in range(2):
            result = certify(
                spec_file=str(spec),
                machine=HostMachine(tcti=tcti, ek_roots=roots, state=state),
                store=FolderStore(folder=store),
            )
            assert result["assurance"] == "hardware"
            path = store / "certificates" / result["digest"] / "certificate.json"
            found.append(Certificate.parse(path.read_bytes()))
    first, second = found
    assert machines(state) == [] and len(published(store)) == 2
    # The second began where the first left the TPM, and not at zero.
    zero = bytes(32)
    assert first.baseline_quote.pcrs[14] == zero
    assert second.baseline_quote.pcrs[14] == first.quote.pcrs[14] != zero
