"""Recordings in every layout load with the cameras and frames that were written, and no name leads out of a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from posed_recordings import realestate10k, save_frames

from spatialalign_trl.scenes.recording_formats import load_posed_video
from spatialalign_trl.scenes.recordings import PosedVideo, fit_frame, fit_intrinsics, shared_intrinsics
from spatialalign_trl.tiny_world.rooms import intrinsics_for, render, sample_room, sample_trajectory
from spatialalign_trl.video import write_video

SIZE, NUMBER = (24, 40), 6


@pytest.fixture(scope="module")
def recording():
    """Frames of a room and their cameras."""
    room = sample_room(6)
    poses = sample_trajectory(room, "walk", np.random.default_rng(0)).poses(NUMBER)
    return poses, render(room, poses, SIZE, supersample=1)


def transforms(folder, poses, rendering, angle: bool):
    k, (height, width) = rendering.intrinsics, SIZE
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    names = [f"images/{i:03d}.png" for i in range(NUMBER)]
    content = {"camera_angle_x": 2 * np.arctan(width / 2 / k[0, 0])} if angle else {
        "fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5, "w": width, "h": height, "k1": 0.0,
    }  # fmt: skip
    rows = [{"file_path": n, "transform_matrix": (p @ flip).tolist()} for n, p in zip(names, poses, strict=True)]
    bad = {"file_path": "images/none.png", "transform_matrix": [], "is_bad": True}
    content["frames"] = [*reversed(rows), bad]
    (folder / "transforms.json").write_text(json.dumps(content))
    save_frames(folder, rendering.frames, names)
    return folder


def colmap(folder, poses, rendering, model: str):
    from scipy.spatial.transform import Rotation

    k, (height, width) = rendering.intrinsics, SIZE
    centre = [k[0, 2] + 0.5, k[1, 2] + 0.5]
    numbers = {"PINHOLE": [k[0, 0], k[1, 1], *centre], "SIMPLE_PINHOLE": [k[0, 0], *centre],
               "OPENCV": [k[0, 0], k[1, 1], *centre, 0, 0, 0, 0]}[model]  # fmt: skip
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    (sparse / "cameras.txt").write_text(f"# cameras\n7 {model} {width} {height} {' '.join(map(str, numbers))}\n")
    lines = ["# images"]
    for i, pose in enumerate(poses):
        inverse = np.linalg.inv(pose)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        lines += [f"{NUMBER - i} {w} {x} {y} {z} {' '.join(map(str, inverse[:3, 3]))} 7 a/frame {i}.png", ""]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    save_frames(folder / "images", rendering.frames, [f"a/frame {i}.png" for i in range(NUMBER)])
    return folder


@pytest.mark.parametrize(
    ("write", "option"),
    [
        (realestate10k, True), (realestate10k, False), (transforms, True), (transforms, False), (colmap, "PINHOLE"),
        (colmap, "SIMPLE_PINHOLE"), (colmap, "OPENCV"),
    ],
)  # fmt: skip
def test_every_layout_gives_back_what_was_written(tmp_path, recording, write, option):
    poses, rendering = recording
    video = load_posed_video(write(tmp_path, poses, rendering, option))
    assert len(video) == NUMBER and video.size == SIZE
    assert np.allclose(video.poses, poses, atol=1e-6)
    assert np.allclose(video.intrinsics, rendering.intrinsics, atol=1e-6)
    assert np.array_equal(video.frames([4, 0, 5]), rendering.frames[[4, 0, 5]])
    subsampled = load_posed_video(
        write.__name__ == "realestate10k" and tmp_path / "clip.txt" or tmp_path, max_frames=3
    )
    assert subsampled.indices.tolist() == [0, 2, 5] and np.array_equal(subsampled.frames([1]), rendering.frames[[2]])


def test_realestate_cameras_find_their_frames_in_a_longer_video(tmp_path, recording):
    poses, rendering = recording
    path = realestate10k(tmp_path, poses, rendering, True)
    longer = np.repeat(rendering.frames, 3, axis=0)  # 30 frames a second: the times of the cameras fall on every third
    write_video(tmp_path / "long.mp4", longer, 30, crf=0)
    video = load_posed_video(path, frames=tmp_path / "long.mp4")
    assert np.array_equal(video.frames(range(NUMBER)), rendering.frames)
    write_video(tmp_path / "short.mp4", longer[:4], 30, crf=0)
    with pytest.raises(ValueError, match="no separate frame for the camera at"):
        load_posed_video(path, frames=tmp_path / "short.mp4")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd.png", "link.png", "images/../../secret.png"])
def test_no_name_leads_out_of_its_folder(tmp_path, recording, name):
    poses, rendering = recording
    folder = tmp_path / "inner"
    folder.mkdir()
    transforms(folder, poses, rendering, False)
    save_frames(tmp_path, rendering.frames[:1], ["secret.png"])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][0]["file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="frame 0: .* leads out of"):
        load_posed_video(folder)


def put_outside(path, outside):
    """Move a file or folder to another folder, and leave a link."""
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


@pytest.mark.parametrize(
    ("layout", "linked"),
    [
        (lambda *args: realestate10k(*args, True), "clip.mp4"),
        (lambda *args: realestate10k(*args, False), "clip"),
        (lambda *args: realestate10k(*args, False), "clip/133000.png"),
        (lambda *args: transforms(*args, False), "transforms.json"),
        (lambda *args: transforms(*args, False), "images"),
        (lambda *args: colmap(*args, "PINHOLE"), "images"),
        (lambda *args: colmap(*args, "PINHOLE"), "sparse"),
        (lambda *args: colmap(*args, "PINHOLE"), "sparse/0/images.txt"),
        (lambda *args: colmap(*args, "PINHOLE"), "sparse/0/cameras.txt"),
    ],
)
def test_no_link_leads_out_of_the_recording(tmp_path, recording, layout, linked):
    folder = tmp_path / "recording"
    folder.mkdir()
    path = layout(folder, *recording)
    assert len(load_posed_video(path)) == len(recording[0])
    put_outside(folder / linked, tmp_path)
    with pytest.raises(ValueError, match=r"leads out of .*pass frames="):
        load_posed_video(path)


@pytest.mark.parametrize("with_video", [True, False])
def test_frames_that_the_user_names_may_lie_anywhere(tmp_path, recording, with_video):
    folder = tmp_path / "recording"
    folder.mkdir()
    path = realestate10k(folder, *recording, with_video)
    frames = folder / ("clip.mp4" if with_video else "clip")
    put_outside(frames, tmp_path)
    assert len(load_posed_video(path, frames=frames)) == len(recording[0])


def test_a_file_is_read_as_what_its_name_says(tmp_path, recording):
    path = realestate10k(tmp_path, *recording, True)
    video = tmp_path / "clip.mp4"
    secret = video.rename(tmp_path / "secret.mp4")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"
    video.write_text(playlist)
    with pytest.raises(ValueError, match="clip.mp4 is not a readable video"):
        load_posed_video(path)
    transforms(tmp_path, *recording, False)
    image = tmp_path / "images" / "000.png"
    image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n%%EndComments\n")
    with pytest.raises(OSError, match="000.png"):
        load_posed_video(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k1": 0.1}, "distorted .*'k1': 0.1.*Undistort"),
        ({"fl_x": "long"}, "long"),
        ({"frames": {}}, "no list 'frames'"),
        ({"frames": []}, "lists no frames"),
        ({"frames": [{"file_path": "images/000.txt", "transform_matrix": np.eye(4).tolist()}]}, "is not an image"),
        ({"frames": [{"file_path": "images/000.png", "transform_matrix": [1, 2]}]}, "has 2 numbers"),
        (
            {"frames": [{"file_path": "images/000.png", "transform_matrix": (2 * np.eye(4)).tolist()}]},
            "not finite rot",
        ),
        ({"frames": [{"transform_matrix": np.eye(4).tolist()}]}, "no file_path"),
    ],
)
def test_wrong_transforms_are_refused_with_their_place(tmp_path, recording, change, message):
    transforms(tmp_path, *recording, False)
    content = json.loads((tmp_path / "transforms.json").read_text()) | change
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_posed_video(tmp_path)


def test_a_wrong_line_of_realestate10k_is_refused_with_its_place(tmp_path, recording):
    path = realestate10k(tmp_path, *recording, False)
    path.write_text(path.read_text() + "1 2 3\n")
    with pytest.raises(ValueError, match="clip.txt, line 8: expected 19"):
        load_posed_video(path)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("7 FULL_OPENCV 40 24 1", "camera model 'FULL_OPENCV'"),
        ("7 PINHOLE 40 24 1 2", "not those of a PINHOLE"),
        ("7 SIMPLE_RADIAL 40 24 30 20 12 0.2", "Undistort them first"),
        ("7 PINHOLE 80 48 30 30 20 12", "its camera is for 80x48"),
        ("8 PINHOLE 40 24 30 30 20 12", "camera '7' is not in cameras.txt"),
    ],
)
def test_wrong_cameras_of_colmap_are_refused(tmp_path, recording, camera, message):
    colmap(tmp_path, *recording, "PINHOLE")
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text(camera + "\n")
    with pytest.raises(ValueError, match=message):
        load_posed_video(tmp_path)


def test_a_folder_of_no_known_layout_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither transforms.json nor COLMAP"):
        load_posed_video(tmp_path)


def test_a_missing_recording_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recording"):
        load_posed_video(tmp_path / "none.txt")


def test_fitted_frames_have_the_fitted_camera():
    """A room rendered at one size and fitted to another is the room rendered with the fitted camera."""
    room = sample_room(6)
    pose = sample_trajectory(room, "pan", np.random.default_rng(0)).poses(1)
    size, fitted_size = (96, 144), (40, 72)
    camera = intrinsics_for(size)
    frame = render(room, pose, size, intrinsics=camera).frames[0]
    fitted = render(
        room, pose, fitted_size, intrinsics=fit_intrinsics(camera, size, fitted_size), supersample=5
    ).frames[0]
    small = fit_frame(frame, fitted_size)
    assert small.shape == (*fitted_size, 3)
    assert np.abs(small.astype(int) - fitted).mean() < 6
    shifted = np.abs(np.roll(small, 1, axis=1).astype(int) - fitted).mean()
    assert np.abs(small.astype(int) - fitted).mean() < 0.6 * shifted


def test_a_recording_that_zooms_is_refused():
    cameras = np.stack([intrinsics_for(SIZE, angle) for angle in (70, 70, 71, 50)])
    assert np.allclose(shared_intrinsics("x", cameras[:2], SIZE), cameras[0])
    with pytest.raises(ValueError, match="camera of frame 3 differs"):
        shared_intrinsics("x", cameras, SIZE)


def test_frames_of_another_size_and_poses_that_mirror_are_refused():
    frame = np.zeros((*SIZE, 3), np.uint8)
    fields = dict(name="x", intrinsics=intrinsics_for(SIZE), size=(9, 9), indices=np.arange(1))
    video = PosedVideo(poses=np.eye(4)[None], read=lambda positions: [frame] * len(positions), **fields)
    with pytest.raises(ValueError, match="frame 0 is 40x24, but its camera is for 9x9"):
        video.frames([0])
    with pytest.raises(ValueError, match="mirror"):
        PosedVideo(poses=np.diag([1.0, -1, 1, 1])[None], read=video.read, **fields)
