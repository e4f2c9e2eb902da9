"""The folder of two colours that the tests of this folder train on, and the warnings they run with."""

from pathlib import Path

import pytest
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
                "ignore:.*your dataloader is not resumable.*",
            ):
                item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("colours"))
