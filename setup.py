"""Builds the extension modules. Everything else about the package is in pyproject.toml."""

import glob
import os
import sysconfig

from Cython.Build import cythonize
from setuptools import Extension, setup

# With CUFRAMES_ABI3=1 one wheel for every CPython from 3.11 (buffers joined the limited API then). Built for one
# version, as by default, calls take about half the time; installers prefer such a wheel where there is one. A
# free-threaded interpreter has no limited API before 3.15.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
LIMITED_API = os.environ.get("CUFRAMES_ABI3") == "1" and not FREE_THREADED

SOURCES = ["cuframes/_core.pyx", *sorted(glob.glob("cuframes/_native/*.pyx"))]
HEADERS = sorted(glob.glob("cuframes/include/cuframes/*.h"))

macros = [("_GNU_SOURCE", None)]
if LIMITED_API:
    macros.append(("Py_LIMITED_API", "0x030B0000"))

extensions = [
    Extension(
        source.removesuffix(".pyx").replace("/", "."),
        [source],
        depends=HEADERS,
        include_dirs=["cuframes/include"],
        define_macros=macros,
        # A function that the limited API hides must not become an implicit declaration that crashes at run time.
        extra_compile_args=["-std=c11", "-O3", "-Werror=implicit-function-declaration"],
        py_limited_api=LIMITED_API,
    )
    for source in SOURCES
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
            "embedsignature.format": "python",
            "freethreading_compatible": True,
        },
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
