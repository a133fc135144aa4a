"""One gateway for all tests that only need other routes, and a maker for tests that need a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gateway.harness import Gateway


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Gateway:
    """The shared gateway, with routes that name no model."""
    shared_gateway.use()
    return shared_gateway


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways that are not yet started; all are stopped at the end."""
    made: list[Gateway] = []

    def make(*options: str) -> Gateway:
        folder = tmp_path / f"g{len(made)}"
        folder.mkdir()
        made.append(Gateway(folder, *options))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()
