"""Images of different sizes in batches of few shapes."""

import numpy as np

from mmjax.data.pipeline.image_batches import Geometry, arrange


def geometry(mode="whole", shorter_side=0, size=32, multiple=16):
    return Geometry(mode=mode, shorter_side=shorter_side, size=size, multiple=multiple)


def test_every_image_is_in_one_batch_with_arrays_that_contain_it():
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 60, (50, 2))
    sizes[7] = 0  # a record without an image
    batches = arrange(sizes, geometry(shorter_side=24), 4)
    assert sorted(r for batch in batches for r in batch.records) == [*range(7), *range(8, 50)]
    assert max(len(batch.records) for batch in batches) == 4
    for batch in batches:
        shapes = {(p.canvas, p.truth_canvas) for p in batch.placements}
        assert len(shapes) == 1 and len(batch.placements) == len(batch.records)
        for record, placement in zip(batch.records, batch.placements, strict=True):
            assert placement.truth_scaled == placement.truth_visible == tuple(sizes[record])
            assert min(placement.scaled) == 24 and placement.scaled == placement.visible
            for small, large in (
                (placement.scaled, placement.canvas),
                (placement.truth_scaled, placement.truth_canvas),
            ):
                assert all(
                    0 <= b - a < 16 and b % 16 == 0 for a, b in zip(small, large, strict=True)
                )
    # Only the last batch of each shape is incomplete.
    incomplete = [b.placements[0] for b in batches if len(b.records) < 4]
    assert len({(p.canvas, p.truth_canvas) for p in incomplete}) == len(incomplete)


def test_arrays_of_windows_have_at_least_the_size_of_a_window():
    place = geometry("windows", size=40).place
    assert place((20, 50)).canvas == (48, 64) and place((20, 50)).truth_canvas == (32, 64)
    assert place((20, 50)).visible == (20, 50)


def test_crops_are_those_of_ttdl():
    place = geometry("crop", shorter_side=520, size=520).place((375, 500))
    assert place.scaled == place.truth_scaled == (520, 693)
    assert place.start == (0, 86) and place.canvas == place.truth_canvas == (520, 520)
    assert place.visible == place.truth_visible == (520, 520)


def test_crops_of_small_images_are_padded_on_all_sides():
    place = geometry("crop", size=40).place((30, 60))
    assert place.start == (-5, 10) and place.visible == (40, 40)
