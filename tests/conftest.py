"""Settings and fixtures that all tests share. The environment is set before anything that reads it is imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")
# Idle OpenMP threads that spin slow down everything else on a small machine by an order of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Other workers have the other cores. Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import shutil  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from browser import headless_chromium  # noqa: E402
from loopback_hub import LoopbackHub, redirect_clients  # noqa: E402

REPO_ROOT = Path(__file__).resolve().parent.parent
MAX_WORKERS = 8
"""Each holds torch, diffusers and transformers (about 1 GiB), and most of the time lies in a few files anyway."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto`: a worker for every core that this process may use; xdist's own count asks for physical ones."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist's own count reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    """Fix the number of torch threads: sums are split by thread, so results depend on it in the last bits. Nothing is
    written to the user's cache, and no test fails for being slow. Property tests try the same examples in every run;
    `--hypothesis-seed=random` (or a number) lets them search for others."""
    if "HF_DATASETS_CACHE" not in os.environ:  # what a worker inherits is the first process's
        folder = tempfile.mkdtemp(prefix="spatialalign-tests-")
        os.environ["HF_DATASETS_CACHE"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    import hypothesis
    import torch

    # How long an example takes says how busy the machine is.
    busy = [hypothesis.HealthCheck.too_slow]
    repeat = config.getoption("--hypothesis-seed", None) is None
    hypothesis.settings.register_profile("project", deadline=None, suppress_health_check=busy, derandomize=repeat)
    hypothesis.settings.load_profile("project")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In parallel, files with slow tests come first, so that no worker is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder of the checkout (the one that holds setup.cfg)."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def golden_data() -> Path:
    """The folder of golden values, computed with the SpatialAlign authors' code."""
    return REPO_ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data that lies beside the checkout; tests that need it are skipped without it."""
    folder = REPO_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the reference data is not here: {folder}")
    return folder


@pytest.fixture
def loopback_hub() -> Iterator[LoopbackHub]:
    """A Hub on this machine, for processes that are started with `loopback_hub.environment(tmp_path)`."""
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def loopback_client(loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The same Hub, and the clients of this process talk to it, logged in, with their caches in `tmp_path`."""
    redirect_clients(loopback_hub, tmp_path / "hf_home", monkeypatch)
    return loopback_hub


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium for a file's tests; they are skipped where there is none. See `browser.open_page`."""
    with headless_chromium() as browser:
        yield browser
