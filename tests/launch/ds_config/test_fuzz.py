"""Random mistakes in the files that users write: each is refused by name or accepted; none ends in a traceback, a
prompt or a signal."""

import json
import random
import subprocess
import sys

import pytest
import yaml
from changing import mutated
from project import ROOT

from astrobio.config import ConfigError, load_preset, preset_names
from launch.ds_config.facts import model_facts
from launch.planner.model import load_model

FOLDERS = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "rope_theta": 1e4,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 128},
    "mixtral": {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "num_local_experts": 4,
    },
    "mamba2": {
        "model_type": "mamba2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "vocab_size": 256,
        "expand": 2,
        "n_groups": 1,
    },
    "qwen2_vl": {"model_type": "qwen2_vl", "hidden_size": 64, "vision_config": {"depth": 2}},
    "remote": {"model_type": "chatglm", "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}},
}


def outcome(path) -> str:
    try:
        model_facts(load_model(str(path)))
    except ConfigError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {str(error)[:300]}"
    return "taken"


def judge(table: list[tuple[str, str]]) -> None:
    assert not [line for line in table if line[1].startswith("TRACEBACK")]
    assert any(said == "taken" for _, said in table) and any(said.startswith("refused") for _, said in table)


def folders(tmp_path, number: int) -> list[tuple[str, str]]:
    chance, table = random.Random(0), []
    for index in range(number):
        name = chance.choice(list(FOLDERS))
        content = mutated(FOLDERS[name], chance)
        folder = tmp_path / f"{index}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
        table.append((json.dumps(content), outcome(folder)))
    return table


def presets(tmp_path, number: int) -> list[tuple[str, str]]:
    chance, table = random.Random(0), []
    sources = {name: yaml.safe_load((ROOT / f"astrobio/presets/{name}.yaml").read_text()) for name in preset_names()}
    for index in range(number):
        content = mutated(
            sources[chance.choice([name for name in sources if "17b" not in name and name != "1b"])], chance
        )
        path = tmp_path / f"{index}.yaml"
        path.write_text(yaml.safe_dump(content))
        table.append((json.dumps(content), outcome(path)))
    return table


def test_some_mistakes_in_a_models_files(tmp_path):
    (tmp_path / "folders").mkdir()
    judge(folders(tmp_path / "folders", 40) + presets(tmp_path, 40))


@pytest.mark.slow
def test_many_mistakes_in_a_models_files(tmp_path, capsys):
    (tmp_path / "folders").mkdir()
    table = folders(tmp_path / "folders", 400) + presets(tmp_path, 400)
    with capsys.disabled():
        print("\n" + "\n".join(f"{what[:150]:150s} {said[:130]}" for what, said in table))
    judge(table)


def test_code_of_a_models_own_is_never_asked_about(tmp_path):
    """With a terminal transformers would ask whether to run it; here it may not even wait for an answer."""
    (tmp_path / "config.json").write_text(json.dumps(FOLDERS["remote"]))
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "params", "--model", tmp_path],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2 and "code of its own, which is not run" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_preset_by_its_name_is_still_taken():
    assert model_facts(load_preset("tiny")).parameters > 10**5
