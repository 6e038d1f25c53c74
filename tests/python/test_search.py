# SPDX-License-Identifier: MIT
"""Types for a target: what is planned, what is measured, and that bounds are kept."""

from __future__ import annotations

import functools
import itertools
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_runner import assert_error, lutra, require_built
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import hf_model
from plan_samples import asked, tensor

from gguf_tools.errors import LutraError
from gguf_tools.formats.catalog import TYPES
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.inspect import read_info
from gguf_tools.reader import GGUFFile, type_name
from gguf_tools.sources.tensors import Source
from gguf_tools.writer import GGUFWriter, TensorSpec, padded
from lutra.conversion import pipeline, sensitivity
from lutra.conversion.boards import BOARDS, CYCLES, Board, modelled
from lutra.conversion.costs import Costs
from lutra.conversion.divergence import Divergence, divergence
from lutra.conversion.here import measure_here
from lutra.conversion.options import ConversionOptions, Target
from lutra.conversion.pipeline import convert
from lutra.conversion.plan import main_type, plan
from lutra.conversion.search import AIM, ROUNDS, Search, ranges
from lutra.conversion.sensitivity import LENGTH, Matrices, Measured, group, measure, predict
from lutra.conversion.text import keep_aside, read_pieces, spread
from lutra.conversion.workdir import WorkDirectory
from lutra.runtime.model import Model

# ---- plans -----------------------------------------------------------------------------------


TENSORS = [
    tensor("token_embd.weight", 4096, 256),
    *(tensor(f"blk.{i}.{role}.weight", 512, 256) for i in range(4) for role in ("attn_v", "ffn_up")),
    tensor("blk.0.attn_norm.weight", 256),
    tensor("blk.0.odd.weight", 100, 100),
]
UNITS = {t.name: 5.6 if "attn_v" in t.name else 0.56 for t in TENSORS if len(t.shape) == 2}


def searching(target: Target, board: Board | None = None, **options) -> Search:
    """A search whose first file is measured."""
    source = Source(Path("model"), "llama", {}, TENSORS)
    options = ConversionOptions(target=target, threads=1, **options)
    return Search(source, options, board, costs=Costs(UNITS), rounds=[None])


def solved(text: str, **options) -> dict[str, str]:
    return {p.name: p.type_name for p in searching(Target.parse_bpw(text), **options).planned()}


def bpw(planned) -> float:
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
    found = bpw(searching(Target.parse_bpw(wanted)).planned())
    assert 0.9 * min(float(wanted), 16) < found <= float(wanted)


def test_overrides_stay_in_force():
    types = solved("7", tensor_types=("attn_v=cb2",), embedding_type="q8_0")
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
    assert bpw(searching(Target.parse_bpw(least)).planned()) <= float(least)


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


@pytest.mark.parametrize("bound", ["1e-5", "0.003", "0.02", "3"])
def test_bounds_are_planned_for_with_what_was_measured(bound):
    found = searching(Target.parse_kld(bound))
    sizes = []
    for factor in (0.5, 1.0, 2.0):
        found.costs = Costs({name: factor * unit for name, unit in UNITS.items()})
        planned = found.planned()
        assert found.costs.total(planned) <= AIM * float(bound)
        sizes.append(sum(p.nbytes for p in planned))
    assert sizes == sorted(sizes)


def test_a_loss_of_the_perplexity_is_one_of_the_logarithm():
    assert Target.parse_loss("1%").bound == pytest.approx(math.log(1.01))
    assert Target.parse_kld("0.02").bound == 0.02
    assert Target.parse_bpw("3").bound is None
    assert str(Target.parse_loss("0.1%")) == "max-loss-0.1"
    for text in ("1", "0%", "-1%", "%", "x%", "inf%"):
        with pytest.raises(LutraError, match=r"perplexity, e\.g\. 1%"):
            Target.parse_loss(text)
    with pytest.raises(LutraError, match=r"divergence .*, e\.g\. 0\.02"):
        Target.parse_kld("much")


def lost(nats: float) -> Divergence:
    return Divergence(nats, 0.0, 0.0, 0.0, 4096)


def rounds(factor: float, bound: str = "0.02") -> list[tuple[float, float]]:
    """Sizes and losses of the rounds of a model that loses ``factor`` times what is predicted at first."""
    found, done = searching(Target.parse_kld(bound)), []
    while not found.is_met:
        planned = found.planned()
        loss = factor * Costs(UNITS).total(planned)
        done.append((bpw(planned), loss))
        found.judge(planned, lost(loss))
    assert loss <= found.target.bound
    assert found.best == planned
    return done


def test_what_is_overshot_is_tightened_and_what_is_far_away_relaxed():
    assert len(rounds(1.0)) == 1
    (before, overshot), *_, (after, kept) = rounds(1.6)
    assert overshot > 0.02 >= kept
    assert after > before
    (before, little), *_, (after, kept) = rounds(0.4)
    assert little < kept <= 0.02
    assert after < before
    # the smallest types of all, and still far from the bound
    assert len(rounds(0.001, "9")) == 1


def test_a_bound_that_is_never_met_is_an_error():
    found = searching(Target.parse_kld("0.02"))
    for _ in range(ROUNDS - 1):
        assert not found.judge(found.planned(), lost(0.021))
        assert not found.is_met
    with pytest.raises(
        LutraError, match=r"--max-kld 0\.02: not met in \d rounds, the last one lost 0\.02100"
    ):
        found.judge(found.planned(), lost(0.021))


def test_the_best_file_of_all_rounds_is_taken():
    """It ends where the next plan would be no smaller."""
    found = searching(Target.parse_kld("0.02"))
    assert found.judge(good := found.planned(), lost(0.001))
    losses = [0.021]
    while not found.is_met:
        assert bpw(found.planned()) < bpw(good)
        assert not found.judge(found.planned(), lost(losses[-1]))
        losses.append(2 * losses[-1])
    assert len(losses) > 1
    assert len(found.rounds) <= ROUNDS
    assert found.best == good


@pytest.mark.parametrize(("target", "first"), [("0.02", "CB4"), ("0.15", "CB3"), ("0.0001", "CB6")])
def test_a_bound_is_measured_in_a_type_that_loses_about_as_much(target, first):
    found = searching(Target.parse_kld(target))
    found.rounds.clear()
    assert {p.type_name for p in found.planned() if "attn_v" in p.name} == {first}


def test_a_size_is_measured_in_the_best_recipe_and_is_never_worse():
    """What is measured in decides where the plan is no better on text kept aside."""
    recipe = plan(TENSORS, asked("cb3"))
    for loss, best in ((0.9, "plan"), (1.1, "recipe")):
        found = searching(Target.parse_bpw(f"{bpw(recipe) + 0.01}"))
        found.rounds.clear()
        first = found.planned()
        assert [p.type for p in first] == [p.type for p in recipe]
        assert found.judge(first, lost(1.0))
        assert not found.is_met
        second = found.planned()
        assert found.judge(second, lost(loss)) == (best == "plan")
        assert found.is_met
        assert found.best == (second if best == "plan" else first)


def test_two_planes_are_no_bytes_of_a_size():
    fixed = ("ffn_up=cb4", "token_embd=cb4", "odd=f16")
    made = plan(TENSORS, ConversionOptions(type="cb4", tensor_types=(*fixed, "attn_v=cb6")).rules)
    assert sum(p.has_two_planes for p in made) == 4
    nbytes = sum(padded(p.nbytes) for p in made)
    found = searching(
        Target.parse_bpw(f"{8 * (nbytes + 1) / sum(p.weights for p in made):.6f}"), tensor_types=fixed
    )
    assert [(p.name, p.type_name) for p in found.planned()] == [(p.name, p.type_name) for p in made]


def test_costs_of_a_file_become_costs_of_any_type():
    """What seems to cost nothing costs a part of the mean."""
    first = plan(TENSORS, asked("cb3", pure=True))
    costs = {"token_embd.weight": 0.06, **{f"blk.{i}.ffn_up.weight": 0.0025 for i in range(4)}}
    costs |= {f"blk.{i}.attn_v.weight": cost for i, cost in enumerate((0.015, 0.015, 0.0, 0.0))}
    inputs = {name: 0.02 if name == "blk.3.ffn_up.weight" else 0.0 for name in costs}
    learned = Costs.learned(first, Measured(costs, inputs, ""))
    # what is not known costs its share of the mean, what seems to cost nothing a tenth
    unknown = 0.1 * 100 * 100 / sum(t.rows * t.k for t in TENSORS if len(t.shape) == 2) * 10**-5.6
    floors = 2 * 0.1 * 0.1 * 512 / (4096 + 8 * 512)
    assert learned.total(first) == pytest.approx(0.1 + floors + 0.02 + unknown, rel=0.01)
    assert min(learned.weights.values()) > 0
    assert learned.weights["blk.0.attn_v.weight"] == learned.weights["blk.1.attn_v.weight"]
    assert learned.weights["blk.0.attn_v.weight"] > 10 * learned.weights["blk.2.attn_v.weight"]
    two = [replace(p, has_two_planes=p.name == "blk.3.ffn_up.weight") for p in first]
    assert learned.total(first) - learned.total(two) == pytest.approx(0.02, rel=0.01)
    better = plan(TENSORS, asked("cb4", pure=True))
    weights = learned.total(first) - 0.02
    assert learned.total(better) == pytest.approx(weights * 10 ** (-(23.8 - 17.5) / 10) + 0.02, rel=0.01)


def test_costs_are_corrected_by_what_a_file_loses():
    first, better = (plan(TENSORS, asked(kind, pure=True)) for kind in ("cb3", "cb4"))
    costs = Costs(UNITS, {"blk.0.ffn_up.weight": 0.01})
    before = costs.total(better) / costs.total(first)
    for loss in (0.3, 0.2):
        costs.see(first, loss)
        assert costs.total(first) == pytest.approx(loss)
        assert costs.total(better) / costs.total(first) == pytest.approx(before)


def test_two_planes_come_where_one_breaks_the_bound():
    """Not before: they take time."""
    for rounding, is_needed in ((1e-6, False), (1e-2, True)):
        found = searching(Target.parse_kld("0.02"))
        found.costs = Costs(UNITS, {"blk.1.ffn_up.weight": rounding})
        assert [p.name for p in found.planned() if p.has_two_planes] == ["blk.1.ffn_up.weight"] * is_needed


def test_perplexity_counts_where_it_shows_more_than_the_divergence():
    assert Divergence(0.01, 0.001, 0.03, 0.002, 4096).loss == pytest.approx(0.026)
    assert Divergence(0.01, 0.001, 0.012, 0.002, 4096).loss == 0.01
    assert Divergence(0.01, 0.001, -0.05, 0.002, 4096).loss == 0.01


# ---- time ------------------------------------------------------------------------------------


def test_a_board_takes_types_that_are_fast_on_it():
    """Where memory does not matter bits are free; where it does they are time."""

    def types(board: Board) -> set[str]:
        return {p.type_name for p in searching(Target.parse_kld("0.05"), board).planned()}

    slow = modelled("computes", 1.0, 1e6, *(9.0 if "cb" in name else 1.0 for name in CYCLES))
    fast = modelled("reads", 1e6, 1.0, *(1.0 for _ in CYCLES))
    assert types(slow).isdisjoint({"CB2", "CB3", "CB4"})
    assert types(fast) >= {"CB4"}
    measured = {kind.name: fast.per_weight[kind.name] for kind in TYPES.values() if kind.snr}  # not F32
    assert types(Board("here", measured, fast.per_byte)) == types(fast)


def test_what_is_only_looked_up_takes_no_time():
    untied = [*TENSORS, tensor("output.weight", 4096, 256)]
    found = searching(Target.parse_kld("0.02"), BOARDS["pi5"])
    found.source = Source(Path("model"), "llama", {}, untied)
    found.costs = Costs(UNITS | {"output.weight": 0.56})
    types = {p.name: p for p in found.planned()}
    embedding, output = types["token_embd.weight"], types["output.weight"]
    assert found._multiplied(embedding) == 0
    assert found._multiplied(output) == output.weights
    assert embedding.nbytes > output.nbytes


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_boards_are_those_of_the_documents(board):
    text = (Path(__file__).parents[2] / "docs" / "RECIPES.md").read_text()
    row = re.search(rf"`{board.name}` \| .* \| ([\d.]+) GHz, ([\d.]+) GB/s \| ([\d. ]+) \|", text)
    assert row
    ghz, gb_per_s, cycles = float(row[1]), float(row[2]), map(float, row[3].split())
    assert board == modelled(board.name, ghz, gb_per_s, *cycles)


def test_this_machine_is_measured(tmp_path):
    require_built("llama-bench")
    kinds = [TYPES["cb4"], TYPES["q8_0"]]
    per_weight, per_byte = measure_here(kinds, 1, tmp_path / "speed.gguf")
    assert list(per_weight) == ["cb4", "q8_0"]
    assert min(per_weight.values()) > 1e-12
    assert max(per_weight.values()) < 1e-7
    assert per_byte <= per_weight["q8_0"]
    assert not list(tmp_path.iterdir())


def test_layers_are_told_in_order_whatever_that_of_the_source():
    found = searching(Target.parse_kld("0.02"), tensor_types=("ffn_up=cb4",))
    found.source = Source(Path("model"), "llama", {}, TENSORS[::-1])
    assert re.search(r"ffn_up\.weight +CB4 +0-3 ", found.describe(found.planned()))


def test_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""


def test_a_fifth_of_a_text_is_kept_aside():
    pieces = [[i] for i in range(23)]
    rest, aside = keep_aside(pieces)
    assert aside == [[4], [9], [14], [19]]
    assert sorted(rest + aside) == pieces
    assert keep_aside(pieces[:2]) == ([[0]], [[1]])
    assert keep_aside(pieces[:1]) == ([[0]], [])
    assert spread(pieces, 3) == [[0], [11], [22]]
    assert spread(pieces, 99) == pieces


def test_work_keeps_what_was_measured_and_drops_tensors_of_other_types(tmp_path, capsys):
    output, data = tmp_path / "o", np.zeros(24, np.uint8)

    def stopped(*, lasting: bool) -> None:
        with WorkDirectory(output, {}, lasting=lasting) as work:
            assert work.cached("search", lambda: {"a": [0.1]}) == {"a": [0.1]}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stopped(lasting=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError):
        stopped(lasting=True)
    assert "what was measured is kept in" in capsys.readouterr().err
    with WorkDirectory(output, {}) as work:
        assert work.cached("search", lambda: {}) == {"a": [0.1]}
        work.save("w", [data], 0.5)
        work.save("x", [data], 0.5)
        work.drop_other_types({"w": 24, "v": 3})
        assert "w" in work
        assert "x" in work
        work.drop_other_types({"w": 24, "x": 40})
        assert not work.done()
    assert not list(tmp_path.iterdir())


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
    path.write_text("What a matrix does to its inputs is changed by rounding its weights. " * 40)
    return path


def pieces_of(model: Path, text: Path) -> list[list[int]]:
    with Model(model, threads=1, n_ctx=32, weights=False) as tokenizer:
        return read_pieces(text, tokenizer, 512)


def test_rounding_costs_what_the_matrix_does(model, text, tmp_path):
    """Nothing makes up for these errors: each costs as much alone as in the file."""
    names, rng = (
        [f"blk.0.{role}.weight" for role in ("ffn_up", "ffn_down", "attn_k")],
        np.random.default_rng(0),
    )
    rounded = {}
    for name, size in zip(names, (0.3, 0.1, 0.0), strict=True):
        weights = Matrices(model)[name]
        errors = (size * weights.std() * rng.standard_normal(len(weights))).astype(np.float16)
        rounded[name] = functools.partial(np.add, weights, errors)
    pieces, scratch = pieces_of(model, text), tmp_path / "scratch.gguf"
    costs = measure(model, model, scratch, model, rounded, pieces, 1)
    up, down, nothing = (costs.weights[name] for name in names)
    assert up > 2 * down > 0
    assert nothing == 0
    assert set(costs.inputs.values()) == {0.0}  # there are no codebooks in F16
    assert "9 measurements for 3 matrices" in costs.how
    shutil.copyfile(model, scratch)
    for name, weights in rounded.items():
        Matrices(scratch, writable=True)[name][:] = weights()
    assert up + down == pytest.approx(divergence(model, scratch, pieces, 1).kld, rel=0.5)


def test_rounding_inputs_costs_what_a_second_plane_wins(model, text, tmp_path, monkeypatch):
    done = lutra("convert", model, "--type", "cb4", "--pure", "--no-calibration", "-o", tmp_path / "cb4.gguf")
    assert done.returncode == 0, done.stderr
    names = [t.name for t in read_info(tmp_path / "cb4.gguf").tensors if t.type in CB_FORMATS]
    exact = {name: functools.partial(np.copy, Matrices(model)[name]) for name in names}
    pieces = [piece[:LENGTH] for piece in pieces_of(model, text)]
    costs = measure(model, tmp_path / "cb4.gguf", tmp_path / "scratch.gguf", model, exact, pieces, 1)
    assert set(costs.weights.values()) == {0.0}
    assert costs.inputs.keys() == set(names)
    assert min(costs.inputs.values()) >= 0
    lost = {}
    for planes in ("1", "2"):
        monkeypatch.setenv("LUTRA_PLANES", planes)
        with (
            Model(model, threads=1, n_ctx=LENGTH) as before,
            Model(tmp_path / "cb4.gguf", threads=1, n_ctx=LENGTH) as now,
        ):
            both = [(predict(before, piece), predict(now, piece)) for piece in pieces]
        lost[planes] = np.mean([(np.exp(a) * (a - b)).sum(1) for a, b in both])
    assert lost["1"] > lost["2"]
    assert sum(costs.inputs.values()) == pytest.approx(lost["1"] - lost["2"], rel=0.1)


# Few matrices left to choose for: a test need not take long.
MOST_FIXED = ("--tensor-type", "attn|up|gate=q8_0", "--token-embedding-type", "q8_0")


def test_a_dry_run_prints_the_plan_and_writes_nothing(model, text, tmp_path):
    args = ("convert", model, "--target-bpw", "8", "--calibration", text, "--dry-run", *MOST_FIXED)
    one, two = (lutra(*args, "--threads", threads, cwd=tmp_path) for threads in (1, 2))
    assert one.returncode == two.returncode == 0, one.stderr
    assert "ffn_down.weight" in one.stdout
    assert "predicted KL divergence" in one.stdout
    assert one.stdout.split("expected:")[0] == two.stdout.split("expected:")[0]
    assert list(tmp_path.iterdir()) == []


def in_two(path: Path, directory: Path) -> Path:
    """A GGUF as two files, and the first of them."""
    names = [directory / f"{path.stem}-{i:05}-of-00002.gguf" for i in (1, 2)]
    with GGUFFile(path) as file:
        tensors = list(file.tensors.values())
        for i, part in enumerate((tensors[:5], tensors[5:])):
            numbers = {"split.no": i, "split.count": 2, "split.tensors.count": len(tensors)}
            values = {key: GGUFValue(n, GGUFValueType.UINT16) for key, n in numbers.items()}
            specs = [TensorSpec(t.name, t.type, t.shape, t.nbytes) for t in part]
            with GGUFWriter(names[i], file.metadata | values if i == 0 else values, specs) as writer:
                for t in part:
                    writer.write(file.data(t))
    return names[0]


def test_a_file_of_a_size(model, tmp_path, tmp_path_factory):
    """From a split model, too, of which the search needs a whole one."""
    done = lutra(
        "convert",
        in_two(model, tmp_path_factory.mktemp("parts")),
        "--target-size",
        "2.3M",
        "--no-calibration",
        "--threads",
        1,
        *MOST_FIXED,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (output,) = tmp_path.iterdir()
    assert output.name == "qwen-2.3M.gguf"
    assert 0.9 * 2.3e6 < output.stat().st_size <= 2.3e6
    assert lutra("verify", output).returncode == 0
    info = read_info(output)
    types = {t.name: type_name(t.type) for t in info.tensors}
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert len({*types.values()} - {"F32", "Q8_0"}) > 1
    assert "--target-size 2.3M" in info.metadata["lutra.convert.options"].value


def test_a_bound_is_met_on_text_kept_aside(model, text, tmp_path):
    done = lutra(
        "convert", model, "--max-kld", "0.01", "--for", "pi5", "--calibration", text, "--threads", 1,
        *MOST_FIXED, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (output,) = tmp_path.iterdir()
    assert output.name == "qwen-max-kld-0.01.gguf"
    *_, last = re.findall(r"predicted ([\d.]+), measured .*: KL divergence ([\d.]+)", done.stderr)
    assert float(last[1]) <= 0.01
    assert "ms per token in matrices on pi5" in done.stderr
    assert lutra("verify", output).returncode == 0
    options = read_info(output).metadata["lutra.convert.options"].value
    assert options.startswith("--max-kld 0.01 --for pi5")


def test_an_interrupted_search_measures_nothing_twice(model, text, tmp_path, monkeypatch):
    options = ConversionOptions(
        target=Target.parse_kld("0.05"), calibration=text, threads=1,
        tensor_types=("attn|up|gate=q8_0",), embedding_type="q8_0",
    )  # fmt: skip
    output = tmp_path / "out.gguf"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    measuring = iter([pipeline.divergence])
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "divergence", lambda *args: next(measuring, stop)(*args))
        with pytest.raises(KeyboardInterrupt):
            convert(model, options, output)
    assert [path.name for path in tmp_path.iterdir()] == [".out.gguf.lutra-work"]
    monkeypatch.setattr(sensitivity, "measure", stop)
    monkeypatch.setattr(pipeline, "calibrate", stop)
    convert(model, options, output)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["--max-loss", "1"], ["'1' is no rise of the perplexity, e.g. 1%"]),
        (["--max-kld", "0"], ["'0' is no KL divergence"]),
        (["--max-loss", "1%", "--pure"], ["--pure", "--max-loss"]),
        (["--target-bpw", "4", "--for", "pi5"], ["--for pi5 belongs to --max-loss or --max-kld"]),
        (["--max-kld", "0.1", "--for", "pi6"], ["--for pi6: no such machine; choose one of pi5, graviton3"]),
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
