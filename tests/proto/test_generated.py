"""The committed wire modules are what the compiler makes of `protos/`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").glob("*.proto"))
GENERATED = ROOT / "flower_split" / "proto"


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a development tool")
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "-Iflower_split/proto=protos"),
        *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}"),
        *(str(proto.relative_to(ROOT)) for proto in PROTOS),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    fresh = {path.name: path.read_text() for path in (tmp_path / "flower_split/proto").iterdir()}
    committed = {
        path.name: path.read_text()
        for path in GENERATED.iterdir()
        if path.suffix in (".py", ".pyi") and path.name != "__init__.py"
    }
    assert len(fresh) == 3 * len(PROTOS)
    assert committed == fresh
