"""Waiting for a process: its status when it ends, and an error when it does not."""

import subprocess

import pytest

from aicert.agent.processes import await_end


def test_a_process_is_waited_for_and_says_how_it_ended() -> None:
    process = subprocess.Popen(["sh", "-c", "sleep 0.2; exit 3"])
    assert await_end(process, 30) == 3
    assert await_end(process, 30) == 3  # it is gone, and that is known


def test_one_that_does_not_end_is_not_waited_for_for_ever() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            await_end(process, 0.1)
    finally:
        process.kill()
        process.wait()
