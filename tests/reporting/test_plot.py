"""The plot is a PNG in which every silo's line can be seen."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from flower_split.reporting import RoundResult, RunResult, plot_losses


def colours(path: Path) -> set[tuple[int, ...]]:
    image = (imread(path)[..., :3] * 255).round().astype(np.uint8)
    return {tuple(int(part) for part in pixel) for pixel in np.unique(image.reshape(-1, 3), axis=0)}


FIRST_THREE = {(31, 119, 180), (255, 127, 14), (44, 160, 44)}
FOURTH = (214, 39, 40)


@pytest.mark.medium
def test_every_silo_is_drawn_in_its_colour(result: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "new" / "losses.png"
    plot_losses(result, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    found = colours(path)
    assert found >= FIRST_THREE and FOURTH not in found


@pytest.mark.medium
@pytest.mark.parametrize(
    "empty", [RunResult(rounds=()), RunResult(rounds=[RoundResult(server_round=1)])]
)
def test_a_run_without_losses_still_has_a_plot(empty: RunResult, tmp_path: Path) -> None:
    plot_losses(empty, tmp_path / "losses.png")
    assert not FIRST_THREE & colours(tmp_path / "losses.png")


@pytest.mark.medium
def test_threads_draw_at_once(result: RunResult, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    threads = [threading.Thread(target=plot_losses, args=(result, path)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in paths}) == 1


def test_the_plotting_library_is_imported_only_to_plot() -> None:
    program = "import flower_split.reporting, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
