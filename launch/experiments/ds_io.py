"""DeepSpeed's `ds_io` with what `launch.zero.compiled` keeps: by itself it compiles anew, for minutes, without a word.

python -m launch.experiments.ds_io --folder DIR --io_size 512M …
"""

from deepspeed.nvme import ds_io_main

from launch.zero.compiled import keep_compiled

keep_compiled()  # in its workers too, which are spawned, and import this module again

if __name__ == "__main__":
    ds_io_main()
