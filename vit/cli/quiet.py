"""Keep libraries from talking over us."""

import logging
import warnings


def quiet_lightning() -> None:
    """Silence hints that are no business of a user of `vit`; our own messages go through the logger `vit`."""
    import lightning.fabric as fabric  # both set their loggers up anew when they are imported
    import lightning.pytorch as pytorch

    for package in (fabric, pytorch):
        logging.getLogger(package.__name__).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*lr_scheduler.step.*optimizer.step.*",
        ".*isn't a directory to save.*",
        ".*LeafSpec.*",
        ".*It is recommended to use .self.log.*",  # what we log so is the same on every device
        ".*your dataloader is not resumable.*",  # ours begin at the place by themselves
        ".*IterableDataset. has .__len__. defined.*",
        ".*.srun. command is available on your system but is not used.*",  # nor need it be, on one device
    ):
        warnings.filterwarnings("ignore", message=message)
