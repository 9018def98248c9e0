"""What the machine offers is resolved once, and what a resume loses is said."""

from __future__ import annotations

import re

import pytest
import torch

from robust_core.errors import UserError
from robust_core.training import machine as machine_module
from robust_core.training.machine import (
    bf16_units,
    can_compile,
    processor_name,
    resolve_machine,
    resolve_precision,
    resumed_machine,
)
from robust_core.training.memory import peak_memory_mib


@pytest.mark.parametrize(
    ("flags", "units"),
    [({"amx_bf16", "avx2"}, True), ({"avx512_bf16"}, True), ({"avx512f"}, False), (set(), False)],
)
def test_precision_follows_the_processor(monkeypatch, flags, units):
    monkeypatch.setattr(machine_module, "cpu_flags", lambda: frozenset(flags))
    assert bf16_units("cpu") is units
    name, why = resolve_precision("auto", "cpu")
    assert name == ("bfloat16" if units else "float32")
    assert "bfloat16" in why


def test_precision_by_name():
    assert resolve_precision("bf16", "cpu")[0] == "bfloat16"
    assert resolve_precision("float32", "cpu")[0] == "float32"
    with pytest.raises(UserError, match="use auto, float32 or bf16"):
        resolve_precision("half", "cpu")


@pytest.mark.parametrize("device", ["tpu", "mps", "gpu0"])
def test_unknown_devices_are_refused(device):
    with pytest.raises(UserError, match=device):
        resolve_machine(device=device)


def test_cuda_without_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="use --device cpu"):
        resolve_machine(device="cuda")
    assert resolve_machine(device="auto")[0].device == "cpu"


def test_compilation_is_for_long_bfloat16_runs(monkeypatch):
    monkeypatch.setattr(machine_module, "can_compile", lambda device: (True, ""))
    assert resolve_machine(device="cpu", precision="bf16", total_steps=500)[0].compile
    assert not resolve_machine(device="cpu", precision="bf16", total_steps=499)[0].compile
    assert not resolve_machine(device="cpu", precision="float32", total_steps=5000)[0].compile
    assert resolve_machine(device="cpu", precision="float32", compile=True)[0].compile


def test_without_a_compiler_the_run_says_so_and_goes_on(monkeypatch):
    monkeypatch.setattr(machine_module, "can_compile", lambda device: (False, "no C++ compiler was found"))
    resolved, notes = resolve_machine(device="cpu", compile=True)
    assert not resolved.compile
    assert any("no C++ compiler was found: the attack runs uncompiled" in note for note in notes)


COMPILERS = [
    ({}, {"gcc", "clang", "cc"}, True),
    ({}, {"clang"}, True),
    ({}, {"cc"}, False),  # Triton does not look for it
    ({"CC": "cc"}, {"cc"}, True),
    ({"CC": "icx"}, {"gcc"}, False),  # nor beyond what CC names
    ({}, set(), False),
]


@pytest.mark.parametrize(("variables", "programs", "found"), COMPILERS)
def test_a_gpu_needs_a_c_compiler_to_compile(monkeypatch, variables, programs, found):
    monkeypatch.delenv("CC", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine_module, "find_spec", lambda name: name)
    monkeypatch.setattr(machine_module.shutil, "which", lambda name: name if name in programs else None)
    assert can_compile("cuda:0") == (found, "" if found else "no C compiler was found")


def test_a_gpu_needs_triton_to_compile(monkeypatch):
    monkeypatch.setattr(machine_module, "find_spec", lambda name: None)
    assert can_compile("cuda:0") == (False, "the package triton was not found")


def test_resuming_on_the_same_machine_says_nothing():
    stored = resolve_machine(device="cpu", threads=1)[0].to_dict()
    again, notes = resumed_machine(stored)
    assert again.to_dict() == stored
    assert notes == []


def test_resuming_on_another_machine_is_one_warning(monkeypatch):
    stored = resolve_machine(device="cpu", threads=3)[0].to_dict()
    stored.update(processor="another", device="cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    again, notes = resumed_machine(stored)
    assert again.threads == 3
    assert again.device == "cpu"
    assert len(notes) == 1
    assert "equality to the bit" in notes[0]
    assert "another" in notes[0]


def test_resuming_where_that_gpu_is_not_takes_the_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    stored = {**resolve_machine(device="cpu", threads=1)[0].to_dict(), "processor": "some GPU"}
    again, notes = resumed_machine({**stored, "device": "cuda:3"})
    assert again.device == "cuda:0"
    assert "device cuda:3 -> cuda:0" in notes[0]
    assert resumed_machine({**stored, "device": "cuda:0"})[0].device == "cuda:0"


ODD = [
    *(("device", "xpu"), ("device", "cuda:x"), ("device", 3), ("device", "auto")),
    *(("threads", "x"), ("threads", 0), ("threads", 10**9), ("threads", True), ("threads", 1.5)),
    *(("precision", "fp8"), ("precision", None), ("precision", []), ("train_precision", "bf16")),
    *(("compile", "no"), ("compile", 1)),
]


@pytest.mark.parametrize(("name", "value"), ODD)
def test_a_stored_machine_that_cannot_be_is_one_sentence(name, value):
    stored = resolve_machine(device="cpu", threads=1)[0].to_dict()
    shown = re.escape(f'{name} {value!r} under "machine"; expected ')
    with pytest.raises(UserError, match=rf"The run's config\.json has {shown}.*; restore it, or start"):
        resumed_machine({**stored, name: value})
    del stored[name]
    with pytest.raises(UserError, match=rf"has no {name} under \"machine\""):
        resumed_machine(stored)


@pytest.mark.parametrize("stored", [None, 3, [], "cpu"])
def test_a_missing_stored_machine_is_one_sentence(stored):
    with pytest.raises(UserError, match=r"config\.json has no settings under \"machine\""):
        resumed_machine(stored)


def test_processor_and_memory_have_values():
    assert processor_name()
    memory = peak_memory_mib("cpu")
    assert memory is None or memory > 10
