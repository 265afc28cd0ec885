"""How a fit to the reference is judged, and that it does not depend on contrast where it must not."""

import numpy as np
import pytest
import SimpleITK as sitk

from stages.data.alignment import align, correlation, correlation_ratio

STILL = np.eye(4)


def image(voxels):
    return sitk.GetImageFromArray(voxels.astype(np.float32))


def ball(*, centre=(16.0, 16.0, 16.0), inverted=False):
    """Two nested ellipsoids, bright inside; no two axes alike."""
    grid = np.indices((32, 32, 32)) - np.array(centre).reshape(3, 1, 1, 1)
    far = np.sqrt(((grid / np.array((11.0, 8.0, 6.0)).reshape(3, 1, 1, 1)) ** 2).sum(0))
    smooth = 0.4 / (1 + np.exp(8 * (far - 1))) + 0.4 / (1 + np.exp(8 * (far - 0.5))) + 0.1
    return image(1 - smooth if inverted else smooth)


def test_correlation_is_signed_and_correlation_ratio_takes_any_contrast():
    random = np.random.default_rng(0)
    levels = (random.integers(0, 8, (16, 16, 16)) + 0.5) / 8
    noise = random.random((16, 16, 16))
    folded = np.abs(levels - 0.5)  # a contrast that is a function of the other, and not monotonous
    for other, signed in ((levels, 1), (1 - levels, -1), (0.2 + 0.5 * levels, 1)):
        assert correlation(image(levels), image(other), STILL) == pytest.approx(signed, abs=1e-5)
        assert correlation_ratio(image(levels), image(other), STILL) == pytest.approx(1, abs=1e-5)
    assert abs(correlation(image(levels), image(folded), STILL)) < 0.05
    assert correlation_ratio(image(levels), image(folded), STILL) == pytest.approx(1, abs=1e-5)
    assert correlation_ratio(image(levels), image(noise), STILL) < 0.1
    mixed = 0.5 * (levels - levels.mean()) / levels.std() + 0.5 * (noise - noise.mean()) / noise.std()
    assert correlation_ratio(image(levels), image(mixed - mixed.min()), STILL) == pytest.approx(0.5**0.5, abs=0.03)
    for fit in (correlation, correlation_ratio):
        assert fit(image(levels), image(np.full_like(levels, 0.3)), STILL) == -1
        away = STILL.copy()
        away[0, 3] = 14  # an eighth of the two overlaps
        assert fit(image(levels), image(levels), away) == -1


def test_an_inverted_scan_is_aligned_where_any_contrast_is_allowed():
    reference, moved = ball(), ball(centre=(18.0, 16.0, 13.0), inverted=True)
    plain = align(reference, ball(centre=(18.0, 16.0, 13.0)), kind="rigid", seed=0)
    refused = align(reference, moved, kind="rigid", seed=0)
    found = align(reference, moved, kind="rigid", seed=0, contrast="any")
    assert not plain["fell_back"] and not found["fell_back"]
    truth = np.array((-3.0, 0.0, 2.0))  # x, y, z
    centre = np.array((16.0, 16.0, 16.0, 1.0))
    off = [np.abs((record["matrix"] @ centre)[:3] - centre[:3] - truth).max() for record in (plain, found, refused)]
    assert max(off[:2]) < 0.5 < off[2]  # a good fit is not believed where bright should lie on bright
    assert plain["correlation"] > 0.95 and found["correlation"] > 0.95
