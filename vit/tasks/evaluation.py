"""What a network answers about the pictures of a list: on one device or shared out among several, without a trainer.

Lightning takes seconds to import.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from vit.data.config import Preprocessing
from vit.data.dataset import Batch, evaluation_loader, worker_count
from vit.data.folders import Sample
from vit.data.normalise import Normalise
from vit.data.transfer import sent
from vit.errors import DataError, NonFiniteOutput, display_path
from vit.models.outputs import NON_FINITE, finite_rows
from vit.models.vision import VisionTransformer
from vit.tasks.config import Config
from vit.tasks.devices import device_for, settled_precision
from vit.tasks.rows import Gathered, Rows

log = logging.getLogger("vit")

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(
    network: VisionTransformer, samples: Sequence[Sample], preprocessing: Preprocessing, config: Config, classes: int
) -> Gathered:
    """The result rows of every picture. Of several processes (`distributed`) each answers its part and has all rows.

    Images whose logits are NaN or inf are failures, with `NON_FINITE` as the reason.
    """
    network.to(device_for(config.train.accelerator, config.train.devices)).eval()
    rows = Rows(refuse_non_finite=True)
    precision = settled_precision(config.train)
    for batch, logits in answers(network, samples, preprocessing, config, precision=precision):
        rows.add(logits, batch.labels.to(logits.device), batch.indices, batch.failures)
    return rows.gather(classes)


def outputs_of(
    compute: Callable[[Tensor], Tensor], samples: Sequence[Sample], preprocessing: Preprocessing, config: Config
) -> tuple[Tensor, Tensor]:
    """What `compute` makes of pictures, prepared as for evaluation: outputs [N, ...], labels [N], on the CPU.

    Unreadable pictures are left out, and counted. Raises DataError where none can be read, NonFiniteOutput naming the
    first image for which the outputs are NaN or inf.
    """
    parts, labels, failed = [], [], 0
    for batch, outputs in answers(compute, samples, preprocessing, config):
        failed += len(batch.failures)
        if not (finite := finite_rows(outputs).cpu()).all():
            first = samples[int(batch.indices[~finite][0])].path
            raise NonFiniteOutput(f"{display_path(first)}: {NON_FINITE}; check its weights")
        parts.append(outputs.float().cpu())
        labels.append(batch.labels)
    if failed:
        log.info("left out   %d unreadable pictures", failed)
    if not sum(map(len, labels)):
        raise DataError("none of the pictures could be read; `vit data check` names the reasons")
    return torch.cat(parts), torch.cat(labels)


def answers(
    compute: Callable[[Tensor], Tensor],
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    config: Config,
    *,
    precision: str = "fp32",
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch of this process's part, and what `compute`, on its device, makes of it: [B, ...].

    It sees pictures float [B, 3, H, W] that are prepared as for evaluation.
    """
    device = torch.device(device_for(config.train.accelerator, config.train.devices))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    loader = evaluation_loader(
        samples,
        preprocessing,
        batch_size=config.data.batch_size,
        workers=worker_count(config.data.workers, int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
        rank=rank,
        world=world,
        pin_memory=device.type == "cuda",
    )
    normalise = Normalise(preprocessing).to(device)
    bar = tqdm(total=len(samples), unit=" images", delay=2, disable=rank > 0 or not sys.stderr.isatty(), leave=False)
    with bar:
        for batch in loader:
            (images,) = sent([batch.images], device)
            with torch.inference_mode(), torch.autocast(device.type, _TYPES[precision], precision != "fp32"):
                outputs = compute(normalise(images))
            yield batch, outputs
            bar.update(world * config.data.batch_size)
