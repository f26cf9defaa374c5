"""Shards of a data set in MEDS on two machines of Ray, of which one is lost: the folder is that of one machine."""

import threading
import time

import pytest

from hymate_training.cli.main import main
from hymate_training.readers import meds, meds_shards
from tests.readers.test_meds import make, same
from tests.support.clusters import two_machines

pytest.importorskip("ray", reason="the extra [ray] is not installed")
PAUSE = 0.4  # seconds that a shard takes longer


class SlowReader(meds_shards.ShardReader):
    """Reads so slowly that a machine is lost in the middle."""

    def __call__(self, shard):
        time.sleep(PAUSE)
        super().__call__(shard)


@pytest.mark.timeout(600)
def test_a_lost_machine_loses_no_shard(tmp_path, monkeypatch):
    raw = make(tmp_path / "raw")
    meds.prepare(raw, tmp_path / "local", min_subjects=2)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(meds_shards, "ShardReader", SlowReader)
    with two_machines() as cluster:
        lost, removed = next(iter(cluster.worker_nodes)), threading.Event()

        def remove_one() -> None:
            while not list((tmp_path / ".out.shards").glob("*/codes.parquet")):
                time.sleep(0.05)
            cluster.remove_node(lost, allow_graceful=False)
            removed.set()

        threading.Thread(target=remove_one, daemon=True).start()
        meds.prepare(raw, tmp_path / "out", min_subjects=2, engine="ray", address=cluster.address)
        assert removed.wait(60)
    assert same(tmp_path / "local", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "out", "raw"]


def test_an_address_is_for_ray_alone(tmp_path, capsys):
    make(tmp_path / "raw")
    command = ["prepare", "meds", "--raw", str(tmp_path / "raw"), "--output", str(tmp_path / "out")]
    assert main([*command, "--address", "auto"]) == 2
    assert "--address is for --engine ray" in capsys.readouterr().err
