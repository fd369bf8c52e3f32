"""Peak of memory that torch's allocator hands out on a CPU.

It is the same number of bytes on every machine, unlike a process's peak.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile


def allocated_peak(work: Callable[[], object]) -> int:
    """Return the largest number of bytes in tensors at once while `work` runs, beyond those before it.

    Memory that libraries take for themselves (oneDNN's blocked copies, malloc's gaps) does not count.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, torch.no_grad():
        work()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    alive = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["args"]["Ev Idx"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak
