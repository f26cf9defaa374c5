"""Builds the native CPU kernels along with the package. Without a compiler the package installs without them."""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

SOURCES = Path("hymate_native/csrc")
FLAGS = [
    *("-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),
    # Never -ffast-math: it deletes the rounding inside exp2, and links code that changes the whole process.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC's own intrinsics trip over these
]
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def kernels(build: str, *flags: str) -> Extension:
    """One build of the source for one level of processor: a plain shared library that ctypes opens."""
    return Extension(
        f"hymate_native.kernels-{build}",
        sources=sorted(map(str, SOURCES.glob("*.cpp"))),
        depends=sorted(map(str, SOURCES.glob("*.h"))),
        extra_compile_args=[*FLAGS, *flags],
        language="c++",
        optional=True,
    )


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # No tag of a Python version: the library knows nothing of Python.
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        build_temp = self.build_temp
        self.build_temp = os.path.join(build_temp, ext.name)  # every build compiles the same files
        try:
            self._build_with_or_without_openmp(ext)
        except (BaseError, CCompilerError, OSError) as error:
            self.warn(
                f"{ext.name} was not built ({error}). hymate installs without it; to have the fast CPU kernels, "
                "install a C++ compiler and install hymate again."
            )
        finally:
            self.build_temp = build_temp

    def _build_with_or_without_openmp(self, ext: Extension) -> None:
        compile_args, link_args = ext.extra_compile_args, ext.extra_link_args
        if platform.system() == "Linux":
            link_args = [*link_args, "-Wl,--as-needed", "-Wl,--strip-all"]
        ext.extra_compile_args, ext.extra_link_args = [*compile_args, "-fopenmp"], [*link_args, "-fopenmp"]
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError):
            ext.extra_compile_args, ext.extra_link_args = compile_args, link_args
            super().build_extension(ext)

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if os.path.exists(path)]


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        _, _, system = super().get_tag()
        built = any(Path(self.bdist_dir).rglob("kernels-*.so"))
        return "py3", "none", system if built else "any"


setup(
    ext_modules=[
        kernels("portable"),
        *(
            kernels(f"x86-64-v{level}", f"-march=x86-64-v{level}", "-mprefer-vector-width=512")
            for level in (2, 3, 4)
            if IS_X86
        ),
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
