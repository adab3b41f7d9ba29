"""What a ghost run imports, and what it does not."""

import json
import os
import pickle
import subprocess
import sys

from launch import ROOT
from launch.planner.simulation.imports import NOT_NEEDED

SCRIPT = """
import json, sys
from launch.planner.simulation.imports import import_libraries
import_libraries()
import torch, transformers, pandas, torch._dynamo
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from deepspeed.utils.nvtx import instrument_w_nvtx

@torch.compiler.disable
def told():
    return 1

@instrument_w_nvtx
def noted(x):
    return x + 1

print(json.dumps({"modules": len(sys.modules), "sympy": "sympy" in sys.modules, "pandas": hasattr(pandas, "__file__"),
                  "told": told(), "noted": noted(1), "false": bool(pandas.anything(3).more), "compiling":
                  torch.compiler.is_compiling(), "llama": LlamaForCausalLM.__name__, "auto":
                  AutoModelForCausalLM.__name__, "classes": len(dir(transformers))}))
"""

WHOLE = f"""
import json, sys
import deepspeed, torch_geometric.nn, transformers.models.llama.modeling_llama, launch.zero.engine
print(json.dumps(dict(modules=len(sys.modules), classes=len(dir(transformers)),
                      left_out=[name for name in {NOT_NEEDED} if name in sys.modules])))
"""


def test_what_is_left_out_is_not_missed(tmp_path):
    def run(script: str) -> dict:
        environment = {**os.environ, "ASTROBIO_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    first = run(SCRIPT)
    file, = tmp_path.glob("imports/transformers-*")
    kept = pickle.loads(file.read_bytes())
    assert any("LlamaForCausalLM" in str(structure) for structure in kept.values())
    second = run(SCRIPT)  # with what was kept
    file.write_bytes(b"half a pick")
    third = run(SCRIPT)
    assert first == second == third and pickle.loads(file.read_bytes()) == kept
    assert (first["told"], first["noted"], first["llama"]) == (1, 2, "LlamaForCausalLM")
    assert not any(first[key] for key in ("sympy", "pandas", "false", "compiling"))
    whole = run(WHOLE)
    assert whole["classes"] == first["classes"] and whole["modules"] > first["modules"] + 1000
    assert {"pandas", "datasets", "scipy.optimize", "torch_geometric.datasets"} <= set(whole["left_out"])
