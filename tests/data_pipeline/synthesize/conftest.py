"""Endpoints that end with their test, and retries that do not wait."""

import pytest

from endpoint import Endpoint


@pytest.fixture
def serve():
    started = []

    def start(reply):
        started.append(Endpoint(reply))
        return started[-1]

    yield start
    for e in started:
        e.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("data_pipeline.build.synthesize.client._FIRST_WAIT_S", 0.001)
