"""Make the page on which people label clips: one HTML file that needs no server and no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spatialalign_trl.evaluation.labels import END, LABEL_FORMAT, LABEL_VERSION, LOOKS, START, questions_of
from spatialalign_trl.prompts.relations import RELATIONS
from spatialalign_trl.text_files import same_text

TEMPLATE = Path(__file__).resolve().parent / "templates" / "label.html"


@dataclass(frozen=True)
class Clip:
    """A clip and what it should show.

    Args:
        file (`str`): The video file, with the folder that holds it. It is written to the exported labels, but not
            shown.
        prompt_id, prompt, type, animal, object, attribute (`str`): The prompt and its parts; all but `type`, `animal`
            and `object` may be empty.
        mp4 (`bytes`): A file that browsers play (`video.browser_mp4_of`).
        sha256 (`str`, *optional*): Of the video file's content, which `mp4` may be a conversion of.
    """

    file: str
    prompt_id: str
    prompt: str
    type: str
    animal: str
    object: str
    attribute: str
    mp4: bytes
    sha256: str = ""

    @property
    def clip_id(self) -> str:
        """An id of 20 hexadecimal digits, computed from the file's content and name, wherever the page is made."""
        return self.id_with_folders(0)

    def id_with_folders(self, folders: int) -> str:
        """Compute the id of the file's content, its name, and the last of its folders, as many as `folders` says."""
        parts = PurePosixPath(same_text(self.file)).parts[-1 - folders :]
        content = self.sha256 or hashlib.sha256(self.mp4).hexdigest()
        return hashlib.sha256("/".join(parts).encode() + b"\0" + content.encode()).hexdigest()[:20]


def clip_ids(clips: Sequence[Clip]) -> list[str]:
    """Return the clips' ids. Only where several files have one name and content do their folders count.

    Raises:
        ValueError: when a clip occurs twice.
    """
    ids = [clip.clip_id for clip in clips]
    for folders in range(1, max((len(PurePosixPath(clip.file).parts) for clip in clips), default=0)):
        counts = Counter(ids)
        ids = [clip.id_with_folders(folders) if counts[i] > 1 else i for clip, i in zip(clips, ids, strict=True)]
    counts = Counter(ids)
    repeated = next((clip.file for clip, i in zip(clips, ids, strict=True) if counts[i] > 1), None)
    if repeated is not None:
        raise ValueError(f"the clip {repeated} occurs twice. Give each clip once")
    return ids


def label_page(clips: Sequence[Clip], seed: int) -> str:
    """Make the page.

    Args:
        clips (sequence of [`Clip`]): The clips in the order in which they are shown.
        seed (`int`): The seed of the order, which is written to the exported labels.

    Returns:
        `str`: the HTML.

    Raises:
        ValueError: when there are no clips, or a clip occurs twice.
    """
    if not clips:
        raise ValueError("there is no clip to label. Give at least one")
    ids = clip_ids(clips)

    # 1. Collect what the page shows and exports: per clip a question on each relation, and one on its quality.
    entries = []
    for clip_id, clip in zip(ids, clips, strict=True):
        animal = f"{clip.attribute} {clip.animal}".strip()
        relations = " → ".join(f"{animal} {RELATIONS[code].initial} {clip.object}" for code in clip.type)
        questions = []
        for key, code in questions_of(clip.type).items():
            time = {START: "At the start", END: "At the end"}.get(key, "In between")
            text = f"{time}, is the {animal} {RELATIONS[code].initial} the {clip.object}?"
            questions.append({"key": key, "name": key if key in (START, END) else "between", "text": text})
        text = "Does it look fine: one whole animal, smooth motion, a clean picture?"
        questions.append({"key": LOOKS, "name": "looks", "text": text})
        entries.append(
            {
                "id": clip_id,
                "file": clip.file,
                "prompt_id": clip.prompt_id,
                "type": clip.type,
                "prompt": clip.prompt or relations,
                "questions": questions,
            }
        )
    data = {
        "format": LABEL_FORMAT,
        "version": LABEL_VERSION,
        "page": hashlib.sha256(" ".join(ids).encode()).hexdigest()[:20],
        "seed": seed,
        "clips": entries,
    }
    # Escape "<": in a prompt or a file's name it could end the script element.
    data_text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")

    # 2. Embed each video in its own script element, so that the page decodes only the clip on screen.
    videos = "\n".join(
        f'<script type="text/plain" id="clip-{clip_id}">{base64.b64encode(clip.mp4).decode()}</script>'
        for clip_id, clip in zip(ids, clips, strict=True)
    )

    # 3. Fill in the template. Not with str.replace: the data may contain the second marker.
    before, rest = TEMPLATE.read_text(encoding="utf-8").split("<!-- DATA -->")
    between, after = rest.split("<!-- CLIPS -->")
    return "".join((before, data_text, between, videos, after))
