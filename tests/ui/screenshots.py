"""Take pictures of what people see in the Prefect UI, with a headless Chromium.

    python -m tests.ui.screenshots latest FOLDER [--url http://127.0.0.1:4200]

One picture for each page: the run, its artifacts, the deployment and its form, the newest run that
failed, our blocks and their forms, limits and automations. `latest` is the newest certified run.
`run.png` and `card.png` are the pictures in docs/images.
"""

import argparse
import json
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.browser import Browser, browser

SETTLE_SECONDS = 4.0
"""How long a page may take to draw what it has received."""


@dataclass(frozen=True)
class Page:
    """A page, a text that is on it once it is there, and how large a picture shows it whole.

    Where a `tab` is named, that is opened first: its address alone does not.
    """

    path: str
    shows: str
    height: int = 1300
    width: int = 1400
    tab: str | None = None


def main() -> None:
    """Take the pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="id of a flow run, or 'latest'")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:4200")
    parser.add_argument("--only", help="take those pictures alone whose name begins so")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as window:
        for name, page in pages(options.url, options.run).items():
            if name.startswith(options.only or ""):
                target = options.folder / f"{name}.png"
                shoot(window, f"{options.url}{page.path}", page, target)
                print(target, flush=True)


def pages(url: str, run: str) -> dict[str, Page]:
    """Return the pages of a run and of what stands around it, by name."""
    if run == "latest":
        run = newest(url, "COMPLETED")[0]["id"]
    flow_run = ask(url, f"flow_runs/{run}")
    name = flow_run["name"]
    found = {
        "run": Page(f"/runs/flow-run/{run}", name, 1060),
        "run-artifacts": Page(f"/runs/flow-run/{run}", name, 1500, tab="Artifacts"),
        "artifacts": Page("/artifacts", "aicert-"),
    }
    filter_ = {"artifacts": {"flow_run_id": {"any_": [run]}}, "sort": "ID_DESC"}
    for artifact in ask(url, "artifacts/filter", filter_):
        key = artifact["key"] or artifact["id"]
        page = Page(f"/artifacts/artifact/{artifact['id']}", key)
        if key.endswith("-certificate-card"):
            found["card"] = Page(page.path, key, width=1160)
        else:
            found[f"artifact-{key}"] = page
    if flow_run["deployment_id"]:
        deployment = f"/deployments/deployment/{flow_run['deployment_id']}"
        found["deployment"] = Page(deployment, "certify", 1000)
        found["deployment-form"] = Page(f"{deployment}/run", "publish_weights", 1800)
    for failed in newest(url, "FAILED"):
        found["failed"] = Page(f"/runs/flow-run/{failed['id']}", failed["name"], 1900)
    found["blocks"] = Page("/blocks", "aicert", 700)
    for item in ask(url, "block_types/filter", {"limit": 200}):
        if (slug := item["slug"]).startswith("aicert-"):
            about = f"/blocks/catalog/{slug}"
            found[f"block-{slug}"] = Page(about, item["name"], 900)
            found[f"block-form-{slug}"] = Page(f"{about}/create", "Block Name", 2400)
    found["limits"] = Page("/concurrency-limits", "aicert-", 900)
    found["automations"] = Page("/automations", "aicert", 900)
    return found


def shoot(window: Browser, url: str, page: Page, target: Path) -> None:
    """Write a picture of a page."""
    size = {"width": page.width, "height": page.height, "deviceScaleFactor": 1, "mobile": False}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    window.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    window.open(url)
    window.await_text(page.shows)
    if page.tab is not None:
        window.click(f"//*[text()[normalize-space()='{page.tab}']]")
    time.sleep(SETTLE_SECONDS)
    window.driver.save_screenshot(str(target))


def newest(url: str, state: str) -> list[dict[str, Any]]:
    """Return the newest run of `certify` that is in a type of state, if there is one."""
    wanted = {
        "flows": {"name": {"any_": ["certify"]}},
        "flow_runs": {"state": {"type": {"any_": [state]}}},
        "sort": "START_TIME_DESC",
        "limit": 1,
    }
    return list(ask(url, "flow_runs/filter", wanted))


def ask(url: str, path: str, body: object = None) -> Any:
    """Ask the server's API."""
    request = urllib.request.Request(
        f"{url}/api/{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


if __name__ == "__main__":
    main()
