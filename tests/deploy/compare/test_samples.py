"""Hostile images and the hash of samples."""

import hashlib

import numpy as np

from deploy.compare.samples import SampleHash, hostile_images


def test_hostile_images_are_what_their_names_say() -> None:
    made = hostile_images((3, 4, 6), num_noise=2)
    assert made.images.shape == (len(made.names), 3, 4, 6)
    assert made.images.dtype == np.uint8
    assert len(set(made.names)) == len(made.names) == 13
    images = dict(zip(made.names, made.images, strict=True))
    assert (images["all 0"].max(), images["all 255"].min()) == (0, 255)
    board, other = images["checkerboard"], images["checkerboard, other phase"]
    assert board[0, :2, :2].tolist() == [[0, 255], [255, 0]]
    assert np.array_equal(board.astype(int) + other, np.full((3, 4, 6), 255))
    pixel = images["pixel at 3, 5"]
    assert (pixel.sum(), pixel[:, 3, 5].tolist()) == (3 * 255, [255, 255, 255])
    assert images["ramp across"][1, 2].tolist() == [0, 51, 102, 153, 204, 255]
    assert images["ramp down"][1, :, 2].tolist() == [0, 85, 170, 255]
    assert not np.array_equal(images["noise 0"], images["noise 1"])
    assert "seed 0" in made.description


def test_hostile_images_repeat() -> None:
    assert np.array_equal(hostile_images((1, 8, 8)).images, hostile_images((1, 8, 8)).images)
    assert not np.array_equal(hostile_images((1, 8, 8)).images, hostile_images((1, 8, 8), seed=1).images)


def test_a_single_pixel_image_names_it_once() -> None:
    assert sum(name.startswith("pixel") for name in hostile_images((1, 1, 1)).names) == 1


def digest(*batches: np.ndarray, name: str = "image") -> str:
    samples = SampleHash()
    for batch in batches:
        samples.update({name: batch})
    return samples.hexdigest


def test_hash_is_of_the_samples_and_not_of_their_batches() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    whole = digest(images)
    assert whole == digest(images[:1], images[1:5], images[5:])
    assert whole == digest(np.asfortranarray(images))
    others = [
        digest(images[::-1]),
        digest(images[:5]),
        digest(images.reshape(6, 4)),
        digest(images.reshape(6, 4, 1)),
        digest(images.view(np.int8)),
        digest(images, name="picture"),
        digest(),
    ]
    assert len({whole, *others}) == len(others) + 1


def test_hash_is_a_stated_function() -> None:
    rows = hashlib.sha256(b"|u1 uint8 (2,)" + bytes([1, 2, 3, 4])).digest()
    assert digest(np.array([[1, 2], [3, 4]], np.uint8)) == hashlib.sha256(b"2" + b"image\0" + rows).hexdigest()
