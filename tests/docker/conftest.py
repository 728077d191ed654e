"""The image, built once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers import Images, missing


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """In PLAST_IMAGES, a folder that is kept and makes the next build short, or else built from nothing."""
    if why := missing():
        pytest.skip(why)
    built = Images(Path(os.environ.get("PLAST_IMAGES") or tmp_path_factory.mktemp("images")))
    try:
        if why := built.refusal():
            pytest.skip(why)
        built.build()
        yield built
    finally:
        built.close()
