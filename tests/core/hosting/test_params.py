"""What a plugin declares: its parameters and how it is built."""

import pytest

from torchyard import ModelParams, OptimizerParams


def test_parameters_are_typed_frozen_and_no_others_are_taken():
    class Own(OptimizerParams):
        lr: float = 1.0

        def build(self, parameters):
            raise AssertionError("not built")

    with pytest.raises(ValueError, match="frozen"):
        Own().lr = 2.0
    with pytest.raises(ValueError, match="Extra inputs"):
        Own(lrr=1)
    assert Own(lr="0.5").lr == 0.5


def test_a_class_without_build_cannot_be_made():
    class Unfinished(ModelParams):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()


def test_a_parameter_may_be_called_model_something():
    class Own(ModelParams):
        model_width: int = 3

        def build(self, input_shape, num_classes):
            raise AssertionError("not built")

    assert Own().model_width == 3
