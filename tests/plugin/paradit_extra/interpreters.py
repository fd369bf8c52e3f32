"""Launcher that starts ranks as new interpreters, and sends each its work on standard input."""

import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from paradit.engine.launchers import Capabilities, Machine, Seat, num_cores, threads_per_rank


class Interpreters:
    def __init__(self):
        self.capabilities = Capabilities(replaces=True, shared_folder=True)
        self._folder, self._processes, self._logs = TemporaryDirectory(), [], []

    def machines(self):
        return [Machine(name="localhost", cores=num_cores(), gpus=0)]

    def start(self, ranks, work, *, address, token, preload):  # noqa: ARG002
        folder = Path(self._folder.name)
        where = {"machine": "localhost", "threads": threads_per_rank(ranks), "device": "cpu"}
        where |= {"meet": folder / "store", "address": address, "token": token}
        seats = [Seat(rank=n, ranks=ranks, local_rank=n, local_ranks=ranks, **where) for n in range(ranks)]
        for seat in seats:
            words, log = [sys.executable, "-m", __name__], (folder / str(seat.rank)).open("w")
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log)
            process.stdin.write(pickle.dumps((work, seat)))
            process.stdin.close()
            self._processes.append(process)
            self._logs.append((folder / str(seat.rank)).open(errors="replace"))
        return seats

    def ended(self):
        codes = {rank: process.poll() for rank, process in enumerate(self._processes)}
        return {rank: f"ended with exit code {code}" for rank, code in codes.items() if code is not None}

    def said(self):
        return {rank: text for rank, log in enumerate(self._logs) if (text := log.read())}

    def end(self):
        for process in self._processes:
            process.kill()
            process.wait()
        self._folder.cleanup()


if __name__ == "__main__":
    work, seat = pickle.load(sys.stdin.buffer)
    work(seat)
