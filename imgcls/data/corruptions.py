"""The corruptions of ImageNet-C at five severities, on what the network is shown.

Fourteen of its fifteen: frost lays photographs of frosted glass over the image, which are not ours to ship. They work
on pixels after resize and crop, as ImageNet-C's do at 224; at another size, lengths shrink or grow with the side, so
that a radius of 10 at 224 is one of 1.4 at 32. Only colours are changed, never alpha.

Source of the recipes and their constants: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, arXiv:1903.12261. Fog's clouds and the random fields are drawn by NumPy and
SciPy, so figures are near to those of the published sets, not the same.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.signal import fftconvolve

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224  # that the constants are for

Colours = npt.NDArray[np.float64]  # (H, W, 1 or 3), 0..1
Pixels = npt.NDArray[np.uint8]  # (C, H, W)
Corrupt = Callable[[Colours, int, np.random.Generator], Colours]


def corrupt(pixels: Pixels, corruption: str, *, severity: int, name: str) -> Pixels:
    """Corrupts one image, uint8 (C, H, W); equal names are corrupted alike."""
    random = np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(corruption.encode()), severity])
    colours = 3 if len(pixels) >= 3 else 1
    image = pixels[:colours].transpose(1, 2, 0) / 255
    changed = CORRUPTIONS[corruption](image, severity - 1, random)
    result = pixels.copy()
    result[:colours] = (changed.clip(0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1)
    return result


def _add_gaussian_noise(image: Colours, level: int, random: np.random.Generator) -> Colours:
    return image + random.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[level], image.shape)


def _add_shot_noise(image: Colours, level: int, random: np.random.Generator) -> Colours:
    photons = (60, 25, 12, 5, 3)[level]
    return random.poisson(image * photons) / photons


def _add_impulse_noise(image: Colours, level: int, random: np.random.Generator) -> Colours:
    share, drawn = (0.03, 0.06, 0.09, 0.17, 0.27)[level], random.random(image.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, image))


def _blur_defocus(image: Colours, level: int, random: np.random.Generator) -> Colours:
    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    kernel = _draw_disk(_scale(image, radius), soft=soft)
    return _convolve(image, kernel)


def _blur_glass(image: Colours, level: int, random: np.random.Generator) -> Colours:
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    sigma, reach = _scale(image, sigma), max(1, round(_scale(image, reach)))
    shuffled = _smooth(image, sigma)
    rows, columns = np.indices(image.shape[:2])
    for _ in range(rounds):
        shift = random.integers(-reach, reach + 1, (2, *image.shape[:2]))
        near_rows = (rows + shift[0]).clip(0, len(image) - 1)
        near_columns = (columns + shift[1]).clip(0, image.shape[1] - 1)
        shuffled = shuffled[near_rows, near_columns]
    return _smooth(shuffled, sigma)


def _blur_motion(image: Colours, level: int, random: np.random.Generator) -> Colours:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    kernel = _draw_streak(_scale(image, radius), _scale(image, sigma), degrees=random.uniform(-45, 45))
    return _convolve(image, kernel)


def _blur_zoom(image: Colours, level: int, random: np.random.Generator) -> Colours:
    stop, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    factors = np.arange(1, stop, step)
    return np.asarray((image + sum(_zoom(image, factor) for factor in factors)) / (len(factors) + 1))


def _add_snow(image: Colours, level: int, random: np.random.Generator) -> Colours:
    mean, spread, size, floor, radius, sigma, mix = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    flakes = _zoom(random.normal(mean, spread, (*image.shape[:2], 1)), max(1.0, _scale(image, size)))
    flakes = np.where(flakes < floor, 0, flakes).clip(0, 1)
    kernel = _draw_streak(_scale(image, radius), _scale(image, sigma), degrees=random.uniform(-135, -45))
    fallen = _convolve(flakes, kernel)
    grey = image.mean(axis=2, keepdims=True)
    whitened = mix * image + (1 - mix) * np.maximum(image, grey * 1.5 + 0.5)
    return np.asarray(whitened + fallen + fallen[::-1, ::-1])


def _add_fog(image: Colours, level: int, random: np.random.Generator) -> Colours:
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[level]
    top = image.max()
    return np.asarray((image + amount * _draw_clouds(image.shape[:2], decay, random)) * top / (top + amount))


def _brighten(image: Colours, level: int, random: np.random.Generator) -> Colours:
    """Raises the value of HSV, so that hue and saturation stay."""
    value = image.max(axis=2, keepdims=True)
    raised = (value + (level + 1) / 10).clip(0, 1)
    return np.asarray(np.where(value > 0, image / value.clip(min=1e-6) * raised, raised))


def _lower_contrast(image: Colours, level: int, random: np.random.Generator) -> Colours:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean)


def _distort(image: Colours, level: int, random: np.random.Generator) -> Colours:
    """Shifts pixels along a smooth random field after a slight random affine map."""
    reach, smooth, corner = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[level]
    side = min(image.shape[:2])
    matrix = np.eye(2) + random.uniform(-corner, corner, (2, 2))
    field = random.uniform(-1, 1, (2, *image.shape[:2]))
    shift = np.stack([ndimage.gaussian_filter(each, smooth * side, mode="reflect", truncate=3) for each in field])
    shift *= _scale(image, reach * side)  # the mean of fewer pixels of noise is larger
    centre = (np.array(image.shape[:2]).reshape(2, 1, 1) - 1) / 2
    places = np.einsum("ij,jhw->ihw", matrix, np.indices(image.shape[:2]) - centre) + centre + shift
    return _map_channels(image, lambda channel: ndimage.map_coordinates(channel, places, order=1, mode="reflect"))


def _pixelate(image: Colours, level: int, random: np.random.Generator) -> Colours:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = image.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    picture = _to_picture(image).resize(small, Image.Resampling.BOX)
    return _from_picture(picture.resize((width, height), Image.Resampling.BOX))


def _compress(image: Colours, level: int, random: np.random.Generator) -> Colours:
    buffer = io.BytesIO()
    _to_picture(image).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return _from_picture(Image.open(buffer))


CORRUPTIONS: dict[str, Corrupt] = {
    "gaussian_noise": _add_gaussian_noise,
    "shot_noise": _add_shot_noise,
    "impulse_noise": _add_impulse_noise,
    "defocus_blur": _blur_defocus,
    "glass_blur": _blur_glass,
    "motion_blur": _blur_motion,
    "zoom_blur": _blur_zoom,
    "snow": _add_snow,
    "fog": _add_fog,
    "brightness": _brighten,
    "contrast": _lower_contrast,
    "elastic_transform": _distort,
    "pixelate": _pixelate,
    "jpeg_compression": _compress,
}


def _scale(image: Colours, length: float) -> float:
    return length * float(min(image.shape[:2])) / _SIDE


def _map_channels(image: Colours, change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Colours:
    return np.stack([change(image[..., channel]) for channel in range(image.shape[2])], axis=2)


def _convolve(image: Colours, kernel: npt.NDArray[np.float64]) -> Colours:
    """Convolves with a square kernel of odd side, mirrored at the border; by Fourier, as kernels are large."""
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    return np.asarray(fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))


def _smooth(image: Colours, sigma: float) -> Colours:
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect"))


def _draw_disk(radius: float, *, soft: float) -> npt.NDArray[np.float64]:
    """A disk whose edge covers pixels in part, as small radii need, then softened."""
    reach = int(np.ceil(radius)) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = ndimage.gaussian_filter((radius + 0.5 - np.hypot(rows, columns)).clip(0, 1), soft)
    return np.asarray(disk / disk.sum())


def _draw_streak(radius: float, sigma: float, *, degrees: float) -> npt.NDArray[np.float64]:
    """One side of a gaussian along a line, as a camera that moves leaves it."""
    steps = np.linspace(0, 2 * radius + 1, 4 * int(np.ceil(radius)) + 5)
    weights = np.exp(-((steps / max(sigma, 0.3)) ** 2) / 2)
    reach = int(np.ceil(2 * radius + 1))
    rows = reach + steps * np.sin(np.radians(degrees))
    columns = reach + steps * np.cos(np.radians(degrees))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (rows.round().astype(int), columns.round().astype(int)), weights)
    return np.asarray(kernel / kernel.sum())


def _zoom(image: Colours, factor: float) -> Colours:
    """Enlarges about the centre, to the same size."""
    centre = (np.array(image.shape[:2]) - 1) / 2
    matrix = np.array([1 / factor, 1 / factor])
    offset = centre - centre / factor
    return _map_channels(
        image, lambda channel: ndimage.affine_transform(channel, matrix, offset, order=1, mode="nearest")
    )


def _draw_clouds(shape: tuple[int, ...], decay: float, random: np.random.Generator) -> Colours:
    """Noise that is weaker by `decay` at each doubling of the frequency, 0..1: what diamond-square makes."""
    frequencies = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequencies[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.normal(size=shape)) / frequencies ** (1 + np.log2(decay))
    clouds = np.fft.irfft2(spectrum, s=shape)
    spread = np.ptp(clouds)
    return np.asarray(((clouds - clouds.min()) / (spread or 1))[..., None])


def _to_picture(image: Colours) -> Image.Image:
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _from_picture(picture: Image.Image) -> Colours:
    pixels = np.asarray(picture, dtype=np.float64) / 255
    return pixels[..., None] if pixels.ndim == 2 else pixels
