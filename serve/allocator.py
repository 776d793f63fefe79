"""How glibc handles the memory of a replica that computes on the CPU."""

KEPT_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0"
    f":glibc.malloc.trim_threshold={2**46}:glibc.malloc.hugetlb=1"
}
"""Environment in which a process keeps the memory that it frees, in pages as large as the kernel gives.

glibc otherwise gives each large tensor back to the kernel, and the next pass faults it in again page by page, zeroed:
two fifths of the time of a pass over four images of 512 pixels (``python -m tests.benchmarks.allocator``). One arena,
for those of other threads cannot hold a large block. It is read when a process starts, by glibc alone.
"""
