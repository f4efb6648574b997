"""Write a finished run's files into its folder, and print what it achieved."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from spatialalign_trl.evaluation import headline_of, headline_score
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.publishing import (
    CONTACT_SHEET_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    Outcome,
    run_card,
    shown_videos,
    spread_over_types,
)
from spatialalign_trl.online.report import write_run_report
from spatialalign_trl.online.rounds import PREFERENCES_FILE, RunParts
from spatialalign_trl.online.trackers import show_outcome, trackers_of_run
from spatialalign_trl.report.contact_sheet import ContactSheetRow, contact_sheet, score_style
from spatialalign_trl.report.tables import rich_table
from spatialalign_trl.report.write import REPORT_FILE
from spatialalign_trl.safe_text import terminal_text
from spatialalign_trl.trainer.publishing import CARD_FILE
from spatialalign_trl.video import browser_mp4, videos_of


def write_outcome(parts: RunParts, outcome: Outcome) -> None:
    """
    Write the LoRA, its card, the preferences, `results.json`, videos, pictures and the page of a finished run.

    Called on the main process only. The outcome also goes to the trackers and to the console.
    """
    folder, last_round = parts.output_dir, parts.round_folder(parts.args.num_rounds)

    # The last round's LoRA and pairs become the run's.
    write_atomic(folder / LORA_FILE, (last_round / "policy" / LORA_FILE).read_bytes())
    average = last_round / "policy" / "ema" / LORA_FILE
    if average.is_file():
        write_atomic(folder / "ema" / LORA_FILE, average.read_bytes())
    (folder / "preferences").mkdir(exist_ok=True)
    shutil.copyfile(last_round / "preferences" / PREFERENCES_FILE, folder / "preferences" / PREFERENCES_FILE)

    # Numbers and settings.
    write_json(folder / RESULTS_FILE, outcome.results)
    if outcome.recipe is not None:
        write_atomic(folder / RECIPE_FILE, outcome.recipe.settings.encode())

    # What a person looks at: videos, card, contact sheet, trackers, page, console.
    for video_pair, samples in shown_videos(outcome):
        for name, sample in zip((video_pair.before, video_pair.after), samples, strict=True):
            write_atomic(folder / name, browser_mp4(parts.store.video(sample.sample_id), parts.settings.fps))
    run_card(parts, outcome, parts.args.hub_model_id or folder.name).save(folder / CARD_FILE)
    if outcome.evaluated and parts.args.contact_sheet_prompts:
        _draw_contact_sheet(parts, outcome)
    _show_in_trackers(parts, outcome)
    if parts.args.report_megabytes:
        write_run_report(parts, outcome)
    _print_outcome(parts, outcome)


def _draw_contact_sheet(parts: RunParts, outcome: Outcome) -> None:
    rows = [
        ContactSheetRow(
            base.row["prompt"],
            [
                ("base", parts.store.video(base.sample_id), headline_score(base)),
                ("aligned", parts.store.video(aligned.sample_id), headline_score(aligned)),
            ],
            videos_of(base.row),
        )
        for base, aligned in spread_over_types(outcome, parts.args.contact_sheet_prompts)
    ]
    contact_sheet(rows, parts.output_dir / CONTACT_SHEET_FILE, **score_style(parts.runner.names))


def _show_in_trackers(parts: RunParts, outcome: Outcome) -> None:
    """Show the outcome in the trackers, which the rounds' trainers have closed. A failure only warns."""
    if not parts.args.report_to or outcome.results["base"] is None:
        return
    video_names = [name for video_pair, _ in shown_videos(outcome) for name in (video_pair.before, video_pair.after)]
    files = {f"outcome/{Path(name).stem}": parts.output_dir / name for name in (CONTACT_SHEET_FILE, *video_names)}
    try:
        with trackers_of_run(parts.args) as trackers:
            show_outcome(trackers, outcome.results, {name: file for name, file in files.items() if file.is_file()})
    except Exception as error:  # a tracker may be unreachable; the results are on disk
        warnings.warn(f"the outcome is not in the trackers ({type(error).__name__}: {error})", stacklevel=2)


def _print_outcome(parts: RunParts, outcome: Outcome) -> None:
    results, console = outcome.results, parts.console
    base, aligned = results["base"], results["aligned"]
    if base is not None:
        title = f"{base['num_prompts']} held-out prompts x {parts.args.evaluation_seeds} seeds"
        console.print(rich_table({"base": base, "aligned": aligned}, title=title))
        headline = headline_of(results["difference"])
        change = results["difference"][headline]
        low, high = change["interval"]
        difference = f"{headline} {change['difference']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}] (paired)"
        console.print(terminal_text(difference))
        verdict = results["verdict"]
        message = f"{'WARNING' if verdict['warning'] else 'looks'}: {verdict['message']}."
        console.print(terminal_text(message, "bold yellow" if verdict["warning"] else ""), soft_wrap=True)
    for description, name in (
        ("LoRA", LORA_FILE),
        ("preference dataset", "preferences"),
        ("picture", CONTACT_SHEET_FILE),
        ("page", REPORT_FILE),
        ("all numbers", RESULTS_FILE),
    ):
        if (parts.output_dir / name).exists():
            console.print(terminal_text(f"{description}: {parts.output_dir / name}"), soft_wrap=True)
