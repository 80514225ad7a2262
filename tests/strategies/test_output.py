"""The output folder is made for this user alone, and what is written goes through no link."""

import stat
from pathlib import Path

import pytest

from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError
from flower_split.strategies.output import checkpoint_folder, output_folder


def config(folder: Path | str) -> SplitConfig:
    return read_run_config(
        {
            "model.name": "m",
            "split.bottom-layers": 1,
            "split.top-layers": 1,
            "data.path": "d.txt",
            "output-dir": str(folder),
        }
    )


def test_it_is_this_users_alone_and_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    made = output_folder(config(tmp_path / "a" / "b"))
    assert made == tmp_path / "a" / "b"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)] == [0o700] * 2
    made.chmod(0o2775)
    assert output_folder(config(made)) == made
    assert stat.S_IMODE(made.stat().st_mode) == 0o2775


def test_it_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert output_folder(config(tmp_path / "link")) == tmp_path / "disk"
    assert checkpoint_folder(config(tmp_path / "link")) == tmp_path / "disk" / "checkpoints"


@pytest.mark.parametrize("name", ["adapter", "checkpoints", "tensorboard"])
def test_nothing_in_it_may_be_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"output-dir .* has a link '{name}'.*remove it"):
        output_folder(config(tmp_path))


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("relative", "absolute path"),
        ("~nobody-of-this-name/x", "home folder of that user is not known"),
        ("/x\0y", "null character"),
        ("/tmp/" + "x" * 300, "File name too long"),
        ("/dev/null/x", "Not a directory"),
        ("/proc/nowhere", "cannot be made"),
    ],
)
def test_one_that_cannot_be_made_is_named_with_the_reason(folder: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"output-dir.*{said}"):
        output_folder(config(folder))
