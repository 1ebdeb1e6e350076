"""Opening model folders: what is read, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asvd_q.errors import ModelError
from asvd_q.models import SourceModel
from tests.support import tiny_llama

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("pristine"), layers=1, hidden=16, intermediate=24)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in pristine.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def shard(folder: Path) -> None:
    """Spread the weights over two files with an index, as large models come."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    parts = {FIRST: names[::2], SECOND: names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_every_tensor_of_a_folder_is_listed_and_read(pristine: Path) -> None:
    source = SourceModel.open(str(pristine))
    expected = load_file(pristine / SINGLE)
    assert set(source.tensors) == set(expected)
    for name, tensor in expected.items():
        info = source.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert (info.dtype, info.numel) == ("F32", tensor.numel())
        assert torch.equal(source.tensor(name), tensor)
    assert source.dtype == torch.float32
    assert source.config.model_type == "llama"


def test_a_sharded_model_is_the_same_model(pristine: Path, folder: Path) -> None:
    shard(folder)
    whole, sharded = SourceModel.open(str(pristine)), SourceModel.open(str(folder))
    assert set(sharded.tensors) == set(whole.tensors)
    assert {info.file.name for info in sharded.tensors.values()} == {FIRST, SECOND}
    assert all(torch.equal(sharded.tensor(name), whole.tensor(name)) for name in whole.tensors)


def test_what_is_read_is_a_copy(pristine: Path) -> None:
    source = SourceModel.open(str(pristine))
    source.tensor("lm_head.weight").zero_()
    assert source.tensor("lm_head.weight").any()


def test_identity_follows_the_weights_and_not_the_place(pristine: Path, folder: Path) -> None:
    one, two = SourceModel.open(str(pristine)), SourceModel.open(str(folder))
    assert one.identity.weights_sha256 == two.identity.weights_sha256
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, folder / SINGLE)
    changed = SourceModel.open(str(folder)).identity
    assert changed.weights_sha256 != one.identity.weights_sha256
    assert changed.name == "model"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_type_is_that_of_most_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    assert SourceModel.open(str(tiny_llama(tmp_path, layers=1, dtype=dtype))).dtype == dtype


def test_names_are_found_with_and_without_the_base_prefix(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    save_file(
        {name.removeprefix("model."): value for name, value in tensors.items()}, folder / SINGLE
    )
    source = SourceModel.open(str(folder))
    assert source.resolve("model.norm.weight") == "norm.weight"
    assert torch.equal(source.tensor("model.norm.weight"), tensors["model.norm.weight"])
    assert source.resolve("model.nothing.weight") is None
    with pytest.raises(ModelError, match=r"has no weight called model\.nothing\.weight"):
        source.tensor("model.nothing.weight")


def test_companion_files_are_those_that_are_there(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    names = [path.name for path in SourceModel.open(str(folder)).companion_files()]
    assert names == ["tokenizer.json", "generation_config.json"]


def rename_to_pickle(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def rewrite_header(folder: Path, text: str) -> None:
    raw = text.encode()
    (folder / SINGLE).write_bytes(len(raw).to_bytes(8, "little") + raw)


def truncate_by(folder: Path, count: int) -> None:
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[:-count])


def drop_shard(folder: Path) -> None:
    shard(folder)
    (folder / SECOND).unlink()


def write_index(folder: Path, text: str) -> None:
    shard(folder)
    (folder / INDEX).write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-config": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "no-weights": (lambda f: (f / SINGLE).unlink(), r"no weights that can be read: neither"),
    "pickle": (rename_to_pickle, r"only pytorch_model\.bin, a pickle, which is never loaded"),
    "truncated": (
        lambda f: truncate_by(f, 1),
        r"model\.safetensors is truncated: it has \d+ bytes",
    ),
    "cut-in-header": (
        lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:100]),
        r"model\.safetensors is truncated or not a safetensors file",
    ),
    "empty-file": (lambda f: (f / SINGLE).write_bytes(b""), r"model\.safetensors is truncated"),
    "text-file": (
        lambda f: (f / SINGLE).write_text("version https://git-lfs.github.com/spec/v1"),
        r"model\.safetensors is truncated or not a safetensors file",
    ),
    "header-no-json": (
        lambda f: rewrite_header(f, "not JSON"),
        r"model\.safetensors has a damaged",
    ),
    "header-a-list": (
        lambda f: rewrite_header(f, "[]"),
        r"model\.safetensors has a damaged header",
    ),
    "header-no-shape": (
        lambda f: rewrite_header(f, '{"a": {"data_offsets": [0, 0]}}'),
        r"model\.safetensors has a damaged header",
    ),
    "header-odd-shape": (
        lambda f: rewrite_header(f, '{"a": {"data_offsets": [0, 0], "dtype": "F32", "shape": 3}}'),
        r"model\.safetensors has a damaged header",
    ),
    "no-tensors": (lambda f: rewrite_header(f, "{}"), r"holds no tensors"),
    "missing-shard": (drop_shard, r"model-00002-of-00002\.safetensors is named in .* is missing"),
    "index-no-json": (lambda f: write_index(f, "{"), r"index\.json is damaged"),
    "index-no-map": (lambda f: write_index(f, "{}"), r"index\.json is damaged"),
    "index-a-list": (lambda f: write_index(f, "[]"), r"index\.json is damaged"),
    "index-odd-map": (
        lambda f: write_index(f, '{"weight_map": {"a": 3}}'),
        r"index\.json is damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_told_in_one_line(kind: str, folder: Path) -> None:
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        SourceModel.open(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "nothing_known"}', "{}"])
def test_a_damaged_configuration_is_told_in_one_line(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"configuration in .* cannot be read") as caught:
        _ = SourceModel.open(str(folder)).config
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none/at/all", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(ModelError, match=f"there is no folder {path}"):
        SourceModel.open(path)


def test_quantized_models_are_refused_as_a_source(folder: Path) -> None:
    save_file({"a": torch.zeros(100, dtype=torch.int32)}, folder / SINGLE)
    with pytest.raises(ModelError, match=r"stored as I32, .*start from the unquantized model"):
        _ = SourceModel.open(str(folder)).dtype


def test_a_file_damaged_after_opening_is_named(folder: Path) -> None:
    source = SourceModel.open(str(folder))
    truncate_by(folder, 100)
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read .*again"):
        source.tensor("lm_head.weight")
