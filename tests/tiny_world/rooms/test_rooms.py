"""Rooms: seeds, splits without common layouts, and renderings that agree with geometry."""

from __future__ import annotations

import numpy as np
import pytest
from room_cameras import free_cameras

from spatialalign_trl.tiny_world.rooms import SPLIT_SEEDS, intrinsics_for, look, render, sample_room, split_of
from spatialalign_trl.tiny_world.rooms.furniture import INDOOR, OUTDOOR
from spatialalign_trl.tiny_world.rooms.layout import sample_layout
from spatialalign_trl.tiny_world.rooms.raycast import _texture_axes
from spatialalign_trl.tiny_world.rooms.surfaces import normal_of
from spatialalign_trl.tiny_world.rooms.textures import COLORS

SIZE = (45, 78)
STARTS = {split: seeds.start for split, seeds in SPLIT_SEEDS.items()}


@pytest.fixture(scope="module", params=[(4, "indoor"), (2_000_003, "outdoor")], ids=["indoor", "outdoor"])
def room(request):
    return sample_room(*request.param)


def test_the_same_seed_gives_the_same_room_and_another_seed_another(room):
    again = sample_room(room.seed, room.style)
    other = sample_room(room.seed + 1, room.style)
    pose = free_cameras(room, 1, np.random.default_rng(0))
    first, second, third = (render(some_room, pose, SIZE) for some_room in (room, again, other))
    assert first.frames.tobytes() == second.frames.tobytes()
    assert first.depth.tobytes() == second.depth.tobytes()
    assert not np.array_equal(first.frames, third.frames)


def test_no_two_splits_share_a_layout_and_no_training_room_is_outdoors():
    layouts = {split: [sample_layout(start + i) for i in range(60)] for split, start in STARTS.items()}
    for split, some in layouts.items():
        assert {layout.split() for layout in some} == {split}
    signatures = {split: {layout.signature() for layout in some} for split, some in layouts.items()}
    assert not signatures["train"] & (signatures["validation"] | signatures["test"])
    assert not signatures["validation"] & signatures["test"]
    assert [split_of(start) for start in STARTS.values()] == list(STARTS)
    with pytest.raises(ValueError, match="seed=5: a training seed, but outdoor"):
        sample_room(5, "outdoor")
    with pytest.raises(ValueError, match="seed=-1: belongs to no split"):
        sample_room(-1)
    with pytest.raises(ValueError, match="Did you mean 'outdoor'"):
        sample_room(STARTS["test"], "outdoors")


@pytest.mark.parametrize("style", ["indoor", "outdoor"])
def test_objects_have_unique_names_stand_inside_and_do_not_touch(style):
    kinds = INDOOR if style == "indoor" else OUTDOOR
    drawn_kinds = set()
    for seed in range(STARTS["test"], STARTS["test"] + 40):
        layout = sample_layout(seed, style)
        names = [place.name for place in layout.places]
        assert len(names) >= 4 and len(set(names)) == len(names)
        drawn_kinds |= {place.kind for place in layout.places}
        assert all(place.color in kinds[place.kind].colors for place in layout.places)
        boxes = [(np.array(p.position), np.array(p.half_extent())) for p in layout.places]
        for i, (middle, reach) in enumerate(boxes):
            assert np.all(np.abs(middle) + reach <= layout.half)
            for other, other_reach in boxes[:i]:
                assert np.any(np.abs(middle - other) > reach + other_reach)
    assert drawn_kinds == set(kinds)
    assert {color for kind in kinds.values() for color in kind.colors} <= set(COLORS)


def ray_by_ray(room, pose: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute depth and object along rays by intersecting each ray with every quad."""
    best, owner = np.full(len(rays), np.inf), np.full(len(rays), -1)
    directions = rays @ pose[:3, :3].T
    for quad, quad_owner in zip(room.quads, room.owners, strict=True):
        normal = normal_of(quad)
        facing = directions @ normal
        depth = normal @ (quad.corners[0] - pose[:3, 3]) / np.where(facing == 0, np.nan, facing)
        points = pose[:3, 3] + depth[:, None] * directions
        edges = np.roll(quad.corners, -1, axis=0) - quad.corners
        sides = np.cross(edges, points[:, None] - quad.corners) @ normal
        inside = (sides >= 0).all(axis=1) | (sides <= 0).all(axis=1)
        nearer = inside & (depth > 0) & (depth < best) & ((facing < 0) | quad.two_sided)
        best[nearer], owner[nearer] = depth[nearer], quad_owner
    return best, owner


def test_depth_and_objects_are_those_of_rays_cast_one_by_one(room):
    rng = np.random.default_rng(1)
    poses = free_cameras(room, 6, rng)
    seen = render(room, poses, SIZE, supersample=3)
    inverse = np.linalg.inv(seen.intrinsics)
    for frame, pose in enumerate(poses):
        rows, columns = (rng.integers(side, size=200) for side in SIZE)
        depth, owner = ray_by_ray(room, pose, np.stack([columns, rows, np.ones(200)], axis=1) @ inverse.T)
        same = np.isclose(seen.depth[frame, rows, columns], depth, rtol=1e-4)
        same &= seen.objects[frame, rows, columns] == owner
        assert same.sum() >= 199  # a ray along an edge may fall to either side


def test_rooms_are_closed_and_depth_does_not_depend_on_resolution_or_rays(room):
    poses = free_cameras(room, 3, np.random.default_rng(2))
    coarse, fine = render(room, poses, SIZE, supersample=1), render(room, poses, SIZE, supersample=5)
    assert np.isfinite(coarse.depth).all() and (coarse.depth > 0).all()
    assert np.mean(np.isclose(coarse.depth, fine.depth, rtol=1e-4)) > 0.999
    odd = tuple(3 * side for side in SIZE)  # the middle of each 3x3 block is the coarse pixel's middle
    large = render(room, poses, odd, supersample=1)
    assert np.mean(np.isclose(coarse.depth, large.depth[:, 1::3, 1::3], rtol=1e-3)) > 0.995


def test_a_point_seen_from_two_cameras_has_one_colour(room):
    """Check that depth, poses, intrinsics and textures agree, by warping one frame into another."""
    start = free_cameras(room, 1, np.random.default_rng(3))[0]
    moved = start.copy()
    moved[:3, 3] += start[:3, :3] @ [0.12, -0.04, 0.08]
    size = (120, 208)
    seen = render(room, np.stack([start, moved]), size)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(seen.intrinsics).T
    world = (rays * seen.depth[0][..., None]) @ start[:3, :3].T + start[:3, 3]
    camera = (world - moved[:3, 3]) @ moved[:3, :3]
    x, y, _ = np.moveaxis(camera / camera[..., 2:] @ seen.intrinsics.T, -1, 0).round().astype(int)
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0]) & (camera[..., 2] > 0)
    same_surface = np.isclose(seen.depth[1][y[inside], x[inside]], camera[inside][:, 2], rtol=0.02)
    assert same_surface.mean() > 0.85
    gap = np.abs(seen.frames[0][inside].astype(int) - seen.frames[1][y[inside], x[inside]])[same_surface]
    unrelated = np.abs(seen.frames[0][inside].astype(int) - np.roll(seen.frames[0], 40, axis=1)[inside])
    assert gap.mean() < 12 and gap.mean() < 0.4 * unrelated.mean()


def test_boxes_hold_exactly_the_visible_pixels(room):
    seen = render(room, free_cameras(room, 5, np.random.default_rng(4)), SIZE)
    for frame in range(5):
        for index in range(len(room.objects)):
            mask = seen.objects[frame] == index
            assert seen.visible_pixels[frame, index] == mask.sum()
            box = seen.boxes[frame, index]
            if not mask.any():
                assert np.isnan(box).all()
                continue
            x1, y1, x2, y2 = box.astype(int)
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()
    assert seen.visible_pixels.sum() > 0


def test_visible_points_of_an_object_lie_in_its_box(room):
    seen = render(room, free_cameras(room, 6, np.random.default_rng(5)), SIZE)
    poses = free_cameras(room, 6, np.random.default_rng(5))
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(seen.intrinsics).T
    for frame, pose in enumerate(poses):
        world = (rays * seen.depth[frame][..., None]) @ pose[:3, :3].T + pose[:3, 3]
        for index, thing in enumerate(room.objects):
            points = world[seen.objects[frame] == index]
            assert (points >= thing.low - 1e-3).all() and (points <= thing.high + 1e-3).all()


def test_an_object_looks_like_its_colour():
    """Check that the colour word describes the picture: the mean colour is nearest to the word's colour."""
    agree = []
    for seed in range(3):
        room = sample_room(seed)
        for index, thing in enumerate(room.objects):
            fronts = [quad for quad, owner in zip(room.quads, room.owners, strict=True) if owner == index]
            mains = {quad.texture for quad in fronts if quad.texture.endswith(" main")}
            color = np.mean([room.textures[name].mean(axis=(0, 1)) for name in mains], axis=0)
            palette = {name: np.linalg.norm(color - np.array(rgb)) for name, rgb in COLORS.items()}
            agree.append(min(palette, key=palette.get) == thing.color)
    assert np.mean(agree) > 0.95


def test_textures_lie_on_their_quads(room):
    for quad in room.quads:
        height, width = room.textures[quad.texture].shape[:2]
        texels = np.c_[quad.corners, np.ones(4)] @ _texture_axes(quad, (height, width)).T
        assert (texels > -1e-6).all()
        if quad.fitted:
            assert np.allclose(texels.max(axis=0), [width, height])


def test_frames_are_rich_enough_for_features():
    cv2 = pytest.importorskip("cv2")
    room = sample_room(STARTS["test"] + 1)
    poses = free_cameras(room, 8, np.random.default_rng(6))
    counts = []
    for frame in render(room, poses, supersample=1).frames:
        counts.append(len(cv2.SIFT_create(2000).detect(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None)))
    assert np.median(counts) > 250, counts


def test_intrinsics_and_poses_follow_opencv():
    intrinsics = intrinsics_for((240, 416), 90.0)
    assert np.allclose(intrinsics, [[208, 0, 207.5], [0, 208, 119.5], [0, 0, 1]])
    pose = look([0.3, -1.4, 0.2], 90.0, 0.0)
    assert np.allclose(pose[:3, :3] @ [0, 0, 1], [1, 0, 0])  # yaw 90 looks along +x
    assert np.allclose(pose[:3, :3] @ [0, 1, 0], [0, 1, 0])  # y points down for upright cameras
    assert np.isclose(np.linalg.det(pose[:3, :3]), 1)
    assert (look([0, 0, 0], 0, 30)[:3, :3] @ [0, 0, 1])[1] < 0  # pitch grows upwards


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": np.eye(4)}, r"poses have shape \(4, 4\): they must be"),
        ({"poses": np.full((1, 4, 4), np.nan)}, "finite"),
        ({"supersample": 2}, "supersample=2: it must be odd"),
        ({"size": (0, 4)}, r"size=\(0, 4\)"),
        ({"intrinsics": np.eye(2)}, r"intrinsics have shape \(2, 2\)"),
    ],
)
def test_invalid_cameras_are_refused(room, change, message):
    arguments = {"poses": np.eye(4)[None], "size": SIZE, **change}
    with pytest.raises(ValueError, match=message):
        render(room, arguments.pop("poses"), arguments.pop("size"), **arguments)


def test_unknown_objects_are_refused_with_the_known_ones(room):
    assert room.object_named(room.objects[0].name) is room.objects[0]
    with pytest.raises(KeyError, match=room.objects[0].name):
        room.object_named("green elephant")
