"""Build the measured OS image: one file that boots, and what it will be measured as.

    python -m deployments.image.build [--debug] [--locked | --update-lock] [--compare] [--archive …]

A unified kernel image whose measured command line names the root hash of a dm-verity squashfs. All
of it comes from Debian's packages, the agent's own source and the files beside this one; equal
inputs give equal bytes, which `--compare` shows by building again. What was built is kept by the
digest of its inputs. `packages.lock.json` records every package; when Debian's archive has moved
on, the build says which ones differ.
"""

import argparse
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from deployments.image import formats, predict
from deployments.image.formats import Entry

HERE = Path(__file__).parent
FILES = HERE / "files"
SOURCE = HERE.parents[1] / "aicert"
LOCK = HERE / "packages.lock.json"

RECIPE: dict[str, Any] = {
    "suite": "trixie",
    "epoch": 1767225600,
    "packages": [
        # the agent
        "python3-minimal", "libpython3-stdlib", "python3-aiohttp", "python3-cryptography",
        "python3-fsspec", "python3-httpx", "python3-pydantic", "python3-starlette",
        "python3-tpm2-pytss", "python3-urllib3", "python3-uvicorn", "python3-yaml",
        "libtss2-tcti-device0t64", "ca-certificates",
        # containers, the firewall
        "podman", "crun", "conmon", "nftables",
        # what fetches images and repositories
        "skopeo", "git",
        # the boot; none of it in the root
        "linux-image-cloud-amd64", "systemd-boot-efi", "busybox-static", "dmsetup",
    ],
    "exclude": ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"],
    # What the root has; all else that the packages bring is left out. Nothing but these programs
    # (and the loader of shared libraries) can be executed: no shell, no package tools.
    "programs": [
        "usr/bin/python3.13", "usr/bin/podman", "usr/bin/conmon", "usr/bin/crun", "usr/sbin/nft",
        # Podman does not start without it, and never calls it where there is no network.
        "usr/lib/podman/netavark", "usr/bin/skopeo", "usr/bin/git",
        "usr/lib/git-core/git-remote-https",
        "usr/lib/git-core/git-remote-http",
    ],
    "keep": [
        "bin", "lib", "lib64", "sbin", "etc/containers", "etc/gai.conf", "etc/group",
        "etc/host.conf", "etc/localtime", "etc/mime.types", "etc/nsswitch.conf", "etc/os-release",
        "etc/passwd", "etc/protocols", "etc/services", "etc/ssl", "usr/lib/aicert",
        "usr/lib/locale/C.utf8",
        "usr/lib/os-release", "usr/lib/python3", "usr/lib/python3.13", "usr/lib/ssl",
        "usr/lib/x86_64-linux-gnu/ossl-modules", "usr/lib64", "usr/share/ca-certificates",
        "usr/share/containers",
    ],
    # Of these not even that.
    "without": [
        "usr/lib/python3*/**/test", "usr/lib/python3*/**/tests", "etc/containers/systemd",
        "usr/lib/python3.13/sitecustomize*", "usr/lib/python3.13/__pycache__/sitecustomize*",
    ],
    # Libraries are kept where a program, or a module of Python's, is linked to them; these are
    # opened by name.
    "libraries": ["libtss2-tcti-device.so.0", "libgcc_s.so.1"],
    # Drivers, and whatever they need: before the root is there, and after.
    # Newer sizes of Azure's have their disks behind NVMe, and that behind Hyper-V's PCI bus.
    "early": ["hv_vmbus", "virtio_blk", "virtio_scsi", "sd_mod", "hv_storvsc", "pci-hyperv", "nvme",
              "dm-verity", "squashfs", "sha256-ssse3", "sha256_generic"],
    "late": ["virtio_net", "virtio-rng", "hv_netvsc", "hv_utils", "overlay", "nf_tables", "nft_ct",
             "nft_reject_inet"],
    # No console is read; nothing but the image's own modules, signed by Debian, is ever loaded.
    # In emulation on a busy host timers are late. A kernel that checks them panics then (under KVM
    # and Hyper-V it does not check), and one that keeps the time by the processor's counter, whose
    # rate it measures by such a timer, may run many times too fast. Where no HPET is (in Azure and
    # under KVM), the kernel takes the clock of its host.
    "cmdline": "console=ttyS0 quiet panic=-1 no_timer_check clocksource=hpet lockdown=integrity "
               "module.sig_enforce=1 rdinit=/init random.trust_cpu=on",
}  # fmt: skip
EMPTY = ("dev", "proc", "run", "sys", "tmp", "var", "usr/lib/aicert/modules")
LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
ESP_BYTES = 64 << 20
KEPT, KEPT_SECONDS = 3, 7 * 24 * 3600


def cache_folder() -> Path:
    """Return the folder that keeps built images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aicert" / "os"


def sources() -> Iterator[tuple[str, bytes]]:
    """Yield the files that the image is made of besides packages: name, content."""
    for path in sorted(SOURCE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"aicert/{path.relative_to(SOURCE)}", path.read_bytes()
    for path in sorted(FILES.iterdir()):
        yield f"files/{path.name}", path.read_bytes()
    import rfc8785

    for path in sorted(Path(rfc8785.__file__).parent.glob("*.py")):
        yield f"rfc8785/{path.name}", path.read_bytes()


def key_of(packages: str, *, debug: bool) -> str:
    """Return the name of what the inputs give: the recipe, its code, the files, the packages."""
    digest = hashlib.sha256(json.dumps([RECIPE, debug, packages], sort_keys=True).encode())
    for path in (Path(__file__), HERE / "formats.py", HERE / "predict.py"):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for name, content in sources():
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def build(
    *,
    debug: bool = False,
    locked: bool = False,
    update_lock: bool = False,
    archive: Sequence[str] = (),
) -> Path:
    """Return the folder of the image: `disk.raw`, `image.efi`, `image.json`; built if need be.

    The link `image` (or `debug`) in the cache then names it. `archive` are lines of a sources.list
    to take the packages from, instead of Debian's mirrors as they are today.

    Raises:
        SystemExit: it cannot be built, or `locked` and its packages are not the locked ones.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if update_lock:
            _update_lock(cache, archive)
        packages = packages_folder(cache, archive)
        target = cache / f"{'debug' if debug else 'image'}-{key_of(packages.name, debug=debug)}"
        if (target / "image.json").exists():
            _compare(json.loads((target / "image.json").read_text())["packages"], locked)
        else:
            with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as name:
                work = Path(name)
                if not (packages / "root.tar").exists():
                    _unpack(work, packages, archive)
                _compare(json.loads((packages / "packages.json").read_text()), locked)
                _build(packages, work, target, debug=debug)
        point(cache / ("debug" if debug else "image"), target)
        for used in (target, packages):
            os.utime(used)
            prune(cache, used.name.partition("-")[0])
    return target


def prune(cache: Path, kind: str) -> list[str]:
    """Remove what nobody has asked for in a week, but the last three of a kind; return the names.

    A folder in which somebody has put anything, such as reference values, stays for ever.
    """
    built = {"disk.raw", "image.efi", "image.json", "root.tar", "packages.json"}
    found = sorted(cache.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
    removed = []
    for folder in found[:-KEPT]:
        old = folder.stat().st_mtime < time.time() - KEPT_SECONDS
        if old and {path.name for path in folder.iterdir()} <= built:
            # By one step under another name: half of an image must not look like one.
            gone = folder.rename(cache / f"old-{folder.name}")
            shutil.rmtree(gone)
            removed.append(folder.name)
    return removed


def compare(*, debug: bool = False, archive: Sequence[str] = ()) -> bool:
    """Build the image once more, from Debian's archive on; tell whether its bytes are the same."""
    first = json.loads((build(debug=debug, archive=archive) / "image.json").read_text())
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="building-") as name:
        work = Path(name)
        _build(_unpack(work, work / "packages", archive), work, work / "again", debug=debug)
        second = json.loads((work / "again" / "image.json").read_text())
    print(f"first   sha256:{first['disk']}\nsecond  sha256:{second['disk']}")
    if moved := differing(first["packages"], second["packages"]):
        print("The archive gave other packages this time:", *moved, sep="\n  ")
    return bool(first["disk"] == second["disk"])


def point(link: Path, target: Path) -> None:
    """Make `link` name the image, in one step."""
    if link.is_symlink() and link.readlink() == Path(target.name):
        return
    new = link.with_name(f"{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.rename(link)


Packages = Mapping[str, Sequence[str]]


def differing(old: Packages, new: Packages) -> list[str]:
    """Return a line for each package that differs: its name and versions, old and new."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before is None or after is None or list(before) != list(after):
            was, is_now = (each[0] if each else "none" for each in (before, after))
            same = " (the same version, of other bytes)" if was == is_now else ""
            lines.append(f"{name}: {was} -> {is_now}{same}")
    return lines


def _compare(packages: Packages, locked: bool) -> None:
    """Say how the packages differ from the locked ones, and what can be done; maybe refuse them."""
    moved = differing(json.loads(LOCK.read_text()) if LOCK.exists() else {}, packages)
    if not moved:
        return
    lines = [
        f"These packages are not those of {LOCK.name} (locked -> found):",
        *(f"  {line}" for line in moved[:20]),
        *([f"  and {len(moved) - 20} more"] if len(moved) > 20 else []),
        "Debian's archive has moved on. An image of them has other PCRs than one of the locked.",
        "To build of the locked ones, name an archive that still has them, with --archive: ",
        "snapshot.debian.org keeps all (docs/os-image.md). To lock these instead: --update-lock.",
    ]
    if locked:
        sys.exit("\n".join([*lines, "Nothing was built, because --locked was given."]))
    print("\n".join(lines), file=sys.stderr)


def run(*command: str | Path, **more: Any) -> bytes:
    """Run a program with a fixed time and locale; return what it writes, or end with its error."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(RECIPE["epoch"]), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            list(map(str, command)), env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, check=False, **more,
        )  # fmt: skip
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed: `make image` installs it")
    if done.returncode != 0:
        text = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        sys.exit(f"The image could not be built; {command[0]} said:\n{text[-3000:]}")
    return bytes(done.stdout)


def packages_folder(cache: Path, archive: Sequence[str]) -> Path:
    """Return where the unpacked packages are kept, by what is wanted, locked, and taken from."""
    wanted = [RECIPE[name] for name in ("suite", "epoch", "packages", "exclude")]
    digest = hashlib.sha256(json.dumps([*wanted, list(archive)]).encode())
    digest.update(LOCK.read_bytes() if LOCK.exists() else b"")
    return cache / f"packages-{digest.hexdigest()[:16]}"


def _update_lock(cache: Path, archive: Sequence[str]) -> None:
    """Lock the packages that the archive has now, and keep them."""
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as name:
        made = _unpack(Path(name), Path(name) / "packages", archive)
        LOCK.write_text(
            json.dumps(json.loads((made / "packages.json").read_text()), indent=1) + "\n"
        )
        target = packages_folder(cache, archive)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _unpack(work: Path, target: Path, archive: Sequence[str]) -> Path:
    """Make the folder of the unpacked packages: `root.tar`, `packages.json`."""
    print("Unpacking Debian's packages for the OS image (a minute, once) …", flush=True)
    made = work / "unpacked"
    made.mkdir()
    hook = HERE.parents[1] / "examples" / "images" / "finish_root.py"
    # An archive of an earlier day has a signature that says so; the lock tells what is wanted.
    old = ["--aptopt=Acquire::Check-Valid-Until false"] if archive else []
    run(
        "env", f"AICERT_PACKAGES={made / 'packages.json'}", "AICERT_PRUNE=var/cache/*",
        "mmdebstrap", "--variant=minbase", f"--include={','.join(RECIPE['packages'])}", *old,
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in RECIPE["exclude"]),
        f"--customize-hook={hook}", RECIPE["suite"], made / "root.tar", *archive,
    )  # fmt: skip
    made.rename(target)
    return target


def _build(packages: Path, work: Path, target: Path, *, debug: bool) -> None:
    print(f"Building the {'debug ' if debug else ''}OS image …", flush=True)
    root, made = work / "root", work / "made"
    root.mkdir()
    made.mkdir()
    run("tar", "-xf", packages / "root.tar", "-C", root, "--exclude=./dev/*")
    boot = _Boot(root)
    early, late = boot.modules(RECIPE["early"]), boot.modules(RECIPE["late"])
    initrd = boot.initrd(early)
    kernel, stub = boot.kernel, boot.stub
    release = _release((root / "usr/lib/os-release").read_text(), debug=debug)
    _furnish(root, [module for module in late if module not in early], boot, release, debug=debug)
    squashfs = made / "root.squashfs"
    run(
        "mksquashfs", root, squashfs, "-noappend", "-comp", "lz4", "-Xhc", "-all-root",
        "-no-xattrs", "-no-exports",
    )  # fmt: skip
    salt = hashlib.sha256(b"aicert root").digest()
    tree, root_hash = formats.verity(squashfs, salt)
    blocks = squashfs.stat().st_size // formats.BLOCK
    command_line = f"{RECIPE['cmdline']} aicert.root={root_hash.hex()},{salt.hex()},{blocks}"
    if debug:
        command_line = command_line.replace(" quiet", " loglevel=7") + " aicert.debug"
    uki = assemble(stub, kernel, initrd, command_line)
    (made / "image.efi").write_bytes(uki)
    write_disk(made / "disk.raw", uki, squashfs, tree)
    squashfs.unlink()
    with (made / "disk.raw").open("rb") as file:
        values = predict.pcrs(uki, file.read(1 << 20))
    about = {
        "name": "aicert-os" + ("-debug" if debug else ""),
        "version": version(),
        "commandLine": command_line,
        "rootHash": root_hash.hex(),
        "disk": hashlib.sha256((made / "disk.raw").read_bytes()).hexdigest(),
        "uki": hashlib.sha256(uki).hexdigest(),
        "pcrs": {str(pcr): value.hex() for pcr, value in sorted(values.items())},
        "packages": json.loads((packages / "packages.json").read_text()),
    }
    (made / "image.json").write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)


def version_of(folder: Path) -> str:
    """Return the version of a built image: the agent's, and the beginning of the disk's digest."""
    about = json.loads((folder / "image.json").read_text())
    return f"{about['version']}+{about['disk'][:16]}"


def version() -> str:
    """Return the agent's version, which is the image's."""
    match = re.search(r'__version__ = "([^"]+)"', (SOURCE / "__init__.py").read_text())
    assert match is not None
    return match[1]


def assemble(stub: bytes, kernel: bytes, initrd: bytes, command_line: str) -> bytes:
    """Return a unified kernel image (UAPI.5): systemd's stub, and what it loads and measures.

    It has no `.osrel`: from that the stub would make a second initrd.
    """
    return formats.pe_add(
        stub,
        {
            ".cmdline": command_line.encode(),
            ".initrd": initrd,
            ".linux": kernel,
        },
    )


def esp(uki: bytes) -> bytes:
    """Return the ESP that boots a unified kernel image."""
    return formats.fat16(["EFI", "BOOT", "BOOTX64.EFI"], uki, ESP_BYTES)


def write_disk(path: Path, uki: bytes, squashfs: Path, tree: bytes) -> None:
    """Write the disk: a partition table, an ESP that boots, and the root with its hash tree."""
    boots = esp(uki)
    size = squashfs.stat().st_size
    table = formats.gpt("aicert", {"aicert-boot": len(boots), "aicert-root": size + len(tree)})
    with path.open("wb") as disk, squashfs.open("rb") as source:
        disk.write(table.front)
        disk.write(boots)
        disk.seek(table.first_sectors[1] * formats.SECTOR)
        shutil.copyfileobj(source, disk, 1 << 20)
        disk.write(tree)
        disk.seek(-(-disk.tell() // (1 << 20)) * (1 << 20))
        disk.write(table.back)


class _Boot:
    """What of the packages boots the machine, and is not in its root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (self._kernel,) = (root / "boot").glob("vmlinuz-*")
        self._modules = root / "usr/lib/modules" / self._kernel.name.removeprefix("vmlinuz-")
        needs = {}
        for line in (self._modules / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
        self._needs = needs
        self._named = {_module_name(path): path for path in needs}
        self.kernel = self._kernel.read_bytes()
        self.stub = (root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub").read_bytes()

    def modules(self, names: Iterable[str]) -> list[str]:
        """Return the paths of these modules and of those they need, in the order to load them."""
        ordered: list[str] = []
        for name in names:
            path = self._named.get(name.replace("-", "_"))
            if path is None:
                continue  # built in
            for each in [*reversed(self._needs[path]), path]:
                if each not in ordered:
                    ordered.append(each)
        return ordered

    def read_modules(self, paths: list[str]) -> dict[str, bytes]:
        """Return the modules' content by names that sort in the order to load them."""
        return {
            f"{number:03}-{_module_name(path)}.ko": lzma.decompress(
                (self._modules / path).read_bytes()
            )
            for number, path in enumerate(paths)
        }

    def initrd(self, modules: list[str]) -> bytes:
        """Return the archive of the program that finds, checks and mounts the root."""
        folders = ("bin", "dev", "proc", "sys", "root", "modules", "lib64", "lib")
        entries = {name: Entry(stat.S_IFDIR | 0o755) for name in folders}
        busybox = (self._root / "usr/bin/busybox").read_bytes()
        entries["bin/busybox"] = Entry(stat.S_IFREG | 0o755, busybox)
        for applet in ("sh", "mount", "umount", "insmod", "cat", "grep", "head", "basename",
                       "dirname", "sleep", "poweroff", "switch_root"):  # fmt: skip
            entries[f"bin/{applet}"] = Entry(stat.S_IFLNK | 0o777, b"busybox")
        for name, content in self.read_modules(modules).items():
            entries[f"modules/{name}"] = Entry(stat.S_IFREG | 0o644, content)
        script = (FILES / "initrd.sh").read_bytes()
        entries["init"] = Entry(stat.S_IFREG | 0o755, script)
        program = self._root / "usr/sbin/dmsetup"
        entries["bin/dmsetup"] = Entry(stat.S_IFREG | 0o755, program.read_bytes())
        listing = run("chroot", self._root, "/usr/bin/ldd", "/usr/sbin/dmsetup").decode()
        for library in sorted(set(re.findall(r"(/\S+) \(0x", listing))):
            content = Path(os.path.realpath(self._root / library[1:])).read_bytes()
            folder = "lib64" if "ld-linux" in library else "lib"
            name = f"{folder}/{Path(library).name}"
            entries[name] = Entry(stat.S_IFREG | 0o755, content)
        return gzip.compress(formats.cpio(entries), 9, mtime=0)


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _release(debian: str, *, debug: bool) -> str:
    base = dict(line.split("=", 1) for line in debian.splitlines() if "=" in line)
    return (
        f'ID=aicert\nNAME="aicert OS{" DEBUG" if debug else ""}"\nVERSION_ID="{version()}"\n'
        f"ID_LIKE=debian\nDEBIAN={base['VERSION_ID']}\n"
    )


def _furnish(root: Path, modules: list[str], boot: _Boot, release: str, *, debug: bool) -> None:
    """Make of the unpacked packages the root: bring in the agent, take out what is not wanted."""
    packages = root / "usr/lib/python3/dist-packages"
    for name, content in sources():
        top, _, rest = name.partition("/")
        path = root / "usr/lib/aicert" / rest if top == "files" else packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    drivers = boot.read_modules(modules)
    # Python trusts what was compiled here, and starts sooner; nothing can change either file.
    for cached in list((root / "usr/lib").rglob("__pycache__")):
        shutil.rmtree(cached)
    run(
        "chroot", root, "/usr/bin/env", "PYTHONHASHSEED=0", "/usr/bin/python3.13", "-I", "-m",
        "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash",
        "/usr/lib/python3/dist-packages", "/usr/lib/python3.13",
    )  # fmt: skip
    programs = set(RECIPE["programs"]) | ({"usr/bin/busybox"} if debug else set())
    if debug:
        (root / "usr/lib/aicert/debug").touch()
    keep_only(root, {*programs, *RECIPE["keep"], *_libraries(root)})
    for pattern in RECIPE["without"]:
        for path in sorted(root.glob(pattern)):
            path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
    executable_only(root, {*programs, LOADER})
    for folder in EMPTY:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in drivers.items():
        (root / "usr/lib/aicert/modules" / name).write_bytes(content)
    (root / "usr/lib/os-release").write_text(release)
    (root / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "usr/lib/aicert/initrd.sh").unlink()
    run("ldconfig", "-r", root)
    shutil.rmtree(root / "var/cache", ignore_errors=True)


def _libraries(root: Path) -> Iterator[str]:
    """Yield the shared libraries that the root's programs and Python's modules need, and links."""
    folder = "usr/lib/x86_64-linux-gnu"
    users = [*RECIPE["programs"], *(f"{folder}/{name}" for name in RECIPE["libraries"])]
    users += [str(p.relative_to(root)) for p in sorted((root / "usr/lib").glob("python3*/**/*.so"))]
    users += [str(p.relative_to(root)) for p in sorted((root / folder).glob("ossl-modules/*.so"))]
    listing = run("chroot", root, "/usr/bin/ldd", *(f"/{user}" for user in users)).decode()
    if "not found" in listing:
        sys.exit(f"The image lacks libraries:\n{listing}")
    names = {Path(name).name for name in re.findall(r"(/\S+) \(0x", listing)}
    for name in sorted({*names, *RECIPE["libraries"]}):
        yield f"{folder}/{name}"
        yield f"{folder}/{(root / folder / name).resolve().name}"


def keep_only(root: Path, kept: Collection[str]) -> None:
    """Remove all that is neither one of these paths, nor below one, nor above one."""
    above = {str(parent) for path in kept for parent in PurePath(path).parents}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            relative = str(path.relative_to(root))
            if relative in kept:
                if name in folders:
                    folders.remove(name)
            elif path.is_symlink() or not path.is_dir():
                path.unlink()
            elif relative not in above:
                folders.remove(name)
                shutil.rmtree(path)


def executable_only(root: Path, programs: Collection[str]) -> None:
    """Take from every other file the right to be executed, and from all the right of its owner."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755 if str(path.relative_to(root)) in programs else 0o644)


def main() -> None:
    """Build the image and print where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--debug", action="store_true", help="with a shell on the console")
    parser.add_argument("--locked", action="store_true", help="fail unless the packages are locked")
    parser.add_argument("--update-lock", action="store_true", help="write the packages' lock")
    parser.add_argument("--compare", action="store_true", help="build again: equal bytes?")
    parser.add_argument(
        "--archive", action="append", default=[], metavar="LINE",
        help="line of a sources.list to take packages from, such as an archive of an earlier day",
    )  # fmt: skip
    options = parser.parse_args()
    path = build(
        debug=options.debug,
        locked=options.locked,
        update_lock=options.update_lock,
        archive=options.archive,
    )
    about = json.loads((path / "image.json").read_text())
    size = (path / "disk.raw").stat().st_size >> 20
    print(f"{path / 'disk.raw'} ({size} MiB)\nsha256:{about['disk']}")
    for pcr, value in about["pcrs"].items():
        print(f"PCR {pcr:>2} {value}")
    if options.compare and not compare(debug=options.debug, archive=options.archive):
        sys.exit("Two builds of one source gave two images.")


if __name__ == "__main__":
    main()
