"""Videos in the cells of datasets are read and refused like files, with the row and the column in the message."""

import datasets
import pytest
from video_files import clip, encode, shown_frames, with_matrix

from spatialalign_trl.trainer.pair_columns import check_pairs
from spatialalign_trl.video import VideoError, check_video_file, frames_of, self_contained, videos_of


@pytest.fixture
def cut():
    data = encode(clip())
    return data[: len(data) * 9 // 10]


def test_a_truncated_video_of_a_preference_dataset_is_named(cut):
    rows = {
        "prompt": ["p", "q"],
        "chosen": [encode(clip()), cut],
        "rejected": [encode(clip(), "webm"), encode(clip())],
    }
    pairs = check_pairs(datasets.Dataset.from_dict(rows))
    assert shown_frames(pairs.video(0, "chosen"), clip()) == list(range(17))
    assert shown_frames(pairs.video(0, "rejected"), clip()) == list(range(17))
    with pytest.raises(ValueError, match=r"train_dataset row 1, column 'chosen': .*it is truncated"):
        pairs.video(1, "chosen")


def test_every_way_to_read_a_cell_refuses_it(cut, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(cut)
    cells = [
        cut,
        {"bytes": cut, "path": "x.mp4"},
        {"bytes": None, "path": str(tmp_path / "cut.mp4")},
        tmp_path / "cut.mp4",
    ]
    for cell in cells:
        with pytest.raises(ValueError, match=r"row 3: .*it is truncated"):
            frames_of(cell, "row 3")
    with pytest.raises(ValueError, match="column 'chosen': .*it is truncated"):
        videos_of({"chosen": cells[1]})


def test_a_truncated_video_is_not_published(cut):
    with pytest.raises(VideoError, match="row 3, column 'chosen' is not a video file.*it is truncated"):
        self_contained({"chosen": {"bytes": cut, "path": "x.mp4"}}, "row 3")


def test_a_file_without_frames_is_no_video():
    data = encode(clip(1), muxer={"movflags": "frag_keyframe+empty_moov"})
    header = data[: data.find(b"moof") - 4]
    for read in (lambda content: check_video_file(content, "it"), lambda content: frames_of(content, "row 3")):
        with pytest.raises(ValueError, match="it has no frames"):
            read(header)


def test_cells_are_upright():
    data = with_matrix(encode(clip()[:, :, ::-1]), -1, 0, 0, 1, 192, 0)
    for cell in (data, {"bytes": data, "path": None}):
        assert shown_frames(frames_of(cell, "row 3"), clip()) == list(range(17))
