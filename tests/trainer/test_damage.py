"""One flipped byte in any file that is kept is found, named, and costs no more than that file."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from tiny_pairs import lora_of, spatialalign_trainer, video_pairs, wan_model

from spatialalign_trl.files import CHECKSUM_FILE, SEAL, damaged_files, is_intact, seal_tensors, write_checksums
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.trainer import checkpoints
from spatialalign_trl.trainer.checkpoints import last_whole_checkpoint, refuse_damaged, set_checkpoints_aside
from spatialalign_trl.trainer.latents import prepare_pairs
from spatialalign_trl.trainer.resuming import refuse_model_only


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(bytes(data))


def positions(path: Path, count: int = 8) -> Iterator[int]:
    """The first and last byte, and others spread over the file."""
    size = path.stat().st_size
    yield from {0, size - 1, *random.Random(0).sample(range(size), min(count, size))}


# The checksum in a safetensors file


def saved(path: Path, **metadata: str) -> bytes:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.float16)}
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return path.read_bytes()


def test_a_seal_keeps_tensors_and_metadata_and_is_the_same_for_equal_content(tmp_path):
    from safetensors import safe_open

    file = tmp_path / "x.safetensors"
    plain = saved(file, z="1", lora="{}")
    sealed = {seal_tensors(saved(file, z="1", lora="{}")) for _ in range(8)}  # safetensors orders metadata at random
    assert len(sealed) == 1 and seal_tensors(next(iter(sealed))) in sealed
    before, after = load(plain), load(next(iter(sealed)))
    file.write_bytes(next(iter(sealed)))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(file, "pt") as opened:
        assert {key: value for key, value in opened.metadata().items() if key != SEAL} == {
            "format": "pt", "z": "1", "lora": "{}",
        }  # fmt: skip
    assert is_intact(plain) and is_intact(file.read_bytes())


def test_every_flipped_bit_of_a_sealed_file_is_found_or_changes_nothing(tmp_path):
    file = tmp_path / "x.safetensors"
    sealed = seal_tensors(saved(file))
    expected, found = load(sealed), 0
    for position in range(len(sealed)):
        for mask in (1, 4, 32, 128):
            damaged = bytearray(sealed)
            damaged[position] ^= mask
            if not is_intact(bytes(damaged)):
                found += 1
                continue
            left = load(bytes(damaged))  # the name of the seal
            assert left.keys() == expected.keys() and all(torch.equal(left[k], expected[k]) for k in left), position
    assert found >= 4 * (len(sealed) - len(SEAL) - 8)


@pytest.mark.parametrize("data", [b"", b"x" * 7, b"\x02" + b"\0" * 7 + b"[]", b"\xff" * 20])
def test_what_is_no_safetensors_file_is_not_intact(data):
    assert not is_intact(data)


# The checksums of a folder


def test_checksums_name_what_is_lost_cut_off_or_changed(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    assert damaged_files(tmp_path) == {}
    write_checksums(tmp_path, ["a", "b", "c"])
    assert damaged_files(tmp_path) == {}
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"b" * 99)
    flip(tmp_path / "c", 50)
    flip(tmp_path / "d", 50)  # was not recorded
    assert damaged_files(tmp_path) == {
        "a": "is missing", "b": "differs from its checksum", "c": "differs from its checksum",
    }  # fmt: skip


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', '{"../a": {"bytes": 1}}', '{"/etc/passwd": {}}'])
def test_checksums_that_are_no_checksums_are_themselves_the_damage(tmp_path, content):
    (tmp_path / CHECKSUM_FILE).write_text(content)
    assert list(damaged_files(tmp_path)) == [CHECKSUM_FILE]


# Checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer = spatialalign_trainer(folder, save_strategy="steps", save_steps=2, max_steps=4)
    trainer.train()
    trainer.save_model()
    return folder


def test_a_resume_reads_a_checkpoint_once_and_again_after_a_change(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "run")
    checkpoint, read = folder / "checkpoint-4", []
    for path in checkpoint.rglob("*"):
        os.utime(path, (1e9, 1e9))
    original = checkpoints.damaged_files
    monkeypatch.setattr(checkpoints, "damaged_files", lambda path: read.append(path) or original(path))
    assert last_whole_checkpoint(folder) == str(checkpoint)
    refuse_damaged(checkpoint)
    assert read == [checkpoint]
    flip(checkpoint / LORA_FILE, -1)
    for _ in range(2):
        with pytest.raises(ValueError, match="differs from its checksum"):
            refuse_damaged(checkpoint)
    assert read.count(checkpoint) == 3  # a file that has just changed is always read


@pytest.mark.parametrize("name", [*checkpoints.TRAINING_STATE])
def test_a_checkpoint_without_the_state_of_its_training_is_neither_found_nor_resumed(trained, tmp_path, name):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "checkpoint-4" / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        refuse_model_only(folder / "checkpoint-4")
    with pytest.warns(UserWarning, match=rf"checkpoint-4 \({name} is missing\)"):
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")


FILES = (
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors",
    "adapter_config.json", LORA_FILE,
)  # fmt: skip


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_of_a_checkpoint_falls_back_to_the_one_before_by_name(trained, tmp_path, name, has_checksums):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    if not has_checksums:  # a checkpoint of an earlier version
        (folder / "checkpoint-4" / CHECKSUM_FILE).unlink()
        if name.endswith(".json"):
            pytest.skip("JSON has no checksum of its own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-4")
    file = folder / "checkpoint-4" / name
    sound = file.read_bytes()
    is_archive = name.endswith(("pt", "pth"))
    inside = sound.index(b"FB") + 70 if is_archive else len(sound) - 1  # of an archive: inside of its first part
    for position in positions(file) if has_checksums else [inside]:
        flip(file, position)
        with pytest.warns(UserWarning, match=rf"checkpoint-4 \({name} .*continuing from checkpoint-2"):
            assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
        file.write_bytes(sound)


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b"PK\x03\x04"), ("scheduler.pt", b""), ("rng_state.pth", b""), ("trainer_state.json", b"{}"),
        ("trainer_state.json", b"[]"), ("trainer_state.json", b'{"global_step": 3}'), (LORA_FILE, b""),
    ],
)  # fmt: skip
def test_an_unreadable_checkpoint_falls_back_with_and_without_checksums(
    trained, tmp_path, name, content, has_checksums
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    if not has_checksums:
        (folder / "checkpoint-4" / CHECKSUM_FILE).unlink()
    (folder / "checkpoint-4" / name).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"checkpoint-4 \({name} .*continuing from checkpoint-2"):
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    (folder / "checkpoint-2" / "scheduler.pt").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-2 \(scheduler.pt is missing\); there is no other: .*step 0"):
        assert last_whole_checkpoint(folder) is None
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_resuming_from_a_damaged_checkpoint_by_name_is_refused(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    flip(folder / "checkpoint-4" / "adapter_model.safetensors", -5)
    again = spatialalign_trainer(folder, save_strategy="no", max_steps=6)
    with pytest.raises(ValueError, match=r"checkpoint-4 is damaged: adapter_model.*Resume from .*checkpoint-2\."):
        again.train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_true_resumes_from_the_newest_sound_checkpoint(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    flip(folder / "checkpoint-4" / "adapter_model.safetensors", -5)
    again = spatialalign_trainer(folder, save_strategy="no", max_steps=4)
    with pytest.warns(UserWarning, match="continuing from checkpoint-2"):
        again.train(resume_from_checkpoint=True)
    saved = load_file(trained / LORA_FILE)
    resumed = {f"transformer.{name}": tensor for name, tensor in lora_of(again).items()}
    assert saved.keys() == resumed.keys() and all(torch.equal(saved[name], resumed[name]) for name in saved)


def test_replaced_checkpoints_are_kept_and_not_found(tmp_path):
    assert set_checkpoints_aside(tmp_path) is None
    for number in (1, 2):
        (tmp_path / "checkpoint-3").mkdir()
        (tmp_path / "checkpoint-3" / "x").write_text(str(number))
        assert set_checkpoints_aside(tmp_path) == tmp_path / f"replaced-{number}"
        assert (tmp_path / f"replaced-{number}" / "checkpoint-3" / "x").read_text() == str(number)
        assert last_whole_checkpoint(tmp_path) is None


# The LoRA


def test_a_damaged_lora_is_not_loaded(trained, tmp_path):
    shutil.copyfile(trained / LORA_FILE, tmp_path / LORA_FILE)
    sound = (tmp_path / LORA_FILE).read_bytes()
    model = wan_model()
    for position in [*positions(tmp_path / LORA_FILE), sound.index(b"lora_alpha") + 14]:
        flip(tmp_path / LORA_FILE, position)
        with pytest.raises(ValueError, match=f"{LORA_FILE} is damaged.*checkpoint of its run"):
            model.load_lora(tmp_path)
        (tmp_path / LORA_FILE).write_bytes(sound)
    model.load_lora(tmp_path)


def test_a_lora_without_a_checksum_is_read_as_it_is(trained, tmp_path):
    from safetensors import safe_open

    with safe_open(trained / LORA_FILE, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != SEAL}
    save_file(load_file(trained / LORA_FILE), tmp_path / LORA_FILE, metadata=metadata)
    model = wan_model()
    model.load_lora(tmp_path)
    assert all(
        torch.equal(load_file(trained / LORA_FILE)[f"transformer.{name}"], tensor)
        for name, tensor in model.lora_state_dict().items()
    )


# Caches


@pytest.mark.parametrize("kind", ["video", "prompt"])
def test_a_damaged_file_of_the_latent_cache_is_computed_again(tmp_path, kind):
    def prepare():
        return prepare_pairs(video_pairs(2), wan_model(), tmp_path, show_progress=False)

    prepare()
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    file = min(tmp_path.glob(f"{kind}-*"))
    for position in positions(file, 4):
        flip(file, position)
        with pytest.warns(UserWarning, match=f"{file.name} is damaged or incomplete. It is computed again"):
            prepare()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected


def test_a_cached_file_that_is_damaged_during_the_training_stops_it(tmp_path):
    pairs = prepare_pairs(video_pairs(2), wan_model(), tmp_path, show_progress=False)
    flip(pairs.latent_files[1, "rejected"], -3)
    assert torch.isfinite(pairs[0]["chosen"]).all()
    with pytest.raises(ValueError, match=r"row 1.*rejected.*cached in .*differs from its checksum. Start again"):
        pairs[1]


def test_a_damaged_prediction_of_the_reference_is_computed_again(tmp_path):
    options = {"precompute_reference": True, "num_fixed_draws": 1, "latent_cache_dir": str(tmp_path / "cache")}

    def train(name: str):
        trainer = spatialalign_trainer(tmp_path / name, max_steps=2, **options)
        trainer.train()
        return lora_of(trainer)

    first = train("first")
    file = min((tmp_path / "cache").glob("reference-*"))
    flip(file, -1, 64)
    with pytest.warns(UserWarning, match=f"{file.name} is damaged or incomplete. It is computed again"):
        second = train("second")
    assert all(torch.equal(first[name], second[name]) for name in first)
