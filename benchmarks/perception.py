"""Compares DSR-Score's geometry and tracking with plain implementations.

    python benchmarks/perception.py
    python benchmarks/perception.py --parts geometry --videos 1000 --frames 81 --turns 9
    python benchmarks/perception.py --parts tracking --batch_size 8 --clip_frames 81 --clip_size 240 416
    python benchmarks/perception.py --parts tracking --device cuda --clip_frames 81 --clip_size 480 832 --turns 3 \
        --detector IDEA-Research/grounding-dino-tiny --follower facebook/sam2.1-hiera-large

geometry: computes scores, components and curves from the boxes of many videos, with the loops over videos and frames
in `plain_geometry.py` and with the library. The boxes are given as lists of `FrameBoxes` (shuffled, labels in either
order, some frames without the pair), which both have to sort, or as one ordered array (NaN where there is no pair).
All ways must agree to 1e-12.

    NumPy per frame      a loop with small arrays for each frame: the usual implementation
    floats per frame     a loop with Python numbers: the fastest loop

tracking: sends one clip through detector and follower. *plain* gives the detector one frame at a time and uses one
session of the follower for each direction. *library* is `GroundingDINODetector.detect` and `SAM2Follower.follow`. Both
use the same loaded models, tiny random ones of the real classes unless checkpoints are given. Hooks on the encoders
count the passes. Peak memory is measured in a new process for each way, and excludes the loaded models.

A ratio is the median over the turns, followed by the quartiles in brackets. On a CPU, times are processor times of
this process, which do not include other jobs. On a GPU they are wall times until synchronisation.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import added_peak, can_measure_peak, clock, in_turns, peak_in_own_process, ratio, report_peak, timed
from plain_geometry import (
    ANIMAL,
    OBJECT,
    as_tracks,
    offset_floats,
    offset_numpy,
    pairs_in_order,
    plain_score,
    random_boxes,
)

from spatialalign_rewards.dsr_score import BoxScores, DSRResult, score_box_arrays, score_tracks_batch
from spatialalign_trl.prompts import DSR_TYPES

if TYPE_CHECKING:
    from spatialalign_trl.perception.grounding_dino import GroundingDINODetector
    from spatialalign_trl.perception.sam2 import SAM2Follower

FRAMES, ARRAY = "FrameBoxes", "one array"
PLAIN, LIBRARY = "plain", "library"
TOLERANCE = 1e-12


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["geometry", "tracking"], default=["geometry", "tracking"])
    parser.add_argument("--turns", type=int, default=7, help="number of times every way is timed")
    geometry = parser.add_argument_group("geometry")
    geometry.add_argument("--videos", type=int, default=1000)
    geometry.add_argument("--frames", type=int, default=81)
    tracking = parser.add_argument_group("tracking")
    tracking.add_argument("--clip_frames", type=int, default=81)
    tracking.add_argument("--clip_size", type=int, nargs=2, default=[120, 208], metavar=("HEIGHT", "WIDTH"))
    tracking.add_argument("--batch_size", type=int, help="batch size of the library's detector; default: its own")
    tracking.add_argument("--detector", help="checkpoint; default: a tiny random model")
    tracking.add_argument("--follower", help="checkpoint; default: a tiny random model")
    tracking.add_argument("--device", default="cpu")
    tracking.add_argument(
        "--peak_of", choices=[PLAIN, LIBRARY], help=argparse.SUPPRESS
    )  # set in the process that measures the peak
    return parser.parse_args()


# Geometry


def from_results(results: list[DSRResult]) -> list[tuple]:
    """Convert the library's results to the tuples that `plain_score` returns."""
    names = ("initial_score", "initial_gap", "final_score", "final_gap")
    return [
        (
            result.score,
            [] if result.score is None else [getattr(result, name) for name in names],
            [result.initial_curve, result.final_curve],
        )
        for result in results
    ]


def from_arrays(result: BoxScores) -> list[tuple]:
    """Convert the library's arrays to the tuples that `plain_score` returns."""
    return [
        (
            None if np.isnan(result.scores[k]) else result.scores[k],
            [] if np.isnan(result.scores[k]) else result.components[k].ravel(),
            result.curves[:, start : start + size],
        )
        for k, (start, size) in enumerate(zip(result.starts, result.sizes, strict=True))
    ]


def largest_difference(first: list[tuple], second: list[tuple]) -> float:
    """Return the largest difference of scores, components and curves; infinite if INVALID videos differ."""
    worst = 0.0
    for (score, components, curves), (other_score, other_components, other_curves) in zip(first, second, strict=True):
        if (score is None) != (other_score is None):
            return math.inf
        pairs = [(components, other_components), *zip(curves, other_curves, strict=True)]
        pairs += [] if score is None else [([score], [other_score])]
        worst = max([worst, *(float(np.abs(np.subtract(*pair)).max(initial=0)) for pair in pairs)])
    return worst


def measure_geometry(options: argparse.Namespace) -> None:
    """Check that all ways of scoring agree, time them and print the ratios."""
    boxes = random_boxes(options.videos, options.frames)
    tracks, types = as_tracks(boxes), [DSR_TYPES[k % len(DSR_TYPES)] for k in range(options.videos)]
    animals, objects = [ANIMAL] * options.videos, [OBJECT] * options.videos

    def loop(source: str, offset: Callable) -> list[tuple]:
        videos = boxes if source == ARRAY else map(pairs_in_order, tracks)
        return [plain_score(pairs, options.frames, code, offset) for pairs, code in zip(videos, types, strict=True)]

    library = {
        FRAMES: lambda: score_tracks_batch(tracks, animals, objects, types),
        ARRAY: lambda: score_box_arrays(boxes, types),
    }
    loops = {
        (source, name): lambda source=source, offset=offset: loop(source, offset)
        for source in library
        for name, offset in (("NumPy per frame", offset_numpy), ("floats per frame", offset_floats))
    }

    # 1. All ways must agree.
    plain, *others = (way() for way in loops.values())
    others += [from_results(library[FRAMES]()), from_arrays(library[ARRAY]())]
    worst = max(largest_difference(plain, other) for other in others)
    assert worst <= TOLERANCE, f"the ways differ by {worst}"
    invalid = sum(score is None for score, *_ in plain)
    print(f"geometry: {options.videos} videos of {options.frames} frames ({invalid} INVALID), numpy {np.__version__}")
    print(f"  largest difference {worst:.1e}")

    # 2. Time them.
    now = clock("cpu")
    seconds = in_turns({name: timed(way, now) for name, way in (loops | library).items()}, options.turns)
    for source, name in loops:
        medians = f"{1e3 * median(seconds[source, name]):.1f} / {1e3 * median(seconds[source]):.1f} ms"
        print(f"  {source:10}  {name:16} / library {ratio(seconds[source, name], seconds[source])}   ({medians})")


# Tracking


class TwoWays:
    """Sends one clip through detector and follower in either way, with the same loaded models."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from spatialalign_trl.perception.grounding_dino import GroundingDINODetector
        from spatialalign_trl.perception.sam2 import SAM2Follower

        if not (options.detector and options.follower):
            sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
            import tiny_perception
        detector = options.detector or tiny_perception.saved_grounding_dino(folder / "detector")
        follower = options.follower or tiny_perception.saved_sam2(folder / "follower")
        # A random detector finds nothing, so accept all of its boxes to have some to compare.
        thresholds = {} if options.detector else {"box_threshold": 0.0, "text_threshold": 0.0}
        self.detector: GroundingDINODetector = GroundingDINODetector(
            detector, batch_size=options.batch_size, device=options.device, **thresholds
        )
        self.follower: SAM2Follower = SAM2Follower(follower, device=options.device)
        frames, (height, width) = options.clip_frames, options.clip_size
        self.video = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        # Give the follower fixed boxes, because those of a random detector are meaningless.
        self.boxes = np.array([[0.1, 0.3, 0.3, 0.6], [0.5, 0.4, 0.8, 0.8]]) * [width, height, width, height]
        self.prompt_frame = frames // 3
        self.passes: dict[str, list[int]] = {}
        self._count_passes()

    def _count_passes(self) -> None:
        """Record the number of frames (or texts) of every call of an encoder in `passes[encoder]`."""
        detector, _ = self.detector.pretrained.load()
        follower, _ = self.follower.pretrained.load()
        encoders = {
            "detector's image encoder": detector.model.backbone,
            "detector's text encoder": detector.model.text_backbone,
            "follower's image encoder": follower.vision_encoder,
        }
        for name, module in encoders.items():

            def count(_: Any, args: tuple, kwargs: dict, name: str = name) -> None:
                self.passes.setdefault(name, []).append(len((*args, *kwargs.values())[0]))

            module.register_forward_pre_hook(count, with_kwargs=True)

    def run(self, way: str) -> tuple[list, np.ndarray]:
        """Return `(detections, followed boxes)` of one way."""
        if way == PLAIN:
            return self._detect_one_by_one(), self._follow_in_two_sessions()
        detections = self.detector.detect(self.video, [ANIMAL, OBJECT])
        return detections, self.follower.follow(self.video, self.boxes, self.prompt_frame)

    def _detect_one_by_one(self) -> list[tuple[np.ndarray, tuple[str, ...]]]:
        """Detect with one call of the model per frame."""
        import torch
        from PIL import Image

        model, processor = self.detector.pretrained.load()
        detections = []
        for frame in self.video:
            inputs = processor(
                images=Image.fromarray(frame), text=f"{ANIMAL}. {OBJECT}.", return_tensors="pt"
            ).to(model.device)  # fmt: skip
            with torch.inference_mode(), self.detector.pretrained.autocast():
                outputs = model(**inputs)
            result = processor.post_process_grounded_object_detection(
                outputs,
                inputs["input_ids"],
                threshold=self.detector.box_threshold,
                text_threshold=self.detector.text_threshold,
                target_sizes=[frame.shape[:2]],
            )[0]
            detections.append((result["boxes"].float().cpu().numpy(), result["scores"], result["text_labels"]))
        return detections

    def _follow_in_two_sessions(self) -> np.ndarray:
        """Follow the boxes with one session for each direction."""
        followed = np.zeros((len(self.video), len(self.boxes), 4))
        for backwards in (False, True):
            self._follow_in_a_session(backwards, followed)
        return followed

    def _follow_in_a_session(self, backwards: bool, followed: np.ndarray) -> None:
        """Fill in the boxes on one side of the prompt frame. The session is freed at the end."""
        import torch

        from spatialalign_trl.perception.sam2 import mask_boxes

        model, processor = self.follower.pretrained.load()
        session = processor.init_video_session(
            video=self.video, inference_device=model.device, video_storage_device="cpu", dtype=torch.float32
        )
        processor.add_inputs_to_inference_session(
            session, frame_idx=self.prompt_frame, obj_ids=[1, 2], input_boxes=[self.boxes.tolist()]
        )
        with torch.inference_mode(), self.follower.pretrained.autocast():
            for output in model.propagate_in_video_iterator(session, self.prompt_frame, reverse=backwards):
                logits = processor.post_process_masks(
                    [output.pred_masks], original_sizes=[list(self.video.shape[1:3])], binarize=False
                )[0]
                followed[output.frame_idx] = mask_boxes(logits[:, 0] > 0)

    def passes_of(self, way: str) -> dict[str, list[int]]:
        """Run one way and return the frames (or texts) of every encoder call."""
        self.passes.clear()
        self.run(way)
        return dict(self.passes)


def agree(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two sets of boxes `(n, 4)` are equal to a tenth of a pixel, in any order."""
    if len(first) != len(second):
        return False
    distances = np.abs(first[:, None] - second).max(axis=2)
    nearest = distances.min(axis=1, initial=np.inf), distances.min(axis=0, initial=np.inf)
    return bool((nearest[0] < 0.1).all() and (nearest[1] < 0.1).all())


def measure_tracking(options: argparse.Namespace, folder: Path) -> None:
    """Compare results, encoder passes, time and peak memory of both ways, and print the ratios."""
    import torch

    ways = TwoWays(options, folder)
    (plain_detections, plain_followed), (detections, followed) = ways.run(PLAIN), ways.run(LIBRARY)
    same = sum(agree(plain[0], ours.boxes) for plain, ours in zip(plain_detections, detections, strict=True))
    print(
        f"tracking: {len(ways.video)} frames of {ways.video.shape[1]}x{ways.video.shape[2]} on {options.device}, "
        f"torch {torch.__version__}"
    )
    print(f"  frames whose detections agree to a tenth of a pixel: {same} of {len(detections)}")
    print(f"  largest difference of followed boxes: {np.abs(plain_followed - followed).max():.1f} pixels")
    plain, library = ways.passes_of(PLAIN), ways.passes_of(LIBRARY)
    for name in plain:
        calls, frames = len(plain[name]) / len(library[name]), sum(plain[name]) / sum(library[name])
        counts = f"{len(plain[name])} / {len(library[name])}"
        print(f"  {name}: calls, plain / library {calls:6.2f} ({counts}); frames through it {frames:.3f}")

    now = clock(options.device)
    seconds = in_turns({way: timed(lambda way=way: ways.run(way), now) for way in (PLAIN, LIBRARY)}, options.turns)
    print(f"  time, plain / library {ratio(seconds[PLAIN], seconds[LIBRARY])}")
    if not can_measure_peak(options.device):
        print("  peak memory: on a CPU it is measured on Linux only")
        return
    peaks = {way: peak_in_own_process(way) for way in (PLAIN, LIBRARY)}
    sizes = ", ".join(f"{way} {peak / 2**20:.1f} MiB" for way, peak in peaks.items())
    print(f"  peak memory, plain / library {peaks[PLAIN] / peaks[LIBRARY]:7.2f} ({sizes})")


def measure_peak(options: argparse.Namespace, folder: Path) -> None:
    """Print the peak memory of one way in addition to the loaded models, as JSON."""
    ways = TwoWays(options, folder)
    # Warm up on a shorter clip, to allocate the buffers that are allocated only once.
    whole_video, ways.video = ways.video, ways.video[: ways.prompt_frame + 2]
    ways.run(options.peak_of)
    ways.video = whole_video
    report_peak(added_peak(lambda: ways.run(options.peak_of), options.device))


def main() -> None:
    """Run the chosen parts."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        if options.peak_of:
            measure_peak(options, Path(folder))
            return
        if "geometry" in options.parts:
            measure_geometry(options)
        if "tracking" in options.parts:
            measure_tracking(options, Path(folder))


if __name__ == "__main__":
    main()
