"""A model as a file, in one of three formats, checked against what the evaluation recorded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError, suggestion
from torchyard.core.formatting import number

if TYPE_CHECKING:
    from torch.export import ExportedProgram

INPUT, OUTPUT = "samples", "logits"  # names in ONNX
# Other kernels round otherwise; of the greatest logit.
ALLOWED_DIFFERENCE = 1e-3
METADATA = "torchyard"  # key of pt2's extra file, ONNX's property and safetensors' entry

Predict = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Checked:
    """How what a file predicts differs from what the evaluation recorded.

    Attributes:
        samples: how many were compared.
        difference: the greatest of a logit.
        scale: the greatest logit, disregarding its sign.
    """

    samples: int
    difference: float
    scale: float

    @property
    def line(self) -> str:
        """For people."""
        return (
            f"On {self.samples:,} test samples its logits differ by at most "
            f"{number(self.difference)} from those of the evaluation, which go up to "
            f"{number(self.scale)}."
        )


def check_format(name: str) -> None:
    """Refuse a format that there is not, or whose packages are missing.

    Raises:
        UserError: it says how to install them.
    """
    if name not in FORMATS:
        raise UserError(f"--format: no format '{name}'.{suggestion(name, list(FORMATS))}")
    missing = [each for each in FORMATS[name].needs if find_spec(each) is None]
    if missing:
        raise UserError(
            f"--format: {name} needs {' and '.join(missing)}: pip install 'torchyard[{name}]'"
        )


def write_model_file(
    exported: Path,
    target: Path,
    name: str,
    about: Mapping[str, Any],
    samples: npt.NDArray[Any],
    logits: npt.NDArray[np.float32],
) -> Checked:
    """Write a file, load it again, and compare; it takes its place only if it predicts the same.

    Args:
        exported: the pt2 archive that the run logged, which has been loaded without pickle.
        target: the file.
        name: of the format, one of `FORMATS`.
        about: is kept in the file's metadata, as JSON.
        samples, logits: of the test split, and what the evaluation predicted of them.

    Raises:
        UserError: the file cannot be written.
        RunError: the format cannot hold the model, or what it predicts differs.
    """
    import torch

    program = torch.export.load(exported)
    chosen, text = FORMATS[name], json.dumps(dict(about), ensure_ascii=False)
    try:
        with atomic_write(target) as file:
            chosen.write(program, Path(file.name), text)
            found = chosen.load(program, Path(file.name))(samples)
            difference = float(np.abs(found - logits).max(initial=0.0))
            checked = Checked(len(samples), difference, float(np.abs(logits).max(initial=0.0)))
            if not difference <= ALLOWED_DIFFERENCE * max(1.0, checked.scale):
                raise RunError(f"{target} is not written: it predicts otherwise. {checked.line}")
    except OSError as error:
        raise UserError(f"--to: {target}: {error.strerror or error}") from error
    return checked


def _write_pt2(program: ExportedProgram, path: Path, about: str) -> None:
    import torch

    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: about})


def _load_pt2(program: ExportedProgram, path: Path) -> Predict:
    import torch

    with path.open("rb") as file:
        return _predict(torch.export.load(file).module())


def _write_onnx(program: ExportedProgram, path: Path, about: str) -> None:
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        made = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert made is not None
        proto = made.model_proto
        entry = proto.metadata_props.add()
        entry.key, entry.value = METADATA, about
        path.write_bytes(proto.SerializeToString())
    except OSError:
        raise
    except Exception as error:  # of the exporter, which raises its own; or more than 2 GiB
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"The model cannot be written as ONNX: {reason}", str(error)) from error


def _load_onnx(program: ExportedProgram, path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def predict(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = session.run([OUTPUT], {INPUT: samples})[0]
        return logits

    return predict


def _write_safetensors(program: ExportedProgram, path: Path, about: str) -> None:
    from safetensors.torch import save_file

    # Copies: weights that two layers share are written twice, which the format requires.
    weights = {
        name: value.detach().clone().contiguous()
        for name, value in program.module().state_dict().items()
    }
    save_file(weights, path, metadata={METADATA: about})


def _load_safetensors(program: ExportedProgram, path: Path) -> Predict:
    import torch
    from safetensors.torch import load_file

    module = program.module()
    with torch.no_grad():  # so that nothing but the file can have put them there
        for value in module.state_dict().values():
            value.zero_()
    module.load_state_dict(load_file(path))
    return _predict(module)


def _predict(module: Any) -> Predict:
    import torch

    def predict(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = module(torch.from_numpy(samples)).numpy()
        return logits

    return predict


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: an exported program to a path, with a text about it.
        load: what predicts as the file at the path does; of the program, what that lacks is used.
        needs: packages that may not be installed.
    """

    write: Callable[[ExportedProgram, Path, str], None]
    load: Callable[[ExportedProgram, Path], Predict]
    needs: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(_write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format(_write_pt2, _load_pt2),
    "safetensors": Format(_write_safetensors, _load_safetensors),
}
