"""The formats of the OS image, held against other programs that know them."""

import hashlib
import json
import shutil
import stat
import subprocess
from pathlib import Path

from deployments.image import formats


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
