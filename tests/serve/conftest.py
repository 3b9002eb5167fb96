"""What the tests of one server share; each file has its own ``server``."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from tests.serve.server_thread import Running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the file's server."""
    with server.client() as client:
        yield client
