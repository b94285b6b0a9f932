"""Runs of a training loop, each in a process of its own, stopped after some batches and resumed.

    python runs.py LOOP TREE NUM_WORKERS STEPS LOAD SAVE

prints the batches that the loop was given, as JSON. LOAD and SAVE are paths of a state, or "-".
"""

import collections
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import torch

import pescador
import pescador.torch


def printed_by_all(commands):
    """What each of several processes, which wait for each other, has printed as JSON."""
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        outputs = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
            with process:
                pass
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [json.loads(out) for out, _ in outputs]


Pair = collections.namedtuple("Pair", ["x", "y"])


def noise(i):
    """Numbers that follow from the visit alone; its first is the place in the pool."""
    while True:
        yield {"x": np.array([i, np.random.randint(1000)])}


def finite(i, n):
    """The same, `n` of them."""
    yield from itertools.islice(noise(i), n)


def endless_tree():
    pool = [pescador.Streamer(noise, i) for i in range(12)]
    mux = pescador.StochasticMux(pool, 4, 5)
    return pescador.Seeded(pescador.Streamer(pescador.buffer_stream, mux, 4), 7)


def finite_tree():
    """120 samples in 30 batches, or a few more where they are in several parts."""
    pool = [pescador.Streamer(finite, i, 10) for i in range(12)]
    mux = pescador.StochasticMux(pool, 3, None, mode="exhaustive")
    batches = pescador.Streamer(pescador.buffer_stream, mux, 4, partial=True)
    return pescador.Seeded(batches, 7)


def parallel_tree():
    return pescador.ParallelStreamer(endless_tree(), 1)


def finite_streamers():
    for i in range(7):
        yield pescador.Streamer(finite, i, 3)


def chain_tree():
    return pescador.Seeded(pescador.ChainMux(finite_streamers), 0)


TREES = {"endless": endless_tree, "finite": finite_tree, "parallel": parallel_tree}


def save(state, path):
    if path != "-":
        torch.save(state, path)


def passes(loader, first=0):
    """The batches of one pass after the other, each of which is told its epoch if that is asked."""
    for epoch in itertools.count(first):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        yield from loader


def plain(dataset, num_workers, steps, load, save_to):
    """The data set by itself."""
    if load is not None:
        dataset.load_state_dict(load)
    first = 0 if load is None else load["epoch"]
    yield from itertools.islice(passes(dataset, first), steps)
    save(dataset.state_dict(), save_to)


def stateful(dataset, num_workers, steps, load, save_to):
    """A StatefulDataLoader."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
    if load is not None:
        loader.load_state_dict(load)
    yield from itertools.islice(passes(loader), steps)
    save(loader.state_dict(), save_to)


def distributed(dataset, num_workers, steps, load, save_to, rank, store, context):
    """One of two processes that train."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    if load is not None:
        dataset.load_state_dict(load)
    loader = dataset
    if num_workers:
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=context
        )
    yield from itertools.islice(loader, steps)
    if not num_workers:
        save(dataset.state_dict(), save_to)
    dist.barrier()
    dist.destroy_process_group()


def lightning_itself(dataset, num_workers, steps, load, save_to):
    """Lightning, with the data set as its loader."""
    return fit(dataset, steps, load, save_to)


def lightning_loader(dataset, num_workers, steps, load, save_to):
    """Lightning, with a StatefulDataLoader."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
    return fit(loader, steps, load, save_to)


def lightning_epochs(dataset, num_workers, steps, load, save_to):
    """Lightning, with three epochs of 10 steps, saved within one by its step, or at its end."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    dataset = loader = pescador.torch.Dataset(dataset.streamer, steps_per_epoch=10)
    if num_workers:
        loader = StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
    every = {"every_n_train_steps": steps}
    if num_workers and steps % 10 == 0:
        every = {"every_n_epochs": steps // 10}
    limit = {"max_epochs": 3} if load else {"max_epochs": 3, "max_steps": steps}
    return fit(loader, steps, load, save_to, every, dataset, limit_train_batches=None, **limit)


def fit(loader, steps, load, save_to, every=None, dataset=None, **options):
    """Train in epochs of 25 batches, until so many steps are made, unless options say otherwise."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.given = []

        def train_dataloader(self):
            if dataset is not None:
                dataset.set_epoch(self.trainer.global_step // dataset.steps_per_epoch)
            return loader

        def training_step(self, batch, i):
            self.given.append(batch)
            return self.layer(batch["x"].float()).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-9)

    path = pathlib.Path(save_to)
    saves = ModelCheckpoint(path.parent, path.name, **(every or {"every_n_train_steps": steps}))
    saves.FILE_EXTENSION = ""
    if dataset is None:
        last = steps if load is None else load["global_step"] + steps
        options = {"max_steps": last, "limit_train_batches": 25}
    trainer = lightning.Trainer(
        **options,
        accelerator="cpu",
        logger=False,
        callbacks=[] if save_to == "-" else [saves],
        enable_checkpointing=save_to != "-",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, ckpt_path=load and load["path"])
    return model.given


def accelerated(dataset, num_workers, steps, load, save_to):
    """Accelerate, with its folders of states."""
    import accelerate
    from torchdata.stateful_dataloader import StatefulDataLoader

    accelerator = accelerate.Accelerator(
        cpu=True,
        dataloader_config=accelerate.DataLoaderConfiguration(use_stateful_dataloader=True),
    )
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    first = 0
    if load is not None:
        accelerator.load_state(load["path"])
        first = int(pathlib.Path(load["path"], "epoch").read_text())
    for batch in itertools.islice(passes(loader, first), steps):
        accelerator.backward(model(batch["x"].float()).square().mean())
        optimizer.step()
        yield batch
    if save_to != "-":
        accelerator.save_state(save_to)
        pathlib.Path(save_to, "epoch").write_text(str(loader.iteration))


def trainer(dataset, num_workers, steps, load, save_to):
    """The Trainer of transformers, which reads once more what came before a checkpoint."""
    return train(dataset, num_workers, steps, load, save_to)


def trainer_stateful(dataset, num_workers, steps, load, save_to):
    """The same with a StatefulDataLoader, whose state is saved beside each checkpoint."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
    return train(dataset, num_workers, steps, load, save_to, loader)


def train(dataset, num_workers, steps, load, save_to, loader=None):
    """Train until so many more steps are made."""
    import transformers
    from transformers.trainer_utils import get_last_checkpoint

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.given = []

        def forward(self, x):
            self.given.append({"x": x})
            return {"loss": self.layer(x.float()).square().mean()}

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            return super().get_train_dataloader() if loader is None else loader

    class Saves(transformers.TrainerCallback):
        def on_save(self, args, state, control, **rest):
            folder = pathlib.Path(args.output_dir, f"checkpoint-{state.global_step}")
            torch.save(loader.state_dict(), folder / "loader.pt")

    checkpoint = load and get_last_checkpoint(load["path"])
    if checkpoint and loader is not None:
        loader.load_state_dict(torch.load(pathlib.Path(checkpoint, "loader.pt")))
    arguments = transformers.TrainingArguments(
        save_to if load is None else load["path"],
        max_steps=steps if load is None else int(checkpoint.rpartition("-")[2]) + steps,
        per_device_train_batch_size=1,
        learning_rate=1e-9,
        dataloader_num_workers=num_workers,
        ignore_data_skip=loader is not None,
        save_strategy="no" if save_to == "-" else "steps",
        save_steps=steps,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    model = Model()
    trainer = Trainer(
        model,
        arguments,
        # The items are batches already.
        data_collator=lambda items: items[0],
        train_dataset=dataset,
        callbacks=[Saves()] if loader is not None else [],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return model.given


def main(loop, tree, num_workers, steps, load, save_to, *more):
    if more:
        # Each rank has a state.
        load, save_to = (path if path == "-" else path + more[0] for path in (load, save_to))
    state = None
    if load != "-":
        is_file = pathlib.Path(load).is_file()
        state = torch.load(load, weights_only=True) if is_file else {}
        if any(name in loop for name in ("lightning", "accelerated", "trainer")):
            state = {**state, "path": load}
    dataset = pescador.torch.Dataset(TREES[tree]())
    batches = globals()[loop](dataset, int(num_workers), int(steps), state, save_to, *more)
    print(json.dumps([batch["x"].tolist() for batch in batches]))


if __name__ == "__main__":
    main(*sys.argv[1:])
