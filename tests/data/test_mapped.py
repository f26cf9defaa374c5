"""Arrays in mapped files: what they hold, and what of them stays in the memory of the process."""

import mmap
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hymate_training.data import mapped as mapped_arrays
from hymate_training.data.mapped import mapped

PATIENCE = 30  # seconds


def resident(array):
    """Kilobytes of the map of an array that are resident."""
    address = array.__array_interface__["data"][0]
    parts = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    (own,) = [part for part in parts if part.startswith(f"{address:x}-")]
    return int(re.search(r"(?m)^Rss:\s+([0-9]+) kB", own).group(1))


def is_gone(array):
    return resident(array) == 0


def wait_until(holds):
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is resident")
@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system takes pages back by itself alone")
def test_large_arrays_do_not_stay_resident(tmp_path, monkeypatch):
    residents = mapped_arrays._Residents()  # of this test alone: what others have left may be collected meanwhile
    monkeypatch.setattr(mapped_arrays, "_residents", residents)
    monkeypatch.setattr(mapped_arrays, "AT_HAND", 1 << 20)
    small = mapped([np.arange(1 << 17)], np.int64, tmp_path)
    small.sum()
    assert resident(small) == 1024
    large = mapped([np.arange(1 << 19), -np.arange(1 << 19)], np.int64, tmp_path)
    for _ in range(3):
        assert large.sum() == 0
        assert large[-1] == 1 - (1 << 19)
        wait_until(partial(is_gone, large))
    del large
    wait_until(lambda: residents._thread is None)
    assert small.sum() == (1 << 16) * ((1 << 17) - 1)
    assert resident(small) == 1024
