"""The processes of simulations: they see no card, and nothing of the launch that asks for them."""

import json
from pathlib import Path

from launching import run_script

from launch.subprocesses import OF_A_LAUNCH

HERE = Path(__file__).parent


def test_a_simulation_sees_no_card_and_no_launch():
    """A process forked after CUDA was asked for a card aborts in autograd's threads (pytorch #33248)."""
    done = run_script(HERE / "workloads.py", CUDA_VISIBLE_DEVICES="0,1", **dict.fromkeys(OF_A_LAUNCH, "7"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["here"], told["beside"]) == ("0,1", "0,1"), "the process that asked keeps its cards"
    saw = told["saw"]
    assert saw["CUDA_VISIBLE_DEVICES"] == "" and saw["threads"] is False
    assert (saw["RANK"], saw["WORLD_SIZE"]) == ("0", "3"), "the simulation's own"
    assert "7" not in {saw[key] for key in OF_A_LAUNCH}


def test_whoever_is_to_fork_sees_no_card_from_before_its_imports():
    done = run_script(HERE / "preloading.py", CUDA_VISIBLE_DEVICES="3")
    assert not done.stdout, "stdout is the caller's"
    told = {line for line in done.stderr.splitlines() if line.startswith(("torch:", "deepspeed:"))}
    assert done.returncode == 0 and told == {"torch: ''", "deepspeed: ''"}, done.stderr
