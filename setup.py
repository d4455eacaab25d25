"""Builds the extension modules. Everything else about the package is in pyproject.toml.

The environment says which build it is:

CUFRAMES_ABI3=1
    One wheel for every CPython from 3.11 (buffers joined the limited API then). Built for one version, as by default,
    calls take about half the time; installers prefer such a wheel where there is one. A free-threaded interpreter has
    no limited API before 3.15.
CUFRAMES_DEBUG=1
    Assertions in C, checked indices, no access to attributes of None, debug information, and the module
    ``cuframes._native.debug``, which counts living objects. Slow, and not for publishing.
CFLAGS with -g
    Debug information in an ordinary build, which has none, since it would be most of the wheel.
"""

import glob
import os
import shutil
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build import build

DEBUG = os.environ.get("CUFRAMES_DEBUG") == "1"
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
LIMITED_API = os.environ.get("CUFRAMES_ABI3") == "1" and not FREE_THREADED and not DEBUG

# Each kind of build has a directory of its own, also for the generated C: what one leaves there, setuptools and Cython
# would take for the other's.
BUILD_BASE = f"build/{'debug' if DEBUG else 'abi3' if LIMITED_API else 'release'}"
DEBUG_SOURCE = "cuframes/_native/debug.pyx"

sources = ["cuframes/_core.pyx", *sorted(glob.glob("cuframes/_native/*.pyx"))]
if not DEBUG and DEBUG_SOURCE in sources:
    sources.remove(DEBUG_SOURCE)
headers = sorted(glob.glob("cuframes/include/cuframes/*.h"))

macros = [("_GNU_SOURCE", None)]
if LIMITED_API:
    macros.append(("Py_LIMITED_API", "0x030B0000"))
if DEBUG:
    # An object that waits in a list for its next use would look alive.
    macros += [("CUFRAMES_DEBUG", None), ("CYTHON_USE_FREELISTS", "0")]

# A function that the limited API hides must not become an implicit declaration that crashes at run time.
flags = ["-std=c11", "-Werror=implicit-function-declaration", "-O1" if DEBUG else "-O3"]
# Python's own CFLAGS have -g. Whoever asks for it here gets it.
if not DEBUG and not any(flag.startswith("-g") for flag in os.environ.get("CFLAGS", "").split()):
    flags.append("-g0")

extensions = [
    Extension(
        source.removesuffix(".pyx").replace("/", "."),
        [source],
        depends=headers,
        include_dirs=["cuframes/include"],
        define_macros=macros,
        extra_compile_args=flags,
        py_limited_api=LIMITED_API,
    )
    for source in sources
]


class CleanBuild(build):
    """A build begins with nothing in build/lib: a wheel is all that lies there, also modules that are no more."""

    def run(self):
        package = Path(self.build_lib, "cuframes")
        if package.exists() and not package.samefile("cuframes"):
            shutil.rmtree(package)
        super().run()


setup(
    cmdclass={"build": CleanBuild},
    ext_modules=cythonize(
        extensions,
        build_dir=f"{BUILD_BASE}/c",
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "nonecheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
            "embedsignature.format": "python",
            "freethreading_compatible": True,
        },
    ),
    options={
        "build": {"build_base": BUILD_BASE},
        **({"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {}),
    },
)
