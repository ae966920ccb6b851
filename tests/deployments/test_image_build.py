"""What an image is made of: what is kept of the packages, and what names the result."""

import json
import os
import re
import stat
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deployments.image import build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "packages.lock.json"
    path.write_text(json.dumps({"a": ["1", "ff"], "b": ["2", "ee"]}))
    monkeypatch.setattr(build, "LOCK", path)
    return path


def test_other_packages_are_named_with_what_to_do(
    lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"a": ["1.1", "00"], "b": ["2", "dd"], "c": ["3", "cc"]}
    build._compare(found, locked=False)
    said = capsys.readouterr().err
    for line in ("a: 1 -> 1.1", "b: 2 -> 2 (the same version, of other bytes)", "c: none -> 3"):
        assert f"  {line}\n" in said
    assert "--archive" in said and "--update-lock" in said
    with pytest.raises(SystemExit, match="Nothing was built"):
        build._compare(found, locked=True)
    build._compare({"a": ["1", "ff"], "b": ["2", "ee"]}, locked=True)


def test_an_image_is_named_by_its_packages_and_these_by_the_lock(lock: Path) -> None:
    first = build.packages_folder(Path(), ())
    assert build.packages_folder(Path(), ("deb http://mirror.example/debian trixie main",)) != first
    lock.write_text(lock.read_text() + " ")
    second = build.packages_folder(Path(), ())
    assert second != first
    keys = {build.key_of(name, debug=debug) for name in (first.name, second.name)
            for debug in (False, True)}  # fmt: skip
    assert len(keys) == 4


def test_the_agent_asks_for_no_newer_libraries_than_the_image_has() -> None:
    """What pip would not install beside the agent must not be what a measured machine runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["agent"]]
    locked = json.loads((ROOT / "deployments/image/packages.lock.json").read_text())
    held = {}
    for requirement in map(Requirement, asked):
        name = f"python3-{requirement.name.replace('pyyaml', 'yaml')}"
        if (
            name in locked
        ):  # epoch:upstream-revision; Debian took 8.2.0 back as 8.2.0+0.really.8.1.8
            upstream = locked[name][0].rpartition(":")[2].rpartition("-")[0]
            held[requirement.name] = re.sub(r".*\+[0-9.]*really\.", "", upstream)
            assert requirement.specifier.contains(held[requirement.name]), (requirement, held)
    # rfc8785 is put there from here; all others are Debian's.
    assert {Requirement(item).name for item in asked} - held.keys() == {"rfc8785"}


def test_what_is_not_named_is_not_kept(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("usr/bin/wanted", "usr/bin/sh", "usr/lib/klibc/bin/sh", "usr/lib/kept/deep/file",
                 "usr/lib/keptnot/file", "etc/file"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
        (root / name).chmod(0o4755)
    for name, target in (("bin", "usr/bin"), ("lib", "usr/lib"), ("dangling", "nothing")):
        (root / name).symlink_to(target)
    build.keep_only(root, {"bin", "usr/bin/wanted", "usr/lib/kept"})
    left = {str(Path(folder, name).relative_to(root)) for folder, folders, files in os.walk(root)
            for name in [*folders, *files]}  # fmt: skip
    assert left == {"bin", "usr", "usr/bin", "usr/bin/wanted", "usr/lib", "usr/lib/kept",
                    "usr/lib/kept/deep", "usr/lib/kept/deep/file"}  # fmt: skip
    build.executable_only(root, {"usr/bin/wanted"})
    assert stat.S_IMODE((root / "usr/bin/wanted").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "usr/lib/kept/deep/file").stat().st_mode) == 0o644


def test_images_that_nobody_asks_for_any_more_go_but_the_last_and_what_somebody_added_to(
    tmp_path: Path,
) -> None:
    days = {"image-a": 0, "image-b": 1, "image-c": 30, "image-d": 8, "image-e": 6, "image-f": 9,
            "debug-a": 30, "image-signed": 40}  # fmt: skip
    for name, age in days.items():
        (tmp_path / name).mkdir()
        for file in ("disk.raw", "image.efi", "image.json"):
            (tmp_path / name / file).touch()
        if name == "image-signed":
            (tmp_path / name / "reference.json").touch()
        used = time.time() - age * 24 * 3600 - 60
        os.utime(tmp_path / name, (used, used))
    build.point(tmp_path / "image", tmp_path / "image-a")
    assert sorted(build.prune(tmp_path, "image")) == ["image-c", "image-d", "image-f"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"image", "image-a", "image-b", "image-e", "image-signed", "debug-a"}
    assert build.prune(tmp_path, "image") == build.prune(tmp_path, "debug") == []
