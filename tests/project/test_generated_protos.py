"""The committed wire modules are what the compiler makes of `protos/`."""

import subprocess
import sys
from pathlib import Path

GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def generated(folder: Path) -> dict[str, str]:
    return {
        path.name: path.read_text(encoding="utf-8")
        for pattern in GENERATED
        for path in folder.glob(pattern)
    }


def test_generated_modules_are_up_to_date(root: Path, tmp_path: Path) -> None:
    sources = sorted(path.relative_to(root).as_posix() for path in root.glob("protos/*.proto"))
    assert sources
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iflower_split/proto=protos",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            *sources,
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fresh = generated(tmp_path / "flower_split/proto")
    assert len(fresh) == len(GENERATED) * len(sources)
    assert generated(root / "flower_split/proto") == fresh, "run `make proto` and commit the result"
