"""The benchmark programs: csv schema, operation counts, skips, timing and memory."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alignvlm.compose.assemble import load_pretrained
from alignvlm.documents.pictures import open_image
from benchmarks import competitors as c
from benchmarks import connectors, end_to_end, vocab_mixture
from benchmarks import measure as m

SHAPE = c.Shape(24, 96, 16)
SMOKE = ["--preset", "smoke", "--shape", str(SHAPE)]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """Workers run here: starting one takes seconds. Their requests and results pass as JSON."""

    def run(module, request, timeout_s):
        work = importlib.import_module(module).work
        return json.loads(json.dumps(work(json.loads(json.dumps(request)))))

    monkeypatch.setattr(m, "run_worker", run)


def run(program, arguments, out):
    assert program.main([*arguments, "--out", str(out)]) == 0
    (file,) = out.glob("*.csv")
    return m.read_rows(file)


def check_schema(rows, fields):
    assert rows
    for row in rows:
        assert tuple(row) == fields
        assert all(row[key] for key in ("date", "hardware", "cores", "threads", "torch", "device"))
        if row["median_ms"]:
            assert 0 < float(row["q20_ms"]) <= float(row["median_ms"]) <= float(row["q80_ms"])


# --- the op --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_vocab_mixture_smoke(tmp_path):
    rows = run(vocab_mixture, SMOKE, tmp_path)
    check_schema(rows, vocab_mixture.FIELDS)
    smoke = vocab_mixture.PRESETS["smoke"]["impls"]
    found = {(r["setting"], r["impl"], r["phase"]) for r in rows if not r["skipped"]}
    for name in (*smoke, "matmul"):
        assert ("inference", name, "forward") in found
        assert {("trained", name, phase) for phase in ("forward", "backward", "both")} <= found
    for row in rows:
        assert row["n"] == "24" and row["v"] == "96" and row["d"] == "16"
        assert float(row["tflops"]) > 0
        if row["impl"] == "naive":
            assert float(row["ratio"]) == 1
        if row["impl"] != "matmul":
            assert float(row["output_error"]) < 1e-4
            assert row["setting"] == "inference" or float(row["dx_error"]) < 1e-4
            assert row["peak_mib"]


def test_what_does_not_fit_is_skipped_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(m, "available_bytes", lambda device: 1000)
    rows = run(vocab_mixture, [*SMOKE, "--setting", "trained"], tmp_path)
    assert {row["impl"] for row in rows} == set(vocab_mixture.PRESETS["smoke"]["impls"])
    assert all("GiB are free" in row["skipped"] and not row["median_ms"] for row in rows)


def test_an_implementation_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(inputs):
        raise RuntimeError("no compiler\nmore lines")

    monkeypatch.setitem(c.RIVALS, "compiled", broken)
    arguments = [*SMOKE, "--setting", "trained", "--impls", "compiled", "naive"]
    rows = run(vocab_mixture, arguments, tmp_path)
    (failed,) = [row for row in rows if row["impl"] == "compiled"]
    assert failed["skipped"] == "RuntimeError: no compiler"
    assert len([row for row in rows if row["impl"] == "naive" and row["median_ms"]]) == 3


@pytest.mark.parametrize(("setting", "products"), [("trained", 4), ("tied", 4), ("frozen", 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_standard_flops_are_those_of_naive_autograd(setting, products, affine):
    inputs = c.random_inputs(SHAPE, "float32", "cpu", setting, affine)
    counted = vocab_mixture.counted_flops(vocab_mixture.MixtureRun(c.naive, inputs, "cpu"))
    g = 2 * 24 * 96 * 16
    assert counted == {"forward": 2 * g, "backward": products * g, "both": (2 + products) * g}
    for phase, count in counted.items():
        assert c.standard_flops(SHAPE, setting, phase) == count
    with FlopCounterMode(display=False) as counter:
        c.naive(inputs).backward(inputs.upstream)
    assert counter.get_total_flops() == counted["both"]


def test_recomputation_is_counted_but_is_not_standard():
    inputs = c.random_inputs(SHAPE, "float32", "cpu", "trained", True)
    counted = vocab_mixture.counted_flops(vocab_mixture.MixtureRun(c.checkpointed, inputs, "cpu"))
    assert counted["backward"] >= 5 * SHAPE.product_flops
    assert counted["backward"] > c.standard_flops(SHAPE, "trained", "backward")


def test_products_of_our_op_are_seen():
    inputs = c.random_inputs(SHAPE, "float32", "cpu", "trained", True)
    kept = vocab_mixture.MixtureRun(c.implementation("chunked", 32), inputs, "cpu")
    g = SHAPE.product_flops
    assert vocab_mixture.counted_flops(kept) == {"forward": 2 * g, "backward": 4 * g, "both": 6 * g}
    ours = vocab_mixture.MixtureRun(c.implementation(c.STREAMED, 32), inputs, "cpu")
    counted = vocab_mixture.counted_flops(ours)
    # 2G, 4G or 5G, and what the row statistics and their corrections take
    extra = 4 * SHAPE.width**2 * (2 * SHAPE.vocab + 4 * SHAPE.rows)
    for phase in ("forward", "backward"):
        least = c.standard_flops(SHAPE, "trained", phase)
        assert least <= counted[phase] <= least + SHAPE.product_flops + extra


def _out(a, b):
    return torch.mm(a, b, out=torch.empty(3, 5))


PRODUCTS = {
    "matmul": lambda a, b: a @ b,
    "mm with out": _out,
    "linear": lambda a, b: torch.nn.functional.linear(a, b.T),
    "linear with bias": lambda a, b: torch.nn.functional.linear(a, b.T, torch.ones(5)),
    "addmm": lambda a, b: torch.addmm(torch.ones(5), a, b),
    "addmm in place": lambda a, b: torch.zeros(3, 5).addmm_(a, b),
    "transposed": lambda a, b: (b.T @ a.T).T,
}


@pytest.mark.parametrize("how", PRODUCTS)
def test_every_kind_of_product_is_counted_once(how):
    class Product(vocab_mixture.MixtureRun):
        def forward(self):
            return PRODUCTS[how](torch.ones(3, 4), torch.ones(4, 5))

    inputs = c.random_inputs(SHAPE, "float32", "cpu", "inference", True)
    counted = vocab_mixture.counted_flops(Product(c.naive, inputs, "cpu"))
    assert counted == {"forward": 2 * 3 * 4 * 5}


@pytest.mark.parametrize("setting", ["trained", "frozen", "tied"])
@pytest.mark.parametrize("affine", [True, False])
def test_all_implementations_compute_the_same(setting, affine, monkeypatch):
    monkeypatch.setattr(c, "row_block", lambda vocab, device: 10)
    found = {}
    for name in ("naive", "checkpoint", "row-chunked", "attention", *c.OURS):
        inputs = c.random_inputs(SHAPE, "float64", "cpu", setting, affine)
        output = c.implementation(name, 32)(inputs)
        output.backward(inputs.upstream)
        found[name] = [output.detach(), *(leaf.grad for leaf in inputs.leaves())]
    count = 2 + (setting == "trained") + 2 * affine
    for name, tensors in found.items():
        assert len(tensors) == 1 + count, name
        for one, other in zip(tensors, found["naive"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)


def test_oracle_is_the_dense_formula():
    inputs = c.random_inputs(SHAPE, "float64", "cpu", "trained", True)
    output, dx = c.oracle(inputs, block=40)
    expected = c.naive(inputs)
    expected.backward(inputs.upstream)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(dx, inputs.x.grad)
    assert c.relative_error(output * 1.01, output) == pytest.approx(0.01)


def test_trained_weights_count_as_changed():
    inputs = c.random_inputs(SHAPE, "float32", "cpu", "trained", True)
    run = vocab_mixture.MixtureRun(c.naive, inputs, "cpu")
    before = inputs.weight.detach().clone()
    assert set(run()) == {"forward", "backward"}
    assert not torch.equal(inputs.weight, before)
    torch.testing.assert_close(inputs.weight.detach(), before, rtol=2e-3, atol=0)
    warm = vocab_mixture.MixtureRun(c.implementation(c.WARM), inputs, "cpu", changes=False)
    before = inputs.weight.detach().clone()
    warm()
    assert torch.equal(inputs.weight, before)


def test_plain_products_on_a_part_of_the_vocabulary(monkeypatch):
    monkeypatch.setattr(vocab_mixture, "MATMUL_BYTES", 1)
    inputs = c.random_inputs(c.Shape(8, 2048, 16), "float32", "cpu", "frozen", True)
    run = vocab_mixture.MatmulRun(inputs, "cpu")
    assert (run.part, run.scale) == (512, 4)
    assert set(run()) == {"forward", "backward"}


@pytest.mark.slow
def test_real_activations(tmp_path, tiny_model_dir, monkeypatch):
    rows = run(vocab_mixture, [*SMOKE, "--model", str(tiny_model_dir)], tmp_path)
    assert {(row["activations"], row["n"], row["d"]) for row in rows} == {("model", "24", "32")}
    assert all(row["median_ms"] for row in rows)
    x = c.model_inputs(tiny_model_dir, 24, "float32", "cpu", "trained").x
    assert x.requires_grad and x.std() > 0


@pytest.mark.parametrize("shape", ["1,2", "1,2,x", "0,2,3"])
def test_bad_shapes_are_refused(shape, capsys):
    with pytest.raises(SystemExit) as stop:
        vocab_mixture.main(["--shape", shape])
    assert stop.value.code == 2
    assert repr(shape) in capsys.readouterr().err


# --- connectors and models -----------------------------------------------------------------------


@pytest.mark.slow
def test_connectors_smoke(tmp_path):
    rows = run(connectors, ["--smoke"], tmp_path)
    check_schema(rows, connectors.FIELDS)
    found = {(row["connector"], row["phase"]) for row in rows if not row["skipped"]}
    phases = ("inference", "forward", "backward", "both")
    assert found == {(name, phase) for name in connectors.CONNECTOR_TYPES for phase in phases}
    assert {r["visual_tokens"] for r in rows if r["connector"] == "mlp"} == {"16"}


def test_connectors_that_do_not_fit_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(m, "available_bytes", lambda device: 2 * 2**30)
    arguments = ["--language-model", "llama-3.1-8b", "--connectors", "align"]
    (row,) = run(connectors, arguments, tmp_path)
    assert "2.0 GiB are free" in row["skipped"]
    assert float(row["parameters_m"]) == pytest.approx(530, rel=0.01)


def test_end_to_end_smoke(tmp_path):
    rows = run(end_to_end, ["--smoke"], tmp_path)
    check_schema(rows, end_to_end.FIELDS)
    found = {(row["connector"], row["phase"]) for row in rows if row["median_ms"]}
    wanted = {(name, p) for kind in end_to_end.VARIANTS for name in end_to_end.VARIANTS[kind]
              for p in end_to_end.PHASES[kind]}  # fmt: skip
    assert found == wanted
    (pruned,) = {r["kept_tokens"] for r in rows if r["connector"] == "align-pruned"}
    assert pruned == "128"


def test_variants_share_encoder_and_language_model():
    request = {"device": "cpu", "dtype": "float32", "model": None, "new_tokens": 2}
    load = end_to_end.Workload(
        {**request, "language_model": "tiny", "grid": [1, 2]}, end_to_end.VARIANTS["inference"]
    )
    align, pruned, mlp = (load.models[name] for name in ("align", "align-pruned", "mlp"))
    assert align.model.language_model is mlp.model.language_model is pruned.model.language_model
    assert align.model.connector.w2.weight.shape == (512, 32)
    assert pruned.model.connector.w2.weight.shape == (128, 32)
    assert load.describe("mlp")["visual_tokens"] == 8
    assert len(load.batch()["pixel_values"]) == 2


@pytest.mark.slow
def test_end_to_end_with_a_trained_model(tmp_path, tiny_model_dir):
    rows = run(end_to_end, ["--smoke", "--model", str(tiny_model_dir)], tmp_path)
    assert {row["weights"] for row in rows} == {f"{tiny_model_dir}, receipt.png"}
    found = {(row["connector"], row["phase"]) for row in rows if row["median_ms"]}
    wanted = {(name, p) for kind, names in end_to_end.PAGE_VARIANTS.items() for name in names
              for p in end_to_end.PHASES[kind]}  # fmt: skip
    assert found == wanted
    against = {row["connector"]: row["baseline"] for row in rows if row["median_ms"]}
    assert against["align"] == against["align-grounded"] == "mlp-text"
    assert against["align-all"] == against["mlp-text"] == "mlp"


def test_blanks_are_dropped_where_they_are_known(tmp_path, tiny_model_dir):
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    page = tmp_path / "page.png"
    open_image(m.ROOT / "examples/pages/receipt.png").resize((84, 56)).save(page)
    batch = processor.image_processor([open_image(page)], return_tensors="pt")
    features = model.model.encode_tiles(batch["pixel_values"])
    found = model.model.connector.vocab_distribution(features)[..., model.config.blank_token_id]
    ordered = found.detach().flatten().unique()
    gap = int(ordered.diff().argmax())  # well between two cells: rounding must not decide
    model.config.blank_threshold = float(ordered[gap : gap + 2].mean())
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    request = {"device": "cpu", "dtype": "float32", "model": str(tmp_path / "model"),
               "page": str(page), "new_tokens": 2}  # fmt: skip
    load = end_to_end.Workload(request, end_to_end.PAGE_VARIANTS["training"])
    read = {}
    for name, own in load.models.items():
        hook = own.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: read.update(
                {name: kwargs["inputs_embeds"].shape[1]}
            ),
            with_kwargs=True,
        )
        load.training(name)
        hook.remove()
    assert read["align"] == read["align-grounded"] == read["mlp-text"] < read["align-all"]
    assert read["align-all"] == read["mlp"]


# --- measuring -----------------------------------------------------------------------------------


def test_rounds_alternate_and_slow_runs_drop_out(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(m.time, "perf_counter", lambda: now[0])

    def runner(name, seconds):
        def go():
            order.append(name)
            now[0] += seconds
            return {"forward": seconds}

        return go

    taken = m.time_rounds({"a": runner("a", 1), "b": runner("b", 9)}, 6, patience_s=20)
    assert order[:6] == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(times) for name, times in taken.items()} == {"a": 6, "b": 3}


def test_quantiles_and_paired_ratios():
    values = [3.0, 1.0, 2.0, 10.0]
    for share in (0, 0.2, 0.5, 0.8, 1):
        assert m.quantile(values, share) == pytest.approx(np.quantile(values, share))
    mine = [{"forward": 2.0, "backward": 2.0}, {"forward": 20.0, "backward": 20.0}]
    other = [{"forward": 1.0, "backward": 1.0}, {"forward": 10.0, "backward": 10.0}]
    columns = m.time_columns(mine, "both", other)
    assert columns["median_ms"] == pytest.approx(22000)
    assert columns["ratio"] == columns["ratio_q20"] == columns["ratio_q80"] == 2


@linux
def test_peak_memory_sees_what_was_freed_and_forgets_it():
    def forward():
        torch.ones(2**24)  # 64 MiB, gone at once
        return torch.ones(1, requires_grad=True) * 2

    peaks = m.step_peaks("cpu", forward, torch.ones(1))
    assert 60 * 2**20 < peaks["forward"] < 90 * 2**20
    assert peaks["both"] == peaks["forward"]


WORKERS = {
    "echo": "import json, os, sys\nprint('noise')\n"
    "print(json.dumps({'got': json.loads(sys.argv[2]), 'set': os.environ.get("
    "'MALLOC_MMAP_THRESHOLD_')}))",
    "fails": "raise SystemExit('two lines\\nno such model')",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "slow": "import time\ntime.sleep(60)",
}


@linux
def test_workers_are_processes(tmp_path, monkeypatch):
    monkeypatch.undo()
    for name, code in WORKERS.items():
        (tmp_path / f"worker_{name}.py").write_text(code, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert m.run_worker("worker_echo", {"mode": "memory"}, 60) == {
        "got": {"mode": "memory"},
        "set": "131072",
    }
    assert m.run_worker("worker_echo", {"mode": "time"}, 60)["set"] is None
    assert m.run_worker("worker_fails", {}, 60) == {"skipped": "no such model"}
    assert "signal 9" in m.run_worker("worker_killed", {}, 60)["skipped"]
    assert m.run_worker("worker_slow", {}, 0.5) == {"skipped": "took longer than 0 s"}


def test_a_csv_with_other_columns_is_left_alone(tmp_path):
    file = tmp_path / "x.csv"
    m.write_rows(file, ("a", "b"), [{"a": 1.23456789, "b": None}])
    m.write_rows(file, ("a", "b"), [{"a": "", "b": 123456.7}])
    assert file.read_text("utf-8") == "a,b\n1.2346,\n,123457\n"
    with pytest.raises(ValueError, match="other columns"):
        m.write_rows(file, ("a", "c"), [])
