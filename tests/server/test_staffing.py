"""A replica has the workers that the settings say, or that pay on its machine; finding out holds nobody up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from models.store import Store
from server.engine.engine import Engine, EngineLimits
from server.engine.family import Family, load_family
from server.engine.worker_profile import FILE
from server.settings import Settings
from server.staffing import Staffing
from server.usage import Usage
from tests.support.engines import dial, until
from tests.support.tiny_family import publish_tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(publish_tiny_family(Store(tmp_path_factory.mktemp("store"))))


def staffing(run_dir: Path, usage: Usage, workers: int | None = None, cores: float = 2.0) -> Staffing:
    settings = Settings.model_validate({"server": {"run_dir": run_dir}, "batching": {"workers": workers}})
    made = Staffing(settings, usage, quiet_s=0.01, least_share=0.0)
    made._cores = cores
    return made


async def test_a_first_start_takes_the_cores_measures_when_it_is_quiet_and_a_second_one_knows(
    family: Family, tmp_path: Path
) -> None:
    usage = Usage("tiny")
    first = staffing(tmp_path, usage)
    engine = Engine(family, EngineLimits(), dial(), usage, first.at_start(family))
    assert (engine.workers, first.describe(engine)["chosen_by"]) == (2, "cores")
    first.begin(engine)
    await until(lambda: (tmp_path / FILE).exists() and first.describe(engine)["chosen_by"] == "measured")
    assert engine.healthy
    second = staffing(tmp_path, usage)
    assert second.at_start(family) == engine.workers
    assert second.describe(engine)["chosen_by"] == "measured"
    await first.stop()
    await engine.close()


async def test_nothing_is_measured_while_something_is_asked(family: Family, tmp_path: Path) -> None:
    usage = Usage("tiny")
    choice = staffing(tmp_path, usage)
    engine = Engine(family, EngineLimits(), dial(), usage, choice.at_start(family))
    choice.begin(engine)
    for _ in range(50):
        usage.count("cache_hits")
        await asyncio.sleep(0.002)
    await choice.stop()
    await engine.close()
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(("workers", "cores"), [(3, 2.0), (None, 1.0)])
async def test_what_the_settings_say_or_one_core_needs_no_measuring(
    family: Family, tmp_path: Path, workers: int | None, cores: float
) -> None:
    usage = Usage("tiny")
    choice = staffing(tmp_path, usage, workers, cores)
    engine = Engine(family, EngineLimits(), dial(), usage, choice.at_start(family))
    choice.begin(engine)
    await asyncio.sleep(0.1)
    assert engine.workers == (workers or 1)
    assert choice.describe(engine)["chosen_by"] == ("settings" if workers else "cores")
    assert not (tmp_path / FILE).exists()
    await choice.stop()
    await engine.close()
