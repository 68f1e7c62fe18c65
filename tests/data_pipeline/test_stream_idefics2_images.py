"""Image processing against Idefics2's own: recorded results, and transformers' processors where installed."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import Idefics2ImageProcessorPil
from transformers.utils import is_torchvision_available

from data_pipeline.image_spec import SPLIT_TILES, ImageSpec, PixelShuffle
from data_pipeline.stream.decode import Picture, decode

SHARED = Path(__file__).parents[3] / "shared"
RECORDED, PICTURES = SHARED / "evalref" / "idefics2_imgproc", SHARED / "realdata" / "skimage"
recorded = pytest.mark.skipif(
    not (RECORDED.is_dir() and PICTURES.is_dir()), reason="needs ../shared/evalref and ../shared/realdata"
)
EDGES = {"default": (378, 980), "s224_l448": (224, 448), "s28_l70": (28, 70)}
if is_torchvision_available():
    from transformers import Idefics2ImageProcessor

    BACKENDS = {"pil": (Idefics2ImageProcessorPil, 0), "torchvision": (Idefics2ImageProcessor, 1)}
else:
    BACKENDS = {"pil": (Idefics2ImageProcessorPil, 0)}


def levels(pixel_values: np.ndarray) -> np.ndarray:
    """float[3, H, W] in -1..1 -> int64[H, W, 3] in 0..255."""
    return np.round((pixel_values + 1) * 127.5).astype(np.int64).transpose(1, 2, 0)


def whole(picture: Picture) -> np.ndarray:
    """The tile's pixels again: uint8[H, W, 3]."""
    (rows, columns), p = picture.grid, picture.patches.shape[-1]
    blocks = picture.patches.reshape(rows, columns, 3, p, p)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(rows * p, columns * p, 3).astype(np.int64)


def encode(image: Image.Image, format: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **more)
    return out.getvalue()


# ---- the recorded results ----
def cases() -> list[str]:
    if not RECORDED.is_dir():
        return []
    names = json.loads((RECORDED / "expected.json").read_text())["cases"]
    return [name for name in names if "BATCH" not in name]


def bytes_of(name: str) -> bytes:
    here = PICTURES / name
    return here.read_bytes() if here.exists() else (RECORDED / f"{name}.png").read_bytes()


@recorded
def test_every_recorded_size_and_mask() -> None:
    """Splitting or not, three sizes, nine pictures: mask sums are the areas of the tiles before patches."""
    expected = json.loads((RECORDED / "expected.json").read_text())["cases"]
    assert len(cases()) == 90
    for case in cases():
        setting, _, name = case.split("/")
        edges, split = setting.rsplit("_", 1)
        shortest, longest = EDGES[edges]
        # Patches of one pixel: then a grid is a size.
        spec = ImageSpec(longest_edge=longest, shortest_edge=shortest, patch=1)
        width, height = Image.open(io.BytesIO(bytes_of(name))).size
        grids = spec.tiles(width, height, split == "split")
        want = expected[case]
        assert [rows * columns for rows, columns in grids] == want["mask_sum_per_image"][0], case
        assert [len(grids), 3, *(max(g[k] for g in grids) for k in (0, 1))] == want["shape"][1:], case


@recorded
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_every_recorded_pixel_within_one_grey_level(backend: str, split: bool) -> None:
    spec = ImageSpec(longest_edge=70, shortest_edge=28, patch=1)
    stored = np.load(RECORDED / "pixels_s28_l70.npz")
    prefix = f"s28_l70_{'split' if split else 'nosplit'}|{backend}|"
    names = [key.removeprefix(prefix) for key in stored if key.startswith(prefix)]
    assert len(names) == 9
    for name in names:
        values = stored[prefix + name][0]
        tiles = decode(bytes_of(name), spec, split)
        assert len(tiles) == len(values) == (SPLIT_TILES if split else 1)
        for tile, value in zip(tiles, values, strict=True):
            rows, columns = tile.grid
            off = np.abs(whole(tile) - levels(value[:, :rows, :columns])).max()
            assert off <= (0 if backend == "pil" else 1), name


@recorded
@pytest.mark.parametrize("edges", ["default", "s224_l448"])
def test_the_recorded_mean_and_deviation_of_larger_sizes(edges: str) -> None:
    expected = json.loads((RECORDED / "expected.json").read_text())["cases"]
    shortest, longest = EDGES[edges]
    spec = ImageSpec(longest_edge=longest, shortest_edge=shortest, patch=1)
    for case in [c for c in cases() if c.startswith(f"{edges}_nosplit/pil/")]:
        (tile,) = decode(bytes_of(case.split("/")[2]), spec)
        values = tile.patches / 127.5 - 1
        assert values.mean() == pytest.approx(expected[case]["mean"], abs=2e-6), case
        assert values.std() == pytest.approx(expected[case]["std"], abs=2e-6), case


# ---- transformers' own processor, in the same run ----
def theirs(backend: str, upright: Image.Image, spec: ImageSpec, split: bool) -> list[np.ndarray]:
    """The real part of each tile, as grey levels."""
    processor, _ = BACKENDS[backend]
    size = {"shortest_edge": spec.shortest_edge, "longest_edge": spec.longest_edge}
    made = processor(size=size, do_image_splitting=split)(upright, return_tensors="np")
    tiles = zip(made["pixel_values"][0], made["pixel_attention_mask"][0], strict=True)
    return [levels(v)[np.ix_(m.any(1).nonzero()[0], m.any(0).nonzero()[0])] for v, m in tiles]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Coarse and fine structure both, in any mode."""
    rng = np.random.default_rng((seed, width, height))
    fine = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 4), dtype=np.uint8)).resize((width, height))
    mixed = Image.fromarray((fine // 4 + np.asarray(coarse) // 4 * 3).astype(np.uint8), "RGBA")
    return mixed if mode == "RGBA" else mixed.convert("RGB").convert(mode)


SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (7, 300), (300, 7), (2, 999), (1000, 3), (69, 71), (70, 70)]
SIZES += [(71, 70), (141, 99), (200, 200), (33, 35), (640, 427), (28, 28), (27, 500), (97, 64)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shortest", "longest"), [(28, 70), (1, 64), (64, 64)])
def test_any_size_as_the_processor_makes_it(backend: str, shortest: int, longest: int) -> None:
    spec = ImageSpec(longest_edge=longest, shortest_edge=shortest, patch=1)
    off = BACKENDS[backend][1]
    rng = np.random.default_rng(shortest)
    for width, height in [*SIZES, *rng.integers(1, 260, (40, 2)).tolist()]:
        image = noise(width, height)
        for split in (False, True) if min(width, height) > 1 else (False,):
            tiles = decode(encode(image), spec, split)
            want = theirs(backend, image, spec, split)
            assert len(tiles) == len(want)
            for tile, values in zip(tiles, want, strict=True):
                assert tile.grid == values.shape[:2], (width, height)
                assert np.abs(whole(tile) - values).max() <= off, (width, height)
            assert tuple(t.grid for t in tiles) == spec.tiles(width, height, split)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("mode", "format", "more"),
    [
        ("RGB", "JPEG", {"quality": 60}),
        ("RGB", "JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {"quality": 70}),
    ],
)
def test_any_format_and_mode_as_the_processor_makes_it(backend: str, mode: str, format: str, more) -> None:
    """JPEGs too, far above the wanted size: nothing is decoded at a fraction of it."""
    spec = ImageSpec(longest_edge=70, shortest_edge=28, patch=14)
    for size in ((900, 611), (123, 457)):
        data = encode(noise(*size, mode), format, **more)
        want = theirs(backend, Image.open(io.BytesIO(data)).convert("RGB"), spec, True)
        for tile, values in zip(decode(data, spec, True), want, strict=True):
            rows, columns = (14 * n for n in tile.grid)
            assert tile.grid == tuple(n // 14 for n in values.shape[:2])
            assert np.abs(whole(tile) - values[:rows, :columns]).max() <= BACKENDS[backend][1]


def test_alpha_is_over_white_and_exif_turned_before_the_processor() -> None:
    spec = ImageSpec(longest_edge=70, shortest_edge=28, patch=1)
    image = noise(200, 90, "RGBA")
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    (want,) = theirs("pil", white, spec, False)
    assert (whole(decode(encode(image), spec)[0]) == want).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # held turned to the left: shown turned to the right
    data = encode(noise(200, 91), "JPEG", exif=exif)
    upright = Image.open(io.BytesIO(data)).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    for tile, values in zip(decode(data, spec, True), theirs("pil", upright, spec, True), strict=True):
        assert (whole(tile) == values).all()


def test_a_side_of_one_pixel_is_in_both_halves() -> None:
    """The one case that the processor does not take: it would resize nothing."""
    spec = ImageSpec(longest_edge=64, patch=8)
    tiles = decode(encode(noise(1, 40)), spec, True)
    assert [t.grid for t in tiles] == [(2, 1), (2, 1), (2, 1), (2, 1), (5, 1)] == [*spec.tiles(1, 40, True)]
    assert (tiles[0].patches == tiles[1].patches).all()
    assert (tiles[0].patches[:, :, :, 1:] == 128).all()


def test_the_mask_of_patches_is_that_of_a_picture_alone() -> None:
    """Idefics2Model folds the processor's mask of pixels into one of patches: our grid, all True."""
    spec = ImageSpec(longest_edge=70, shortest_edge=28, patch=14)
    processor = Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 70})
    for size in ((100, 55), (30, 40), (70, 28), (500, 20)):
        pixels = processor(noise(*size), return_tensors="pt")["pixel_attention_mask"][0]
        folded = pixels.unfold(1, 14, 14).unfold(2, 14, 14).sum(dim=(-1, -2)) > 0
        assert torch.equal(folded[0], torch.ones(spec.grid(*size), dtype=torch.bool))


# ---- the spec itself ----
def test_the_specs_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match=r"longest_edge \(60\) must be a multiple of patch \(8\)"):
        ImageSpec(longest_edge=60, patch=8)
    with pytest.raises(ValidationError, match=r"shortest_edge \(65\) is larger than longest_edge \(64\)"):
        ImageSpec(longest_edge=64, shortest_edge=65)
    with pytest.raises(ValueError, match=r"70 patches a side .* do not divide by the pixel shuffle factor 3"):
        ImageSpec(longest_edge=980, patch=14).tokens(PixelShuffle(factor=3))


def test_no_tile_is_larger_than_the_largest_grid() -> None:
    spec = ImageSpec(longest_edge=70, shortest_edge=28, patch=14)
    rng = np.random.default_rng(0)
    for width, height in np.exp(rng.uniform(0, 10, (2000, 2))).astype(int).tolist():
        for rows, columns in spec.tiles(width, height, True):
            assert 1 <= min(rows, columns) <= max(rows, columns) <= spec.largest_grid == 5
