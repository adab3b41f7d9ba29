"""Starting from a Hugging Face checkpoint: read rightly, or refused with the tensor's and the file's name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from astrobio.config import ConfigError, load_preset
from astrobio.pretrained import INDEX, Pretrained
from astrobio.stack import AstrobioStack, exported_config
from launch.zero.weights import load_whole

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Llama in several shards."""
    folder = tmp_path_factory.mktemp("checkpoint") / "llama"
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def preset_of(folder, **changes):
    return load_preset("tiny", {"language.config": {}, "language.init_from": str(folder), **changes})


def problems_of(folder) -> list[str]:
    with torch.device("meta"):
        language = AstrobioStack(preset_of(folder)).language
    return Pretrained(folder).problems(language.model, language.pretrained)


def shard_of(folder, name):
    """The file that holds a tensor, and all that is in it."""
    path = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    return path, load_file(path)


def test_any_slice_is_read(checkpoint):
    source, files = Pretrained(checkpoint), Pretrained(checkpoint).files()
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        for start, stop in ((0, len(flat)), (1, 2), (len(flat) // 3, len(flat) // 2 + 1), (len(flat) - 1, len(flat))):
            assert torch.equal(source.read(name, start, stop, files[name]), flat[start:stop]), name


def test_a_whole_checkpoint_has_no_problem(checkpoint):
    assert problems_of(checkpoint) == []


def test_tied_and_adapted_models_have_none_either(tmp_path):
    config = AutoConfig.for_model(
        "llama",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=2048,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert problems_of(tmp_path) == []
    with torch.device("meta"):
        language = AstrobioStack(preset_of(tmp_path, **{"language.lora": {"rank": 2}})).language
    assert Pretrained(tmp_path).problems(language.model, language.pretrained) == []


def test_sizes_are_the_checkpoints(checkpoint):
    with torch.device("meta"):
        stack = AstrobioStack(preset_of(checkpoint, **{"language.config": {"hidden_size": 64}}))
    assert stack.language.model.config.intermediate_size == 128


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"language.config": {"hidden_size": 96}}, ("language.config.hidden_size = 96", "64")),
        ({"language.model_type": "mistral"}, ("model_type", "'mistral'", "'llama'")),
        ({"language.config": {"hiden_size": 64}}, ("did you mean 'hidden_size'",)),
    ],
)
def test_a_preset_that_insists_on_something_else(checkpoint, changes, words):
    with pytest.raises(ConfigError) as error:
        AstrobioStack(preset_of(checkpoint, **changes))
    for word in words:
        assert word in str(error.value)


def test_a_missing_tensor_is_named(copy):
    path, tensors = shard_of(copy, EMBEDDING)
    del tensors[EMBEDDING]
    save_file(tensors or {"x": torch.zeros(1)}, path)
    assert any("lacks" in problem and EMBEDDING in problem and "[2048, 64]" in problem for problem in problems_of(copy))


def test_an_unexpected_tensor_and_a_wrong_shape_are_named(copy):
    path, tensors = shard_of(copy, EMBEDDING)
    save_file({**tensors, EMBEDDING: torch.zeros(2048, 63), "model.visual.weight": torch.zeros(2)}, path)
    found = "\n".join(problems_of(copy))
    assert f"{path}: {EMBEDDING} is [2048, 63], the model's is [2048, 64]" in found
    assert f"{path}: holds model.visual.weight, which the model has not" in found and found.count("\n") == 1


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_shard_is_named(copy, keep):
    path, _ = shard_of(copy, EMBEDDING)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match="damaged or cut short") as error:
        problems_of(copy)
    assert str(path) in str(error.value)


def test_missing_files_are_named(copy, tmp_path):
    path, _ = shard_of(copy, EMBEDDING)
    path.unlink()
    with pytest.raises(ConfigError, match="is missing, but") as error:
        problems_of(copy)
    assert path.name in str(error.value)
    (copy / INDEX).write_text("{}")
    with pytest.raises(ConfigError, match="not an index"):
        problems_of(copy)
    (copy / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor"):
        problems_of(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        problems_of(copy)
    with pytest.raises(ConfigError, match="no such folder"):
        problems_of(tmp_path / "nowhere")


# Encoders


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny stack as `astrobio checkpoint export` leaves it, in two files."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(4)
    tensors = dict(AstrobioStack(load_preset("tiny")).named_parameters())
    (folder / "config.json").write_text(json.dumps(exported_config(load_preset("tiny"), "fp32")))
    names = sorted(tensors)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name].detach() for name in names if files[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))
    return folder


def encoder_problems(folder, part="climate", **changes) -> list[str]:
    with torch.device("meta"):
        stack = AstrobioStack(load_preset("tiny", {f"{part}.init_from": str(folder), **changes}))
    return Pretrained(folder, part).part_problems(part, stack.pretrained()[part])


@pytest.mark.parametrize("part", ["planet", "climate", "metabolism", "spectrum"])
def test_an_encoder_starts_from_an_exported_stack(exported, part):
    assert encoder_problems(exported, part) == []
    torch.manual_seed(0)
    stack = AstrobioStack(load_preset("tiny", {f"{part}.init_from": str(exported)}))
    load_whole(stack)
    whole = AstrobioStack.from_pretrained(exported)
    for name, other in whole.named_parameters():
        same = torch.equal(stack.get_parameter(name), other)
        if name.startswith(f"{part}."):
            assert same, name
        elif other.numel() > 1 and other.std() > 0 and not name.endswith("patterns"):  # drawn, not constant
            assert not same, name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"climate.depth": 2}, ["climate.init_from: {folder}: lacks climate.blocks.1.", "[64]"]),
        ({"climate.stem_channels": 16}, ["climate.stem.0.body.0.weight is [8], the model's is [16]"]),
        (
            {"language.config.hidden_size": 96, "language.config.head_dim": 24},
            ["climate.queries.out.1.weight is [64, 64], the model's is [96, 64]"],
        ),
    ],
)
def test_an_encoder_of_other_sizes_is_refused_with_the_tensors_name(exported, changes, words):
    found = "\n".join(encoder_problems(exported, **changes))
    for word in words:
        assert word.format(folder=exported) in found


def test_more_layers_than_the_encoder_has_are_named(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "deeper")
    path = folder / "model-0.safetensors"
    save_file({**load_file(path), "climate.blocks.7.mlp.0.bias": torch.zeros(2), "other": torch.zeros(2)}, path)
    assert encoder_problems(folder) == [
        f"climate.init_from: {path}: holds climate.blocks.7.mlp.0.bias, which the model has not"
    ]


def test_a_missing_folder_of_an_encoder_says_what_belongs_there(tmp_path):
    with pytest.raises(ConfigError, match=r"climate.init_from = .*: no such folder; .* checkpoint export"):
        Pretrained(tmp_path / "nowhere", "climate")


def test_an_exported_stack_forgets_where_its_parts_came_from(exported):
    config = load_preset("tiny", {"climate.init_from": str(exported)})
    assert exported_config(config, "fp32")["astrobio_stack"]["climate"]["init_from"] is None
