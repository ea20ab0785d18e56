"""What the tests against the kernel share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.kernel import Kernel, open_kernel


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A network namespace of this test's own."""
    with open_kernel() as made:
        yield made
