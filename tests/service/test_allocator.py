"""Each in a process of its own: what malloc is told once cannot be taken back. glibc itself tells of its arenas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.allocator import ARENAS

COUNTED = """
import ctypes, sys, threading
from service.allocator import share_arenas
if sys.argv[1] == "shared":
    assert share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
meeting = threading.Barrier(5)
def take():
    libc.malloc(5000)
    meeting.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
meeting.wait()
for thread in threads:
    thread.join()
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(open(sys.argv[2]).read().count("<heap nr="))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(("how", "least", "most"), [("shared", 1, ARENAS), ("own", ARENAS + 1, 5)])
def test_four_threads_at_once_take_so_many_arenas(how: str, least: int, most: int, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", COUNTED, how, f"{tmp_path}/info.xml"], capture_output=True, text=True, check=True
    )
    assert least <= int(found.stdout) <= most


HELD = """
from service.allocator import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before = resident()
pieces = [bytes(2000) for _ in range(100_000)]
kept = pieces[::50]  # so that no end of the heap is free
del pieces
held = resident()
assert give_back()
print(held - before, resident() - before)
"""


FAULTS = """
import resource, sys
from service.allocator import give_back, keep_pages
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before = resident()
if sys.argv[1] == "kept":
    assert keep_pages()
def step():
    return [b"1" * (48 << 20) for _ in range(4)]
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults, resident() - before)
give_back()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_takes_the_pages_that_the_one_before_freed_until_they_are_given_back() -> None:
    found = {
        how: subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout
        for how in ("kept", "own")
    }
    faults, held, left = (float(each) for each in found["kept"].split())
    assert float(found["own"].split()[0]) > 10_000 > 100 * faults
    assert held > 150 > 20 > left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_was_freed_between_what_is_in_use_goes_back_to_the_system() -> None:
    found = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    held, left = map(float, found.stdout.split())
    assert held > 150 and left < held / 2
