"""What of a ds_config is checked against the model, and the facts of the model for it."""

from dataclasses import replace

import pytest
from mistakes import MODEL, Z, changed

from astrobio.config import LoraConfig, load_preset
from launch.ds_config import facts
from launch.ds_config.check import check
from launch.ds_config.finding import ABSENT
from launch.planner.model import load_model

pytestmark = pytest.mark.usefixtures("accelerator")


def test_what_matches_nothing_in_the_model_is_remarked_upon():
    stack = load_model("tiny")
    stack.language.lora = LoraConfig(rank=4, target_modules=["q_proj", "nonexistent"])
    config = changed({f"{Z}.leaf_module.classes": ["Blok"], f"{Z}.stage3_param_persistence_threshold": 10**9})
    found = check(config, world_size=2, facts=facts.model_facts(stack), machine=False)
    assert {(finding.key, finding.value) for finding in found if not finding.problem} == {
        (f"{Z}.leaf_module.classes", "Blok"),
        ("model.language.lora.target_modules", "nonexistent"),
        ("model.language.init_from", ABSENT),
        (f"{Z}.stage3_param_persistence_threshold", 10**9),
    }


def test_random_weights_that_do_not_train_are_remarked_upon():
    """Of `17b_frozen`, for one, which only says what is frozen."""

    def remarked(changes):
        network = replace(MODEL, frozen_at_random=tuple(load_preset("tiny", changes).frozen_at_random))
        found = check(changed({}), world_size=2, facts=network, machine=False)
        return {finding.key for finding in found if not finding.problem and finding.key.endswith("init_from")}

    assert remarked({"freeze": ["language", "climate"]}) == {"model.language.init_from", "model.climate.init_from"}
    assert remarked({"freeze": ["climate"], "climate.init_from": "somewhere"}) == set()
    assert remarked({"language.lora": {"rank": 2}}) == {"model.language.init_from"}
    assert remarked({}) == set()
    assert load_preset("17b_frozen").frozen_at_random == ["language", "climate"]


def test_a_balance_loss_needs_layers_that_keep_their_graph():
    """Under DeepSpeed's reentrant checkpoints the experts' scores would be without a gradient."""
    stack = load_preset(
        "tiny",
        {
            "language.model_type": "mixtral",
            "language.config.num_local_experts": 4,
            "language.config.output_router_logits": True,
        },
    )
    for block, keys in (({"partition_activations": False}, ["activation_checkpointing"]), (None, [])):
        config = changed({})
        config.pop("activation_checkpointing", None)
        if block is not None:
            config["activation_checkpointing"] = block
        found = check(config, world_size=2, facts=facts.model_facts(stack), machine=False)
        assert [finding.key for finding in found if finding.problem] == keys


def test_facts_are_counted_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    counted = facts.model_facts(load_preset("17b_frozen"))
    assert 17.2e9 < counted.parameters < 17.3e9 and counted.frozen and counted.hidden_size == 4352
    assert counted.largest == 4352 * 32000 and counted.tensors_in_a_layer(100_000) >= 7
    assert facts.model_facts(load_preset("17b_frozen")) == counted
    assert len(list(tmp_path.rglob("*.json"))) == 1
    other = facts.model_facts(load_preset("17b_frozen", {"language.config.num_hidden_layers": 55}))
    assert other.parameters < counted.parameters, "the facts of another model were remembered"
