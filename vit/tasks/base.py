"""What every task shares: optimizer, schedule, averaged weights, gradient norm. A task adds its losses."""

import copy
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vit.data.module import place_of
from vit.data.sampling import draw_seed
from vit.errors import VitError
from vit.nn import Block
from vit.tasks.config import Config
from vit.tasks.finite import Step, Watch
from vit.tasks.optim import make_optimizer, make_schedule, parameter_groups


@dataclass(frozen=True)
class Loss:
    """A loss in two parts that add up over micro-batches and devices: their quotient is the mean over the whole step.

    `total` is the sum over samples (or tokens), `count` how many there are; both are scalar float tensors.
    """

    total: Tensor
    count: Tensor

    @classmethod
    def over(cls, total: Tensor, count: Tensor | int) -> "Loss":
        """`total` over `count` samples; a count that is known on the CPU is written on the device without waiting."""
        if isinstance(count, int):
            count = torch.full_like(total.detach(), count, dtype=torch.float32)
        return cls(total, count.float())

    @property
    def mean(self) -> Tensor:
        """Mean over the batch; 0 where there is nothing to average."""
        return self.total / self.count.clamp(min=1)


Losses = dict[str, Loss]


class Task(L.LightningModule):
    """Trains `network`; subclasses say what the losses of a batch are.

    With `train.ema`, a second set of weights follows the trained ones as an exponential moving average (Polyak and
    Juditsky 1992), and is what is validated and used; `network` always holds the raw ones.
    """

    def __init__(self, network: nn.Module, depth: int, config: Config) -> None:
        super().__init__()
        self.network = network
        self.depth = depth
        self.config = config
        self.validated: int | None = None
        """the last epoch that was validated, from 0"""
        self.ema = copy.deepcopy(network).requires_grad_(False) if config.train.ema else None
        self.sums: dict[str, Tensor] = {}
        """total and count of each loss in this epoch so far, over all devices, float [2]"""
        self.watch = Watch()
        self.count_per_sample = 1.0
        """typical count of one sample in the loss, such as the tokens of a text; keeps fp16 gradients in range"""
        self._step_sums: dict[str, Tensor] = {}
        """total and count of each loss over this device's micro-batches of the current step, float [2]"""
        self._step_indices: list[Tensor] = []
        """sample indices of these micro-batches"""

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated: the averaged one where there is one."""
        return self.network if self.ema is None else self.ema

    def configure_model(self) -> None:
        """With train.strategy fsdp, share out weights, gradients and moments among a machine's devices, block by block.

        Machines hold copies of one another (torch's fully_shard with a mesh of machines and devices).
        """
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard

        for network in (self.network, self.ema):
            if network is not None and not isinstance(network, FSDPModule):
                for block in (module for module in network.modules() if isinstance(module, Block)):
                    fully_shard(block, mesh=self.device_mesh)
                fully_shard(network, mesh=self.device_mesh)

    def losses(self, batch: Any) -> Losses:
        """Compute the losses of one training batch; `loss` is minimized. Every batch must give the same names."""
        raise NotImplementedError

    def zero_loss(self) -> Tensor:
        """Zero, with a gradient of zero for every weight: what a device without samples contributes to a step."""
        return sum((p.sum() for p in self.network.parameters()), torch.zeros((), device=self.device)) * 0

    def on_train_start(self) -> None:
        """A resumed run whose length or devices were changed follows its new schedule from the first step."""
        schedule = self.lr_schedulers()
        schedule.base_lrs = list(self.highest)
        epoch, batch = place_of(self.trainer)
        if not batch or self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # other devices take other steps to an epoch
            schedule.last_epoch = round((epoch + (batch > 0)) * self.epoch_steps)
        for group, base, factor in zip(
            self.trainer.optimizers[0].param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(schedule.last_epoch)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Dropout's draws depend on the step alone, so that a resumed run and any number of workers draw the same."""
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(draw_seed(self.config.train.seed, step, self.global_rank, 1))

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Return the batch's summed loss over a constant; `configure_gradient_clipping` makes gradients of the mean.

        How many samples or tokens a step has is only known when its last micro-batch is there, on all devices.
        """
        losses = self.losses(batch)
        _add(self._step_sums, {k: torch.stack([loss.total.detach().float(), loss.count]) for k, loss in losses.items()})
        self._step_indices.append(batch.indices)
        return losses["loss"].total / self._typical_count

    @property
    def _typical_count(self) -> float:
        """What the loss of one micro-batch is divided by before backward: the same for all of them on all devices."""
        return self.config.data.batch_size * self.count_per_sample

    def means(self) -> dict[str, Tensor]:
        """Mean of each loss over this epoch so far, on all devices; without those that averaged nothing."""
        return {name: value[0] / value[1] for name, value in self.sums.items() if value[1] > 0}

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        optim = self.config.optim.scaled(samples_per_step(self.config, self.trainer))
        groups = parameter_groups(self.network, self.depth, optim)
        # torch's fused optimizers unscale fp16 gradients themselves, too late to clip them
        fused = self.config.train.precision != "fp16" and self.device.type in ("cpu", "cuda")
        optimizer = make_optimizer(groups, optim, fused=fused)
        schedule = make_schedule(
            optimizer, self.config.schedule, steps=steps, steps_per_epoch=steps / self.config.train.epochs
        )
        self.highest, self.epoch_steps = list(schedule.base_lrs), steps / self.config.train.epochs
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **_: Any) -> None:
        """Turn the accumulated gradients into that of the mean loss of the whole step, clip it, and log its norm."""
        sums, indices = self._exchange_sums(), self._step_indices
        self._step_sums, self._step_indices = {}, []
        means = {name: value[0] / value[1].clamp(min=1) for name, value in sums.items()}
        if any(map(len, indices)):  # a step of unreadable images has no loss
            for name, mean in means.items():
                self.log(f"train/{name}_step", mean)
        # a step whose loss is not finite is not taken, and not counted
        _add(self.sums, {name: torch.where(value.isfinite().all(), value, 0.0) for name, value in sums.items()})
        # Lightning divides by the number of micro-batches, DDP and FSDP by the number of devices
        parts = self._typical_count * self.config.train.accumulate * self.trainer.world_size
        norm = scale_and_clip(optimizer, parts / sums["loss"][1].clamp(min=1), self.config.optim.clip)
        self.log("train/gradient_norm", norm)
        rate = max(group["lr"] for group in optimizer.param_groups)
        step = Step(self.global_step + 1, rate, indices, torch.stack([means["loss"], norm.to(means["loss"])]))
        self.watch.look(optimizer, step, scaled=getattr(self.trainer.precision_plugin, "scaler", None) is not None)

    def _exchange_sums(self) -> dict[str, Tensor]:
        """Total and count of each loss over all micro-batches of the step on all devices, by one small all-reduce."""
        sums = torch.stack(list(self._step_sums.values()))
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return dict(zip(self._step_sums, sums, strict=True))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the averaged weights follow."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self._average(self.ema)

    def _average(self, ema: nn.Module) -> None:
        """One step of the average. Its memory grows to `train.ema`, so that early weights do not linger."""
        decay = min(self.config.train.ema, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(self.network.parameters()), 1 - decay)


def scale_and_clip(optimizer: torch.optim.Optimizer, factor: Tensor, clip: float) -> Tensor:
    """Multiply all gradients by `factor`, then clip their norm to `clip` (0: not at all); both in one pass.

    Returns the norm before clipping, as `torch.nn.utils.clip_grad_norm_` does.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    norm = norm * factor.to(norm)
    if clip:
        factor = factor * (clip / (norm + 1e-6)).clamp(max=1.0)
    if gradients:
        with torch.no_grad():
            torch._foreach_mul_([g.to_local() if isinstance(g, DTensor) else g for g in gradients], factor)
    return norm


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def samples_per_step(config: Config, trainer: L.Trainer) -> int:
    """Samples that one step of the optimizer learns from, over all devices, nodes and accumulated batches."""
    return config.data.batch_size * trainer.num_devices * trainer.num_nodes * config.train.accumulate


def diverged(loss: float, epoch: int, config: Config, *, what: str = "loss", where: str = "") -> VitError:
    """What to tell the user when a loss (or `what` else) of `epoch` (from 0) is no number; `where` says more."""
    return VitError(
        f"the {what} became {loss} in epoch {epoch + 1}; lower optim.lr (now {config.optim.lr:g}), "
        f"or warm up longer (schedule.warmup){where}"
    )
