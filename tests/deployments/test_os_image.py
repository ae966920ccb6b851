"""The measured OS image: its formats, held against other programs, and a boot of it."""

import hashlib
import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicert import bootlog
from aicert.agent import qemu
from aicert.agent.channel import Attestation
from deployments.image import build, formats, predict
from tests.support import vm

# Building takes two minutes where nothing is cached, and a boot in emulation one.
boots = [pytest.mark.xdist_group("qemu"), pytest.mark.slow, pytest.mark.timeout(1800)]


# -- formats ---------------------------------------------------------------------------------------


def test_the_hash_tree_is_the_one_that_veritysetup_makes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 16 * 300)  # more than one block of digests
    salt = hashlib.sha256(b"salt").digest()
    tree, root = formats.verity(data, salt)
    command = [
        "veritysetup", "format", "--no-superblock", "--salt", salt.hex(),
        "--root-hash-file", str(tmp_path / "root"), str(data), str(tmp_path / "tree"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    assert root.hex() == (tmp_path / "root").read_text()
    assert tree == (tmp_path / "tree").read_bytes()


def test_the_partition_table_is_one_that_sfdisk_reads(tmp_path: Path) -> None:
    table = formats.gpt("test", {"one": 8 << 20, "two": (1 << 20) + 1})
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.write(table.front)
        file.truncate((table.first_sectors[1] + (2 << 20) // 512) * 512)
        file.seek(0, 2)
        file.write(table.back)
    done = subprocess.run(
        ["sfdisk", "--json", str(disk)], check=True, capture_output=True, text=True
    )
    parts = json.loads(done.stdout)["partitiontable"]["partitions"]
    assert [(part["name"], part["start"], part["size"]) for part in parts] == [
        ("one", 2048, 16384),
        ("two", 18432, 4096),
    ]
    assert "error" not in done.stderr.lower()


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = formats.cpio(
        {
            "bin": formats.Entry(stat.S_IFDIR | 0o755),
            "bin/a": formats.Entry(stat.S_IFREG | 0o755, b"abc"),
            "b": formats.Entry(stat.S_IFLNK | 0o777, b"bin/a"),
        }
    )
    command = [shutil.which("busybox") or "busybox", "cpio", "-i"]
    subprocess.run(command, input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "b").read_text() == "abc"


# -- the image -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image() -> qemu.Image:
    return qemu.Image.load(build.build())


@pytest.fixture(scope="module")
def booted(image: qemu.Image) -> Iterator[tuple[vm.Vm, Attestation]]:
    with vm.booting(image.disk) as machine:
        yield machine, machine.attest()


class TestBoot:
    pytestmark = boots

    def test_a_boot_is_measured_as_the_files_foretell(
        self, image: qemu.Image, booted: tuple[vm.Vm, Attestation]
    ) -> None:
        pcrs = booted[1].pcrs
        foretold = {
            **image.pcrs,
            7: predict.secure_boot(),
            10: predict.ima(pcrs),
            **dict.fromkeys((8, 12, 13, 14), bytes(32)),
        }
        assert {pcr: pcrs[pcr].hex() for pcr in sorted(foretold)} == {
            pcr: foretold[pcr].hex() for pcr in sorted(foretold)
        }
        assert sorted(set(pcrs) - set(foretold)) == [0, 1, 15]

    def test_the_firmwares_log_accounts_for_every_pcr_of_the_boot(
        self, booted: tuple[vm.Vm, Attestation]
    ) -> None:
        answer = booted[1]
        assert answer.boot_event_log is not None
        replayed = bootlog.parse(answer.boot_event_log).replay()
        for pcr in (*range(8), 9, 11):
            assert replayed[pcr] == answer.pcrs[pcr]

    def test_the_console_tells_nothing_and_is_not_read(
        self, booted: tuple[vm.Vm, Attestation]
    ) -> None:
        lines = [line for line in booted[0].console.splitlines() if "BdsDxe" not in line]
        assert not any(line.strip("\x1b[]0123456789;HJhl= ") for line in lines)
