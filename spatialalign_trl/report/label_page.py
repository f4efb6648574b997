"""The page on which people label clips: one HTML file that needs no server and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spatialalign_trl.evaluation.labels import END, LABEL_FORMAT, LABEL_VERSION, LOOKS, START, questions_of
from spatialalign_trl.prompts.relations import RELATIONS

TEMPLATE = Path(__file__).resolve().parent / "templates" / "label.html"


@dataclass(frozen=True)
class Clip:
    """A clip and what it should show.

    Args:
        file (`str`): Where it came from; it goes into the exported labels and is not shown.
        prompt_id, prompt, type, animal, object, attribute (`str`): What was asked for; all but `type`, `animal` and
            `object` may be empty.
        mp4 (`bytes`): A file that browsers play (`video.browser_mp4_of`).
    """

    file: str
    prompt_id: str
    prompt: str
    type: str
    animal: str
    object: str
    attribute: str
    mp4: bytes

    @property
    def clip_id(self) -> str:
        """20 hexadecimal digits that the file's name and content determine."""
        return hashlib.sha256(self.file.encode() + b"\0" + self.mp4).hexdigest()[:20]


def label_page(clips: Sequence[Clip], seed: int) -> str:
    """
    Make the page.

    Args:
        clips (sequence of [`Clip`]):
            The clips in the order in which they are shown.
        seed (`int`):
            What the order was drawn with; it goes into the exported labels.

    Returns:
        `str`: the HTML.

    Raises:
        ValueError: when there are no clips, or one comes twice.
    """
    ids = [clip.clip_id for clip in clips]
    if not clips:
        raise ValueError("there is no clip to label")
    if len(set(ids)) < len(ids):
        raise ValueError("a clip comes twice; each is labelled once")
    data = {
        "format": LABEL_FORMAT,
        "version": LABEL_VERSION,
        "page": hashlib.sha256(" ".join(ids).encode()).hexdigest()[:20],
        "seed": seed,
        "clips": [_entry(clip) for clip in clips],
    }
    # A "<" in a prompt or in a file's name would end the script element.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    videos = "\n".join(
        f'<script type="text/plain" id="clip-{clip_id}">{base64.b64encode(clip.mp4).decode()}</script>'
        for clip_id, clip in zip(ids, clips, strict=True)
    )
    before, rest = TEMPLATE.read_text(encoding="utf-8").split("<!-- DATA -->")
    between, after = rest.split("<!-- CLIPS -->")
    return "".join((before, text, between, videos, after))


def _entry(clip: Clip) -> dict[str, object]:
    animal = f"{clip.attribute} {clip.animal}".strip()
    prompt = clip.prompt or " → ".join(f"{animal} {RELATIONS[code].initial} {clip.object}" for code in clip.type)
    questions = []
    for key, code in questions_of(clip.type).items():
        when = {START: "At the start", END: "At the end"}.get(key, "In between")
        text = f"{when}, is the {animal} {RELATIONS[code].initial} the {clip.object}?"
        questions.append({"key": key, "name": "between" if key not in (START, END) else key, "text": text})
    looks = "Does it look fine: one whole animal, smooth motion, a clean picture?"
    return {
        "id": clip.clip_id,
        "file": clip.file,
        "prompt_id": clip.prompt_id,
        "type": clip.type,
        "prompt": prompt,
        "questions": [*questions, {"key": LOOKS, "name": "looks", "text": looks}],
    }
