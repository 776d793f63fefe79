"""The parts of training that need no cluster: order of data, schedule, parameter groups, cache keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants as hub

from rayzero.alignment import registry
from rayzero.config import ConfigError, DataConfig, load_config
from rayzero.storage import file_sha256
from rayzero.studies import lake as lakes
from rayzero.studies.errors import LakeError
from rayzero.studies.examples import stacked
from rayzero.studies.lake import RowGroup, open_lake, write_lake
from rayzero.studies.loading import Source, lake_source, plan, read_examples
from rayzero.studies.study import Report
from rayzero.training import engine, features
from rayzero.training.features import _Encoder, cache_key
from rayzero.training.run import absolute
from tests.encoders.tiny import tiny_bert
from tests.toys import toy_lake, toy_study


def source(sizes: list[int], window: int = 8) -> Source:
    groups = tuple(RowGroup(f"part-{i}", 0, size) for i, size in enumerate(sizes))
    return Source(groups, "train", DataConfig(shuffle_window=window), 64, prepared=True)


def rows(windows: list) -> list[tuple[str, int]]:  # type: ignore[type-arg]
    """The rows that windows yield, as (file, row)."""
    out: list[tuple[str, int]] = []
    for window in windows:
        table = [(g.path, row) for g in window.row_groups for row in range(g.num_rows)]
        order = np.random.default_rng(window.seed).permutation(len(table))[window.skip :]
        out += [table[i] for i in order]
    return out


def test_an_epoch_is_every_image_once_over_all_processes() -> None:
    data = source([5, 3, 7, 4, 6, 5])
    seen = [row for rank in range(2) for row in rows(plan(data, rank=rank, world_size=2, seed=1, skip=0, rows=1))]
    whole = [r for rank in range(2) for r in rows(plan(data, rank=rank, world_size=2, seed=1, skip=0, rows=15))]
    assert len(set(whole[:30])) >= len(set(seen))
    everything = {(f"part-{i}", row) for i, size in enumerate([5, 3, 7, 4, 6, 5]) for row in range(size)}
    one_epoch = [r for rank in range(2) for r in rows(plan(data, rank=rank, world_size=2, seed=1, skip=0, rows=9))]
    assert set(one_epoch) <= everything
    full = rows(plan(data, rank=0, world_size=1, seed=1, skip=0, rows=30))
    assert sorted(full) == sorted(everything)


@pytest.mark.parametrize("skip", [0, 1, 7, 8, 29, 30, 31, 64])
def test_a_resumed_plan_continues_at_the_very_next_image(skip: int) -> None:
    data = source([5, 3, 7, 4, 6, 5])
    uninterrupted = rows(plan(data, rank=1, world_size=2, seed=3, skip=0, rows=100))[:100]
    resumed = rows(plan(data, rank=1, world_size=2, seed=3, skip=skip, rows=100 - skip))[: 100 - skip]
    assert resumed == uninterrupted[skip:]


def test_seeds_and_epochs_differ_and_nothing_else_decides() -> None:
    data = source([8] * 8)
    first = rows(plan(data, rank=0, world_size=1, seed=0, skip=0, rows=128))
    assert first == rows(plan(data, rank=0, world_size=1, seed=0, skip=0, rows=128))
    assert first != rows(plan(data, rank=0, world_size=1, seed=1, skip=0, rows=128))
    assert first[:64] != first[64:128]


def test_more_processes_than_row_groups_still_train() -> None:
    data = source([6])
    for rank in range(3):
        assert len(rows(plan(data, rank=rank, world_size=3, seed=0, skip=0, rows=10))) >= 10
    with pytest.raises(ValueError, match="no row groups"):
        plan(source([]), rank=0, world_size=1, seed=0, skip=0, rows=1)


def test_lake_rows_are_counted_as_images(tmp_path: Path) -> None:
    toy_lake(str(tmp_path / "lake"), train=40, validation=4, test=4)
    lake = open_lake(str(tmp_path / "lake"))
    found = lake_source(lake, "train", DataConfig(), 64)
    assert sum(group.num_rows for group in found.row_groups) == 40
    examples = read_examples(found, found.row_groups[0])
    assert examples.num_rows == found.row_groups[0].num_rows
    assert stacked(examples).shape[1:] == (1, 64, 64)
    with pytest.raises(LakeError, match="has no lateral image"):
        lake_source(lake, "train", DataConfig(views=("lateral",)), 64)


def test_norms_biases_and_temperature_do_not_decay(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    config = load_config(None, [f"text.encoder={folder}", "vision.resolution=64", "model.heads=2", "text.lr_scale=0.5"])
    model = registry.build(config)
    groups = engine.parameter_groups(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    still = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert "log_temperature" in still
    assert not any(name.endswith("bias") or "norm" in name.lower() or "scale" in name for name in decayed)
    assert decayed | still == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("vision") for name in decayed | still)
    assert {group["lr_scale"] for group in groups} == {1.0, 0.5}


def test_cached_features_are_shared_exactly_when_they_are_the_same(tmp_path: Path) -> None:
    lake = toy_lake(str(tmp_path / "lake"), train=4, validation=2, test=2)
    base = load_config(None, [])
    key = cache_key(base, lake, "train")
    assert key == cache_key(load_config(None, ["training.lr=1", "seed=7", "data.shuffle_window=3"]), lake, "train")
    shown = ("vision.resolution=64", "data.intensity=minmax", "data.geometry=pad", "data.crop=0.9")
    for change in (*shown, "data.views=[lateral]"):
        assert key != cache_key(load_config(None, [change]), lake, "train")
    assert key != cache_key(base, lake, "validation")
    # A study may have a report and no sentence, or the other way round, and is then trained on by the one alone.
    reports = load_config(None, ["data.texts=report"])
    assert key != cache_key(reports, lake, "train")
    assert key == cache_key(load_config(None, ["data.texts=caption"]), lake, "train")
    assert cache_key(base, lake, "validation") == cache_key(reports, lake, "validation")


def test_features_of_an_encoder_that_was_trained_further_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def digest(path: Path) -> str:
        read.append(path.parent.name)
        return file_sha256(path)

    monkeypatch.setattr(features, "file_sha256", digest)
    lake = toy_lake(str(tmp_path / "lake"), train=4, validation=2, test=2)

    def key(name: str) -> str:
        return cache_key(load_config(None, [f"vision.encoder={tmp_path / name}"]), lake, "train")

    for name in ("encoder", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    before = key("encoder")
    assert key("copy") == before
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"other weights")
    assert key("encoder") != before
    # Weights are gigabytes: what did not change is not read again.
    assert key("copy") == before
    assert read == ["encoder", "copy", "encoder"]


def test_features_of_another_commit_of_a_hub_encoder_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    lake = toy_lake(str(tmp_path / "lake"), train=4, validation=2, test=2)
    config = load_config(None, ["vision.encoder=some-group/chest-encoder"])
    repository = tmp_path / "hub" / "models--some-group--chest-encoder"
    (repository / "refs").mkdir(parents=True)

    def key(commit: str) -> str:
        (repository / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (repository / "snapshots" / commit / "config.json").write_text('{"model_type": "vit"}')
        (repository / "refs" / "main").write_text(commit)
        features._commit.cache_clear()
        return cache_key(config, lake, "train")

    first = key("a" * 40)
    assert key("b" * 40) != first == key("a" * 40)
    # A sweep that runs while the hub changes stays with one encoder.
    (repository / "refs" / "main").write_text("b" * 40)
    assert cache_key(config, lake, "train") == first
    with pytest.raises(ConfigError, match=r"vision\.encoder='some-group/none' cannot be loaded"):
        cache_key(load_config(None, ["vision.encoder=some-group/none"]), lake, "train")


def test_features_beyond_the_range_of_the_cache_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, ["vision.resolution=64"])
    monkeypatch.setattr(features, "build_vision", lambda vision, data: torch.nn.Identity())
    encoder = _Encoder(config, {}, "cpu")
    assert encoder._encode(torch.full((2, 3), 65000.0)).dtype == torch.float16
    with pytest.raises(ConfigError, match=r"vision.encoder=efficientnet-lite0 gives features .* beyond the 65,504"):
        encoder._encode(torch.full((2, 3), 66000.0))


def test_an_actor_hands_back_why_it_cannot_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = toy_lake(str(tmp_path / "lake"), train=4, validation=2, test=2)
    config = load_config(None, ["vision.resolution=64", f"vision.encoder={tmp_path}/nowhere"])
    found = lake_source(lake, "train", config.data, 64, with_text=True)
    item = {"folder": np.array([str(tmp_path)]), "id": np.array([0])}
    answer = _Encoder(config, {str(tmp_path): found}, "cpu")(item)
    assert answer["error"].tolist() == ["ConfigError"]
    assert str(answer["reason"][0]).startswith(f"vision.encoder='{tmp_path}/nowhere' cannot be loaded")
    monkeypatch.setattr(features, "build_vision", lambda vision, data: torch.nn.Identity())
    gone = replace(found, row_groups=(replace(found.row_groups[0], path=f"{tmp_path}/gone.parquet"),))
    answer = _Encoder(config, {str(tmp_path): gone}, "cpu")(item)
    assert answer["error"].tolist() == ["LakeError"]
    assert "gone.parquet" in str(answer["reason"][0])


def test_several_may_fill_one_cache_and_go_on_with_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = toy_lake(str(tmp_path / "lake"), train=6, validation=2, test=2)
    config = load_config(None, ["vision.resolution=64"])
    found = lake_source(lake, "train", config.data, 64, with_text=True)
    folder = tmp_path / "cache"
    folder.mkdir()
    first, second = (_Encoder(config, {str(folder): found}, "cpu") for _ in range(2))
    item = {"folder": np.array([str(folder)]), "id": np.array([0])}
    encode, others = first._encode, []

    def while_another_writes(pixels: torch.Tensor) -> torch.Tensor:
        # Nothing of a part is to be seen before all of it.
        assert not list(folder.glob("part-*"))
        monkeypatch.setattr(first, "_encode", encode)
        others.append(second(item))
        return encode(pixels)

    monkeypatch.setattr(first, "_encode", while_another_writes)
    done = first(item)
    assert done == others[0]
    assert int(done["num_rows"][0]) == found.row_groups[0].num_rows
    part = Path(str(done["path"][0]))
    assert [path.name for path in folder.iterdir()] == [part.name]
    written = part.read_bytes()
    group = replace(found.row_groups[0], path=str(part), index=0)
    assert read_examples(replace(found, prepared=True), group).num_rows == group.num_rows
    # A run that was stopped has left this part to the next.
    monkeypatch.setattr(second, "_write", lambda *_: pytest.fail("encoded again"))
    assert second(item) == done
    assert part.read_bytes() == written
    # The same studies in other row groups have parts of their own.
    monkeypatch.setattr(lakes, "GROUP_STUDIES", 2)
    again = toy_lake(str(tmp_path / "again"), train=6, validation=2, test=2)
    assert again.fingerprint == lake.fingerprint
    cut = lake_source(again, "train", config.data, 64, with_text=True)
    (other,) = _Encoder(config, {str(folder): cut}, "cpu")(item)["path"]
    assert pq.read_metadata(str(other)).num_rows == cut.row_groups[0].num_rows < found.row_groups[0].num_rows


def test_studies_without_text_are_left_out_of_training_alone(tmp_path: Path) -> None:
    studies = [toy_study(index, "train") for index in range(6)]
    silent = [replace(one, sentences=(), report=Report()) for one in studies[:2]] + studies[2:]
    lake = write_lake(str(tmp_path / "lake"), silent)
    for texts in ("sentences", "caption", "report"):
        data = DataConfig(texts=texts)
        found = lake_source(lake, "train", data, 64, with_text=True)
        rows_read = sum(read_examples(found, group).num_rows for group in found.row_groups)
        assert found.num_rows == rows_read == 4
        assert lake_source(lake, "train", data, 64).num_rows == 6


def test_local_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    config = load_config(None, ["storage=runs", "data.lake=s3://bucket/lake", "text.encoder=encoder"])
    found = absolute(config)
    assert found.storage == str(tmp_path / "runs")
    assert found.data.lake == "s3://bucket/lake"
    assert found.text.encoder == str(tmp_path / "encoder")
    assert (found.data.cache, found.vision.encoder) == ("", config.vision.encoder)
    alta = absolute(load_config(None, ["system=alta", "model.mrm=bundles/mrm"]))
    assert alta.model["mrm"] == str(tmp_path / "bundles" / "mrm")
