"""The demo: certify a real small training on this machine, then verify it as a stranger would.

`make demo` runs it. It does what you would type, and shows the commands as it goes.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from examples.images import build

ROOT = Path(__file__).parents[1]
SPEC = Path("examples/digits/spec.yaml")
STORE = Path("demo")


def command(*arguments: str, capture: bool = False) -> str:
    """Show and run one `aicert` command; end the demo where it fails."""
    print(f"\n$ aicert {shlex.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "aicert", *arguments],
        stdout=subprocess.PIPE if capture else None,
        cwd=ROOT,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        if done.stdout:
            print(done.stdout)
        sys.exit(done.returncode)
    return done.stdout or ""


def main() -> None:
    """Build the image, certify the training, verify the certificate, show the card."""
    os.chdir(ROOT)
    start = time.monotonic()
    build.build()
    result = json.loads(
        command("run", str(SPEC), "--store", str(STORE), "--verbose", "--json", capture=True)
    )
    # What `aicert run` says to run: `aicert verify CERTIFICATE --model … --root … …`
    verify = shlex.split(result["verify"])[1:]
    command(*verify)
    command("show", verify[1])
    print(f"\nCertified and verified in {time.monotonic() - start:.0f} s. The certificate:")
    print(f"  {verify[1]}")
    print("It is worth what its TPM is worth, and this one is a program on this machine: README.md")
    print("says what a certificate of a hardware TPM takes.")


if __name__ == "__main__":
    main()
