"""The folder of all parties of a local federation: kept where that is wanted, else removed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flower_split.apps.flower.private_home import short_folder, undisturbed
from flower_split.errors import ConfigError
from flower_split.private_files import make_folder, make_private

CA = "ca"
"""What a folder has in it that such a federation has left."""


@contextmanager
def party_folder(keep: Path | None) -> Iterator[Path]:
    """A folder of this user alone.

    Args:
        keep: New, empty, or kept by an earlier federation; None takes a temporary one.

    Raises:
        ConfigError: `keep` holds something else, or others may write into it.
    """
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="flower-split-", dir=short_folder()))
        try:
            yield folder
        finally:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        folder = make_folder(keep.absolute())
        make_private(folder, remedy="name another folder by --keep")
        is_strange = any(folder.iterdir()) and not (folder / CA).is_dir()
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"--keep {keep}: {error.strerror or error}") from error
    if is_strange:
        raise ConfigError(f"--keep {keep} holds something else: name a new folder")
    yield folder
