"""Write metrics into a file that may not grow beyond 1000 bytes: write_until_full.py FILE."""

import resource
import signal
import sys
from pathlib import Path

from launch.monitor import MetricsFile

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    metrics = MetricsFile(Path(sys.argv[1]))
    for step in range(100):
        metrics.write({"kind": "train", "step": step, "loss": 1.5})
