"""A tiny image with nothing but a static busybox: for tests, and to see the pipeline's own cost."""

import io
import shutil
import sys
import tarfile
from pathlib import Path

from examples.images import layout

APPLETS = ("sh", "cat", "cp", "dd", "env", "false", "head", "id", "ifconfig", "ls", "mkdir", "mv",
           "printf", "sha256sum", "sleep", "sort", "touch", "true", "wc", "yes", "ln", "rm",
           "chmod", "grep", "[")  # fmt: skip


def build(into: Path) -> str:
    """Write the image's OCI layout into the folder `into`; return the config digest.

    Raises:
        FileNotFoundError: busybox is not installed (Debian's package busybox-static).
    """
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    into.mkdir(parents=True, exist_ok=True)
    archive = into / "layer.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for folder in ("bin", "inputs", "outputs", "tmp", "dev", "proc", "sys", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        program = tarfile.TarInfo("bin/busybox")
        program.size, program.mode = len(busybox), 0o755
        tar.addfile(program, io.BytesIO(busybox))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return layout.write(into, [archive], environment={"PATH": "/bin"})


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
