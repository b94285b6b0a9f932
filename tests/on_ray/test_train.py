"""Ray Train on the parts of a Sharded: two workers, and then one."""

import itertools
import json
import pathlib
import tempfile

import pytest

import pescador

ray = pytest.importorskip("ray", reason="Ray is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("ray.train", reason="Ray Train is not installed")

from ray.train.torch import TorchTrainer  # noqa: E402

import pescador.torch  # noqa: E402
import ranks  # noqa: E402

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        num_cpus=3,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def loop(config):
    """What each worker runs: so many steps, after those that the run has made already."""
    size = torch.distributed.get_world_size()
    rank = torch.distributed.get_rank()
    dataset = pescador.torch.Dataset(ranks.batches(size))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    step = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(pathlib.Path(folder, "state.pt"))
        model.module.load_state_dict(saved["model"])
        dataset.load_state_dict(saved["data"])
        step = saved["step"]
    for batch in itertools.islice(dataset, config["steps"]):
        rows = pathlib.Path(config["rows"], f"{step}-{rank}-of-{size}")
        rows.write_text(json.dumps(batch["x"].tolist()))
        optimizer.zero_grad()
        model(batch["x"].float()).square().mean().backward()
        optimizer.step()
        step += 1
    states = [None] * size
    torch.distributed.all_gather_object(states, dataset.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            merged = pescador.Sharded.merge(states)
            saved = {"model": model.module.state_dict(), "data": merged, "step": step}
            torch.save(saved, pathlib.Path(folder, "state.pt"))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=checkpoint)


def fit(num_workers, steps, folder):
    """Train for some steps: the first ones of a run, or more of them."""
    TorchTrainer(
        loop,
        train_loop_config={"steps": steps, "rows": str(folder)},
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers),
        run_config=ray.train.RunConfig(name="run", storage_path=str(folder / "runs")),
    ).fit()


def test_a_run_with_two_workers_is_resumed_with_one(tmp_path):
    fit(2, 4, tmp_path)
    fit(1, 3, tmp_path)
    found = []
    for step in range(7):
        size = 2 if step < 4 else 1
        parts = [tmp_path / f"{step}-{rank}-of-{size}" for rank in range(size)]
        found.append(sorted(row for part in parts for row in json.loads(part.read_text())))
    expected = ranks.batches()(max_iter=7)
    assert found == [sorted(batch["x"].tolist()) for batch in expected]
