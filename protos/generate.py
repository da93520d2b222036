"""Writes the stubs of the contract with the pinned, old toolchain: ``python protos/generate.py [--output FOLDER]``.

Stubs of a newer toolchain refuse to be imported beside an older protobuf, and notebooks pin what they like. Those of
grpcio-tools 1.62 import under protobuf 4.25 to 7. That toolchain needs Python 3.10 to 3.12; it is installed once, under
``.cache/``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = (
    "grpcio-tools==1.62.3",
    "protobuf==4.25.*",
    "mypy-protobuf==3.6.*",
    "setuptools<80",
    "googleapis-common-protos",
)


def toolchain() -> Path:
    """Returns the interpreter of the pinned toolchain, installed when absent. Exits when no Python fits."""
    environment = ROOT / ".cache" / "protoc"
    python = environment / "bin" / "python"
    stamp = environment / "installed"
    if stamp.exists() and stamp.read_text() == "\n".join(TOOLS):
        return python
    candidates = [sys.executable, *filter(None, (shutil.which(f"python3.{minor}") for minor in (12, 11, 10)))]
    for candidate in candidates:
        answer = subprocess.run(
            [candidate, "-c", "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))"], check=False
        )
        if answer.returncode == 0:
            break
    else:
        sys.exit("make protos needs Python 3.10, 3.11 or 3.12; install one of them")
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([candidate, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *TOOLS], check=True)
    stamp.write_text("\n".join(TOOLS))
    return python


def generate(output: Path, descriptors: Path | None = None, sources: Path = ROOT / "protos") -> None:
    """Writes stubs of ``sources`` below ``output`` and, if asked, the descriptor image with comments and imports."""
    python = toolchain()
    include = subprocess.run(
        [str(python), "-c", "import google.api, pathlib; print(pathlib.Path(list(google.api.__path__)[0]).parents[1])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    # Written beside and swapped, so that whoever imports the stubs meanwhile finds the old ones or the new ones.
    made = Path(tempfile.mkdtemp(prefix=".stubs-", dir=output))
    protos = sorted(str(path.relative_to(sources)) for path in (sources / "noronha" / "v1").glob("*.proto"))
    command = [
        str(python), "-m", "grpc_tools.protoc", "-I", str(sources), "-I", include,
        f"--python_out={made}", f"--grpc_python_out={made}", f"--mypy_out=quiet:{made}",
        f"--mypy_grpc_out=quiet:{made}",
    ]  # fmt: skip
    if descriptors is not None:
        command += ["--include_imports", "--include_source_info", f"--descriptor_set_out={descriptors}"]
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    target, old = output / "noronha" / "v1", made / "old"
    try:
        subprocess.run([*command, *protos], check=True, env=environment)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(old)
        (made / "noronha" / "v1").rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Writes the stubs of the contract.")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "protos" / "python", help="root of the generated packages"
    )
    parser.add_argument("--descriptors", type=Path, help="file for the descriptor image that is linted")
    parser.add_argument("--sources", type=Path, default=ROOT / "protos", help="root of the contract to read")
    given = parser.parse_args()
    generate(given.output, given.descriptors, given.sources)


if __name__ == "__main__":
    main()
