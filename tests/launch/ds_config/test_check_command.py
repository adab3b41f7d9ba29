"""`astrobio check`: its status, and what it prints."""

import json
import subprocess
import sys

import pytest
from mistakes import NVME, Z, changed
from project import ROOT

from launch.cli import main

pytestmark = pytest.mark.usefixtures("accelerator")


def test_remarks_leave_the_status_at_0(tmp_path, capsys):
    path = tmp_path / "remarks.json"
    path.write_text(json.dumps(changed({"aio.queue_depth": 4, "fp16.initial_scale_power": 32})))
    assert main(["check", "--ds_config", str(path), "--ranks", "2"]) == 0
    out = capsys.readouterr().out
    assert "remark: aio" in out and "about 16 steps will be skipped" in out


def test_a_hugging_face_folder_is_a_model_too(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "vocab_size": 256,
            }
        )
    )
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(changed({**NVME, f"{Z}.offload_param.buffer_size": 100}, "zero3_nvme")))
    assert main(["check", "--ds_config", str(path), "--model", str(tmp_path), "--ranks", "2"]) == 2
    assert "must hold a rank's part of the largest parameter: 16,384" in capsys.readouterr().err


def test_json_is_all_there_is_on_stdout(tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(changed({f"{Z}.stage": 7})))
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "check", "--ds_config", path, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert done.returncode == 2 and not found["ok"]
    assert found["problems"][0]["key"] == f"{Z}.stage" and found["problems"][0]["value"] == 7
