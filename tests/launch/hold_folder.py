"""Claim a folder, say "held" or why not, and hold it: hold_folder.py FOLDER [emptied]."""

import sys
import time
from pathlib import Path

from astrobio.config import ConfigError
from launch.claim import claim

if __name__ == "__main__":
    try:
        claim(Path(sys.argv[1]), "--run there", emptied="emptied" in sys.argv[2:])
    except ConfigError as error:
        print(error, flush=True)
    else:
        print("held", flush=True)
        time.sleep(60)
