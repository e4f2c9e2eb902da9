"""A program that the tests start once a process: it trains and tests on two CPU processes and writes what came out.

usage: two_processes.py DATA RUN OUT
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from tiny_runs import tiny, train

from vit.data.folders import list_evaluation
from vit.models.vision import VisionTransformer
from vit.tasks.evaluation import evaluate

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data, run, out = map(Path, sys.argv[1:])
    config = tiny(data={"batch_size": 2}, train={"epochs": 1, "devices": 2, "strategy": "ddp", "ema": 0.9})
    setup, task, trainer = train(data, run, config)
    trained = {"val": task.gathered.indices.tolist(), "accuracy": float(trainer.callback_metrics["val/accuracy"])}

    listing = list_evaluation(data, setup.listing.classes, split="val")
    assert isinstance(task.network, VisionTransformer)
    rows = evaluate(task.network, listing.splits["val"], setup.preprocessing, config, len(listing.classes))
    tested = {
        "indices": rows.indices.tolist(),
        "labels": rows.predictions.labels.tolist(),
        "losses": rows.predictions.losses.tolist(),
        "failures": rows.failures,
    }
    weights = float(sum(parameter.double().abs().sum() for parameter in task.network.parameters()))
    path = out / f"{trainer.global_rank}.json"
    path.write_text(json.dumps({"trained": trained, "tested": tested, "weights": weights}))
