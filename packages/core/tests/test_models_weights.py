"""Checkpoints of any origin: what loads, what is refused, and in which words."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robust_core.errors import UserError
from robust_core.models import Network, build_model, load_state, load_weights, read_state_dict
from robust_core.models.weights import read_plain

State = dict[str, Any]


@pytest.fixture
def trained() -> Network:
    return build_model("resnet8-s2", 10, seed=1)


@pytest.fixture
def fresh() -> Network:
    return build_model("resnet8-s2", 10, seed=2)


def assert_equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    theirs = second.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {"net": state, "acc": 91.5},
        lambda state: {"model": {"state_dict": state, "name": "x"}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_load_as_they_are(
    wrap: Callable[[State], State], zipped: bool, trained: Network, fresh: Network, tmp_path: Path
) -> None:
    torch.save(wrap(trained.state_dict()), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    load_weights(fresh, tmp_path / "x.pt")
    assert_equal_weights(trained, fresh)


def test_a_wide_resnet_without_the_unused_block_loads() -> None:
    trained, fresh = (build_model("wrn-10-1", 10, seed=seed) for seed in (1, 2))
    load_state(fresh, {k: v for k, v in trained.state_dict().items() if not k.startswith("sub_block1")})
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(trained.eval()(images), fresh.eval()(images))


def refused(model: Network, path: Path) -> str:
    """Return the message, after checking that it is one sentence and that the model did not change."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


class Malicious:
    """A pickle that creates a file when it is executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, old_format, plain_pickle])
@pytest.mark.parametrize("nested", [False, True])
def test_a_malicious_pickle_is_refused_and_never_executed(
    save: Callable[[Any, Path], None], nested: bool, trained: Network, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    content = Malicious(marker)
    save({"state_dict": trained.state_dict(), "extra": content} if nested else content, tmp_path / "evil.pt")
    message = refused(trained, tmp_path / "evil.pt")
    assert not marker.exists()
    assert "refused because loading it could run code" in message
    # The marker does appear where the same file is executed: the test can fail.
    torch.load(tmp_path / "evil.pt", weights_only=False) if save is not plain_pickle else pickle.loads(
        (tmp_path / "evil.pt").read_bytes()
    )
    assert marker.exists()


def test_a_whole_model_is_refused(trained: Network, tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "whole.pt")
    assert "save model.state_dict() instead of the whole model" in refused(trained, tmp_path / "whole.pt")


def test_a_missing_file_is_named(trained: Network, tmp_path: Path) -> None:
    assert "There is no checkpoint file" in refused(trained, tmp_path / "nowhere.pt")
    assert "There is no checkpoint file" in refused(trained, tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_named(zipped: bool, part: float, trained: Network, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert "cut short" in refused(trained, path)


@pytest.mark.parametrize("stride", [61, pytest.param(11, marks=pytest.mark.slow)])
def test_no_flipped_bit_changes_a_weight_silently(stride: int, tmp_path: Path) -> None:
    path = tmp_path / "flipped.pt"
    weights = torch.nn.Linear(7, 3).state_dict()
    torch.save(weights, path)
    content = path.read_bytes()
    positions = range(0, 8 * len(content), stride)
    caught = 0
    for position in positions:
        path.write_bytes(flipped(content, position // 8, position % 8))
        try:
            read = read_plain(path)
        except UserError:
            caught += 1
        else:
            assert read.keys() == weights.keys()
            assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert caught > len(positions) / 4  # much of the file says nothing


def flipped(content: bytes, place: int, bit: int = 0) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_a_damaged_weight_is_one_sentence(trained: Network, fresh: Network, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(trained.state_dict(), path)
    content = path.read_bytes()
    stored = content.index(trained.linear.weight.detach().numpy().tobytes())
    attributes = (
        content.rindex(b"x/data/0") - 8
    )  # of the archive's directory: bit 4 makes a folder of the part
    for place, bit in ((stored, 0), (attributes, 4)):
        path.write_bytes(flipped(content, place, bit))
        message = refused(fresh, path)
        assert re.search(
            r"x\.pt is damaged \(at 'x/data/\d+' inside it\); copy it again, or take another", message
        )


def test_a_file_saved_without_checksums_loads(trained: Network, fresh: Network, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(trained.state_dict(), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    load_weights(fresh, tmp_path / "x.pt")
    assert_equal_weights(trained, fresh)


@pytest.mark.parametrize(
    "content", [b"hello, world\n" * 9, b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(99)]
)
def test_other_files_are_no_checkpoints(content: bytes, trained: Network, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert "is not a checkpoint" in refused(trained, tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, torch.zeros(3), [1, 2], {}, {"state_dict": {"a": 1}}, {3: torch.zeros(1)}]
)
def test_a_checkpoint_without_state_dict_is_named(content: Any, trained: Network, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert "holds no state dict" in refused(trained, tmp_path / "x.pt")


def test_another_architecture_is_named_with_its_keys(trained: Network, tmp_path: Path) -> None:
    torch.save(build_model("wrn-10-1", 10, seed=0).state_dict(), tmp_path / "wrn.pt")
    message = refused(trained, tmp_path / "wrn.pt")
    assert "another architecture than resnet8-s2: it lacks 'bn1." not in message  # both have bn1
    assert "another architecture than resnet8-s2: it lacks 'layer1.0.conv1.weight' and" in message
    assert "has an unexpected 'block1.layer.0.bn1.weight' and" in message


def test_another_width_is_named_with_both_shapes(trained: Network, tmp_path: Path) -> None:
    torch.save(build_model("resnet18-w8", 10, seed=0).state_dict(), tmp_path / "narrow.pt")
    message = refused(build_model("resnet18-w16", 10, seed=0), tmp_path / "narrow.pt")
    assert "'conv1.weight' has the shape (8, 3, 3, 3), expected (16, 3, 3, 3)" in message


def test_another_image_size_is_another_shape(tmp_path: Path) -> None:
    torch.save(build_model("preactresnet18-w4", 10, image_size=64, seed=0).state_dict(), tmp_path / "64.pt")
    message = refused(build_model("preactresnet18-w4", 10, seed=0), tmp_path / "64.pt")
    assert "'linear.weight' has the shape (10, 128), expected (10, 32)" in message


@pytest.mark.parametrize("name", ["resnet8-s2", "wrn-10-1", "preactresnet18-w4"])
def test_another_class_count_is_named_with_both(name: str, tmp_path: Path) -> None:
    torch.save(build_model(name, 100, seed=0).state_dict(), tmp_path / "cifar100.pt")
    message = refused(build_model(name, 10, seed=0), tmp_path / "cifar100.pt")
    assert f"has 100 classes, but the model {name} has 10" in message


def test_a_head_of_one_count_with_a_bias_of_another_names_the_bias(trained: Network) -> None:
    damaged = {**trained.state_dict(), "linear.bias": torch.zeros(3)}
    with pytest.raises(UserError, match=r"'linear\.bias' has the shape \(3,\), expected \(10,\)"):
        load_state(trained, damaged)


def test_state_dicts_in_memory_have_the_same_rules(trained: Network) -> None:
    with pytest.raises(UserError, match=r"^The state dict has 3 classes, but"):
        load_state(trained, build_model("resnet8-s2", 3, seed=0).state_dict())
    with pytest.raises(UserError, match=r"^EMA holds no state dict"):
        load_state(trained, {"a": 1}, source="EMA")


def test_modules_that_are_not_ours_load_too(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "x.pt")
    load_weights(torch.nn.Linear(3, 2), tmp_path / "x.pt")
    with pytest.raises(UserError, match="another architecture than Linear: 'weight' has the shape"):
        load_weights(torch.nn.Linear(4, 2), tmp_path / "x.pt")
    assert list(read_state_dict(tmp_path / "x.pt")) == ["weight", "bias"]
    with pytest.raises(UserError, match="another architecture than Conv2d: it"):
        load_weights(torch.nn.Conv2d(1, 1, 1, bias=False), tmp_path / "x.pt")


def _with(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: state | {"linear.weight": value(state["linear.weight"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _with(lambda weight: weight.to_sparse()),
            "holds a sparse tensor as 'linear.weight', expected a plain",
        ),
        (_with(lambda weight: weight.to("meta")), r"holds an empty \(meta\) tensor as 'linear.weight'"),
        (_with(lambda weight: weight.long()), "holds torch.int64 as 'linear.weight', expected torch.float32"),
        (_with(lambda weight: weight > 0), "holds torch.bool as 'linear.weight'"),
        (_with(lambda weight: weight + 0j), "holds torch.complex64 as 'linear.weight'"),
        (_with(lambda weight: weight * float("nan")), "holds NaN or infinity in 'linear.weight'"),
        (_with(lambda weight: weight.double() * 1e300), "holds NaN or infinity in 'linear.weight'"),
        (
            lambda state: state | {"bn1.running_var": state["bn1.running_var"] / 0},
            "infinity in 'bn1.running_var'",
        ),
    ],
)
def test_what_is_no_finite_float_is_refused(
    change: Callable[[State], State], message: str, trained: Network, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt"
    torch.save(change(trained.state_dict()), path)
    assert re.search(message, refused(build_model("resnet8-s2", 10, seed=2), path))


@pytest.mark.filterwarnings("ignore")  # torch's own, of the types that it gives up
def test_quantised_and_nested_tensors_are_refused(trained: Network) -> None:
    state = trained.state_dict()
    odd = {
        "a quantised": torch.quantize_per_tensor(state["linear.weight"], 0.1, 0, torch.qint8),
        "a nested": torch.nested.nested_tensor(list(state["linear.weight"])),
    }
    for kind, value in odd.items():
        with pytest.raises(UserError, match=f"^EMA holds {kind} tensor as 'linear.weight'"):
            load_state(trained, {**state, "linear.weight": value}, source="EMA")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load(dtype: torch.dtype, trained: Network, fresh: Network) -> None:
    load_state(fresh, {key: value.to(dtype) for key, value in trained.state_dict().items()})
    assert torch.equal(fresh.linear.weight, trained.linear.weight.to(dtype).float())
