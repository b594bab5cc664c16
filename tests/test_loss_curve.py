"""Training computes what it computed when the curve was recorded."""

import pytest

from tests import loss_curve

CLOSE_STEPS = 10  # of each stage: rounding has not grown yet


@pytest.mark.slow
def test_the_recorded_losses_are_reproduced():
    curve, expected = loss_curve.measure(), loss_curve.recorded()
    assert len(curve['loss/D']) == 200
    assert loss_curve.worst_difference(curve, expected, slice(CLOSE_STEPS)) < 1e-3
    assert loss_curve.worst_difference(curve, expected) < 0.5  # a drift, not another training
