"""How the arithmetic of a training is carried out; what is learned stays the same.

`Execution` chooses and sets up, `CompiledStep` is a step that torch has compiled, `GraphedStep`
one that a GPU replays; `WholeStep` is either. What rests on private parts of torch
stays in this package, behind the switch of `private_torch.py`.
"""

from torchyard.core.training.execution.compilation import CompiledStep
from torchyard.core.training.execution.cuda_graph import GraphedStep
from torchyard.core.training.execution.settings import Execution, set_up_evaluation

WholeStep = CompiledStep | GraphedStep

__all__ = ["CompiledStep", "Execution", "GraphedStep", "WholeStep", "set_up_evaluation"]
