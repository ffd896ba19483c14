"""How much memory a run takes."""

import contextlib
import ctypes
import gc
import threading

import psutil
import torch


class PeakMemory:
    """The highest memory inside a `with`, in bytes: of this process on a CPU (asked 20 times a second), of tensors on a GPU."""

    def __init__(self, device: torch.device):
        self.device, self.peak, self._done = device, 0, threading.Event()

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            gc.collect()
            with contextlib.suppress(
                OSError, AttributeError, TypeError
            ):  # glibc keeps what was freed: give it back, or it counts
                ctypes.CDLL(None).malloc_trim(0)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self):
        process, done = psutil.Process(), False
        while not done:
            self.peak = max(self.peak, process.memory_info().rss)
            done = self._done.wait(0.05)

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._thread.join()
