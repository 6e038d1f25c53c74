# SPDX-License-Identifier: MIT
"""Types for a target: what is planned, what is measured, and that bounds are kept."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

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
from gguf_tools.sources.tensors import Source
from lutra.conversion import pipeline
from lutra.conversion.boards import BOARDS, CYCLES, Board, modelled
from lutra.conversion.divergence import Divergence
from lutra.conversion.here import measure_here
from lutra.conversion.jobs import Jobs
from lutra.conversion.losses import Losses, _block, _rounding, measure_losses
from lutra.conversion.options import ConversionOptions, Target
from lutra.conversion.pipeline import convert
from lutra.conversion.plan import main_type, plan
from lutra.conversion.search import AIM, ROUNDS, Search, ranges
from lutra.conversion.sensitivity import group, measure
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
LOSSES = {
    t.name: {
        kind.name: (0.1 if "attn_v" in t.name else 0.01) * 10 ** (-(kind.snr - 17.4) / 10)
        for kind in TYPES.values()
        if kind.snr
    }
    for t in TENSORS
    if len(t.shape) == 2
}


def searching(target: Target, board: Board | None = None, **options) -> Search:
    """A search whose measurements are done."""
    source = Source(Path("model"), "llama", {}, TENSORS)
    return Search(source, ConversionOptions(target=target, threads=1, **options), board, losses=LOSSES)


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
    for found.scale in (0.5, 1.0, 2.0):
        planned = found.planned()
        assert found.predicted(planned) <= AIM * float(bound)
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


def rounds(factor: float, bound: str = "0.02") -> list[tuple[float, float]]:
    """Sizes and losses of the rounds of a model that loses ``factor`` times what is predicted at first."""
    found, done = searching(Target.parse_kld(bound)), []
    for _ in range(ROUNDS):
        planned = found.planned()
        loss = factor * found.predicted(planned) / found.scale
        done.append((bpw(planned), loss))
        if found.met(planned, Divergence(loss, 0.0, 0.0, 0.0, 4096)):
            return done
    raise AssertionError("no end")


def test_what_is_overshot_is_tightened_and_what_is_far_away_relaxed():
    assert len(rounds(1.0)) == 1
    (before, lost), *_, (after, kept) = rounds(1.6)
    assert lost > 0.02 >= kept
    assert after > before
    (before, lost), *_, (after, kept) = rounds(0.4)
    assert lost < kept <= 0.02
    assert after < before
    # the smallest types of all, and still far from the bound
    assert len(rounds(0.001, "9")) == 1


def test_a_bound_that_is_never_met_is_an_error():
    found = searching(Target.parse_kld("0.02"))
    lost = Divergence(0.021, 0.0, 0.0, 0.0, 4096)
    for _ in range(ROUNDS - 1):
        assert not found.met(found.planned(), lost)
    with pytest.raises(
        LutraError, match=r"--max-kld 0\.02: not met in \d rounds, the last one lost 0\.02100"
    ):
        found.met(found.planned(), lost)


def test_a_search_that_was_stopped_behind_its_last_round_ends():
    found = searching(Target.parse_kld("0.02"))
    lost = Divergence(0.001, 0.0, 0.0, 0.0, 4096)
    found.rounds = ROUNDS * [lost]
    assert found.met(found.planned(), lost)


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
        work.drop({"w": 24, "v": 3})
        assert "w" in work
        work.drop({"w": 40})
        assert "w" not in work
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


def test_losses_are_those_of_real_encodings(model, text):
    """Better types lose less, with calibration less than without; any type can be asked for."""
    names = ("token_embd.weight", "blk.0.ffn_down.weight", "blk.0.ffn_up.weight")
    kinds = [TYPES[name] for name in ("cb2", "cb3", "iq2_xxs", "q8_0", "bf16", "f16")]
    pieces = pieces_of(model, text)
    with open_source(str(model)) as source:
        found = [
            measure_losses(
                model,
                {t.name: (t, [k for k in kinds if k.id_for(t.shape)])
                 for t in source.tensors if t.name in names},
                pieces, Jobs(1), tied=True, calibrated=calibrated, seed=0, threads=1,
            )
            for calibrated in (True, False)
        ]  # fmt: skip
    calibrated, plain = ({kind: np.mean([np.log(own.by_type[kind] + 1e-30) for own in losses.values()])
                          for kind in ("cb2", "cb3", "q8_0", "bf16", "f16")} for losses in found)  # fmt: skip
    assert set(found[0]) == set(names)
    assert (
        calibrated["cb2"] > calibrated["cb3"] > calibrated["q8_0"] > calibrated["bf16"] >= calibrated["f16"]
    )
    assert calibrated["cb3"] < plain["cb3"] - 0.4
    assert all(own.of_errors == own.by_type["cb3"] for own in found[0].values())


def test_rounded_inputs_are_those_of_the_kernels():
    """8 bits with a scale per block: steps of the largest value / 127, uniformly distributed errors."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (64, 512)).astype(np.float32)
    assert _rounding(x, 256) == pytest.approx((1 / 127) ** 2 / 12 / (1 / 3), rel=0.03)
    assert _rounding(np.rint(x * 127), 256) < 1e-5
    x[:, 0] = 100  # coarse for its block only
    assert _rounding(x[:, :256], 32) < 0.5 * _rounding(x[:, :256], 256)
    assert (_block(TYPES["cb4"], 448), _block(TYPES["cb4"], 512), _block(TYPES["f16"], 512)) == (64, 256, 1)


def test_errors_cost_what_the_matrix_does(model, text, tmp_path):
    """A matrix that does more costs more, the others about as before; the file is as it was."""
    name, rng = "blk.0.ffn_down.weight", np.random.default_rng(0)
    costs = []
    for factor in (1, 4):
        source, path = tmp_path / "source.gguf", tmp_path / f"{factor}.gguf"
        source.write_bytes(model.read_bytes())
        place = GGUFFile(source).tensors[name]
        weights = np.memmap(source, np.float16, "r+", offset=place.offset, shape=place.weights)
        weights *= factor
        weights.flush()
        path.write_bytes(source.read_bytes())
        tensors = open_source(source).tensors
        losses = {
            t.name: Losses({}, {}, 0.1 * rng.standard_normal((9, t.k), np.float32) / t.k**0.5, 0.01)
            for t in tensors
            if not t.keeps_f32
        }
        found, how = measure(path, tensors, losses, pieces_of(model, text), 1)
        assert path.read_bytes() == source.read_bytes()
        assert "9 measurements for 9 matrices" in how
        assert min(found.values()) >= 0
        costs.append(found)
    assert costs[1][name] > 2 * costs[0][name]


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


def test_a_file_of_a_size(model, tmp_path):
    done = lutra(
        "convert",
        model,
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

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "divergence", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(model, options, output)
    assert [path.name for path in tmp_path.iterdir()] == [".out.gguf.lutra-work"]
    monkeypatch.setattr(Search, "_measured", stop)
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
