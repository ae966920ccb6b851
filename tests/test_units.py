"""The systemd units that operators copy: systemd accepts them, and what they name is there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "deployments" / "systemd"
PLACE = "/opt/aicert"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, as if this checkout were where they look for one."""
    for path in UNITS.iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace(PLACE, str(ROOT)))
    return tmp_path


def test_systemd_accepts_every_unit(units: Path) -> None:
    paths = [str(path) for path in sorted(units.glob("aicert-*"))]
    assert len(paths) == 4
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_in_a_unit_is_seen(units: Path) -> None:
    path = units / "aicert-worker.service"
    path.write_text(path.read_text().replace("KillMode=process", "KillMode=everything"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "kill mode" in done.stderr


def test_the_settings_are_ones_that_prefect_knows() -> None:
    from prefect.settings.legacy import _get_valid_setting_names
    from prefect.settings.models.root import Settings

    known = _get_valid_setting_names(Settings)
    for path in UNITS.glob("*.env"):
        settings = set(re.findall(r"^#?(PREFECT_[A-Z_]+)=", path.read_text(), re.MULTILINE))
        assert settings and settings <= known, settings - known


def test_the_operator_s_page_names_every_unit_and_file() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for path in UNITS.iterdir():
        assert path.name in page, path.name
