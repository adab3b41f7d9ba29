"""Imported once by the process that simulations are forked from.

It sees no card: in a process forked after CUDA was asked for one, autograd's threads abort (pytorch issue 33248). It is
no rank of a launch, though a rank may have started it.
"""

import gc
import os

from launch.subprocesses import OF_A_LAUNCH

os.dup2(2, 1)  # DeepSpeed logs to stdout at its import, where the caller prints its JSON
os.environ["CUDA_VISIBLE_DEVICES"] = ""
for _key in OF_A_LAUNCH:
    os.environ.pop(_key, None)

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401  by ZeroOptimizer_Stage3, late
import torch_geometric.nn  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import launch.planner.simulation.run  # noqa: E402, F401

gc.freeze()  # what is imported is shared with every simulation: no collection may write to it
