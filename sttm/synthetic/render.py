"""Draw scenes as pixels: pack them into tensors once, then draw all of them as one batch on any device.

Shapes: B clips, T frames, S side of a frame in pixels, K things of a clip, G = `GRID_CELLS`, P side of the square patch
in which a thing is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch.nn.functional import interpolate

from sttm.synthetic.codec import degrade
from sttm.synthetic.scene import GRID_CELLS, Scene, Thing
from sttm.synthetic.sprites import MASK, SPRITES, masks
from sttm.synthetic.vocabulary import COLOURS, MAX_OBJECTS

GRAIN = 256
THINGS = MAX_OBJECTS + 2
"""The objects, the glyph, and the flash, which is drawn last."""

_NO_PLATE, _DARK_PLATE, _WHITE_PLATE = 0, 1, 2


@dataclass(frozen=True)
class PackedScenes:
    """Scenes of one size and length as tensors.

    Attributes:
        size: side of a frame in pixels.
        cells: float32 [B, 2, G, G, 3], coarse colours of both takes in grey levels.
        stripes: float32 [B, 2, 4], see `Backdrop`.
        grain: float32 [B, 2], see `Backdrop`.
        take: int64 [B, T], which take each frame shows.
        shift: int64 [B, T, 2, 2], pixels (x, y) by which the backdrop is moved, outside and inside the scrolled part.
        edge: float32 [B, 3], see `Scene.scroll_edge`.
        sprite: int64 [B, K], index of each thing's shape in `SPRITES`.
        rgb: float32 [B, K, 3], colour of each thing.
        plate: int64 [B, K], the plate behind each thing: 0 none, 1 dark, 2 white.
        radius: float32 [B, K], in pixels.
        centre: float32 [B, T, K, 2], in pixels (x, y).
        shown: bool [B, T, K], whether each thing is seen in each frame.
        noise: float32 [B], see `Scene`.
        quantiser: float32 [B], see `Scene`.
        grain_offset: int64 [B, 2], place in the fixed tile of noise where the clip's noise starts.
    """

    size: int
    cells: torch.Tensor
    stripes: torch.Tensor
    grain: torch.Tensor
    take: torch.Tensor
    shift: torch.Tensor
    edge: torch.Tensor
    sprite: torch.Tensor
    rgb: torch.Tensor
    plate: torch.Tensor
    radius: torch.Tensor
    centre: torch.Tensor
    shown: torch.Tensor
    noise: torch.Tensor
    quantiser: torch.Tensor
    grain_offset: torch.Tensor

    def to(self, device: torch.device | str) -> "PackedScenes":
        """Move all tensors to a device."""
        tensors = [getattr(self, f.name) for f in fields(self)[1:]]
        return PackedScenes(self.size, *(t.to(device, non_blocking=True) for t in tensors))


def render(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> torch.Tensor:
    """Draw scenes of one size and length as RGB pixels, uint8 [B, T, S, S, 3].

    The same scenes give the same pixels on the same device. On another device a value may differ by rounding.

    Raises:
        ValueError: there are no scenes, or they differ in size or length.
    """
    return draw(pack(scenes).to(device))


def pack(scenes: Sequence[Scene]) -> PackedScenes:
    """Pack scenes of one size and length into tensors on the CPU.

    Raises:
        ValueError: there are no scenes, or they differ in size or length.
    """
    shapes = {(s.frames, s.size) for s in scenes}
    if len(shapes) != 1:
        raise ValueError(f"one batch needs scenes of one (frames, size), got {sorted(shapes)}")
    ((frames, size),) = shapes
    things = [_things(s) for s in scenes]
    takes = [(s.takes[0], s.takes[-1]) for s in scenes]
    return PackedScenes(
        size=size,
        cells=torch.tensor([[t.cells for t in pair] for pair in takes]).unflatten(2, (GRID_CELLS, GRID_CELLS)),
        stripes=torch.tensor([[t.stripes for t in pair] for pair in takes]),
        grain=torch.tensor([[t.grain for t in pair] for pair in takes]),
        take=torch.tensor([[int(t >= s.cut) for t in range(frames)] for s in scenes]),
        shift=torch.tensor([_shifts(s) for s in scenes]),
        edge=torch.tensor([s.scroll_edge for s in scenes]),
        sprite=torch.tensor([[SPRITES.index(t.sprite) for t, _ in row] for row in things]),
        rgb=torch.tensor([[[float(v) for v in COLOURS[t.colour]] for t, _ in row] for row in things]),
        plate=torch.tensor([[plate for _, plate in row] for row in things]),
        radius=torch.tensor([[t.radius * size for t, _ in row] for row in things]),
        centre=torch.tensor(
            [[[_pixel(s, t, f) for t, _ in row] for f in range(frames)] for s, row in zip(scenes, things, strict=True)]
        ),
        shown=torch.tensor([[[t.start <= f < t.stop for t, _ in row] for f in range(frames)] for row in things]),
        noise=torch.tensor([s.noise for s in scenes]),
        quantiser=torch.tensor([s.quantiser for s in scenes]),
        grain_offset=torch.tensor([s.grain_offset for s in scenes]),
    )


def _things(scene: Scene) -> list[tuple[Thing, int]]:
    """All things in drawing order, each with its plate; the list is padded with things that are never seen."""
    row = [(thing, _NO_PLATE) for thing in scene.objects]
    row += [(scene.glyph, _DARK_PLATE)] if scene.glyph else []
    row += [(scene.flash, _WHITE_PLATE)] if scene.flash else []
    unseen = Thing("circle", "red", 0.5, 0.5, 0.05, scene.frames, scene.frames + 1)
    return row + [(unseen, _NO_PLATE)] * (THINGS - len(row))


def _pixel(scene: Scene, thing: Thing, frame: int) -> tuple[float, float]:
    x, y = thing.centre(frame) if thing.start <= frame < thing.stop else (0.5, 0.5)
    far = frame / max(1, scene.frames - 1)
    return (x + scene.drift[0] * far) * scene.size, (y + scene.drift[1] * far) * scene.size


def _shifts(scene: Scene) -> list[list[list[int]]]:
    def pixels(frame: int, scrolled: int) -> list[int]:
        far = frame / max(1, scene.frames - 1)
        return [round((scene.drift[a] * far + scrolled * scene.scroll[a] * frame) * scene.size) for a in (0, 1)]

    return [[pixels(frame, 0), pixels(frame, 1)] for frame in range(scene.frames)]


def draw(packed: PackedScenes) -> torch.Tensor:
    """Draw packed scenes as RGB pixels, uint8 [B, T, S, S, 3], on the device of their tensors."""
    frames = _draw_backdrop(packed)
    frames = _draw_things(packed, frames)
    frames = degrade(frames + _noise(packed), packed.quantiser)
    return frames.round_().clamp_(0, 255).to(torch.uint8)


def _draw_backdrop(packed: PackedScenes) -> torch.Tensor:
    """Draw the backdrop of every frame, float32 [B, T, S, S, 3]."""
    canvas = _canvases(packed)
    B = packed.take.shape[0]
    side = torch.arange(packed.size, device=canvas.device)
    clip = torch.arange(B, device=canvas.device)[:, None, None, None]

    def crop(shift_BT2: torch.Tensor) -> torch.Tensor:
        x = torch.remainder(side - shift_BT2[..., :1], packed.size)[:, :, None, :]
        y = torch.remainder(side - shift_BT2[..., 1:], packed.size)[:, :, :, None]
        return canvas[clip, packed.take[:, :, None, None], y, x]

    still = crop(packed.shift[:, :, 0])
    unit = (side + 0.5) / packed.size
    a, b, c = (packed.edge[:, i, None, None] for i in range(3))
    scrolled = (unit[None, None, :] * a + unit[None, :, None] * b > c)[:, None, :, :, None]
    return torch.where(scrolled, crop(packed.shift[:, :, 1]), still)


def _canvases(packed: PackedScenes) -> torch.Tensor:
    """Draw the backdrops of both takes, float32 [B, 2, S, S, 3]. They can be tiled, so that a shift wraps around."""
    B, S = packed.take.shape[0], packed.size
    cells = packed.cells.flatten(0, 1).permute(0, 3, 1, 2)
    smooth = interpolate(cells, size=(S, S), mode="bicubic", align_corners=False)
    canvas = smooth.permute(0, 2, 3, 1).unflatten(0, (B, 2))
    side = torch.arange(S, device=canvas.device)
    waves, phase, height = packed.stripes[..., :2], packed.stripes[..., 2], packed.stripes[..., 3]
    angle = (side / S * 2 * math.pi) * waves.round()[..., None]  # only whole cycles can be tiled
    stripes = torch.sin(angle[:, :, 0, None, :] + angle[:, :, 1, :, None] + phase[..., None, None])
    grain = _grain(canvas.device)[(side[:, None]) % GRAIN, side[None, :] % GRAIN] * packed.grain[..., None, None]
    return canvas + (stripes * height[..., None, None] + grain)[..., None]


def _draw_things(packed: PackedScenes, frames: torch.Tensor) -> torch.Tensor:
    """Paste one square patch for each thing and frame. A margin around the frame takes the parts that stick out."""
    B, T = packed.take.shape
    P = math.ceil(float(packed.radius.max())) * 2 + 4 if frames.device.type == "cpu" else _patch_side(packed.size)
    margin = P
    frames = torch.nn.functional.pad(frames, (0, 0, margin, margin, margin, margin))
    corner = (packed.centre.floor() - P // 2).clamp(-P, packed.size)
    step = torch.arange(P, device=frames.device)
    clip = torch.arange(B, device=frames.device)[:, None, None, None]
    time = torch.arange(T, device=frames.device)[None, :, None, None]
    for k in range(THINGS):
        x = corner[:, :, k, 0, None] + step
        y = corner[:, :, k, 1, None] + step
        place = (clip, time, (y.long() + margin)[:, :, :, None], (x.long() + margin)[:, :, None, :])
        under = frames[place]
        u = (x + 0.5 - packed.centre[:, :, k, 0, None]) / packed.radius[:, None, k, None]
        v = (y + 0.5 - packed.centre[:, :, k, 1, None]) / packed.radius[:, None, k, None]
        frames[place] = torch.where(packed.shown[:, :, k, None, None, None], _paint(packed, k, u, v, under), under)
    return frames[:, :, margin:-margin, margin:-margin]


def _patch_side(size: int) -> int:
    """Side of a patch for the largest thing in frames of this size; constant, so that compiled code can be reused."""
    return math.ceil(0.11 * (392 / size) ** 0.5 * size) * 2 + 4


def _paint(packed: PackedScenes, k: int, u: torch.Tensor, v: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """Paint thing `k` over the pixels `under` [B, T, P, P, 3]; `u` and `v` [B, T, P] go from −1 to 1."""
    plates = torch.tensor([[0.0] * 3, [16.0] * 3, [255.0] * 3], device=u.device)
    inside = (u.abs() < 1)[:, :, None, :] & (v.abs() < 1)[:, :, :, None]
    column = ((u + 1) * (MASK / 2)).long().clamp(0, MASK - 1)[:, :, None, :]
    row = ((v + 1) * (MASK / 2)).long().clamp(0, MASK - 1)[:, :, :, None]
    cover = _masks_on(u.device)[packed.sprite[:, None, k, None, None], row, column]
    plate = packed.plate[:, None, k, None, None]
    base = torch.where((plate > 0)[..., None], plates[packed.plate[:, k]][:, None, None, None], under)
    painted = base + (packed.rgb[:, k][:, None, None, None] - base) * cover[..., None]
    return torch.where(inside[..., None], painted, under)


def _noise(packed: PackedScenes) -> torch.Tensor:
    """Sensor noise [B, T, S, S, 1]: a fixed tile, shifted from frame to frame, so that all devices draw the same."""
    T = packed.take.shape[1]
    side = torch.arange(packed.size, device=packed.take.device)
    time = torch.arange(T, device=side.device)
    x = (side + (packed.grain_offset[:, :1] + 97 * time)[..., None])[:, :, None, :] % GRAIN
    y = (side + (packed.grain_offset[:, 1:] + 61 * time)[..., None])[:, :, :, None] % GRAIN
    return (_grain(side.device)[y, x] * packed.noise[:, None, None, None])[..., None]


@lru_cache(maxsize=8)
def _grain(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(GRAIN, GRAIN, generator=generator).to(device)


@lru_cache(maxsize=8)
def _masks_on(device: torch.device) -> torch.Tensor:
    return masks().to(device)
