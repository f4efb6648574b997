"""`report.html`: a run or an evaluation as one file that a person looks at, offline, in any browser."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialalign_trl.evaluation import MEANS
from spatialalign_trl.evaluation.verdict import difference_text
from spatialalign_trl.report.gallery import (
    Clip,
    Gallery,
    Grader,
    Pair,
    by_interest,
    fill,
    in_turn,
    json_for_html,
    pair_up,
)
from spatialalign_trl.report.grades import Grade
from spatialalign_trl.report.page_plots import Plot, score_histograms, training_plots
from spatialalign_trl.report.tables import all_differences, headline_of_all, summary_rows

TEMPLATES = Path(__file__).resolve().parent / "templates"
MEGABYTE = 1_000_000

Difference = Mapping[str, Any]


@dataclass
class ReportContent:
    """What a page tells.

    Args:
        title, subtitle (`str`): The heading, and the line below it.
        baseline (`str`): The policy that others are compared with.
        summaries (`dict`): Policy -> what `evaluation.summarize` returned; empty when nothing was evaluated.
        differences (`dict`): Policy -> `verdict`, and of `rewards`, `components`, `quality` measure -> `difference`,
            `interval`.
        clips (`list[Clip]`): The videos of all policies.
        rounds (`list[dict]`): The loop's records; empty for an evaluation.
        scores (`dict`): Name of a histogram -> scores, `None` for INVALID.
        settings (`dict`): Heading -> names and values.
        commands (`list[tuple[str, str]]`): What for, and the line to copy.
        rewards (`dict`): Reward -> what it was made with.
    """

    title: str
    subtitle: str
    baseline: str
    summaries: Mapping[str, Mapping[str, Any]]
    differences: Mapping[str, Mapping[str, Any]]
    clips: Sequence[Clip]
    rounds: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()
    rewards: Mapping[str, Any] = field(default_factory=dict)


def render_page(
    content: ReportContent,
    folder: Path,
    grade: Grader,
    known: Mapping[str, Grade],
    max_megabytes: float,
    notes: Sequence[str] = (),
) -> tuple[bytes, Gallery]:
    """The page, and what went into its gallery.

    Args:
        content: what it tells.
        folder: what the clips' paths are relative to.
        grade, known: make and hold curves and boxes; see `gallery.fill`.
        max_megabytes: the page is no larger (of 10^6 bytes); videos are left out, with a note.
        notes: sentences for the top of the page.
    """
    policies = list(dict.fromkeys(clip.policy for clip in content.clips))
    pairs: list[Pair] = in_turn(pair_up(content.clips, content.baseline)) if content.clips else []
    page = _Page(content, policies, list(notes))
    # The note and the numbers of digits in it: a page with the longest note and no video leaves the room for videos.
    empty = len(page.render(Gallery([], len(pairs), 10**6, {}), max_megabytes))
    room = int(max_megabytes * MEGABYTE) - empty
    order = by_interest(pairs, content.baseline, policies[-1]) if pairs else []
    gallery = fill(pairs, order, folder, room, grade, known)
    return page.render(gallery, max_megabytes), gallery


class _Page:
    """Everything but the videos is made once."""

    def __init__(self, content: ReportContent, policies: Sequence[str], notes: Sequence[str]) -> None:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        self.content = content
        self.policies = policies
        self.notes = notes
        self.script, self.css = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self.template = environment.get_template("page.html.jinja")
        self.plots: list[Plot] = training_plots(content.rounds)
        self.histograms: list[Plot] = score_histograms(content.scores)

    def render(self, gallery: Gallery, max_megabytes: float) -> bytes:
        content = self.content
        fixed = {"policies": self.policies, "baseline": content.baseline, "threshold": _threshold(content)}
        data = f'{json_for_html(fixed)[:-1]},"clips":[{",".join(gallery.entries)}]}}'
        text = self.template.render(
            title=content.title,
            subtitle=content.subtitle,
            css=self.css,
            script=self.script,
            script_hash=_hash(self.script),
            notes=self.notes,
            lead=_lead(content),
            baseline=content.baseline,
            headline=_headline(content),
            verdicts=_verdicts(content),
            tables=_tables(content),
            gallery_note=_gallery_note(gallery, max_megabytes),
            has_clips=bool(gallery.total),
            plots=self.plots,
            histograms=self.histograms,
            settings=[
                {"title": title, "rows": [(name, _shown(value)) for name, value in group.items()]}
                for title, group in content.settings.items()
            ],
            commands=[{"what": what, "text": line} for what, line in content.commands],
            data=data,
        )
        return text.encode("utf-8", "replace")


def _threshold(content: ReportContent) -> float | None:
    """From where on a score has passed; `None` where no such number is known."""
    name, _, threshold = headline_of_all(content.summaries).partition("@")
    return float(threshold) if name == "S" else None


def _lead(content: ReportContent) -> str:
    """What the first numbers are."""
    threshold = _threshold(content)
    if threshold is None:
        return f"{headline_of_all(content.summaries)}: the mean score of the videos that are not INVALID"
    return f"S@{threshold}: the share of all videos that score {threshold} or more. INVALID counts as a failure"


def _hash(script: str) -> str:
    """What the page's policy lets run: this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _headline(content: ReportContent) -> list[dict[str, Any]]:
    measure, place = headline_of_all(content.summaries), _axis(content)
    rows = []
    for name, summary in content.summaries.items():
        value, interval = summary.get(measure), summary.get(f"{measure}_interval")
        row = {
            "name": name,
            "is_baseline": name == content.baseline,
            "text": "-" if value is None else f"{value:.3f}",
            "start": place(min(0.0, value or 0.0)),
            "end": place(max(0.0, value or 0.0)),
            "interval": f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "",
            "low": place(interval[0]) if interval else 0,
            "high": place(interval[1]) if interval else 0,
            "difference": "",
            "direction": "",
        }
        difference = content.differences.get(name, {}).get("rewards", {}).get(measure)
        if difference:
            row |= {"difference": difference_text(difference), "direction": _direction(difference["interval"])}
        rows.append(row)
    return rows


def _axis(content: ReportContent) -> Callable[[float], float]:
    """Where on the bars' axis a value stands, in percent; the axis holds [0, 1], or what else there is."""
    measure = headline_of_all(content.summaries)
    known = [one for summary in content.summaries.values() for one in summary.get(f"{measure}_interval") or ()]
    known += [summary[measure] for summary in content.summaries.values() if summary.get(measure) is not None]
    low, high = min([0.0, *known]), max([1.0, *known])
    return lambda value: round(100 * (value - low) / (high - low), 2)


def _direction(interval: Sequence[float]) -> str:
    """Only where 0 lies outside of the interval."""
    return "up" if interval[0] > 0 else "down" if interval[1] < 0 else ""


def _verdicts(content: ReportContent) -> list[dict[str, Any]]:
    told = {name: one["verdict"] for name, one in content.differences.items() if one.get("verdict")}
    return [{"name": name, "warning": one["warning"], "message": one["message"]} for name, one in told.items()]


def _tables(content: ReportContent) -> list[dict[str, Any]]:
    if not content.summaries:
        return []
    rows = summary_rows(content.summaries)
    looks = dict.fromkeys(name for summary in content.summaries.values() for name in summary.get("quality", {}))
    shown = [row for row in rows if row[0] in {headline_of_all(content.summaries), *MEANS, "invalid_rate", *looks}]
    header = ["measure", *content.summaries]
    tables = [
        {"title": "Obedience and looks", "header": header, "rows": shown, "open": True},
        {"title": "All measures", "header": header, "rows": rows, "open": False},
    ]
    columns = {name: all_differences(one) for name, one in content.differences.items()}
    measures = dict.fromkeys(measure for column in columns.values() for measure in column)
    if measures:
        rows = [
            [name, *(difference_text(column[name]) if name in column else "-" for column in columns.values())]
            for name in measures
        ]
        title = f"Differences to {content.baseline}, with paired 95 % intervals over prompts"
        tables.append({"title": title, "header": ["measure", *columns], "rows": rows, "open": False})
    reasons = [
        [reason, name, str(count)]
        for name, summary in content.summaries.items()
        for reason, count in summary.get("invalid_reasons", {}).items()
    ]
    if reasons:
        header = ["reason", "policy", "videos"]
        tables.append({"title": "Why videos are INVALID", "header": header, "rows": reasons, "open": False})
    return tables


def _gallery_note(gallery: Gallery, max_megabytes: float) -> str:
    if not gallery.total:
        return "Nothing was evaluated, so there are no videos to compare."
    shown = len(gallery.entries)
    text = f"{shown} of {gallery.total} prompts and seeds, the policies side by side on the same noise."
    if gallery.missing:
        text += f" Of {gallery.missing} videos the files are gone."
    if shown < gallery.total:
        text += (
            f" The page is held below {max_megabytes:g} MB: the most improved, the most regressed, then types and "
            "prompts in turn. 'spatialalign report --megabytes' sets another size."
        )
    return text


def _shown(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return "-" if value is None or value == "" else str(value)
