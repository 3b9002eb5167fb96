"""A batch on Ray: on this machine, and on a cluster of two machines of which one is lost."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.batch.test_documents import ASKED, on_path, on_ray

from alignvlm.batch import pool as batch_ray
from alignvlm.batch.documents import extract_rows
from alignvlm.batch.driver import batch
from alignvlm.batch.parts import read_parts
from alignvlm.batch.pool import Pool
from alignvlm.batch.requests import Asking
from alignvlm.errors import AlignVLMError, ConfigError

ray = pytest.importorskip("ray")
# Ray Data warns about its own settings when it copies them
pytestmark = pytest.mark.filterwarnings("ignore::Warning:ray.data.context")
SHORT = Asking(question="What is the total?", max_new_tokens=4, repetition_guard=False)


@pytest.fixture(autouse=True)
def _no_ray_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    yield
    ray.shutdown()


@pytest.fixture
def docs(tmp_path: Path, make_image: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for seed in range(24):
        make_image(seed=seed).save(folder / f"{seed:02}.png")
    (folder / "12.png").write_bytes(b"\x89PNG and nothing else")
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_batch_on_this_machine(docs, tiny_model_dir, tmp_path):
    """Ray started and stopped, real workers, one bad page; a rerun starts no Ray."""
    out = tmp_path / "out"
    pool = Pool(actors=1, num_gpus=0)
    summary = batch(tiny_model_dir, docs, out, asking=SHORT, pool=pool)
    assert (summary.rows, summary.errors) == (24, 1)
    assert not ray.is_initialized()
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"{n:02}.png" for n in range(24)]
    assert [row["id"] for row in rows if "error" in row] == ["12.png"]
    start = time.monotonic()
    assert batch(tiny_model_dir, docs, out, asking=SHORT, pool=pool).reused == 24
    assert time.monotonic() - start < 2


@pytest.mark.slow
def test_a_worker_that_cannot_load_is_one_line(docs, tiny_model_dir, tmp_path, capfd):
    """Ray's own words and the tracebacks of workers are printed nowhere."""
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (model / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(AlignVLMError) as caught:
        batch(model, docs, tmp_path / "out", asking=SHORT, pool=Pool(actors=1, num_gpus=0))
    said = f"the workers stopped: {model}: not a usable model: "
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("client", [False, True])
def test_fields_of_documents(client, docs, tiny_model_dir, tmp_path, monkeypatch):
    """Real workers; in a client (``ray://``), where Ray Data does not run, by actors."""
    on_path(monkeypatch)
    monkeypatch.setattr(batch_ray, "_is_client", lambda ray: client)
    for number, width in enumerate((56, 57, 56)):
        Image.new("RGB", (width, 28), "white").save(docs / f"{number}.png")
    files = [str(docs / name) for name in ("0.png", "12.png", "1.png", "2.png")]
    pool = Pool(actors=1, num_gpus=0, batch_size=1)
    rows = extract_rows(str(tiny_model_dir), files, tmp_path / "work", ASKED, pool, run=on_ray)
    assert not ray.is_initialized()
    assert [row["file"] for row in rows] == files
    assert "12.png" in rows[1]["error"]
    assert [row["values"]["y"]["text"] for row in rows if "values" in row] == [
        "136.94", "NAIRO", "136.94",
    ]  # fmt: skip
    assert rows[0]["values"]["x"]["value"] == Decimal("136.94")


def test_no_cluster_there(docs, tiny_model_dir, tmp_path):
    pool = Pool(address="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no Ray cluster at '127\.0\.0\.1:1'.*ray start --head"):
        batch(tiny_model_dir, docs, tmp_path / "out", asking=SHORT, pool=pool)


class Cluster:
    """What :func:`batch_ray._share` asks a cluster."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self._nodes = [{"Alive": True, "Resources": node} for node in nodes]
        self._nodes.append({"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}})

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes


EIGHT = {"CPU": 96.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "pool", "actors", "gpus", "cpus"),
    [
        ([{"CPU": 8.0}], Pool(), 1, 0, 8),
        ([{"CPU": 8.0}], Pool(actors=3), 3, 0, 2),
        ([{"CPU": 8.0}, {"CPU": 4.0}], Pool(), 2, 0, 4),
        ([EIGHT, EIGHT], Pool(), 16, 1, 12),
        ([EIGHT, EIGHT], Pool(num_gpus=2), 8, 2, 24),
        ([EIGHT], Pool(num_gpus=0.25, batch_size=1), 32, 0.25, 3),
        ([{"CPU": 1.0}], Pool(actors=2), 2, 0, 1),
        ([EIGHT], Pool(batch_size=100), 1, 1, 96),  # no more workers than batches
        ([EIGHT, {"CPU": 4.0}], Pool(), 8, 1, 12),  # none goes where no GPU is
        ([EIGHT, {"CPU": 96.0, "GPU": 1.0}], Pool(), 9, 1, 12),  # eight on one, one on the other
        ([EIGHT, EIGHT], Pool(actors=3), 3, 1, 48),
        ([EIGHT, {"CPU": 4.0}], Pool(num_gpus=0), 2, 0, 4),
        ([{"CPU": 0.0}, {"CPU": 8.0}], Pool(), 1, 0, 8),  # a head that takes no work
    ],
)
def test_how_workers_are_placed(nodes, pool, actors, gpus, cpus):
    units = 100 if pool.batch_size > 4 else 1000
    found, resources = batch_ray._share(Cluster(*nodes), pool, units)
    assert (found, resources) == (actors, {"num_gpus": gpus, "num_cpus": cpus})


def test_gpus_that_are_not_there():
    with pytest.raises(ConfigError, match="an actor wants 2 GPUs, but no machine has more than 1"):
        batch_ray._share(Cluster({"CPU": 4.0, "GPU": 1.0}), Pool(num_gpus=2), 9)


@pytest.mark.parametrize("nodes", [[], [{}], [{"CPU": 0.0, "GPU": 8.0}]])
def test_a_cluster_that_takes_no_work(nodes):
    with pytest.raises(ConfigError, match="no machine of the Ray cluster offers a CPU"):
        batch_ray._share(Cluster(*nodes), Pool(), 9)


@pytest.mark.slow
def test_a_lost_machine_loses_nothing(docs, tiny_model_dir, tmp_path):
    """Two machines; the one with a worker in the middle of its work is lost."""
    from ray.cluster_utils import Cluster as TwoNodes

    out, one = tmp_path / "out", Pool(actors=2, num_gpus=0, batch_size=1)
    cluster = TwoNodes(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        lost = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        killed: list[int] = []

        def kill() -> None:
            """As soon as some rows are there."""
            while len(list((out / "parts").glob("*.jsonl"))) < 3:
                time.sleep(0.005)
            killed.append(len(read_parts(out)))
            cluster.remove_node(lost, allow_graceful=False)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        summary = batch(tiny_model_dir, docs, out, asking=SHORT, pool=one)
        thread.join(60)
        # a lost machine is known to be lost only when it has not answered for a while
        within = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) > 1 and time.monotonic() < within:
            time.sleep(0.2)
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed and killed[0] < 24, "the machine was lost too late to matter"
    assert (summary.rows, summary.errors) == (24, 1)
    assert [row["id"] for row in rows_of(out)] == [f"{n:02}.png" for n in range(24)]
