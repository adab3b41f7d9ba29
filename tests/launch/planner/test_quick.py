"""Plans by two shortened stacks and a straight line, beside those of whole stacks."""

import dataclasses

import pytest

from astrobio.config import ConfigError, load_preset
from launch import ROOT, cli
from launch.planner import quick
from launch.planner.hardware.profile import load_hardware
from launch.planner.model import load_model
from launch.planner.plan import make_job, plan
from launch.planner.simulation import run as ghost
from launch.planner.simulation.recorder import BOTH, GPU, HOST, Peak, Phase, locked_bytes
from launch.planner.unrolled import steps

CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
DEEP = load_preset("tiny", {"language.config.num_hidden_layers": 16, "climate.depth": 8, "metabolism.depth": 9})
CASES = {"zero3_offload_nvme": "a5000x2", "zero2_offload": "cpu"}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> str:
    """A folder with the config.json of a model that has as many layers as its kind has by default: it need not say."""
    from transformers import AutoConfig
    folder = tmp_path_factory.mktemp("qwen3")
    AutoConfig.for_model("qwen3", hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=16, vocab_size=1000).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def runs(language_model) -> None:
    """The ghost runs of the fast tests, made at once; the plans remember them."""
    jobs = [make_job(DEEP, ROOT / "ds_configs" / f"{config}.json", load_hardware(hardware))
            for config, hardware in CASES.items()]
    jobs.append(make_job(language_model, ROOT / "ds_configs/zero3_offload_bf16.json", load_hardware("a5000x2")))
    ghost.run_all({f"{number} {kind}": each for number, job in enumerate(jobs)
                   for kind, each in enumerate((job, *quick.cut(job)))})


def beside(model, config: str, hardware: str = "a5000x2") -> tuple[dict, dict]:
    """The plan of the whole stack and the quick one."""
    return tuple(plan(model, ROOT / "ds_configs" / f"{config}.json", hardware, quick=is_quick)
                 for is_quick in (False, True))


def same(whole: dict, found: dict, within: float) -> None:
    """Every number that a plan is read for, the allocator's cache apart."""
    assert found["quick"] and not whole["quick"]
    for key in ("parameters", "trainable", "tokens", "fits", "checkpoint_bytes"):
        assert found[key] == whole[key], key
    numbers = [("host", "peak_bytes"), ("time", "step_s"), ("nvme", "peak_bytes"), ("nvme", "read_bytes_per_step"),
               ("nvme", "written_bytes_per_step")]
    if whole["gpu"]:
        numbers += [("gpu", "allocated_bytes"), ("gpu", "resident_bytes")]
    for side, key in numbers:
        assert found[side][key] == pytest.approx(whole[side][key], rel=within), (side, key)
        assert found[side].get("phase") == whole[side].get("phase")


@pytest.mark.parametrize("config", CASES)
def test_a_line_through_two_shortened_stacks_is_the_whole(config, runs):
    whole, found = beside(DEEP, config, CASES[config])
    same(whole, found, 0.01)
    for side in ("gpu", "host") if whole["gpu"] else ("host",):
        assert sum(found[side]["parts"].values()) == pytest.approx(found[side]["peak_bytes"], rel=0.01)


def test_a_language_model_by_itself(language_model, runs):
    layers = [stack["language"]["config"]["num_hidden_layers"]
              for stack in quick.shortened(dataclasses.asdict(load_model(language_model)), 7, lambda depth: depth // 8)]
    assert layers == [4, 8]
    same(*beside(language_model, "zero3_offload_bf16"), 0.01)


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("config", CONFIGS)
def test_the_17b_stack(config):
    """Within one per cent, with what the allocator keeps, under every shipped ds_config."""
    whole, found = beside("17b", config)
    same(whole, found, 0.01)
    assert found["gpu"]["fits"] == whole["gpu"]["fits"]
    assert found["gpu"]["peak_bytes"] == pytest.approx(whole["gpu"]["peak_bytes"], rel=0.01)


def test_all_kinds_of_layers_are_shortened_alike():
    stack = dataclasses.asdict(load_preset("17b", {}))
    stack["language"]["config"]["layer_types"] = ["full_attention"] * 56
    short, long = quick.shortened(stack, 7, lambda depth: depth // 8)
    layers = [(part[key], *(list(quick._depths(cut))[place][0][key] for cut in (short, long)))
              for place, (part, key) in enumerate(quick._depths(stack))]
    assert sorted(layers) == [(2, 2, 2), (4, 4, 4), (8, 1, 2), (41, 6, 11), (48, 6, 12), (56, 7, 14)]
    assert all(quick.Line(7).at(few, more) == depth for depth, few, more in layers)
    assert len(long["language"]["config"]["layer_types"]) == 14
    assert len(stack["language"]["config"]["layer_types"]) == 56


@pytest.mark.parametrize("config, times, metabolism, spectrum", [
    ("zero3", 7, (6, 11), (1, 2)), ("zero3_nvme", 10, (1, 5), (8, 8)), ("zero2_offload", 7, (6, 11), (8, 8))])
def test_how_a_stack_is_shortened_depends_on_the_config(config, times, metabolism, spectrum):
    job = make_job("17b", ROOT / "ds_configs" / f"{config}.json", load_hardware("a5000x2"))
    stacks = [each.workload["stack"] for each in quick.cut(job)]
    assert tuple(stack["metabolism"]["depth"] for stack in stacks) == metabolism
    assert tuple(stack["spectrum"]["depth"] for stack in stacks) == spectrum
    for (whole, key), *others in zip(*map(quick._depths, (job.workload["stack"], *stacks)), strict=True):
        assert quick.Line(times).at(*(other[key] for other, _ in others)) == whole[key]


def test_no_line_leads_past_a_limit_of_deepspeeds():
    """A whole run tells of a stack that has more parameters than may stay in the host's memory, if a shortened one has
    fewer."""
    def quickly(in_cpu: int) -> dict:
        return plan(DEEP, ROOT / "ds_configs/zero3_nvme.json", quick=True, changes={
            "zero_optimization.offload_param.max_in_cpu": in_cpu, "zero_optimization.stage3_prefetch_bucket_size": 1000,
            "zero_optimization.reduce_bucket_size": 100_000, "zero_optimization.sub_group_size": 100_000})

    unlimited = quickly(10**9)
    assert unlimited["quick"]
    assert not quickly(int(0.45 * unlimited["parameters"]))["quick"]  # on each of two ranks
    job = make_job("17b", ROOT / "ds_configs/zero3_nvme.json", load_hardware("a5000x2"))
    assert sorted(quick.limits(job)) == [50_000_000, 50_000_000, 100_000_000, 200_000_000, 1_000_000_000]


def test_a_shallow_stack_is_run_whole(monkeypatch):
    asked = []
    monkeypatch.setattr(ghost, "run", asked.append)
    monkeypatch.setattr(quick, "assemble", lambda *args: {"quick": False})
    assert not plan("tiny", ROOT / "ds_configs/zero3.json", quick=True)["quick"]
    assert asked[0].workload["stack"] == dataclasses.asdict(load_model("tiny"))


def test_page_locked_blocks_are_as_large_as_torch_makes_them():
    for rounding, taken in ((None, [128, 256, 256]), (200, [128, 256, 201]), (100, [128, 200, 201])):
        assert [locked_bytes(size, rounding) for size in (100, 200, 201)] == taken
    one, two = (Peak(100 * n, {"buffer": 100 * n}, "", (("place", "buffer", 100 * n),)) for n in (1, 2))
    # 100 + 7 × 100, as it is; in the short runs 128 and 256, were they rounded
    assert quick.Line(7, rounding=50).peak(one, two).bytes == 800


def test_page_locked_blocks_are_rounded_one_by_one():
    """A block that grows with the model ends above another power of two; of blocks that come more often the sum is on
    the line."""
    def peak(size: int, number: int) -> Peak:
        parts = [("flat", "buffer", size), *[("group", "groups", 100)] * number]
        locked = {"buffer": 1 << (size - 1).bit_length(), "groups": 128 * number}
        return Peak(sum(locked.values()), locked, "", tuple(parts))

    whole = quick.Line(7).peak(peak(700, 2), peak(900, 4))  # 700 + 7 × 200 = 2100, 2 + 7 × 2 = 16
    assert whole.parts == {"buffer": 4096, "groups": 16 * 128} and whole.bytes == 4096 + 2048


def test_a_full_card_gives_back_what_is_cached():
    """What is allocated decides whether a stack fits; the rest takes what room there is."""
    machine = dataclasses.replace(load_hardware("a5000x2"), gpu_memory_bytes=100 << 20, context_bytes=0)

    def result(allocated: int, blocks=()) -> ghost.Result:
        peaks = {GPU: Peak(allocated << 20), HOST: Peak(), BOTH: Peak()}
        return ghost.Result([Phase("init", peaks, {})], [], [(key, size << 20, stream) for key, size, stream in blocks],
                            {}, 0, 1, 1, 1, 1)

    def run(last: int) -> ghost.Result:  # 12 MiB lie idle in the end
        return result(30 + last, ((1, 12, 0), (2, 30, 0), (1, -12, 0), (3, last, 0)))

    for few, more, reserved, fits in ((14, 16, 70, True), (14, 20, 98, True), (14, 22, 100, True),
                                      (14, 24, 126, False)):
        whole = result(quick.Line(7).at(30 + few, 30 + more))
        found = quick.Line(7).reserved(whole, *(steps(each.blocks) for each in (run(few), run(more))), machine, False)
        assert (found.peak, found.by_phase["init"], found.fits) == (reserved << 20, reserved << 20, fits)


def test_each_pool_is_on_a_line_of_its_own_or_stays():
    """In two runs streams have other numbers; a pool keeps what it took in an earlier phase."""
    def result(stream: int, grows: int) -> ghost.Result:
        blocks = [(1, grows << 20, 0), (2, 40 << 20, stream), (1, -grows << 20, 0), ("forward", 0, 0)]
        peaks = {GPU: Peak(), HOST: Peak(), BOTH: Peak()}
        return ghost.Result([Phase("init", peaks, {})], [], blocks, {}, 0, 1, 1, 1, 1)

    found = quick.Line(7).reserved(result(0, 0), *(steps(result(*each).blocks) for each in ((5, 20), (7, 30))),
                            load_hardware("a5000x2"), False)
    assert found.by_phase == {"init": (20 + 7 * 10 + 40) << 20, "forward": 130 << 20}


def test_only_a_plan_by_itself_is_quick(capsys):
    with pytest.raises(ConfigError, match="--advice"):
        plan("tiny", ROOT / "ds_configs/zero3.json", quick=True, advice=True)
    assert cli.main(["plan", "--model", "tiny", "--table", "--quick"]) == 2
    assert "--table" in capsys.readouterr().err
