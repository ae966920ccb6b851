"""Take pictures of what a builder sees in the Prefect UI, with a headless Chromium.

    python tests/ui/screenshots.py FLOW_RUN_ID FOLDER [--url http://127.0.0.1:4200]

One picture for each page: the run, each artifact of it, the deployment and its run form. The pages
are those of the newest run where FLOW_RUN_ID is `latest`.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BUDGET_MILLISECONDS = 15_000


def main() -> None:
    """Take the pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="id of a flow run, or 'latest'")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:4200")
    parser.add_argument("--width", type=int, default=1400)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, (path, height) in pages(options.url, options.run).items():
        target = options.folder / f"{name}.png"
        shoot(f"{options.url}{path}", target, options.width, height)
        print(target)


def pages(url: str, run: str) -> dict[str, tuple[str, int]]:
    """Return the pages of a run: by name, the path and the height that shows all of it."""
    if run == "latest":
        run = post(url, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
    flow_run = get(url, f"flow_runs/{run}")
    found = {
        "run": (f"/runs/flow-run/{run}", 1500),
        "run-artifacts": (f"/runs/flow-run/{run}?tab=Artifacts", 1500),
        "artifacts": ("/artifacts", 1300),
    }
    filter_ = {"artifacts": {"flow_run_id": {"any_": [run]}}, "sort": "ID_DESC"}
    for artifact in post(url, "artifacts/filter", filter_):
        key = artifact["key"] or artifact["id"]
        found[f"artifact-{key}"] = (f"/artifacts/artifact/{artifact['id']}", 1300)
    if flow_run["deployment_id"]:
        deployment = f"/deployments/deployment/{flow_run['deployment_id']}"
        found["deployment"] = (deployment, 1000)
        found["deployment-run"] = (f"{deployment}/run", 2600)
    return found


def shoot(url: str, target: Path, width: int, height: int) -> None:
    """Write a picture of a page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("no browser: install Debian's package chromium")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking"),
                *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--virtual-time-budget={BUDGET_MILLISECONDS}",
                f"--screenshot={target.absolute()}",
                url,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )


def get(url: str, path: str) -> Any:
    """Read from the server's API."""
    with urllib.request.urlopen(f"{url}/api/{path}", timeout=30) as response:
        return json.load(response)


def post(url: str, path: str, body: object) -> Any:
    """Ask the server's API."""
    request = urllib.request.Request(
        f"{url}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


if __name__ == "__main__":
    main()
