import numpy as np
import pytest

from textseg_standard.metrics import percentile_95


@pytest.mark.parametrize("length", [1, 2, 3, 19, 20, 21, 40, 1001])
def test_the_percentile_is_numpys(length: int) -> None:
    distances = np.random.default_rng(length).exponential(size=length)
    assert percentile_95(distances) == pytest.approx(np.percentile(distances, 95), rel=1e-12)
