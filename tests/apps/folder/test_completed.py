"""A completed app takes every setting, and is otherwise the same; what is whole is not copied."""

from pathlib import Path

from flower_split.apps.folder.app import App
from flower_split.apps.folder.archive import archived
from flower_split.apps.folder.completed import completed
from flower_split.apps.folder.template import new_app

ROOT = Path(__file__).parents[3]
LACKING = ROOT / "examples/real_model"
GIVEN = ["checkpoint.keep=3 trunk.port=9443", "tensorboard=true"]


def test_keys_that_the_app_lacks_are_added() -> None:
    before = App.read(LACKING)
    assert not before.reads("trunk.port") and not before.reads("tensorboard")
    with completed(LACKING, GIVEN) as folder:
        after = App.read(folder, GIVEN)
        assert list(archived(folder)) == list(archived(LACKING))
    assert not folder.exists()
    set_now = {"checkpoint.keep": 3, "trunk.port": 9443, "tensorboard": True}
    assert after.settings == {**before.settings, **set_now}
    assert (after.name, after.server, after.client) == (before.name, before.server, before.client)


def test_an_app_that_has_them_stays_where_it_is(tmp_path: Path) -> None:
    new_app(tmp_path / "app")
    with completed(tmp_path / "app", GIVEN) as folder:
        assert folder == tmp_path / "app"


def test_what_is_wrong_is_left_to_who_reads_it() -> None:
    for given in (["no-such-key=1"], ["lora.r"], ["train.no-such=1"]):
        with completed(LACKING, given) as folder:
            assert folder == LACKING
    with completed(ROOT / "docs", GIVEN) as folder:
        assert folder == ROOT / "docs"


def test_apps_of_ones_own_have_the_keys_that_they_have() -> None:
    own = ROOT / "examples/unsplit_lora"
    with completed(own, ["checkpoint.keep=3"]) as folder:
        assert folder == own
