import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from serve.allocator import KEPT_MEMORY

# Where they are given to every process, a fault brings in many pages, with the setting or without.
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# A pass of a model: in a thread, with more memory than one of glibc's heaps for threads holds.
_PASSES = """
import resource, threading, torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    counts = []
    for _ in range(4):
        before = faults()
        torch.ones(100 * 2**18).exp_()
        counts.append(faults() - before)
    print(*counts)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that reads the setting")
def test_a_second_pass_faults_no_memory_in_again() -> None:
    def faults(environment: dict[str, str]) -> list[int]:
        ran = subprocess.run(
            [sys.executable, "-c", _PASSES],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert not ran.stderr
        return [int(count) for count in ran.stdout.split()]

    pages = 100 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    plain = {name: value for name, value in os.environ.items() if name not in KEPT_MEMORY}
    assert max(faults({**plain, **KEPT_MEMORY})[1:]) < 100
    if "[always]" not in _HUGE_PAGES.read_text():
        # What it is for: without, each pass has them all.
        assert min(faults(plain)[1:]) > pages / 2
