# SPDX-License-Identifier: MIT
"""Types for a size: the knapsack, what is planned, and what sensitivity is measured."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cli_runner import assert_error, lutra, require_built
from gguf_samples import hf_model
from plan_samples import asked, tensor

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import TYPES
from gguf_tools.inspect import read_info
from gguf_tools.reader import GGUFFile, type_name
from gguf_tools.sources.open import open_source
from lutra.conversion import budget
from lutra.conversion.budget import Choice, allocate, ranges, solve
from lutra.conversion.options import Target
from lutra.conversion.plan import Rules, main_type, plan
from lutra.conversion.sensitivity import group, measure

# ---- the knapsack ----------------------------------------------------------------------------


def random_items(rng: np.random.Generator, count: int, kinds: int) -> list[list[Choice]]:
    """Larger choices of an item cost less, as types do; a few are dominated."""
    items = []
    for _ in range(count):
        sizes = np.sort(rng.integers(1, 60, kinds))
        costs = np.sort(rng.exponential(1.0, kinds))[::-1] * rng.choice([0.1, 1.0, 10.0])
        items.append([Choice(TYPES["f16"], int(n), float(c)) for n, c in zip(sizes, costs, strict=True)])
    return items


def total(chosen) -> tuple[int, float]:
    return sum(c.nbytes for c in chosen), sum(c.cost for c in chosen)


@pytest.mark.parametrize("seed", range(8))
def test_knapsack_is_exact(seed):
    rng = np.random.default_rng(seed)
    items = random_items(rng, 6, 4)
    everything = [total(chosen) for chosen in itertools.product(*items)]
    for capacity in rng.integers(1, 300, 12).tolist():
        chosen = solve(items, capacity)
        possible = [cost for size, cost in everything if size <= capacity]
        if chosen is None:
            assert not possible
            continue
        assert all(c in item for c, item in zip(chosen, items, strict=True))
        assert total(chosen)[0] <= capacity
        assert total(chosen)[1] == pytest.approx(min(possible))


def test_a_large_knapsack_is_near_its_bound_and_monotone(monkeypatch):
    """Sizes without a common divisor: more combinations than are followed."""
    monkeypatch.setattr(budget, "STATES", 1 << 10)
    rng = np.random.default_rng(0)
    items = [
        [
            Choice(TYPES["f16"], int(bits * n + rng.integers(999)), float(s * 4.0**-bits))
            for bits in (2, 3, 4, 6)
        ]
        for n, s in zip(rng.integers(10_000, 90_000, 60), rng.exponential(1.0, 60), strict=True)
    ]
    least = sum(item[0].nbytes for item in items)
    before = np.inf
    for capacity in np.linspace(least, 2 * least, 6).astype(int).tolist():
        size, cost = total(solve(items, capacity))
        # the Lagrangian's bound: no solution in this capacity costs less
        bound = max(
            sum(min(c.cost + price * c.nbytes for c in item) for item in items) - price * capacity
            for price in np.geomspace(1e-10, 1e-4, 200)
        )
        assert size <= capacity
        assert cost < before
        assert cost <= 1.02 * bound or capacity == least
        before = cost
    assert solve(items, least - 1) is None


# ---- plans -----------------------------------------------------------------------------------


TENSORS = [
    tensor("token_embd.weight", 4096, 256),
    *(tensor(f"blk.{i}.{role}.weight", 512, 256) for i in range(4) for role in ("attn_v", "ffn_up")),
    tensor("blk.0.attn_norm.weight", 256),
    tensor("blk.0.odd.weight", 100, 100),
]
COSTS = {t.name: 0.1 if "attn_v" in t.name else 0.01 for t in TENSORS if len(t.shape) == 2}


def solved(text: str, rules: Rules | None = None) -> dict[str, str]:
    rules = allocate(TENSORS, rules or asked("f16"), COSTS, Target.parse_bpw(text), 0, False)
    return {p.source.name: p.type_name for p in plan(TENSORS, rules)}


def bpw(types: dict[str, str]) -> float:
    planned = plan(
        TENSORS, replace(asked("f16"), solved={name: TYPES[kind.lower()] for name, kind in types.items()})
    )
    return 8 * sum(p.nbytes for p in planned) / sum(p.weights for p in planned)


def test_bits_go_where_errors_cost():
    types = solved("3.2")
    rank = ["CB2", "CB3", "CB4", "Q5_K", "Q6_K", "Q8_0", "F16"].index
    assert min(rank(types[f"blk.{i}.attn_v.weight"]) for i in range(4)) > max(
        rank(types[f"blk.{i}.ffn_up.weight"]) for i in range(4)
    )
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.odd.weight"] == "F16"  # nothing smaller holds rows of 100


@pytest.mark.parametrize("wanted", ["2.7", "3", "4.31", "6.5", "9", "17"])
def test_targets_are_kept(wanted):
    assert bpw(solved(wanted)) <= float(wanted)
    assert bpw(solved(wanted)) > 0.9 * min(float(wanted), 16)


def test_overrides_stay_in_force():
    types = solved("7", asked("f16", "attn_v=cb2", embedding_type="q8_0"))
    assert {types[f"blk.{i}.attn_v.weight"] for i in range(4)} == {"CB2"}
    assert types["token_embd.weight"] == "Q8_0"


def test_the_file_is_of_the_type_that_most_weights_have():
    assert main_type(plan(TENSORS, asked("cb3"))).name == "cb4"  # mostly embeddings
    assert (
        main_type(plan(TENSORS, asked("cb3", embedding_type="q4_k"))).name == "cb3"
    )  # no file is of tensors' q4_k
    assert main_type(plan(TENSORS[1:], asked("f16", ".=q8_0"))).name == "q8_0"


def test_what_is_too_small_is_refused_with_the_range():
    with pytest.raises(LutraError, match=r"--target-bpw 1\.5: .*possible are 2\.\d+ to 16\.\d\d") as error:
        solved("1.5")
    least = str(error.value).split("possible are ")[1].split()[0]
    assert bpw(solved(least)) <= float(least)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("400M", 400_000_000),
        ("1.5G", 1_500_000_000),
        ("2mib", 2 << 20),
        (".5GB", 500_000_000),
        ("800k", 800_000),
    ],
)
def test_sizes(text, nbytes):
    assert Target.parse_size(text).nbytes == nbytes


@pytest.mark.parametrize("text", ["400", "M", "-1M", "1e3M", "0M", "400T", "x", "9" * 400 + "G"])
def test_no_sizes(text):
    with pytest.raises(LutraError, match="400M"):
        Target.parse_size(text)


def test_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""


# ---- sensitivity -----------------------------------------------------------------------------


def test_groups_are_layers_next_to_each_other():
    names = ["token_embd.weight", *(f"blk.{i}.{role}.weight" for i in range(12) for role in "ab")]
    assert group(names, 25) == [[name] for name in names]
    shared = group(names, 15)
    assert sorted(itertools.chain(*shared)) == sorted(names)
    assert len(shared) <= 15
    assert ["token_embd.weight"] in shared
    assert ["blk.0.a.weight"] in shared
    assert ["blk.1.a.weight", "blk.2.a.weight", "blk.3.a.weight"] in shared
    assert len(group(names, 0)) == 1 + 2 * 3


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Qwen2-family model of one layer, random weights, as an F16 GGUF; wide enough for noise to count."""
    require_built()
    directory = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 448, "intermediate_size": 1216, "num_attention_heads": 7}
    done = lutra("convert", hf_model(directory / "qwen", **sizes), "--type", "f16", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "qwen-f16.gguf"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("What a matrix does to its inputs is changed by rounding its weights. " * 8)
    return path


def test_noise_costs_what_the_matrix_does(model, text, tmp_path):
    """A matrix that does more costs more, the others about as before; the file is as it was."""
    name = "blk.0.ffn_down.weight"
    costs = []
    for factor in (1, 4):
        source, path = tmp_path / "source.gguf", tmp_path / f"{factor}.gguf"
        source.write_bytes(model.read_bytes())
        place = GGUFFile(source).tensors[name]
        weights = np.memmap(source, np.float16, "r+", offset=place.offset, shape=place.weights)
        weights *= factor
        weights.flush()
        path.write_bytes(source.read_bytes())
        found, how = measure(path, open_source(source).tensors, text, 1)
        assert path.read_bytes() == source.read_bytes()
        assert "9 measurements for 9 matrices" in how
        assert min(found.values()) >= 0
        costs.append(found)
    assert costs[1][name] > 2 * costs[0][name]


def test_a_dry_run_prints_the_plan_and_writes_nothing(model, text, tmp_path):
    args = ("convert", model, "--target-bpw", "4", "--calibration", text, "--dry-run")
    one, two = (lutra(*args, "--threads", threads, cwd=tmp_path) for threads in (1, 2))
    assert one.returncode == two.returncode == 0, one.stderr
    assert "ffn_down.weight" in one.stdout
    assert "predicted KL divergence" in one.stdout
    assert one.stdout.split("expected:")[0] == two.stdout.split("expected:")[0]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_size(model, tmp_path):
    done = lutra(
        "convert",
        model,
        "--target-size",
        "1.3M",
        "--no-calibration",
        "--threads",
        1,
        "--tensor-type",
        "ffn_up=q8_0",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (output,) = tmp_path.iterdir()
    assert output.name == "qwen-1.3M.gguf"
    assert 0.95 * 1.3e6 < output.stat().st_size <= 1.3e6
    assert lutra("verify", output).returncode == 0
    info = read_info(output)
    types = {t.name: type_name(t.type) for t in info.tensors}
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert len({*types.values()} - {"F32", "Q8_0"}) > 1
    assert "--target-size 1.3M" in info.metadata["lutra.convert.options"].value


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["--target-size", "100k"], ["--target-size 100k: too small", "possible are"]),
        (["--target-bpw", "1"], ["--target-bpw 1: too small", "possible are"]),
        (["--target-bpw", "much"], ["'much' is no number of bits per weight"]),
        (["--target-size", "400"], ["'400' is no size, e.g. 400M"]),
        (["--target-bpw", "3", "--type", "cb3"], ["not allowed with"]),
        (["--target-bpw", "3", "--target-size", "1M"], ["not allowed with"]),
        (["--target-bpw", "3", "--pure"], ["--pure", "--target-bpw"]),
        (["--type", "cb3_m", "--pure"], ["--pure", "cb3_m"]),
    ],
)
def test_wrong_targets_are_one_line(args, fragments, model, tmp_path):
    assert_error(lutra("convert", model, *args, cwd=tmp_path), *fragments)
    assert list(tmp_path.iterdir()) == []
