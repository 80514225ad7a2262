"""What Flower Hub asks of an app, without an account: names, description, files; it builds."""

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import collect_files, filter_paths_for_publish, validate_project_name
from flwr.supercore.constant import MAX_FILE_BYTES, MAX_TOTAL_BYTES

from flower_split.apps.folder.template import new_app

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["quickstart", "new"])
def app(request, tmp_path) -> Path:
    """The app that is prepared, and one as anybody makes it, with data beside it."""
    if request.param == "quickstart":
        return ROOT / "examples/quickstart"
    new_app(tmp_path / "my-app", data="notes.jsonl")
    (tmp_path / "my-app/notes.jsonl").write_text('{"text": "a patient"}\n')
    return tmp_path / "my-app"


def test_the_hub_would_take_it_and_gets_no_data(app: Path) -> None:
    project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    validate_project_name(app.name, "folder")
    validate_project_name(project["name"], "app")
    assert 0 < len(project["description"].strip()) <= 200
    assert project["license"] == "Apache-2.0"
    sent = filter_paths_for_publish(collect_files(app))
    assert {"pyproject.toml", "README.md"} <= sent.keys()
    assert not [name for name in sent if Path(name).suffix in (".jsonl", ".json")]
    sizes = [len((app / name).read_text(encoding="utf-8").encode()) for name in sent]
    assert max(sizes) <= MAX_FILE_BYTES and sum(sizes) <= MAX_TOTAL_BYTES


def test_it_builds(app: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as bundle:
        names = {name for name in bundle.namelist() if not name.startswith(".")}
    assert names == {"pyproject.toml", "README.md"}


def test_the_page_does_not_lean_on_the_repository() -> None:
    """It is shown, and copied, without it."""
    page = (ROOT / "examples/quickstart/README.md").read_text(encoding="utf-8")
    assert "pip install 'flower-split[simulation]'" in page
    assert "](.." not in page
