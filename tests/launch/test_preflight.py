"""Every mistake a user can make ends before the ranks meet, with a message that names it."""

import json
import shutil
import socket

import deepspeed
import pytest
from breaking import cut_short, flip
from launching import train
from project import DS_CONFIGS
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from astrobio.config import ConfigError, load_preset
from launch.checkpoints.compatibility import dataset_hash
from launch.checkpoints.folder import path_of
from launch.checkpoints.manifest import MANIFEST, Manifest, SavedTensor
from launch.options import parse_arguments
from launch.preflight import preflight, user_errors
from launch.zero.engine import meta_stack

pytestmark = pytest.mark.usefixtures("accelerator")

OFFLOAD, NVME = DS_CONFIGS["zero3_offload"], DS_CONFIGS["zero3_nvme"]


@pytest.fixture
def check(mini_dataset, tmp_path):
    """Run the preflight with good options but for those given; returns what it resolved."""

    def run(*arguments, config=OFFLOAD, data=mini_dataset, model="tiny"):
        return preflight(
            parse_arguments(
                [
                    "--ds_config",
                    str(config),
                    "--model",
                    model,
                    "--data",
                    str(data),
                    "--run",
                    str(tmp_path / "run"),
                    *map(str, arguments),
                ]
            )
        )

    return run


def refused(check, *words, **options):
    """The preflight refuses with a message that has all the words."""
    arguments = options.pop("arguments", ())
    with pytest.raises(ConfigError) as error:
        check(*arguments, **options)
    for word in words:
        assert str(word) in str(error.value)


@pytest.fixture
def broken_dataset(mini_dataset, tmp_path):
    """A copy to break."""
    return shutil.copytree(mini_dataset, tmp_path / "broken")


def test_good_options_are_resolved(check, mini_dataset):
    plan = check("--max_steps", 7, "--set", "train.epochs=2", "ds_config.gradient_accumulation_steps=4")
    assert (plan.micro_batch, plan.accumulation, plan.global_batch, plan.max_steps) == (1, 4, 4, 7)
    assert plan.total_steps == 24  # 48 records × 2 epochs ÷ 4
    params = plan.ds_config.scheduler.params
    assert (params["cycle_first_step_size"], params["cycle_second_step_size"]) == (7, 17)
    assert plan.data == mini_dataset


def test_missing_ds_config(check):
    refused(
        check,
        "zero3_ofload.json",
        "no such file",
        "did you mean 'zero3_offload'",
        config=OFFLOAD.with_name("zero3_ofload.json"),
    )


def test_malformed_ds_config(check, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"fp16": {"enabled": true')
    refused(check, "broken.json", "not valid JSON", "line 1", config=path)


def test_unknown_preset(check):
    refused(check, "'tinny'", "did you mean 'tiny'", model="tinny")


def test_preset_that_cannot_be_built(check):
    refused(check, "tiny", "climate.patch", "levels", arguments=["--set", "model.climate.patch=[3, 8, 8]"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.patiense=3", ("patiense", "did you mean 'patience'")),
        ("trian.patience=3", ("trian", "did you mean 'train'")),
        ("model.climate.hiden_size=3", ("climate.hiden_size", "did you mean 'hidden_size'")),
        ("model.language.config.hiden_size=3", ("hiden_size", "did you mean 'hidden_size'")),
        ("ds_config.fp16.inital_scale_power=3", ("fp16.inital_scale_power", "did you mean 'initial_scale_power'")),
        ("ds_config.gradient_cliping=3", ("gradient_cliping", "did you mean 'gradient_clipping'")),
        ("ds_config.scheduler.params.cycle_maxlr=1", ("scheduler.params.cycle_maxlr", "did you mean 'cycle_max_lr'")),
        ("ds_config.aio.thread_count=1", ("aio.thread_count",)),
        ("train.epochs=0", ("epochs", "0", "greater than or equal to 1")),
        ("train.epochs", ("SECTION.KEY=VALUE",)),
    ],
)
def test_unknown_or_wrong_set_key(check, change, words):
    refused(check, *words, arguments=["--set", change])


def test_dataset_that_is_not_there(check, tmp_path):
    refused(check, tmp_path / "nowhere", "astrobio data build", data=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["stats.json", "tokenizer/tokenizer.json", "train/data-00000-of-00001.arrow"])
def test_dataset_with_a_file_missing(check, broken_dataset, name):
    (broken_dataset / name).unlink()
    refused(check, name, "missing", data=broken_dataset)


def test_dataset_with_a_flipped_byte(check, broken_dataset):
    path = broken_dataset / "train/data-00000-of-00001.arrow"
    flip(path)
    refused(check, path.name, "sha256", data=broken_dataset)


def test_dataset_of_another_schema(check, broken_dataset):
    manifest = json.loads((broken_dataset / "manifest.json").read_text())
    (broken_dataset / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    refused(check, "manifest.json", "schema_version", "99", data=broken_dataset)


def test_tokenizer_larger_than_the_vocabulary(check):
    refused(check, "tokenizer", "vocab_size", "100", arguments=["--set", "model.language.config.vocab_size=100"])


def test_nvme_without_libaio(check, monkeypatch):
    monkeypatch.setattr(deepspeed.ops.op_builder.AsyncIOBuilder, "is_compatible", lambda self, verbose=False: False)
    refused(check, "libaio", "apt-get install libaio-dev", config=NVME)


def test_nvme_path_that_cannot_be_written(check, tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file/swap"
    key = "zero_optimization.offload_optimizer.nvme_path"
    refused(check, key, path, "--set", config=NVME, arguments=["--set", f"ds_config.{key}={path}"])


def test_deepspeed_s_monitors_write_into_the_run_s_folder(check, tmp_path):
    enabled = ["--set", "ds_config.csv_monitor.enabled=true"]
    plan = check(*enabled)
    assert plan.ds_config.raw["csv_monitor"]["output_path"] == str(plan.run)
    assert plan.model_reason.startswith("tiny (")
    plan = check(*enabled, f"ds_config.csv_monitor.output_path={tmp_path}")
    assert plan.ds_config.raw["csv_monitor"]["output_path"] == str(tmp_path)


def test_resume_from_a_folder_without_a_checkpoint(check, tmp_path):
    refused(check, tmp_path, "neither a checkpoint nor a run's folder", arguments=["--resume", tmp_path])


def test_resume_auto_starts_afresh_where_there_is_nothing(check):
    assert check("--resume", "auto").resume == []


def checkpoint_of(plan, step=5, ranks=2, stack="tiny", **about):
    """A checkpoint that says it was saved by this plan; without the numbers."""
    saved = path_of(plan.run, step)
    saved.mkdir(parents=True)
    tensors = {
        f"fp32/{name}": SavedTensor(list(parameter.shape), "F32", "0" * 32, [])
        for name, parameter in meta_stack(load_preset(stack)).named_parameters()
    }
    about = {
        "model": stack,
        "dataset": dataset_hash(plan.data),
        "global_batch": 32,
        "ds_config": plan.ds_config.raw,
        **about,
    }
    manifest = Manifest(
        step=step,
        about=about,
        tensors=tensors,
        scalars={},
        param_groups=[],
        counters={},
        scheduler=None,
        loss_scale=None,
        random=[{}] * ranks,
        files={},
    )
    (saved / MANIFEST).write_text(manifest.text())
    return saved


def test_resume_keeps_the_global_batch(check):
    saved = checkpoint_of(check(), global_batch=64)
    plan = check("--resume", "auto")
    assert plan.resume == [saved] and plan.accumulation == 64 and plan.global_batch == 64
    assert "gradient_accumulation_steps: 32 before, 64 now" in plan.resume_notes
    refused(
        check,
        "global batch of 64",
        "divides 64",
        arguments=["--resume", "auto", "--set", "ds_config.train_micro_batch_size_per_gpu=3"],
    )


def test_a_run_is_not_begun_over_another(check):
    checkpoint_of(check())
    refused(check, "--resume auto")


def test_resume_of_another_model_or_dataset(check):
    plan = check()
    saved = checkpoint_of(plan, stack="small", dataset="0" * 64)
    refused(
        check, str(saved), "'small'", "'tiny'", "more differences", "content_sha256", arguments=["--resume", plan.run]
    )


def test_resume_says_what_is_otherwise_than_it_was(check):
    plan = check()
    checkpoint_of(plan, ranks=1)
    notes = check(
        "--resume",
        plan.run,
        "--set",
        "ds_config.optimizer.params.weight_decay=0.5",
        "ds_config.scheduler.params.cycle_max_lr=0.5",
        "train.epochs=7",
        config=OFFLOAD.with_name("zero2_offload.json"),
    ).resume_notes
    for words in (
        "ZeRO stage: 3 before, 2 now",
        "parameters on: cpu before, none now",
        "optimizer.params.weight_decay: 1e-05 before, 0.5 now",
        "cycle_max_lr=0.5",
    ):
        assert any(words in note for note in notes), (words, notes)
    notes = check("--resume", plan.run, config=OFFLOAD.with_name("zero3_offload_bf16.json")).resume_notes
    assert any("precision: fp16 before, bf16 now; the loss scale is dropped" in note for note in notes)
    notes = check("--resume", plan.run, "--set", 'model.freeze=["language"]').resume_notes
    assert any("are frozen now: their moments are dropped" in note for note in notes)


def test_a_resume_that_changes_nothing_says_nothing(check):
    plan = check()
    checkpoint_of(plan, ranks=1)
    assert check("--resume", plan.run).resume_notes == []


def test_resume_auto_takes_the_newest_that_is_valid_and_says_so(check):
    plan = check()
    good, broken = checkpoint_of(plan, step=5, ranks=1), checkpoint_of(plan, step=10, ranks=1)
    (broken / MANIFEST).write_text("{}")
    found = check("--resume", "auto")
    assert found.resume == [good]
    assert any(
        MANIFEST in note and str(broken) in note and "step_00000005 is taken" in note for note in found.resume_notes
    )
    (plan.run / "checkpoints/latest").write_text("")
    assert any("latest is empty" in note for note in check("--resume", "auto").resume_notes)
    refused(check, str(broken), MANIFEST, arguments=["--resume", broken])
    (good / MANIFEST).unlink()
    refused(check, str(good), str(broken), "no checkpoint of", "is valid", arguments=["--resume", "auto"])


def test_a_port_that_another_run_uses(check, monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("RANK", "0")
        refused(check, f"port {port}", "--master_port")
    check()


def test_batch_sizes_that_contradict_each_other(check):
    refused(check, "train_batch_size = 10", "32", arguments=["--set", "ds_config.train_batch_size=10"])


def test_stage_0_trains_as_stage_1(check):
    """Of DeepSpeed's stage 0 no checkpoint is known."""
    plan = check("--set", 'ds_config.zero_optimization={"stage": 0}')
    assert plan.ds_config.raw["zero_optimization"]["stage"] == 1
    assert any("trains as stage 1" in remark for remark in plan.remarks)


def test_both_precisions(check):
    refused(check, "fp16.enabled and bf16.enabled", arguments=["--set", "ds_config.bf16.enabled=true"])


def test_a_mistake_prints_every_problem_and_exits_with_2(capsys):
    with pytest.raises(SystemExit) as leaving, user_errors():
        raise ConfigError("first\nsecond")
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "error: first\nerror: second\n"


@pytest.fixture
def checkpoint(tmp_path):
    """A language model to start from, without a tokenizer."""
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=2048
        )
    ).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def from_checkpoint(folder, config="{}"):
    return ["--set", f"model.language.init_from={folder}", f"model.language.config={config}"]


def test_a_checkpoint_brings_its_sizes_and_its_tokenizer(check, checkpoint, mini_dataset):
    plan = check(*from_checkpoint(checkpoint))
    assert plan.tokenizer == mini_dataset / "tokenizer"
    shutil.copytree(mini_dataset / "tokenizer", checkpoint, dirs_exist_ok=True)
    assert check(*from_checkpoint(checkpoint)).tokenizer == checkpoint


def test_a_damaged_checkpoint_is_named_before_the_ranks_meet(check, checkpoint, tmp_path):
    refused(check, "hidden_size = 96", "64", arguments=from_checkpoint(checkpoint, '{"hidden_size": 96}'))
    refused(check, "no such folder", arguments=from_checkpoint(tmp_path / "nowhere"))
    path = checkpoint / "model.safetensors"
    cut_short(path)
    refused(check, path, "damaged or cut short", arguments=from_checkpoint(checkpoint))


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_the_launcher_too(checkpoint, mini_dataset, tmp_path):
    """On two ranks: none of them is left waiting for the other."""
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, checkpoint / "model.safetensors")
    done = train("zero3_offload", mini_dataset, tmp_path / "run", *from_checkpoint(checkpoint))
    assert done.status == 2 and "Traceback" not in done.output
    assert "lacks model.norm.weight [64]" in done.output


def test_frozen_parameters_on_nvme_need_a_reuse_distance_of_0(check):
    frozen = 'model.freeze=["language"]'
    key = "zero_optimization.stage3_max_reuse_distance"
    assert check("--set", frozen, config=NVME)
    refused(check, key, "must be 0", config=NVME, arguments=["--set", frozen, f"ds_config.{key}=1000000000"])
    assert check("--set", f"ds_config.{key}=1000000000", config=NVME)
