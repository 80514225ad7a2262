"""Families that no entry names: each is proved on a small twin, once, and the verdict is kept.

The proof drives a remote trunk, of which segments know nothing, and stock code that nobody has
tried: it runs in a process of its own. Silo and trunk each prove for themselves.
"""

import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import UnsafeFolderError, UnsupportedFamilyError
from flower_split.private_files import (
    make_folder,
    make_private,
    open_lasting,
    read_whole,
    write_whole,
)
from flower_split.segments.families import GROUP, Family, known_family
from flower_split.segments.fingerprint import fingerprint
from flower_split.segments.refusals import refuse_config
from flower_split.segments.shrinking import shrunk
from flower_split.segments.stock_classes import task_of
from flower_split.text_tables import read_json
from flower_split.user_folders import user_folder

logger = logging.getLogger(__name__)

PROOF = 1
"""Raised when the proof asks for more than before, so that earlier verdicts no longer count."""

_CACHE = "FLOWER_SPLIT_CACHE"
"""Environment variable that names the folder in which verdicts are kept."""

PATIENCE = 600.0
"""Seconds that a proof may take; on an idle machine it takes about ten."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a proof came to."""

    family: Family | None
    """The entry; None where the family is not exact."""
    reason: str = ""
    """Why it is not: what differs and where."""


def family_of(config: PreTrainedConfig) -> Family:
    """The entry of the family of `config`: the registered one, or else one that is proved now.

    A proof takes some seconds, and its verdict is kept on disk, see `verdict_file`.

    Raises:
        UnsupportedFamilyError: the family is not exact when it is cut, or no proof can be made, or
            its plug-in is broken.
        ModelError: an option of `config` rules out cutting it.
    """
    task = task_of(config)
    found = known_family(config.model_type, task)
    if found is not None:
        return found
    refuse_config(config)
    verdict = _verdict(config)
    if verdict.family is None:
        raise UnsupportedFamilyError(
            f"model family {config.model_type!r}{_for(task)} is not exact when it is cut: "
            f"{verdict.reason}. "
            "Exact families are in docs/models.md; a package can add an entry that "
            f"flower_split.check_exact passes, in the entry-point group {GROUP}"
        )
    return verdict.family


def _for(task: str) -> str:
    return "" if task == CAUSAL_LM else f" with model.task {task!r}"


def forget_verdict(config: PreTrainedConfig) -> None:
    """Drop the verdict that is kept on `config`, if there is one."""
    with suppress(Exception):  # no small twin, and so no verdict
        key = _key(config)
        _VERDICTS.pop(key, None)
        if (path := verdict_file(config.model_type, key)) is not None:
            path.unlink(missing_ok=True)


_VERDICTS: dict[str, Verdict] = {}
"""Of this process, by key."""


def _verdict(config: PreTrainedConfig) -> Verdict:
    try:
        key = _key(config)
    except Exception as error:  # configurations check themselves, each with errors of its own
        return Verdict(
            family=None,
            reason=f"no small twin of its configuration can be made: {type(error).__name__}: "
            f"{error}",
        )
    if key not in _VERDICTS:
        path = verdict_file(config.model_type, key)
        with _locked(path):
            verdict = None if path is None else _read(path)
            if verdict is None:
                verdict = _prove(config)
                if path is not None:
                    _write(path, verdict)
        _VERDICTS[key] = verdict
    return _VERDICTS[key]


def _key(config: PreTrainedConfig) -> str:
    """Of a verdict: what it depends on.

    Two models of one family have the same where they differ in sizes only, all in proportion.
    """
    parts = {
        "proof": PROOF,
        "flower_split": _version(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "twin": fingerprint(shrunk(config)),
    }
    if (task := task_of(config)) != CAUSAL_LM:
        parts["task"] = task
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _version() -> str:
    try:
        return metadata.version("flower-split")
    except metadata.PackageNotFoundError:  # run from its source
        return ""


def verdict_file(model_type: str, key: str) -> Path | None:
    """Where a verdict is kept: `$FLOWER_SPLIT_CACHE`, or `flower-split` in the user's cache folder.

    None where no folder can be made; a verdict is then this process's only.
    """
    named = os.environ.get(_CACHE, "")
    try:
        root = Path(named) if named else user_folder("XDG_CACHE_HOME", ".cache", key=_CACHE)
        root = make_folder(root)
        folder = root / "families"
        make_private(folder, below=root, remedy=f"name another folder with {_CACHE}")
    except (OSError, UnsafeFolderError) as error:
        _tell_once(f"verdicts on model families are not kept: {error}")
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    return folder / f"{model_type}-{key}.json"


@lru_cache
def _tell_once(text: str) -> None:
    logger.warning("%s", text)


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Have one process at a time prove what `path` is about; the others then read it."""
    if path is None:
        yield
        return
    try:
        handle = open_lasting(path.with_suffix(".lock"))
    except OSError as error:
        logger.warning("verdicts on model families cannot be shared: %s", error)
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> Verdict | None:
    try:
        return verdict_from_fields(read_json(read_whole(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        logger.warning("%s is broken and is written anew", path)
        return None


def _write(path: Path, verdict: Verdict) -> None:
    try:
        write_whole(path, json.dumps(verdict_to_fields(verdict)).encode())
    except OSError as error:
        logger.warning("the verdict cannot be kept in %s: %s", path, error)


def verdict_to_fields(verdict: Verdict) -> dict[str, Any]:
    """JSON from which `verdict_from_fields` makes the same verdict."""
    return asdict(verdict)


def verdict_from_fields(fields: Any) -> Verdict:
    """The verdict that `verdict_to_fields` was given.

    Raises:
        ValueError: `fields` are not those of a verdict.
    """
    try:
        family, reason = fields["family"], fields["reason"]
        if family is None:
            return Verdict(family=None, reason=str(reason))
        values = dict(family)
        values["after"] = tuple(str(name) for name in values["after"])
        flags = [values[name] for name in ("returns_tuple", "mixes_rows", "caches")]
        if not all(isinstance(flag, bool) for flag in flags):
            raise ValueError("a flag is neither true nor false")
        return Verdict(family=Family(**values), reason=str(reason))
    except (KeyError, TypeError) as error:
        raise ValueError(f"these are not the fields of a verdict: {error}") from error


def _prove(config: PreTrainedConfig) -> Verdict:
    """Run the proof in a process of its own.

    Raises:
        UnsupportedFamilyError: the process failed, which is no verdict.
    """
    kind = config.model_type + _for(task_of(config))
    logger.info("model family %s has no entry: proving on a small twin that it is exact", kind)
    began = time.monotonic()
    try:
        scratch = tempfile.TemporaryDirectory(prefix="flower-split-proof-")
    except OSError as error:
        raise UnsupportedFamilyError(
            f"whether model family {kind} is exact when it is cut cannot be found out: no "
            f"temporary folder can be made ({error.strerror}). Name one by TMPDIR"
        ) from error
    with scratch as folder:
        answer = Path(folder) / "verdict.json"
        failure = ""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "flower_split.verification", str(answer)],
                input=config.to_json_string(use_diff=False),
                env=_environment(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
            )
            if done.returncode != 0:
                failure = f"exit code {done.returncode}: {done.stderr.strip()[-500:]}"
        except subprocess.TimeoutExpired:
            failure = f"it took more than {PATIENCE:.0f} s"
        except OSError as error:
            failure = str(error)
        verdict: Verdict | None = None
        if not failure:
            with suppress(OSError, ValueError):
                verdict = verdict_from_fields(read_json(answer.read_text(encoding="utf-8")))
            failure = "" if verdict else "it left no verdict"
    if verdict is None:
        raise UnsupportedFamilyError(
            f"whether model family {kind} is exact when it is cut could not be found out "
            f"({failure}). Try again, or run `flower-split check MODEL` by itself"
        )
    if verdict.family is not None:
        logger.info(
            "model family %s is exact when it is cut: a small twin equals the uncut model to the "
            "bit%s (%.0f s, once for these versions)",
            kind,
            "" if verdict.family.caches else ", without a cache",
            time.monotonic() - began,
        )
    return verdict


def _environment() -> dict[str, str]:
    """Of the proof: this package, one thread, no network and no accelerator."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
