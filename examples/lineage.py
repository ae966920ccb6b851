"""The lineage demo: a model, a fine-tuned one, an evaluation of that; the whole chain verified.

`make demo-lineage` runs it. It does what you would type, and shows the commands as it goes.
"""

import json
import os
import shlex

from examples.demo import ROOT, STORE, command
from examples.images import build

DIGITS = "examples/digits"


def certified(*arguments: str) -> tuple[str, list[str]]:
    """Run one certified run; return its certificate's path, and what trusts its machine."""
    result = json.loads(command(*arguments, "--store", str(STORE), "--json", capture=True))
    words = shlex.split(result["verify"])[2:]
    options = words[1:]
    if "--model" in options:
        at = options.index("--model")
        del options[at : at + 2]
    return words[0], options


def main() -> None:
    """Train, fine-tune, evaluate; verify all of it from the last certificate, and draw it."""
    os.chdir(ROOT)
    build.build()
    base, _ = certified("run", f"{DIGITS}/spec.yaml")
    tuned, _ = certified("run", f"{DIGITS}/finetune.yaml", "--certified", f"base={base}")
    evaluation, trust = certified("evaluate", tuned, f"{DIGITS}/evaluate.yaml")
    command("verify", evaluation, "--recursive", *trust)
    command("lineage", evaluation, *trust)


if __name__ == "__main__":
    main()
