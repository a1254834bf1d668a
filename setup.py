"""The build step that pyproject.toml cannot express: the gRPC code of proto/ is generated, never committed.

Wheels, sdists and editable installs take it as a part of setuptools' `build`; `make proto` runs it on its own:
`python setup.py build_grpc --inplace`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build
from setuptools.errors import ExecError

PROTO = "proto/teacher/v1/teacher.proto"
GENERATED = tuple(f"shared/rpc/teacher/v1/teacher_pb2{suffix}" for suffix in (".py", ".pyi", "_grpc.py"))


class BuildGrpc(Command):
    """Generates `shared/rpc/teacher/v1` below the build directory, or in the source tree."""

    description = "generate the gRPC code of proto/"
    user_options: ClassVar = [
        ("build-lib=", "d", "directory to write below"),
        ("inplace", "i", "write into the source tree"),
    ]
    boolean_options: ClassVar = ["inplace"]

    def initialize_options(self) -> None:
        """What setuptools asks of a command."""
        self.build_lib: str | None = None
        self.inplace = False
        self.editable_mode = False  # set by setuptools for an editable install

    def finalize_options(self) -> None:
        """What setuptools asks of a command."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Runs protoc; the paths that it generates import each other by stand below `shared.rpc`."""
        from grpc_tools import protoc  # here, so that metadata can be read without the generator

        out = Path("." if self.inplace or self.editable_mode else self.build_lib)
        out.mkdir(parents=True, exist_ok=True)
        outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        source = PROTO.replace("proto", "shared/rpc", 1)
        if code := protoc.main(["protoc", "-Ishared/rpc=proto", *outputs, source]):
            raise ExecError(f"protoc could not compile {PROTO}: exit code {code}")

    def get_source_files(self) -> list[str]:
        """What an sdist must hold for this step."""
        return [PROTO]

    def get_outputs(self) -> list[str]:
        """Files of a wheel that this step writes."""
        return [str(Path(self.build_lib, path)) for path in GENERATED]

    def get_output_mapping(self) -> dict[str, str]:
        """Where an editable install finds those files."""
        return {str(Path(self.build_lib, path)): path for path in GENERATED} if self.editable_mode else {}


class Build(build):
    """setuptools' `build`, with the step at its end: what it generates replaces older copies."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_grpc", None)]


setup(cmdclass={"build": Build, "build_grpc": BuildGrpc})
