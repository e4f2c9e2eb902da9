"""What every task shares: optimizer, schedule, averaged weights, gradient norm. A task adds its losses."""

import copy
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

Losses = dict[str, Tensor]


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
        """of each loss in this epoch so far, over samples: its sum and their number, float [2]"""
        self.watch = Watch()
        self._learned: list[tuple[Tensor, Tensor]] = []
        """loss and sample indices of the batches of the step under way"""

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
        """The losses of one training batch; `loss` is the one that is minimised."""
        raise NotImplementedError

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
        losses = self.losses(batch)
        size = len(batch)
        if size or self.trainer.world_size > 1:  # a batch of unreadable pictures has no loss; devices log together
            for name, value in losses.items():
                value = value.detach().float()
                self.log(f"train/{name}_step", value, on_step=True, on_epoch=False, sync_dist=True, batch_size=size)
                numbers = torch.stack([value * size, torch.full_like(value, size)])
                numbers = torch.where(torch.isfinite(value), numbers, 0.0)  # such a step is not taken, and not counted
                self.sums[name] = self.sums[name] + numbers if name in self.sums else numbers
        self._learned.append((losses["loss"].detach(), batch.indices))
        return losses["loss"] * self.weight_of(batch_index)

    def weight_of(self, batch_index: int) -> float:
        """What a batch counts for among those of its step; Lightning divides by `train.accumulate`.

        An epoch whose last step has fewer batches than that takes the mean of those, too.
        """
        batches, accumulate = self.trainer.num_training_batches, self.config.train.accumulate
        left = batches % accumulate
        return accumulate / left if batch_index >= batches - left else 1.0

    def means(self) -> dict[str, Tensor]:
        """The mean of each loss over the samples of this epoch so far, on all devices; none where there was none."""
        sums = {name: self.trainer.strategy.reduce(value, reduce_op="sum") for name, value in self.sums.items()}
        return {name: value[0] / value[1] for name, value in sums.items() if value[1] > 0}

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
        """Clip the gradient's norm, and log what it was."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.config.optim.clip:
            norm = nn.utils.clip_grad_norm_(parameters, self.config.optim.clip)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self.log("train/gradient_norm", norm)
        # every device has the same norm, and its own loss: by the loss, devices would part
        losses = torch.stack([loss.float() for loss, _ in self._learned]).mean()
        rate = max(group["lr"] for group in optimizer.param_groups)
        numbers = torch.stack([losses if self.trainer.world_size == 1 else losses * 0 + norm, norm.to(losses)])
        step = Step(self.global_step + 1, rate, [indices for _, indices in self._learned], numbers)
        self.watch.look(optimizer, step, scaled=getattr(self.trainer.precision_plugin, "scaler", None) is not None)
        self._learned = []

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


def samples_per_step(config: Config, trainer: L.Trainer) -> int:
    """Samples that one step of the optimizer learns from, over all devices, nodes and accumulated batches."""
    return config.data.batch_size * trainer.num_devices * trainer.num_nodes * config.train.accumulate


def diverged(loss: float, epoch: int, config: Config, *, what: str = "loss", where: str = "") -> VitError:
    """What to tell the user when a loss (or `what` else) of `epoch` (from 0) is no number; `where` says more."""
    return VitError(
        f"the {what} became {loss} in epoch {epoch + 1}; lower optim.lr (now {config.optim.lr:g}), "
        f"or warm up longer (schedule.warmup){where}"
    )
