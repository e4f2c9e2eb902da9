"""The folder of two colours that the tests of this folder train on, and the threads and warnings they run with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import draw_folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the command line silences, these tests do not take for errors either."""
    for item in items:
        if "tasks" in item.path.parts:
            for message in (
                "ignore:.*LeafSpec.*:FutureWarning",  # Lightning 2.6 under torch 2.14
                "ignore:.*does not have many workers.*",
                "ignore:.*number of training batches.*smaller than the logging interval.*",
                "ignore:.*Checkpoint directory .* exists and is not empty.*",
            ):
                item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small sums are slower on several threads, far slower where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("colours"))
