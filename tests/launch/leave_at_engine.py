"""launch/train.py up to the engine: tells how many processes read ahead by then, and leaves."""

import multiprocessing
import sys

from launch import train


def build_engine(*_):
    print("readers", len(multiprocessing.active_children()), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    train.build_engine = build_engine
    train.main(sys.argv[1:])
