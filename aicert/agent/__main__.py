"""Start the agent: `python -m aicert.agent`, and `aicert agent`.

On the local machine the agent is PID 1 of a PID and mount namespace of its own, so that the
kernel ends its TPM, its containers and everything else with it, however it ends.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aicert.agent import azure, server
from aicert.agent.channel import ChannelKey
from aicert.agent.keeper import die_without
from aicert.agent.service import Service
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Tpm
from aicert.errors import Error

BOOT_EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")


def main(arguments: list[str] | None = None) -> int:
    """Run the agent until it is told to stop, or whoever started it is gone."""
    parser = argparse.ArgumentParser(prog="aicert agent", description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="folder for the run's files")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", type=Path, help="Unix socket to listen on")
    place.add_argument("--listen", help="ADDRESS:PORT to listen on with attested TLS")
    parser.add_argument(
        "--tpm",
        default="device:/dev/tpmrm0",
        help="a TCTI such as device:/dev/tpmrm0, or swtpm-state:FOLDER to start a software TPM",
    )
    parser.add_argument(
        "--platform",
        choices=("generic", "azure", "auto"),
        default="generic",
        help="azure: use the attestation key that the VM's TPM brings, certified by Azure; "
        "auto: where there is one",
    )
    parser.add_argument("--intermediates", type=Path, help="more CA certificates (PEM), for azure")
    parser.add_argument("--metadata", default=azure.METADATA, help="Azure's metadata service")
    parser.add_argument("--algorithm", choices=("ecc", "rsa"), default="ecc", help="of the AK")
    parser.add_argument("--engine", choices=("podman", "docker"), help="container engine")
    parser.add_argument("--keeper", type=Path, help="file; the agent ends when nobody locks it")
    parser.add_argument("--outlive", type=float, default=0, help="seconds to wait for a new keeper")
    options = parser.parse_args(arguments)
    if options.keeper is not None:
        die_without(options.keeper, options.outlive)
    try:
        with ExitStack() as stack:
            tcti = options.tpm
            if tcti.startswith("swtpm-state:"):
                software = Swtpm(Path(tcti.removeprefix("swtpm-state:")))
                tcti = stack.enter_context(software).tcti
            tpm = stack.enter_context(Tpm(tcti))
            attested: dict[str, Any] = {}
            platform = options.platform
            if platform == "auto":
                platform = "azure" if azure.is_azure(tpm) else "generic"
            if platform == "azure":
                ak, chain = azure.attestation_key(tpm, intermediates=options.intermediates)
                report = azure.cpu_report(tpm, ak, metadata=options.metadata)
                attested = {"ak": ak, "ak_chain": chain, "cpu_report": report}
                if options.listen is not None:
                    attested["secret"] = azure.owner_secret(metadata=options.metadata)
            channel = None if options.listen is None else ChannelKey()
            service = Service(
                tpm,
                **attested,
                channel=channel,
                state=options.state,
                algorithm=options.algorithm,
                engine=options.engine,
                boot_event_log=None if options.tpm != tcti else _boot_event_log(tcti),
            )
            listener = (
                server.listen(options.socket)
                if channel is None
                else server.listen_tcp(options.listen)
            )
            server.serve(service, listener, channel)
    except Error as error:
        print(error.diagnostics(), file=sys.stderr)
        return 1
    return 0


def _boot_event_log(tcti: object) -> bytes | None:
    """Return the firmware's event log, where this machine's own TPM is used."""
    if not isinstance(tcti, str) or not tcti.startswith("device:"):
        return None
    try:
        return BOOT_EVENT_LOG.read_bytes() or None  # Azure's Trusted Launch has an empty one
    except OSError:
        return None


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is closed by now; the interpreter would take longer for its own end than the TPM's.
    os._exit(status)
