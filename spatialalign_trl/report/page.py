"""Render `report.html`: a run or an evaluation as one file for any browser, offline."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
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
    alternate_types,
    fill_gallery,
    json_for_html,
    pair_up,
    rank_by_change,
)
from spatialalign_trl.report.grades import Grade
from spatialalign_trl.report.page_plots import Plot, score_histograms, training_plots
from spatialalign_trl.report.tables import all_differences, headline_of_all, summary_rows

TEMPLATES = Path(__file__).resolve().parent / "templates"
MEGABYTE = 1_000_000

Difference = Mapping[str, Any]


@dataclass
class ReportContent:
    """The content of a page.

    Args:
        title, subtitle (`str`): The heading, and the line below it.
        baseline (`str`): The policy that the others are compared with.
        summaries (`dict`): Policy -> what `evaluation.summarize` returned; empty if nothing was evaluated.
        differences (`dict`): Policy -> `verdict`, and `rewards`, `components` and `quality`, in which each measure has
            a `difference` and an `interval`.
        clips (`list[Clip]`): The videos of all policies.
        rounds (`list[dict]`): The records of a run's rounds; empty for an evaluation.
        scores (`dict`): Name of a histogram -> scores; `None` = INVALID.
        settings (`dict`): Heading -> names and values.
        commands (`list[tuple[str, str]]`): The purpose and the text of commands that a user may want to copy.
        rewards (`dict`): Reward -> its arguments.
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
    known_grades: Mapping[str, Grade],
    max_megabytes: float,
    notes: Sequence[str] = (),
) -> tuple[bytes, Gallery]:
    """Render the page with as many videos as fit.

    Args:
        content ([`ReportContent`]): The content.
        folder (`Path`): The folder that the clips' paths are relative to.
        grade (callable): Computes the curves and boxes that `known_grades` lacks.
        known_grades (`dict`): Sample id -> curves and boxes.
        max_megabytes (`float`): The largest size of the page, in units of 10^6 bytes. Videos that do not fit are left
            out, with a note.
        notes (sequence of `str`, *optional*): Sentences for the top of the page.

    Returns:
        The page as UTF-8, and its gallery.
    """
    policies = list(dict.fromkeys(clip.policy for clip in content.clips))
    pairs: list[Pair] = alternate_types(pair_up(content.clips, content.baseline)) if content.clips else []
    page = _Page(content, policies, list(notes))
    # A page without videos and with the longest possible note shows how many bytes are left for videos.
    size_without_videos = len(page.render(Gallery([], len(pairs), 10**6, {}), max_megabytes))
    room = int(max_megabytes * MEGABYTE) - size_without_videos
    order = rank_by_change(pairs, content.baseline, policies[-1]) if pairs else []
    gallery = fill_gallery(pairs, order, folder, room, grade, known_grades)
    return page.render(gallery, max_megabytes), gallery


def check_page(content: ReportContent) -> None:
    """Render the page without its videos, to find out whether values of another shape are among its content."""
    _Page(content, [], []).render(Gallery([], 0, 0, {}), 1.0)


class _Page:
    """A page that can be rendered with different galleries; the rest of it is prepared once."""

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
        settings = {"policies": self.policies, "baseline": content.baseline, "threshold": _threshold(content)}
        data = f'{json_for_html(settings)[:-1]},"clips":[{",".join(gallery.entries)}]}}'
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
                {"title": title, "rows": [(name, _setting_text(value)) for name, value in group.items()]}
                for title, group in content.settings.items()
            ],
            commands=[{"purpose": purpose, "text": text} for purpose, text in content.commands],
            data=data,
        )
        return text.encode("utf-8", "replace")


def _threshold(content: ReportContent) -> float | None:
    """Return the score at which a video counts as a success, or `None` if the headline measure has none."""
    name, _, threshold = headline_of_all(content.summaries).partition("@")
    return float(threshold) if name == "S" else None


def _lead(content: ReportContent) -> str:
    """Explain the headline measure."""
    threshold = _threshold(content)
    if threshold is None:
        return f"{headline_of_all(content.summaries)}: the mean score of the videos that are not INVALID"
    return f"S@{threshold}: the share of all videos that score {threshold} or more. INVALID counts as a failure"


def _hash(script: str) -> str:
    """Return the hash by which the page's security policy allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _headline(content: ReportContent) -> list[dict[str, Any]]:
    measure = headline_of_all(content.summaries)

    # The bars' axis spans [0, 1], or more if a value or an interval lies outside.
    intervals = [summary.get(f"{measure}_interval") for summary in content.summaries.values()]
    known = [bound for interval in intervals for bound in interval or ()]
    known += [summary[measure] for summary in content.summaries.values() if summary.get(measure) is not None]
    low, high = min([0.0, *known]), max([1.0, *known])

    def percent(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for name, summary in content.summaries.items():
        value, interval = summary.get(measure), summary.get(f"{measure}_interval")
        row = {
            "name": name,
            "is_baseline": name == content.baseline,
            "text": "-" if value is None else f"{value:.3f}",
            "start": percent(min(0.0, value or 0.0)),
            "end": percent(max(0.0, value or 0.0)),
            "interval": f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "",
            "low": percent(interval[0]) if interval else 0,
            "high": percent(interval[1]) if interval else 0,
            "difference": "",
            "direction": "",
        }
        difference = content.differences.get(name, {}).get("rewards", {}).get(measure)
        if difference:
            low_bound, high_bound = difference["interval"]
            # A colour only if the interval excludes 0.
            direction = "up" if low_bound > 0 else "down" if high_bound < 0 else ""
            row |= {"difference": difference_text(difference), "direction": direction}
        rows.append(row)
    return rows


def _verdicts(content: ReportContent) -> list[dict[str, Any]]:
    verdicts = [(name, difference.get("verdict")) for name, difference in content.differences.items()]
    return [
        {"name": name, "warning": verdict["warning"], "message": verdict["message"]}
        for name, verdict in verdicts
        if verdict
    ]


def _tables(content: ReportContent) -> list[dict[str, Any]]:
    if not content.summaries:
        return []
    rows = summary_rows(content.summaries)
    quality = {name for summary in content.summaries.values() for name in summary.get("quality", {})}
    main_measures = {headline_of_all(content.summaries), *MEANS, "invalid_rate"} | quality
    main_rows = [row for row in rows if row[0] in main_measures]
    header = ["measure", *content.summaries]
    tables = [
        {"title": "Obedience and quality", "header": header, "rows": main_rows, "open": True},
        {"title": "All measures", "header": header, "rows": rows, "open": False},
    ]
    columns = {name: all_differences(difference) for name, difference in content.differences.items()}
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
    text = (
        f"{shown} of {gallery.total} pairs of prompt and seed, with the policies side by side. Policies with the same "
        "seeds started from the same noise."
    )
    if gallery.missing:
        text += (
            f" {gallery.missing} video{'' if gallery.missing == 1 else 's'} cannot be shown: the files are missing."
        )
    if shown < gallery.total:
        text += (
            f" The page is limited to {max_megabytes:g} MB, so it shows the most improved and the most regressed "
            "videos, then the other types and prompts in turn. 'spatialalign report --megabytes' sets another limit."
        )
    return text


def _setting_text(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return "-" if value is None or value == "" else str(value)
