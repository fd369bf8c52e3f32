"""What torch's allocator is asked for on a CPU: the same bytes on every machine, unlike a process's peak."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile


def allocated_peak(work: Callable[[], object]) -> int:
    """Bytes of tensors alive at once while `work` runs, over those before it.

    What libraries take for themselves (oneDNN's blocked copies, malloc's gaps) is not in it.
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
