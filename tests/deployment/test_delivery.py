"""A real deployment over TLS in which every silo gets its part of the model from the server."""

from pathlib import Path

import pytest
from delivering import left
from federation import COMPLETED, write_app

from flower_split.delivery.cache import PartCache
from flower_split.delivery.pack import Pack
from flower_split.reporting import read_result

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.mark.exhaustive
def test_silos_fetch_their_part_once_and_leave_it_as_it_was(over_tls, tiny, tmp_path):
    app = write_app(tmp_path / "app", {**tiny.config, "model.delivery": "server"})
    caches = [Path(str(node.config["cache-dir"])) for node in over_tls.nodes]
    with Pack(tiny.model, bottom_layers=1, top_layers=1) as pack:
        expected = sorted([pack.digest, *pack.manifest.items])
    kept = []
    ports = set(over_tls.listening())
    for number in range(2):
        output = tmp_path / f"output{number}"
        ended = over_tls.run(app, output_dir=str(output))
        assert ended.status == COMPLETED, f"{ended}\n{over_tls.logs()}"
        report = read_result(output / "result.json")
        assert report.silos == ["0", "1"] and report.rounds[-1].failures == {}
        assert [left(PartCache(cache)) for cache in caches] == [expected] * 2
        parts = [path for cache in caches for path in (cache / "parts").iterdir()]
        kept.append({path: path.stat().st_mtime_ns for path in parts})
        over_tls.assert_idle(ports)
    assert kept[0] == kept[1]
