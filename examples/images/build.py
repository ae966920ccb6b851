"""Build the example's image: Debian's PyTorch, in an OCI layout, the same bytes whoever builds it.

    python -m examples.images.build [--locked | --update-lock]

The image is made of Debian packages alone. A plain `pip install torch` would bring gigabytes of
CUDA packages; Debian's build is for the CPU and comes from the archive that the machine already
uses. `digits.lock.json` records every package and the digest that they give. When Debian's archive
has moved on, the build says which packages differ, and that the digest is therefore another.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from examples.images import layout

LOCK = Path(__file__).with_name("digits.lock.json")
FINISH = Path(__file__).with_name("finish_root.py")

RECIPE: dict[str, Any] = {
    "suite": "trixie",
    "variant": "minbase",
    "packages": ["python3", "python3-torch", "python3-safetensors", "libopenblas0-pthread"],
    # What a training never reads: not unpacked …
    "exclude": [
        "/usr/share/doc/*",
        "/usr/share/man/*",
        "/usr/share/locale/*",
        "/usr/share/info/*",
        "/usr/include/*",
        "/usr/lib/libtorch-test/*",
    ],
    # … and, where a package's own scripts want it there, removed at the end: tests, what speaks to
    # GPUs that this image is not for, what installs packages, and what PyTorch brings in case it is
    # asked for. Each file is unpacked anew in each run, and a third of them were never read.
    "prune": [
        "usr/lib/python3/dist-packages/sympy/**/tests",
        "usr/lib/python3/dist-packages/numpy/**/tests",
        "usr/lib/python3/dist-packages/torch/bin/test_*",
        "usr/lib/x86_64-linux-gnu/libLLVM*",
        "usr/lib/x86_64-linux-gnu/libamd_comgr*",
        "usr/lib/x86_64-linux-gnu/libamdhip64*",
        "usr/lib/x86_64-linux-gnu/libhsa*",
        "usr/lib/x86_64-linux-gnu/ucx/*rocm*",
        "usr/lib/python3.*/test",
        *(
            f"usr/lib/python3/dist-packages/{name}"
            for name in (
                *("chardet", "charset_normalizer", "dateutil", "fsspec", "functorch"),
                *("hypothesis", "jinja2", "networkx", "pkg_resources", "psutil", "requests"),
                *("setuptools", "typeguard", "urllib3"),
            )
        ),
        "usr/lib/x86_64-linux-gnu/gconv",
        "usr/lib/x86_64-linux-gnu/perl-base",
        "usr/share/X11",
        "usr/share/bash-completion",
        "usr/share/ca-certificates",
        "usr/share/lintian",
        "usr/share/perl5",
        "usr/share/zoneinfo",
        "etc/ssl/certs",
        "var/lib/dpkg/info",
        "var/cache/*",
        "var/lib/apt/lists/*",
    ],
    "epoch": 1767225600,
    "archive": "pax",  # as `layout.rewrite` writes it
}
_PASSED = (
    *("PATH", "HOME", "TMPDIR", "APT_CONFIG"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
"""What the packages' own scripts may see of whoever builds. They run Python, and what that writes
depends on its variables, which are set; with them the image's bytes would."""

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def cache_folder() -> Path:
    """Return the folder that keeps built images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aicert" / "images"


def build(*, locked: bool = False, update_lock: bool = False) -> Path:
    """Return the path of the image's OCI layout, built if it is not there.

    Raises:
        SystemExit: the image cannot be built, or `locked` and it is not the locked one.
    """
    key = hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()[:16]
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"digits-{key}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if update_lock or not (target / "index.json").exists():
            _build(cache, target)
        _point(cache / "digits", target)
    built = json.loads((target / "packages.json").read_text())
    if update_lock:
        LOCK.write_text(json.dumps(built, indent=1) + "\n")
    _compare(built, json.loads(LOCK.read_text()), locked)
    return cache / "digits"


def _build(cache: Path, target: Path) -> None:
    print("Building the example's image from Debian packages (a minute or two, once) …", flush=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as name:
        work = Path(name)
        archive, layer, packages = work / "made.tar", work / "layer.tar", work / "packages.json"
        command = [
            "mmdebstrap",
            f"--variant={RECIPE['variant']}",
            f"--include={','.join(RECIPE['packages'])}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in RECIPE["exclude"]),
            f"--customize-hook={FINISH}",
            RECIPE["suite"],
            str(archive),
        ]
        environment = {
            **{name: os.environ[name] for name in _PASSED if name in os.environ},
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "SOURCE_DATE_EPOCH": str(RECIPE["epoch"]),
            "AICERT_PACKAGES": str(packages),
            "AICERT_PRUNE": ":".join(RECIPE["prune"]),
        }
        try:
            done = subprocess.run(
                command,
                env=environment,
                umask=0o022,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            sys.exit("mmdebstrap is not installed: `make setup` installs it")
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip()
            sys.exit(f"The image could not be built; mmdebstrap said:\n{text[-3000:]}")
        layout.rewrite(archive, layer)
        archive.unlink()
        made = work / "layout"
        config = layout.write(made, [layer], environment=ENVIRONMENT)
        record = {"config": config, "packages": json.loads(packages.read_text())}
        (made / "packages.json").write_text(json.dumps(record, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _point(link: Path, target: Path) -> None:
    """Make `link` name the image, in one step."""
    if link.is_symlink() and link.readlink() == Path(target.name):
        return
    new = link.with_name(f"{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.rename(link)


def _compare(built: dict[str, Any], lock: dict[str, Any], locked: bool) -> None:
    """Say whether this is the locked image, and if not, why."""
    if built["config"] == lock["config"]:
        return
    old, new = lock["packages"], built["packages"]
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    lines = [
        "Debian's archive has moved on since the lock was written: the image has another digest."
        if changed
        else "The packages are those of the lock, and yet the image has another digest: something "
        "of this machine got into it.",
        f"  locked sha256:{lock['config']}",
        f"  built  sha256:{built['config']}",
        *(
            f"  {name}: {old.get(name, ['none'])[0]} -> {new.get(name, ['none'])[0]}"
            for name in changed[:20]
        ),
    ]
    print("\n".join(lines), file=sys.stderr)
    if locked:
        sys.exit("Refused, because --locked was given.")


def main() -> None:
    """Build the image and print where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--locked", action="store_true", help="fail unless it is the locked image")
    parser.add_argument("--update-lock", action="store_true", help="build anew and write the lock")
    options = parser.parse_args()
    path = build(locked=options.locked, update_lock=options.update_lock)
    record = json.loads((path / "packages.json").read_text())
    print(f"oci:{path}\nsha256:{record['config']}")


if __name__ == "__main__":
    main()
