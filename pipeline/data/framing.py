"""What part of an image is taken and how large it becomes: the centre to test, a random part to train where that is asked for.

Takes and returns Pillow images; scaling is bilinear with antialiasing. Knows no files.
"""

import math
from dataclasses import dataclass
from random import Random

from PIL import Image

_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Framing:
    """Brings any image to `size` x `size`."""

    size: int
    resize: int | None = None
    """What the shorter side is scaled to before the centre is cut out; none: the centre square is scaled."""
    area: tuple[float, float] | None = None
    """The least and the largest share of the image that a random part has; none: there are no random parts."""

    def framed(self, image: Image.Image, draw: int | None) -> Image.Image:
        """The part that the random number `draw` stands for; without one, or without random parts, the centre."""
        if self.area is not None and draw is not None:
            return _scaled(image.crop(random_box(image.width, image.height, self.area, Random(draw))), self.size, self.size)
        if self.resize is None:
            return self._centre_square(image)
        return self._centre(_with_shorter_side(image, self.resize))

    def _centre_square(self, image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)

    def _centre(self, image: Image.Image) -> Image.Image:
        left, top = (round((length - self.size) / 2) for length in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


def random_box(width: int, height: int, area: tuple[float, float], random: Random) -> Box:
    """torchvision's rule: an area and the logarithm of a ratio, both uniform, until such a part fits; after ten attempts the centre."""
    for _ in range(_ATTEMPTS):
        pixels = width * height * random.uniform(*area)
        ratio = math.exp(random.uniform(*map(math.log, _RATIOS)))
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = random.randint(0, width - wide), random.randint(0, height - high)
            return left, top, left + wide, top + high
    return _largest_in_the_centre(width, height)


def _largest_in_the_centre(width: int, height: int) -> Box:
    least, largest = _RATIOS
    wide, high = min(width, round(height * largest)), min(height, round(width / least))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _with_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """The other side is rounded down."""
    shorter = min(image.size)
    return _scaled(image, *(side if length == shorter else int(side * length / shorter) for length in image.size))


def _scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)
