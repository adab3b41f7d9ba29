"""The astrobio command: exit codes, messages, and nothing but JSON where JSON was asked for."""

import json
import shutil

import pytest
from breaking import flip

from launch.cli import main


def test_params_as_json(capsys):
    assert main(["params", "--model", "17b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 16.8e9 <= found["parameters"]["total"] <= 17.3e9
    assert found["parameters"]["total"] == sum(n for name, n in found["parameters"].items() if name != "total")


def test_params_tell_what_trains_and_what_it_costs(capsys):
    assert main(["params", "--model", "17b_frozen", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainable"]["language"] == found["trainable"]["climate"] == 0
    assert found["trainable"]["total"] == sum(
        found["parameters"][part] for part in ("planet", "metabolism", "spectrum", "absent", "fusion")
    )
    assert found["fp16_bytes"]["total"] == 2 * found["parameters"]["total"]
    # A multiplication and an addition for each weight of a layer and each of 1024 + 144 tokens, and attention on top.
    layers = found["parameters"]["language"] - 2 * 32000 * 4352
    assert 1 < found["flops_per_sample"]["language"] / (2 * layers * 1168 + 2 * 32000 * 4352 * 1023) < 1.1
    assert main(["params", "--model", "tiny"]) == 0
    assert "metabolism" in capsys.readouterr().out


def test_unknown_model_exits_with_2(capsys):
    assert main(["params", "--model", "17bb"]) == 2
    assert "did you mean '17b'" in capsys.readouterr().err


def test_a_folder_that_transformers_cannot_read_exits_with_2(tmp_path, capsys):
    for content, said in (("{", "valid JSON"), ('{"model_type": "lama"}', "`lama`")):
        (tmp_path / "config.json").write_text(content)
        assert main(["params", "--model", str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert f"--model {tmp_path}" in message and said in message


def test_check_names_every_problem(tmp_path, capsys):
    path = tmp_path / "typo.json"
    path.write_text('{"train_micro_batch_size_per_gpu": 1, "gradient_cliping": 1, "fp16": {"enabld": true}}')
    assert main(["check", "--ds_config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "'gradient_clipping'" in message and "'enabled'" in message and message.count("error:") == 2


def test_check_passes_a_good_config(capsys):
    assert main(["check", "--ds_config", "ds_configs/zero3_offload.json"]) == 0
    assert "no problem found" in capsys.readouterr().out


def test_data_validate_names_the_damaged_file(mini_dataset, tmp_path, capsys):
    folder = shutil.copytree(mini_dataset, tmp_path / "damaged")
    path = folder / "validation/data-00000-of-00001.arrow"
    flip(path)
    assert main(["data", "validate", str(folder)]) == 1
    out = capsys.readouterr()
    assert str(path) in out.out + out.err


def test_data_commands_refuse_nonsense(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["data", "bild"])
    assert leaving.value.code == 2
