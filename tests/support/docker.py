"""A Docker daemon of the tests' own, which ends with them and touches no other."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[2] / ".venv" / "docker"
START_SECONDS = 240


@contextmanager
def daemon() -> Iterator[None]:
    """Run a daemon, and have `docker` speak to it, for the length of a block.

    It is the one that is installed, or the one that `make setup-test` has unpacked; it is PID 1 of
    a namespace, so that containers and mounts end with it, however it ends.
    """
    path = os.environ["PATH"]
    if shutil.which("dockerd") is None:
        path = f"{UNPACKED}/usr/bin:{UNPACKED}/usr/sbin:{path}"
    if shutil.which("dockerd", path=path) is None:
        pytest.skip("there is no dockerd: see deployments/setup/docker.sh")
    folder = Path(tempfile.mkdtemp(prefix="ac-"))
    host = f"unix://{folder}/docker.sock"
    log = folder / "log"
    with log.open("wb") as output, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        patch.setenv("DOCKER_HOST", host)
        patch.setenv("DOCKER_CONFIG", str(folder))
        process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"),
                *("dockerd", "--host", host, "--data-root", str(folder / "data")),
                *("--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")),
                *("--bridge=none", "--iptables=false", "--ip6tables=false"),
                *("--exec-opt", "native.cgroupdriver=cgroupfs"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while subprocess.run(["docker", "version"], capture_output=True).returncode != 0:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
