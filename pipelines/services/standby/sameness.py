"""What must be the same in two processes, so that one can do what the other was started for.

A process that was started earlier has read files and variables that may have changed since, and it
has limits and rights of its own. Whatever cannot be handed over has to be equal.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

# Read by the dynamic loader, the C library, Python or a library as it is imported. Others are
# handed over: what reads them does so when it is used.
_READ_EARLY = re.compile(
    r"PYTHON|PREFECT_|MLFLOW_|TORCH(?!YARD)|PYTORCH|AOT|INDUCTOR|TRITON|OMP_|GOMP_|KMP_|MKL|GOTO|"
    r"OPENBLAS|BLIS|NUMEXPR|NPY_|NUMPY_|CUDA|NVIDIA|NCCL|CUBLAS|CUDNN|CUTLASS|CUTEDSL|FLYDSL|HIP|"
    r"ROCM|LD_|GLIBC|MALLOC_|THP_MEM|MPL|MATPLOTLIB|SSL|OPENSSL|ATEN_|DNNL_|ONEDNN_|KINETO|TQDM_|"
    r"PT2_|FX_|FAKE_|PARTITIONER_|COMPILE_STROBELIGHT|DUMP_AOTI|ENABLE_(\w+_TMA|T)|LOG_(AUTO|TLP)|"
    r"MAST_HPC|UNSAFE_SKIP|PANDAS_|PILLOW_|ARROW_|JE_ARROW|SCIPY_|SYMPY_|MPMATH_|NETWORKX_|OTEL_|"
    r"FSSPEC|PYDANTIC|PROTOCOL_BUFFERS|WEBSOCKETS_|PENDULUM_|SOURCE_DATE_EPOCH$|"
    r"XDG_(CONFIG|CACHE|DATA)_HOME$|(HOME|TZ|LANG|LANGUAGE|VIRTUAL_ENV|CXX|CI)$|LC_"
)
_READ_LATER = re.compile(
    r"PREFECT__|PREFECT_WORKER_|PREFECT_SERVER_EPHEMERAL_ENABLED$|"
    r"PREFECT_(API_(URL|KEY|AUTH_STRING)|LOGGING_.*_LEVEL)$|"
    r"MLFLOW_(TRACKING_(URI|USERNAME|PASSWORD|TOKEN)|EXPERIMENT_(ID|NAME))$"
)
_RIGHTS = {
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"),
    *("Seccomp", "Cpus_allowed", "Mems_allowed"),
}
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

Stamp = tuple[int, int]  # time of modification in ns, size


def read_early(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that count from the start of a process or an import on."""
    return {
        name: value
        for name, value in environment.items()
        if _READ_EARLY.match(name) and not _READ_LATER.match(name)
    }


def surroundings() -> dict[str, str]:
    """Rights, limits, namespaces and priority of this process, on Linux; and its Python."""
    flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    flags = {name: value for name, value in flags.items() if isinstance(value, int)}
    found = {
        "Python": f"{sys.executable} {sys.prefix} {sys.version}",
        "Python's options": f"{flags | {'safe_path': 0}} {sys._xoptions} {sys.warnoptions}",
        "priority": f"{os.getpriority(os.PRIO_PROCESS, 0)} {os.sched_getscheduler(0)}",
        "root folder": str(Path("/").stat().st_ino),
        "resource limits": Path("/proc/self/limits").read_text(),
        "cgroup's limits": " ".join(_cgroup_limits()),
    }
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in _RIGHTS:
            found[name] = value.strip()
    for kind in _NAMESPACES:
        found[f"{kind} namespace"] = str(Path("/proc/self/ns", kind).readlink())
    return found


def _cgroup_limits() -> Iterable[str]:
    """What the groups that this process is in may use: a terminal of its own is no limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers:  # of version 1
            yield line
            continue
        group = Path("/sys/fs/cgroup", path.lstrip("/"))
        for folder in (group, *group.parents):
            for file in ("memory.max", "memory.high", "cpu.max"):
                try:
                    limit = (folder / file).read_text().strip()
                except OSError:
                    continue
                if not limit.startswith("max"):
                    yield f"{folder.name}/{file}={limit}"


def folder_settings(folder: str) -> dict[str, object]:
    """What the files of a working folder set of Prefect and matplotlib, as they are imported."""
    texts = {}
    for name in (".env", "prefect.toml", "pyproject.toml", "matplotlibrc"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (file := Path(folder, name)).is_file():  # a pipe would be waited for
                texts[name] = file.read_text("utf-8")
    found: dict[str, object] = {**texts}
    if ".env" in texts:  # the rest of it is read by nobody, or by a plugin
        found[".env"] = re.findall(r"(?im)^.*\bPREFECT_.*$", texts[".env"])
    if "pyproject.toml" in texts:
        import tomllib  # every command imports this module

        with contextlib.suppress(tomllib.TOMLDecodeError):
            tool = tomllib.loads(texts["pyproject.toml"]).get("tool", {})
            found["pyproject.toml"] = tool.get("prefect")
    return {name: value for name, value in found.items() if value}


def loaded_files() -> dict[str, Stamp | None]:
    """The files of the modules that are imported, and the folders where others would be found."""
    folders = {entry for entry in sys.path if entry}
    beside = {str(file) for folder in folders for file in Path(folder).glob("*.pth")}
    files = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    read = {*filter(None, files), *_user_files()}
    return {path: stamp(path) for path in (*folders, *beside, *read)}


def _user_files() -> Iterable[str]:
    """Files of the user's that Prefect and matplotlib have read, or would if they were there."""
    import matplotlib
    from prefect.settings import get_current_settings

    yield str(get_current_settings().profiles_path)
    yield str(Path(matplotlib.get_configdir(), "matplotlibrc"))


def stamp(path: str) -> Stamp | None:
    """By which a change of a file is noticed; None if it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of thousands, a third of the time
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
