"""Fixtures of a tiny random Wan. Tests of other models override them."""

import pytest
import tiny_pipelines

from spatialalign_trl.models import WanVideoModel


@pytest.fixture
def model() -> WanVideoModel:
    """A tiny random Wan, built in memory."""
    return WanVideoModel(tiny_pipelines.wan_pipeline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pipeline folder of a tiny random Wan, shared by the tests of a file."""
    return tiny_pipelines.saved_wan(tmp_path_factory.mktemp("wan"))
